//! Where in a function a probe may go, and what it costs there.
//!
//! A uprobe replaces an instruction with a trap. The kernel emulates a few instructions in the trap handler itself and
//! single-steps a copy of any other, at ten times the cost (arch/x86/kernel/uprobes.c: `branch_setup_xol_ops`,
//! `push_setup_xol_ops`). So every probe is put on an emulated instruction. Instruction boundaries are those of a linear
//! decoding from the function's start: a probe inside an instruction would corrupt the target.

use std::collections::BTreeSet;

use agent_ebpf::spec::arg;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};
use thiserror::Error;

use super::elf::FileAddr;
use crate::limits::{FUNCTION_BYTES_MAX, PROLOGUE_BYTES_MAX};

/// What one hit of a probe makes the kernel do besides running the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// About 1 µs.
    Emulated,
    /// Two traps, over 10 µs on some hosts.
    SingleStepped,
}

impl Cost {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::SingleStepped => "single-stepped",
        }
    }
}

/// Why no place in a function will do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("no code at {0:#x}")]
    NoCode(FileAddr),
    #[error("the bytes at {0:#x} are no instruction")]
    Undecodable(FileAddr),
    #[error("the function has {0} bytes, more than is decoded")]
    TooLong(u64),
    #[error("it begins with `{first}`, which the kernel single-steps, and {then}")]
    SingleStepped { first: String, then: &'static str },
    #[error("the caller has no direct call of it")]
    NoCall,
    #[error("after the call at {call:#x}, {then}")]
    AfterCall { call: FileAddr, then: &'static str },
}

/// The kernel emulates this instruction, given as its exact bytes.
///
/// On purpose narrower than the newest kernels, which take more forms of nop: a plan must be right on all of them. An operand
/// size prefix on a branch is refused by the kernel, and other prefixes are not worth knowing.
#[must_use]
#[expect(clippy::unnested_or_patterns, reason = "one line an instruction")]
pub fn is_emulated(instruction: &[u8]) -> bool {
    matches!(
        instruction,
        // push r64, the upper eight with REX.B
        [0x50..=0x57] | [0x41, 0x50..=0x57]
        // nop, xchg ax,ax
        | [0x90] | [0x66, 0x90]
        // jmp and jcc, short
        | [0xeb | 0x70..=0x7f, _]
        // call, jmp
        | [0xe8 | 0xe9, _, _, _, _]
        // jcc, near
        | [0x0f, 0x80..=0x8f, _, _, _, _]
    )
}

/// A function decoded from its first byte on.
#[derive(Debug)]
pub struct Function<'a> {
    start: FileAddr,
    code: &'a [u8],
    instructions: Vec<Instruction>,
    targets: BTreeSet<u64>,
}

impl<'a> Function<'a> {
    /// `code` are the function's bytes, all of them, or the most that may be decoded.
    pub fn decode(start: FileAddr, code: &'a [u8]) -> Result<Self, Refusal> {
        let bytes = u64::try_from(code.len()).unwrap_or(u64::MAX);
        if bytes == 0 {
            return Err(Refusal::NoCode(start));
        }
        if bytes > FUNCTION_BYTES_MAX || start.0.checked_add(bytes).is_none() {
            return Err(Refusal::TooLong(bytes));
        }
        let mut instructions = Vec::new();
        let mut targets = BTreeSet::new();
        for instruction in &mut Decoder::with_ip(64, code, start.0, DecoderOptions::NONE) {
            if instruction.code() == Code::INVALID {
                return Err(Refusal::Undecodable(FileAddr(instruction.ip())));
            }
            if matches!(instruction.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch) {
                targets.insert(instruction.near_branch_target());
            }
            instructions.push(instruction);
        }
        Ok(Self { start, code, instructions, targets })
    }

