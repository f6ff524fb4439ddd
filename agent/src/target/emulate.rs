//! Asks a process's own functions: runs one over its memory, here, instruction by instruction, without touching it.
//!
//! `v8::Isolate::GetHeapStatistics` knows where this very V8 keeps its figures; its layouts move with every release, the function
//! does not. So it is emulated: code and data are read from the process, what it would write stays in a copy. The process runs on
//! meanwhile, so a figure can be torn, as any that is read from outside. A small part of the instruction set is enough for functions that
//! only look and add up; at the first instruction, or system call, beyond it the run ends.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::struct_excessive_bools,
    clippy::too_many_lines,
    reason = "registers are cut and extended as the processor does it, its flags are bits, and its instructions a long list"
)]

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, MemorySize, Mnemonic, OpKind, Register};

use super::memory::Memory;
use crate::units::UserAddr;

const PAGE: u64 = 4096;

/// Pages that a run may read or write: a heap of thousands of pages of objects is not walked, only its spaces are.
const PAGES_MAX: usize = 4096;

/// Instructions of one run: `GetHeapStatistics` takes about 2000, more where the young generation has many pages.
const STEPS_MAX: u32 = 200_000;

/// Instructions that are kept decoded.
const DECODED_MAX: usize = 16_384;

const DEPTH_MAX: u32 = 64;

/// The stack and the thread's own storage: in no process, as the kernel keeps that half to itself.
const STACK_TOP: u64 = 0xffff_8000_0010_0000;
const STACK_BYTES: u64 = 64 << 10;
const THREAD_BASE: u64 = 0xffff_9000_0000_8000;
const PRIVATE_FROM: u64 = 0xffff_8000_0000_0000;
/// A return to here ends the run.
const END: u64 = 0xffff_a000_0000_0000;

/// What a run may write to and its caller read: zeroes at first.
pub const SCRATCH: u64 = 0xffff_b000_0000_0000;

/// In place of the result of a call that could not be followed.
pub const UNKNOWN: u64 = 0xdead_beef_dead_beef;

/// Why a run ended early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the memory at {0:#x} cannot be read")]
    Unreadable(u64),
    #[error("`{mnemonic}` at {at:#x} is beyond what is emulated")]
    Instruction { at: u64, mnemonic: String },
    #[error("more than {STEPS_MAX} instructions")]
    Steps,
    #[error("calls nest too deep")]
    Depth,
    #[error("it reads more than {PAGES_MAX} pages")]
    Pages,
}

/// What a run leaves for the next one over the same process.
#[derive(Debug, Default)]
pub struct Known {
    /// Instructions by address: a file's code does not change.
    decoded: HashMap<u64, Instruction>,
    /// Pages that a run has read: the next one reads them all at once, in a hundredth of the time.
    pages: Vec<u64>,
}

/// One run after the other over one process.
pub struct Machine<'a, S> {
    source: &'a S,
    known: &'a mut Known,
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    registers: [u64; 16],
    vectors: [u128; 16],
    flags: Flags,
    steps: u32,
    depth: u32,
    /// Old bytes of what was written since the outermost function called another.
    journal: Vec<(u64, u8)>,
    journaling: bool,
    /// What the run has read, in order, where that was asked for: address and value.
    loads: Option<Vec<(u64, u64)>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Flags {
    carry: bool,
    zero: bool,
    sign: bool,
    overflow: bool,
    parity: bool,
}

/// Index of a register in the machine's array.
mod number {
    pub const RAX: usize = 0;
    pub const RDX: usize = 2;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

type Step<T> = Result<T, Fault>;

impl<'a, S: Memory> Machine<'a, S> {
    pub fn new(source: &'a S, known: &'a mut Known) -> Self {
        Self {
            source,
            known,
            pages: HashMap::new(),
            registers: [0; 16],
            vectors: [0; 16],
            flags: Flags::default(),
            steps: 0,
            depth: 0,
            journal: Vec::new(),
            journaling: false,
            loads: None,
        }
    }