    #[must_use]
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    fn bytes_of(&self, instruction: &Instruction) -> &'a [u8] {
        let at = instruction.ip().checked_sub(self.start.0).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.code.get(at..at.checked_add(instruction.len())?)).unwrap_or_default()
    }

    fn emulates(&self, instruction: &Instruction) -> bool {
        is_emulated(self.bytes_of(instruction))
    }

    /// The entry, or the first emulated instruction of the straight line from it at which `args` are still untouched.
    pub fn entry(&self, args: u8) -> Result<FileAddr, Refusal> {
        let first = self.instructions.first().ok_or(Refusal::NoCode(self.start))?;
        let refuse = |then| Err(Refusal::SingleStepped { first: mnemonic(first), then });
        let mut factory = InstructionInfoFactory::new();
        for instruction in &self.instructions {
            if instruction.ip() - self.start.0 > PROLOGUE_BYTES_MAX {
                return refuse("its prologue has no emulated one");
            }
            if instruction.ip() != self.start.0 && self.targets.contains(&instruction.ip()) {
                return refuse("a jump leads to the next that it emulates or before it");
            }
            if self.emulates(instruction) {
                return Ok(FileAddr(instruction.ip()));
            }
            if instruction.flow_control() != FlowControl::Next {
                return refuse("it leaves the straight line before one that it emulates");
            }
            if writes(&mut factory, instruction) & args != 0 {
                return refuse("its arguments are overwritten before one that it emulates");
            }
        }
        refuse("it ends before one that it emulates")
    }

    /// For each direct call of `callee`, the first emulated instruction after it; all of them, or a refusal: a mark that is
    /// sometimes missing would charge one phase with another's time.
    ///
    /// Jumps may lead to that instruction from elsewhere in the function (it may be the head of a loop). Then it is taken only
    /// if no path leads there from the call of another mark without a call of `callee` in between: the probe may then fire
    /// more than once, but never while another mark was the last to be passed.
    /// `data` reads the file's bytes at an address: jump tables.
    pub fn after_calls(
        &self,
        callee: FileAddr,
        marks: &BTreeSet<FileAddr>,
        data: &dyn Fn(FileAddr, u64) -> Vec<u8>,
    ) -> Result<Vec<FileAddr>, Refusal> {
        let mut places = Vec::new();
        let mut from_marks = None;
        for (index, call) in self.instructions.iter().enumerate() {
            if calls(call, callee) {
                let following = self.instructions.get(index + 1..).unwrap_or_default();
                let place = self.after(FileAddr(call.ip()), following)?;
                let reached = from_marks.get_or_insert_with(|| self.reached_from(marks, callee, data));
                if reached.contains(&place) {
                    let then = "a path leads from another phase to the next emulated instruction";
                    return Err(Refusal::AfterCall { call: FileAddr(call.ip()), then });
                }
                places.push(place);
            }
        }
        if places.is_empty() { Err(Refusal::NoCall) } else { Ok(places) }
    }

    fn after(&self, call: FileAddr, following: &[Instruction]) -> Result<FileAddr, Refusal> {
        let refuse = |then| Err(Refusal::AfterCall { call, then });
        for instruction in following {
            if self.emulates(instruction) {
                return Ok(FileAddr(instruction.ip()));
            }
            if instruction.flow_control() != FlowControl::Next {
                return refuse("the straight line ends before an emulated instruction");
            }
        }
        refuse("the function ends")
    }

    /// Instructions that run after a call of one of `marks` and before the next call of `barrier`, on any path.
    fn reached_from(
        &self,
        marks: &BTreeSet<FileAddr>,
        barrier: FileAddr,
        data: &dyn Fn(FileAddr, u64) -> Vec<u8>,
    ) -> BTreeSet<FileAddr> {
        let is_mark = |call: &Instruction| call.is_call_near() && marks.contains(&FileAddr(call.near_branch_target()));
        let mut reached = BTreeSet::new();
        let mut pending: Vec<usize> = (0..self.instructions.len())
            .filter(|index| self.instructions.get(*index).is_some_and(is_mark))
            .map(|index| index + 1)
            .collect();
        // Each instruction is followed once, so this ends.
        while let Some(index) = pending.pop() {
            let Some(instruction) = self.instructions.get(index) else { continue };
            if !reached.insert(FileAddr(instruction.ip())) || calls(instruction, barrier) {
                continue;
            }
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => pending.push(index + 1),
                FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                    pending.push(index + 1);
                    pending.extend(self.index_of(instruction.near_branch_target()));
                }
                FlowControl::UnconditionalBranch => pending.extend(self.index_of(instruction.near_branch_target())),
                FlowControl::IndirectBranch => match self.cases(instruction, data) {
                    cases if cases.is_empty() => pending.extend(self.unentered()),
                    cases => pending.extend(cases),
                },
                FlowControl::Return | FlowControl::Interrupt | FlowControl::Exception => {}
            }
        }
        reached
    }

    fn index_of(&self, ip: u64) -> Option<usize> {
        self.instructions.binary_search_by_key(&ip, Instruction::ip).ok()
    }

    /// Where `jmp [table + 8 * register]` leads, which is how compilers write a switch where code does not move. The table
    /// ends where the next one begins, or where an entry is no instruction of this function.
    fn cases(&self, jump: &Instruction, data: &dyn Fn(FileAddr, u64) -> Vec<u8>) -> Vec<usize> {
        const CASES_MAX: u64 = 256;
        let Some(start) = jump_table(jump) else { return Vec::new() };
        let others = self.instructions.iter().filter_map(jump_table);
        let limit = start.0.saturating_add(CASES_MAX * 8);
        let end = others.map(|other| other.0).filter(|other| *other > start.0).min().unwrap_or(limit).min(limit);
        let table = data(start, end - start.0);
        let (entries, _) = table.as_chunks::<8>();
        entries.iter().map_while(|entry| self.index_of(u64::from_le_bytes(*entry))).collect()
    }

    /// Where any other jump through a register may lead: what the line before does not run into. (Of several cases that run into one
    /// another, the first is among these.)
    fn unentered(&self) -> impl Iterator<Item = usize> {
        let ends_line = |instruction: &Instruction| {
            matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Exception
            )
        };
        self.instructions.iter().enumerate().filter(move |(_, before)| ends_line(before)).map(|(index, _)| index + 1)
    }

    /// Targets of direct calls, in order of their calls.
    pub fn callees(&self) -> impl Iterator<Item = FileAddr> {
        self.instructions
            .iter()
            .filter(|instruction| instruction.is_call_near())
            .map(|call| FileAddr(call.near_branch_target()))
    }

    /// It calls through a register or memory.
    #[must_use]
    pub fn calls_indirectly(&self) -> bool {
        self.instructions.iter().any(|instruction| instruction.flow_control() == FlowControl::IndirectCall)
    }

    /// The most that one instruction takes from the stack, or that a loop takes page by page.
    #[must_use]
    pub fn stack_bytes(&self) -> u64 {
        let taken = self.instructions.iter().map(|instruction| match instruction.code() {
            Code::Sub_rm64_imm32 if instruction.op0_register() == Register::RSP => {
                u64::try_from(instruction.immediate32to64()).unwrap_or(0)
            }
            Code::Lea_r64_m if instruction.memory_base() == Register::RSP => {
                u64::try_from(instruction.memory_displacement64().cast_signed().checked_neg().unwrap_or(0)).unwrap_or(0)
            }
            _ => 0,
        });
        taken.max().unwrap_or(0)
    }

    /// Displacements from any register but the stack's: the fields of objects that the function touches.
    #[must_use]
    pub fn fields(&self) -> BTreeSet<i64> {
        self.instructions.iter().filter_map(|instruction| field(instruction, None)).collect()
    }

    /// The field of the first argument that the first instruction with one touches.
    #[must_use]
    pub fn first_field_of_rdi(&self) -> Option<i64> {
        self.instructions.iter().take(8).find_map(|instruction| field(instruction, Some(Register::RDI)))
    }

    /// What `register` is loaded with by the last `lea register, [rip + x]` before each direct call of `callee`, in order.
    #[must_use]
    pub fn loaded_before_calls(&self, callee: FileAddr, register: Register) -> Vec<Option<FileAddr>> {
        let mut loaded = None;
        let mut at_calls = Vec::new();
        for instruction in &self.instructions {
            if instruction.is_call_near() {
                if instruction.near_branch_target() == callee.0 {
                    at_calls.push(loaded);
                }
                loaded = None;
            } else if let Some((into, addr)) = address_load(instruction)
                && into == register
            {
                loaded = Some(addr);
            }
        }
        at_calls
    }

    /// What the function forms that may be addresses.
    pub fn addresses(&self) -> impl Iterator<Item = FileAddr> {
        self.instructions.iter().filter_map(address_formed)
    }

    /// Where the function reads constants relative to itself.
    pub fn constants(&self) -> impl Iterator<Item = FileAddr> {
        let reads = self.instructions.iter().filter(|instruction| instruction.code() != Code::Lea_r64_m);
        reads
            .filter(|instruction| instruction.is_ip_rel_memory_operand())
            .map(|instruction| FileAddr(instruction.ip_rel_memory_address()))
    }
}