    /// Reads what the run before has read that called [`Self::keep_pages`].
    pub fn read_ahead(&mut self) {
        let addrs = std::mem::take(&mut self.known.pages);
        let mut pages: Vec<Box<[u8; PAGE as usize]>> = addrs.iter().map(|_| Box::new([0; PAGE as usize])).collect();
        let mut parts: Vec<(UserAddr, &mut [u8])> =
            addrs.iter().zip(&mut pages).map(|(at, page)| (UserAddr(*at), page.as_mut_slice())).collect();
        let read = self.source.read_many(&mut parts);
        for ((at, page), read) in addrs.into_iter().zip(pages).zip(read) {
            if read {
                self.pages.insert(at, page);
            }
        }
    }

    /// Remembers which pages of the process were read.
    pub fn keep_pages(&mut self) {
        self.known.pages = self.pages.keys().copied().filter(|at| *at < PRIVATE_FROM).collect();
        self.known.pages.sort_unstable();
    }

    /// Calls a function with up to two arguments; its result. A call that *it* makes and that cannot be followed is undone and gives
    /// [`UNKNOWN`]; the run goes on after it.
    pub fn call(&mut self, function: UserAddr, arguments: [u64; 2]) -> Step<u64> {
        self.registers = [0; 16];
        self.set(number::RDI, arguments[0]);
        self.set(number::RSI, arguments[1]);
        self.set(number::RSP, STACK_TOP - 256);
        self.steps = 0;
        self.depth = 0;
        self.push(END)?;
        let mut at = function.0;
        while at != END {
            at = self.outer_step(at)?;
        }
        Ok(self.get(number::RAX))
    }

    /// As [`Self::call`], and what the run read: address and value, in order.
    pub fn call_and_watch(&mut self, function: UserAddr, arguments: [u64; 2]) -> Step<(u64, Vec<(u64, u64)>)> {
        self.loads = Some(Vec::new());
        let result = self.call(function, arguments);
        let loads = self.loads.take().unwrap_or_default();
        result.map(|result| (result, loads))
    }

    /// A word as it is now: of the process, or as the run left it.
    pub fn word(&mut self, at: u64) -> Step<u64> {
        self.load(at, 8)
    }

    /// Sets a word for the run to find.
    pub fn set_word(&mut self, at: u64, value: u64) -> Step<()> {
        self.store(at, 8, value)
    }

    /// A step of the outermost function; a call is followed as one step.
    fn outer_step(&mut self, at: u64) -> Step<u64> {
        let instruction = self.fetch(at)?;
        if !matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            return self.step(&instruction);
        }
        let (registers, vectors, flags) = (self.registers, self.vectors, self.flags);
        self.journal.clear();
        self.journaling = true;
        let followed = self.follow(&instruction);
        self.journaling = false;
        match followed {
            Ok(()) => {}
            Err(Fault::Steps) => return Err(Fault::Steps),
            Err(Fault::Unreadable(_) | Fault::Instruction { .. } | Fault::Depth | Fault::Pages) => {
                while let Some((at, byte)) = self.journal.pop() {
                    self.store(at, 1, u64::from(byte))?;
                }
                (self.registers, self.vectors, self.flags, self.depth) = (registers, vectors, flags, 0);
                self.set(number::RAX, UNKNOWN);
            }
        }
        Ok(instruction.next_ip())
    }

    fn follow(&mut self, call: &Instruction) -> Step<()> {
        let back = call.next_ip();
        let mut at = self.step(call)?;
        while at != back || self.depth != 0 {
            let instruction = self.fetch(at)?;
            at = self.step(&instruction)?;
        }
        Ok(())
    }