fn jump_table(jump: &Instruction) -> Option<FileAddr> {
    let is_table = jump.code() == Code::Jmp_rm64
        && jump.op0_kind() == OpKind::Memory
        && jump.memory_base() == Register::None
        && jump.memory_index() != Register::None
        && jump.memory_index_scale() == 8;
    is_table.then(|| FileAddr(jump.memory_displacement64()))
}

/// A direct call.
fn calls(instruction: &Instruction, callee: FileAddr) -> bool {
    instruction.is_call_near() && instruction.near_branch_target() == callee.0
}

/// `lea register, [rip + x]`, or `mov register, x` in code that is not position independent.
fn address_load(instruction: &Instruction) -> Option<(Register, FileAddr)> {
    match instruction.code() {
        Code::Lea_r64_m if instruction.is_ip_rel_memory_operand() => {
            Some((instruction.op0_register(), FileAddr(instruction.ip_rel_memory_address())))
        }
        Code::Mov_r32_imm32 => {
            Some((instruction.op0_register().full_register(), FileAddr(u64::from(instruction.immediate32()))))
        }
        _ => None,
    }
}

/// Likewise, or stored right away: `mov [object + field], x`.
fn address_formed(instruction: &Instruction) -> Option<FileAddr> {
    if instruction.code() == Code::Mov_rm64_imm32 {
        return u64::try_from(instruction.immediate32to64()).ok().map(FileAddr);
    }
    address_load(instruction).map(|(_, addr)| addr)
}