    fn fetch(&mut self, at: u64) -> Step<Instruction> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Fault::Steps);
        }
        if let Some(known) = self.known.decoded.get(&at) {
            return Ok(*known);
        }
        let mut bytes = [0; 16];
        let mut len = bytes.len();
        while len > 0 && bytes.get_mut(..len).is_none_or(|bytes| self.source.read_at(UserAddr(at), bytes).is_err()) {
            len -= 1;
        }
        let code = bytes.get(..len).unwrap_or_default();
        let instruction = Decoder::with_ip(64, code, at, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Err(Fault::Unreadable(at));
        }
        if self.known.decoded.len() >= DECODED_MAX {
            self.known.decoded.clear();
        }
        self.known.decoded.insert(at, instruction);
        Ok(instruction)
    }

    fn get(&self, register: usize) -> u64 {
        self.registers.get(register).copied().unwrap_or(0)
    }

    fn set(&mut self, register: usize, value: u64) {
        if let Some(place) = self.registers.get_mut(register) {
            *place = value;
        }
    }

    fn page(&mut self, at: u64) -> Step<&mut [u8; PAGE as usize]> {
        let base = at & !(PAGE - 1);
        if !self.pages.contains_key(&base) {
            if self.pages.len() >= PAGES_MAX {
                return Err(Fault::Pages);
            }
            let mut page = Box::new([0; PAGE as usize]);
            let is_private = (STACK_TOP - STACK_BYTES..STACK_TOP).contains(&base)
                || base.abs_diff(THREAD_BASE) <= 8 * PAGE
                || base == SCRATCH;
            if base < PRIVATE_FROM {
                if self.source.read_at(UserAddr(base), page.as_mut_slice()).is_err() {
                    return Err(Fault::Unreadable(at));
                }
            } else if !is_private {
                return Err(Fault::Unreadable(at));
            }
            self.pages.insert(base, page);
        }
        self.pages.get_mut(&base).map(Box::as_mut).ok_or(Fault::Unreadable(at))
    }

    fn load_bytes(&mut self, at: u64, into: &mut [u8]) -> Step<()> {
        for (offset, byte) in (0u64..).zip(into) {
            let at = at.wrapping_add(offset);
            *byte = self.page(at)?.get((at & (PAGE - 1)) as usize).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn store_bytes(&mut self, at: u64, bytes: &[u8]) -> Step<()> {
        for (offset, byte) in (0u64..).zip(bytes) {
            let at = at.wrapping_add(offset);
            let journaling = self.journaling;
            let Some(place) = self.page(at)?.get_mut((at & (PAGE - 1)) as usize) else { continue };
            let old = std::mem::replace(place, *byte);
            if journaling {
                self.journal.push((at, old));
            }
        }
        Ok(())
    }

    fn load(&mut self, at: u64, size: usize) -> Step<u64> {
        let mut bytes = [0; 8];
        let size = size.min(8);
        let mut part = [0; 8];
        self.load_bytes(at, part.get_mut(..size).unwrap_or_default())?;
        bytes.copy_from_slice(&part);
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&mut self, at: u64, size: usize, value: u64) -> Step<()> {
        self.store_bytes(at, value.to_le_bytes().get(..size.min(8)).unwrap_or_default())
    }

    fn load_vector(&mut self, at: u64, size: usize) -> Step<u128> {
        let mut bytes = [0; 16];
        self.load_bytes(at, bytes.get_mut(..size.min(16)).unwrap_or_default())?;
        Ok(u128::from_le_bytes(bytes))
    }

    fn push(&mut self, value: u64) -> Step<()> {
        let top = self.get(number::RSP).wrapping_sub(8);
        self.set(number::RSP, top);
        self.store(top, 8, value)
    }

    fn pop(&mut self) -> Step<u64> {
        let top = self.get(number::RSP);
        self.set(number::RSP, top.wrapping_add(8));
        self.load(top, 8)
    }

    fn address(&self, instruction: &Instruction) -> u64 {
        let of = |register: Register| match register {
            Register::None | Register::RIP => 0,
            register => self.register(register),
        };
        let base = match instruction.memory_base() {
            // The displacement is the address itself.
            Register::RIP => 0,
            base => of(base),
        };
        let index = of(instruction.memory_index()).wrapping_mul(u64::from(instruction.memory_index_scale()));
        let segment = if instruction.memory_segment() == Register::FS { THREAD_BASE } else { 0 };
        base.wrapping_add(index).wrapping_add(instruction.memory_displacement64()).wrapping_add(segment)
    }

    fn register(&self, register: Register) -> u64 {
        let whole = self.get(register.full_register().number());
        match register.size() {
            1 if is_high(register) => (whole >> 8) & 0xff,
            size => cut(whole, size),
        }
    }

    fn set_register(&mut self, register: Register, value: u64) {
        let at = register.full_register().number();
        let whole = self.get(at);
        let value = match register.size() {
            1 if is_high(register) => whole & !0xff00 | (value & 0xff) << 8,
            1 => whole & !0xff | value & 0xff,
            2 => whole & !0xffff | value & 0xffff,
            // Writing a 32-bit register clears the upper half.
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.set(at, value);
    }

    /// Bytes of an operand.
    fn size(instruction: &Instruction, operand: u32) -> usize {
        match instruction.op_kind(operand) {
            OpKind::Register => instruction.op_register(operand).size(),
            OpKind::Memory => instruction.memory_size().size(),
            OpKind::Immediate8 => 1,
            OpKind::Immediate16 | OpKind::Immediate8to16 => 2,
            OpKind::Immediate32 | OpKind::Immediate8to32 => 4,
            _ => 8,
        }
    }

    fn read(&mut self, instruction: &Instruction, operand: u32) -> Step<u64> {
        match instruction.op_kind(operand) {
            OpKind::Register => Ok(self.register(instruction.op_register(operand))),
            OpKind::Memory => {
                let at = self.address(instruction);
                let value = self.load(at, Self::size(instruction, operand))?;
                if let Some(loads) = &mut self.loads {
                    loads.push((at, value));
                }
                Ok(value)
            }
            _ => instruction.try_immediate(operand).map_err(|_| beyond(instruction)),
        }
    }

    fn write(&mut self, instruction: &Instruction, operand: u32, value: u64) -> Step<()> {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                self.set_register(instruction.op_register(operand), value);
                Ok(())
            }
            OpKind::Memory => self.store(self.address(instruction), Self::size(instruction, operand), value),
            _ => Err(beyond(instruction)),
        }
    }

    fn condition(&self, instruction: &Instruction) -> Option<bool> {
        use iced_x86::ConditionCode as Cc;
        let Flags { carry, zero, sign, overflow, parity } = self.flags;
        Some(match instruction.condition_code() {
            Cc::None => return None,
            Cc::o => overflow,
            Cc::no => !overflow,
            Cc::b => carry,
            Cc::ae => !carry,
            Cc::e => zero,
            Cc::ne => !zero,
            Cc::be => carry || zero,
            Cc::a => !carry && !zero,
            Cc::s => sign,
            Cc::ns => !sign,
            Cc::p => parity,
            Cc::np => !parity,
            Cc::l => sign != overflow,
            Cc::ge => sign == overflow,
            Cc::le => zero || sign != overflow,
            Cc::g => !zero && sign == overflow,
        })
    }

    fn result(&mut self, value: u64, size: usize) {
        let value = cut(value, size);
        self.flags.zero = value == 0;
        self.flags.sign = value >> (size.clamp(1, 8) * 8 - 1) & 1 == 1;
        self.flags.parity = (value & 0xff).count_ones().is_multiple_of(2);
    }

    fn logic(&mut self, value: u64, size: usize) {
        self.result(value, size);
        self.flags.carry = false;
        self.flags.overflow = false;
    }

    fn sum(&mut self, left: u64, right: u64, carry: bool, size: usize) -> u64 {
        let (left, right) = (cut(left, size), cut(right, size));
        let wide = u128::from(left) + u128::from(right) + u128::from(carry);
        let value = cut(wide as u64, size);
        self.result(value, size);
        self.flags.carry = wide >> (size.clamp(1, 8) * 8) != 0;
        let top = size.clamp(1, 8) * 8 - 1;
        self.flags.overflow = (left ^ value) & (right ^ value) & (1 << top) != 0;
        value
    }

    fn difference(&mut self, left: u64, right: u64, borrow: bool, size: usize) -> u64 {
        let (left, right) = (cut(left, size), cut(right, size));
        let value = cut(left.wrapping_sub(right).wrapping_sub(u64::from(borrow)), size);
        self.result(value, size);
        self.flags.carry = u128::from(left) < u128::from(right) + u128::from(borrow);
        let top = size.clamp(1, 8) * 8 - 1;
        self.flags.overflow = (left ^ right) & (left ^ value) & (1 << top) != 0;
        value
    }

    /// Carries an instruction out; where the next one is.
    fn step(&mut self, instruction: &Instruction) -> Step<u64> {
        let next = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch => return Ok(instruction.near_branch_target()),
            FlowControl::ConditionalBranch => {
                let taken = self.condition(instruction).ok_or_else(|| beyond(instruction))?;
                return Ok(if taken { instruction.near_branch_target() } else { next });
            }
            FlowControl::IndirectBranch => return self.read(instruction, 0),
            FlowControl::Call => {
                self.enter(next)?;
                return Ok(instruction.near_branch_target());
            }
            FlowControl::IndirectCall => {
                let target = self.read(instruction, 0)?;
                self.enter(next)?;
                return Ok(target);
            }
            FlowControl::Return => {
                self.depth = self.depth.saturating_sub(1);
                return self.pop();
            }
            FlowControl::Interrupt | FlowControl::XbeginXabortXend | FlowControl::Exception => {
                return Err(beyond(instruction));
            }
        }
        if self.arithmetic(instruction)? || self.moving(instruction)? || self.vector(instruction)? {
            return Ok(next);
        }
        Err(beyond(instruction))
    }

    fn enter(&mut self, back: u64) -> Step<()> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.push(back)
    }

    /// False if the instruction is none of these.
    fn arithmetic(&mut self, instruction: &Instruction) -> Step<bool> {
        let size = Self::size(instruction, 0);
        let mnemonic = instruction.mnemonic();
        let carry = self.flags.carry;
        let mut operands = || -> Step<(u64, u64)> { Ok((self.read(instruction, 0)?, self.read(instruction, 1)?)) };
        match mnemonic {
            Mnemonic::Add | Mnemonic::Adc => {
                let (left, right) = operands()?;
                let value = self.sum(left, right, mnemonic == Mnemonic::Adc && carry, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Sub | Mnemonic::Sbb => {
                let (left, right) = operands()?;
                let value = self.difference(left, right, mnemonic == Mnemonic::Sbb && carry, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Cmp => {
                let (left, right) = operands()?;
                self.difference(left, right, false, size);
            }
            Mnemonic::Test => {
                let (left, right) = operands()?;
                self.logic(left & right, size);
            }
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => {
                let (left, right) = operands()?;
                let value = match mnemonic {
                    Mnemonic::And => left & right,
                    Mnemonic::Or => left | right,
                    _ => left ^ right,
                };
                self.logic(value, size);
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar => {
                let (left, right) = operands()?;
                self.shift(instruction, left, right, size)?;
            }
            Mnemonic::Bt => {
                let (left, right) = operands()?;
                if instruction.op0_kind() != OpKind::Register {
                    return Ok(false);
                }
                self.flags.carry = left >> (right % (size as u64 * 8)) & 1 == 1;
            }
            Mnemonic::Xadd => {
                let (left, right) = operands()?;
                let value = self.sum(left, right, false, size);
                self.write(instruction, 1, left)?;
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Cmpxchg => {
                let (left, right) = operands()?;
                let expected = cut(self.get(number::RAX), size);
                self.difference(expected, left, false, size);
                if self.flags.zero {
                    self.write(instruction, 0, right)?;
                } else {
                    let old = self.get(number::RAX);
                    let value = if size >= 4 { left } else { old & !cut(u64::MAX, size) | left };
                    self.set(number::RAX, value);
                }
            }
            Mnemonic::Xchg => {
                let (left, right) = operands()?;
                self.write(instruction, 0, right)?;
                self.write(instruction, 1, left)?;
            }
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => {
                let value = self.read(instruction, 0)?;
                let value = match mnemonic {
                    Mnemonic::Inc => self.sum(value, 1, false, size),
                    Mnemonic::Dec => self.difference(value, 1, false, size),
                    Mnemonic::Neg => self.difference(0, value, false, size),
                    _ => !value,
                };
                if matches!(mnemonic, Mnemonic::Inc | Mnemonic::Dec) {
                    self.flags.carry = carry;
                }
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Imul if instruction.op_count() > 1 => {
                let first = u32::from(instruction.op_count() == 3);
                let left = self.read(instruction, first)?;
                let right = self.read(instruction, first + 1)?;
                let value =
                    signed(left, size).wrapping_mul(signed(right, Self::size(instruction, first + 1).max(size)));
                self.write(instruction, 0, value.cast_unsigned())?;
            }
            Mnemonic::Mul if size == 8 => {
                let wide = u128::from(self.read(instruction, 0)?) * u128::from(self.get(number::RAX));
                self.set(number::RAX, wide as u64);
                self.set(number::RDX, (wide >> 64) as u64);
            }
            Mnemonic::Div if size == 8 || size == 4 => {
                let by = self.read(instruction, 0)?;
                let bits = size * 8;
                let low = cut(self.get(number::RAX), size);
                let wide = u128::from(cut(self.get(number::RDX), size)) << bits | u128::from(low);
                let quotient = wide.checked_div(u128::from(by)).ok_or_else(|| beyond(instruction))?;
                self.set(number::RAX, cut(quotient as u64, size));
                self.set(number::RDX, cut((wide % u128::from(by)) as u64, size));
            }
            Mnemonic::Bsr | Mnemonic::Bsf | Mnemonic::Tzcnt | Mnemonic::Lzcnt | Mnemonic::Popcnt => {
                let value = self.read(instruction, 1)?;
                let bits = size as u64 * 8;
                self.flags.zero = value == 0;
                let value = match mnemonic {
                    Mnemonic::Popcnt => u64::from(value.count_ones()),
                    Mnemonic::Lzcnt => u64::from(value.leading_zeros()) - (64 - bits),
                    Mnemonic::Bsr if value != 0 => 63 - u64::from(value.leading_zeros()),
                    _ if value == 0 => bits,
                    _ => u64::from(value.trailing_zeros()),
                };
                self.write(instruction, 0, value)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn shift(&mut self, instruction: &Instruction, value: u64, by: u64, size: usize) -> Step<()> {
        let by = by & if size == 8 { 63 } else { 31 };
        if by == 0 {
            return Ok(());
        }
        let bits = size as u64 * 8;
        let (shifted, carry) = match instruction.mnemonic() {
            Mnemonic::Shl => (value << by, by <= bits && value >> (bits - by) & 1 == 1),
            Mnemonic::Shr => (value >> by, value >> (by - 1) & 1 == 1),
            _ => ((signed(value, size) >> by).cast_unsigned(), signed(value, size) >> (by - 1) & 1 == 1),
        };
        self.logic(shifted, size);
        self.flags.carry = carry;
        self.write(instruction, 0, shifted)
    }

    fn moving(&mut self, instruction: &Instruction) -> Step<bool> {
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd => {
                let of_vector = |operand| {
                    instruction.op_kind(operand) == OpKind::Register && !instruction.op_register(operand).is_gpr()
                };
                if of_vector(0) || of_vector(1) {
                    return Ok(false);
                }
                let mut value = self.read(instruction, 1)?;
                if matches!(instruction.mnemonic(), Mnemonic::Movsx | Mnemonic::Movsxd) {
                    value = signed(value, Self::size(instruction, 1)).cast_unsigned();
                }
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Lea => {
                let address = self.address(instruction);
                self.write(instruction, 0, address)?;
            }
            Mnemonic::Push => {
                let value = self.read(instruction, 0)?;
                self.push(value)?;
            }
            Mnemonic::Pop => {
                let value = self.pop()?;
                self.write(instruction, 0, value)?;
            }
            Mnemonic::Leave => {
                self.set(number::RSP, self.get(number::RBP));
                let base = self.pop()?;
                self.set(number::RBP, base);
            }
            Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Pause | Mnemonic::Mfence | Mnemonic::Prefetcht0 => {}
            Mnemonic::Cdqe => self.set(number::RAX, signed(self.get(number::RAX), 4).cast_unsigned()),
            Mnemonic::Cqo => {
                let sign = signed(self.get(number::RAX), 8) >> 63;
                self.set(number::RDX, sign.cast_unsigned());
            }
            Mnemonic::Cdq => {
                let sign = signed(self.get(number::RAX), 4) >> 63;
                self.set_register(Register::EDX, sign.cast_unsigned());
            }
            _ => return self.conditional(instruction),
        }
        Ok(true)
    }

    fn conditional(&mut self, instruction: &Instruction) -> Step<bool> {
        let Some(holds) = self.condition(instruction) else { return Ok(false) };
        if instruction.op_count() == 1 {
            self.write(instruction, 0, u64::from(holds))?;
        } else {
            let operand = u32::from(holds);
            let value = self.read(instruction, operand)?;
            self.write(instruction, 0, value)?;
        }
        Ok(true)
    }

    /// Copies of sixteen bytes and the like: two figures at a time.
    fn vector(&mut self, instruction: &Instruction) -> Step<bool> {
        let high = |value: u128| value & (u128::MAX << 64);
        match instruction.mnemonic() {
            Mnemonic::Movups
            | Mnemonic::Movaps
            | Mnemonic::Movdqu
            | Mnemonic::Movdqa
            | Mnemonic::Movupd
            | Mnemonic::Movapd => {
                let value = self.read_vector(instruction, 1)?;
                self.write_vector(instruction, 0, value, 16)?;
            }
            Mnemonic::Movq
            | Mnemonic::Movd
            | Mnemonic::Movsd
            | Mnemonic::Movss
            | Mnemonic::Movlps
            | Mnemonic::Movlpd => {
                let size = if matches!(instruction.mnemonic(), Mnemonic::Movd | Mnemonic::Movss) { 4 } else { 8 };
                let mask = (1u128 << (size * 8)) - 1;
                let value = self.read_vector(instruction, 1)? & mask;
                let keeps = matches!(instruction.mnemonic(), Mnemonic::Movlps | Mnemonic::Movlpd)
                    || instruction.op1_kind() == OpKind::Register
                        && matches!(instruction.mnemonic(), Mnemonic::Movsd | Mnemonic::Movss);
                let kept =
                    if keeps && is_vector(instruction, 0) { self.read_vector(instruction, 0)? & !mask } else { 0 };
                self.write_vector(instruction, 0, kept | value, size)?;
            }
            Mnemonic::Movhps | Mnemonic::Movhpd => {
                let value = self.read_vector(instruction, 1)?;
                if is_vector(instruction, 0) {
                    let kept = self.read_vector(instruction, 0)? & u128::from(u64::MAX);
                    self.write_vector(instruction, 0, kept | value << 64, 16)?;
                } else {
                    self.write_vector(instruction, 0, value >> 64, 8)?;
                }
            }
            Mnemonic::Punpcklqdq | Mnemonic::Movlhps | Mnemonic::Unpcklpd => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                self.write_vector(instruction, 0, left & u128::from(u64::MAX) | right << 64, 16)?;
            }
            Mnemonic::Punpckhqdq | Mnemonic::Movhlps => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                let kept = if instruction.mnemonic() == Mnemonic::Movhlps { high(left) } else { high(right) };
                let low = if instruction.mnemonic() == Mnemonic::Movhlps { right >> 64 } else { left >> 64 };
                self.write_vector(instruction, 0, kept | low, 16)?;
            }
            Mnemonic::Pxor | Mnemonic::Xorps | Mnemonic::Xorpd => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                self.write_vector(instruction, 0, left ^ right, 16)?;
            }
            Mnemonic::Paddq => {
                let (left, right) = (self.read_vector(instruction, 0)?, self.read_vector(instruction, 1)?);
                let low = (left as u64).wrapping_add(right as u64);
                let top = ((left >> 64) as u64).wrapping_add((right >> 64) as u64);
                self.write_vector(instruction, 0, u128::from(top) << 64 | u128::from(low), 16)?;
            }
            Mnemonic::Psrldq => {
                let value = self.read_vector(instruction, 0)?;
                let by = instruction.try_immediate(1).map_err(|_| beyond(instruction))?.min(16);
                let shifted = if by == 16 { 0 } else { value >> (by * 8) };
                self.write_vector(instruction, 0, shifted, 16)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn read_vector(&mut self, instruction: &Instruction, operand: u32) -> Step<u128> {
        if is_vector(instruction, operand) {
            let at = instruction.op_register(operand).number();
            return Ok(self.vectors.get(at).copied().unwrap_or(0));
        }
        match instruction.op_kind(operand) {
            OpKind::Memory => {
                let size = match instruction.memory_size() {
                    MemorySize::Unknown => 16,
                    size => size.size(),
                };
                self.load_vector(self.address(instruction), size)
            }
            _ => self.read(instruction, operand).map(u128::from),
        }
    }

    fn write_vector(&mut self, instruction: &Instruction, operand: u32, value: u128, size: usize) -> Step<()> {
        if is_vector(instruction, operand) {
            let at = instruction.op_register(operand).number();
            if let Some(place) = self.vectors.get_mut(at) {
                *place = value;
            }
            return Ok(());
        }
        match instruction.op_kind(operand) {
            OpKind::Memory => {
                let bytes = value.to_le_bytes();
                self.store_bytes(self.address(instruction), bytes.get(..size.min(16)).unwrap_or_default())
            }
            _ => self.write(instruction, operand, value as u64),
        }
    }
}

fn is_vector(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_xmm()
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

fn beyond(instruction: &Instruction) -> Fault {
    let mnemonic =
        if instruction.code() == Code::Syscall { "syscall".into() } else { format!("{:?}", instruction.mnemonic()) };
    Fault::Instruction { at: instruction.ip(), mnemonic: mnemonic.to_lowercase() }
}

/// The low `size` bytes.
fn cut(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn signed(value: u64, size: usize) -> i64 {
    match size {
        1 => i64::from(value as u8 as i8),
        2 => i64::from(value as u16 as i16),
        4 => i64::from(value as u32 as i32),
        _ => value.cast_signed(),
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::target::memory::Fixture;

    /// Code at 0x1000, data at 0x2000.
    fn run(code: &[u8], arguments: [u64; 2]) -> Result<u64, Fault> {
        let page = |bytes: &[u8]| {
            let mut page = vec![0; 0x1000];
            page[..bytes.len()].copy_from_slice(bytes);
            page
        };
        let mut source = Fixture::default();
        source.map(UserAddr(0x1000), page(code));
        source.map(UserAddr(0x2000), page(&[0, 0, 0, 0, 0, 0, 0, 0, 7]));
        let mut known = Known::default();
        Machine::new(&source, &mut known).call(UserAddr(0x1000), arguments)
    }

    #[test]
    fn a_function_gives_its_result() {
        // mov rax, [rdi+8]; lea rax, [rax+rsi*2]; ret
        assert_eq!(run(b"\x48\x8b\x47\x08\x48\x8d\x04\x70\xc3", [0x2000, 10]), Ok(27));
    }

    #[test]
    fn what_it_writes_stays_here() {
        // mov dword [rdi+8], 9; mov eax, [rdi+8]; ret
        assert_eq!(run(b"\xc7\x47\x08\x09\x00\x00\x00\x8b\x47\x08\xc3", [0x2000, 0]), Ok(9));
    }

    #[test]
    fn a_call_that_cannot_be_followed_is_undone() {
        // call +1; ret; mov dword [rdi+8], 9; syscall
        let code = b"\xe8\x01\x00\x00\x00\xc3\xc7\x47\x08\x09\x00\x00\x00\x0f\x05";
        assert_eq!(run(code, [0x2000, 0]), Ok(UNKNOWN));
    }

    #[test]
    fn an_endless_loop_ends() {
        assert_eq!(run(b"\xeb\xfe", [0, 0]), Err(Fault::Steps));
        // call itself
        assert_eq!(run(b"\xe8\xfb\xff\xff\xff\xc3", [0, 0]), Ok(UNKNOWN));
    }

    #[test]
    fn what_cannot_be_read_is_a_fault() {
        assert_eq!(run(b"\x48\x8b\x07\xc3", [0x9000, 0]), Err(Fault::Unreadable(0x9000)));
    }
}