fn field(instruction: &Instruction, of: Option<Register>) -> Option<i64> {
    let has_memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    let base = instruction.memory_base();
    let of_object = of.map_or(!matches!(base, Register::None | Register::RSP | Register::RIP), |of| base == of);
    (has_memory && of_object).then(|| instruction.memory_displacement64().cast_signed())
}

fn mnemonic(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}

/// Argument registers that the instruction may change, as bits of [`arg`].
fn writes(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> u8 {
    let mut written = arg::NONE;
    for used in factory.info(instruction).used_registers() {
        match used.access() {
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {}
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess => continue,
        }
        written |= match used.register().full_register() {
            Register::RDI => arg::RDI,
            Register::RSI => arg::RSI,
            Register::RDX => arg::RDX,
            Register::RCX => arg::RCX,
            _ => arg::NONE,
        };
    }
    written
}

/// The first address that the code forms and that `is_data` accepts.
#[must_use]
pub fn first_data_address(code: &[u8], start: FileAddr, is_data: impl Fn(FileAddr) -> bool) -> Option<FileAddr> {
    Decoder::with_ip(64, code, start.0, DecoderOptions::NONE)
        .iter()
        .take_while(|instruction| instruction.code() != Code::INVALID)
        .filter_map(|instruction| address_formed(&instruction))
        .find(|addr| is_data(*addr))
}

/// The offset of the first thing that a function reads of what its first argument points to, before any jump or call.
#[must_use]
pub fn first_load_from_rdi(code: &[u8], start: FileAddr) -> Option<u32> {
    let mut copies = vec![Register::RDI];
    for instruction in &mut Decoder::with_ip(64, code, start.0, DecoderOptions::NONE) {
        if instruction.code() == Code::INVALID || instruction.flow_control() != FlowControl::Next {
            return None;
        }
        if let Some(at) = copies.iter().find_map(|copy| field(&instruction, Some(*copy))) {
            return u32::try_from(at).ok();
        }
        let is_copy = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64);
        if is_copy && copies.contains(&instruction.op1_register()) {
            copies.push(instruction.op0_register());
        }
    }
    None
}

/// The constant that a function of the shape `return N;` returns.
#[must_use]
pub fn returned_constant(code: &[u8], start: FileAddr) -> Option<u32> {
    let mut constant = None;
    for instruction in Decoder::with_ip(64, code, start.0, DecoderOptions::NONE).iter().take(8) {
        if instruction.code() == Code::INVALID {
            return None;
        }
        if instruction.flow_control() == FlowControl::Return {
            return constant;
        }
        if instruction.code() == Code::Mov_r32_imm32 && instruction.op0_register() == Register::EAX {
            constant = Some(instruction.immediate32());
        }
    }
    None
}

/// Where `GlobalHandles::Create` finds the space of its nodes: the offset of the first pointer in `this` of which it then reads the
/// head of a free list, at 24.
#[must_use]
pub fn handle_space(code: &[u8]) -> Option<u32> {
    const FREE_LIST: u64 = 24;
    const OFFSET_MAX: u64 = 64;
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut space = None;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.code() != Code::Mov_r64_rm64 || instruction.op1_kind() != OpKind::Memory {
            continue;
        }
        let (base, offset) = (instruction.memory_base(), instruction.memory_displacement64());
        match space {
            None if base == Register::RDI && offset <= OFFSET_MAX => space = Some((instruction.op0_register(), offset)),
            Some((register, at)) if base == register && offset == FREE_LIST => return u32::try_from(at).ok(),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
