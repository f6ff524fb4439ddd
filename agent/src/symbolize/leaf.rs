//! The innermost frame of a thread that was interrupted.
//!
//! Between two instructions, a frame may not be set up yet or be torn down already. Then the frame pointer is still, or again, that
//! of the caller: the walk took the words of the caller's frame for those of the innermost one, and went on to the caller's
//! caller. The caller's return address lies at the top of the stack then; it is put in where the instructions around the address
//! leave no doubt. Where it is known to be missing and cannot be had, a frame of which nothing is known stands in its place.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{
    Symbolizer, is_compiled_at_run_time,
    kept::{Asked, Trust},
    v8::frames::{Live, Seen},
};
use crate::{
    decode::Leaf,
    limits::PROLOGUE_LOOKED_AT_BYTES,
    target::{memory::Memory, procfs::Mapping},
    units::{Pid, UserAddr},
};

/// Bytes before and after an address by which an epilogue is known.
const BEFORE: usize = 8;
const AFTER: usize = 16;

impl Symbolizer {
    /// Puts the caller in that the walk has missed, and the interpreter's own place.
    pub(super) fn repair(&mut self, pid: Pid, leaf: &Leaf, asked: &mut Vec<Asked>, trust: Trust) {
        let Some(first) = asked.first().copied() else { return };
        let Some(mapping) = self.mapping(pid, first.seen.pc) else { return };
        let is_run_time = is_compiled_at_run_time(&mapping);
        if !is_run_time && !self.keeps_frame_pointers(pid, &mapping) {
            // The walk went by its tables.
            return;
        }
        let mut is_of_another = false;
        let caller = match self.is_bare(pid, first.seen.pc, &mapping, trust) {
            Some(depth) => leaf.words.get(depth).copied(),
            None if is_run_time => {
                is_of_another = self.is_of_another(pid, first.seen, mapping.start, trust);
                if is_of_another { self.frameless_caller(pid, leaf, first.seen, trust) } else { None }
            }
            None => self.frameless_caller(pid, leaf, first.seen, trust),
        };
        let caller = caller.filter(|caller| self.mapping(pid, caller.wrapping_sub(1)).is_some());
        if caller.is_some() || is_of_another {
            let own = Seen { object: 0, bytecode_offset: 0, name: 0, ..first.seen };
            if let Some(place) = asked.first_mut() {
                place.seen = own;
            }
            let caller = caller.map_or(Asked::LOST, |caller| Asked {
                seen: Seen { pc: caller.saturating_sub(1), ..first.seen },
                has_called: true,
            });
            asked.insert(1, caller);
        } else if !is_run_time
            && first.seen.bytecode_offset != 0
            && let Some(place) = asked.first_mut()
        {
            place.seen.live = Some(Live { offset: leaf.r9, array: leaf.r12 });
        }
    }

    /// Where the return address is, in words above the stack pointer, if the frame at this address is not set up.
    fn is_bare(&mut self, pid: Pid, pc: u64, mapping: &Mapping, trust: Trust) -> Option<usize> {
        let start = if is_compiled_at_run_time(mapping) {
            trust.may_read().then_some(())?;
            self.v8(pid)?.code_start(pc, mapping.start)?
        } else {
            let offset = pc.wrapping_sub(mapping.start.0).wrapping_add(mapping.offset);
            let (module, _) = self.modules.get(pid, mapping)?;
            pc.checked_sub(module.bytes_into_function(offset)?)?
        };
        let memory = &self.v8(pid)?.heap.memory;
        let into = usize::try_from(pc.checked_sub(start)?).ok()?;
        let before = into.min(BEFORE);
        let mut around = [0; BEFORE + AFTER];
        let around = around.get_mut(..before + AFTER)?;
        memory.read_at(UserAddr(pc - before as u64), around).ok()?;
        let (before, after) = around.split_at(before);
        if is_torn_down(before, after) {
            return Some(0);
        }
        if into > PROLOGUE_LOOKED_AT_BYTES {
            return None;
        }
        let mut code = vec![0; into];
        memory.read_at(UserAddr(start), &mut code).ok()?;
        not_set_up(&code)
    }

    /// The frame at the frame pointer is that of another function than the one whose code is at the address.
    fn is_of_another(&mut self, pid: Pid, seen: Seen, mapped: UserAddr, trust: Trust) -> bool {
        trust.may_read() && self.v8(pid).is_some_and(|v8| v8.is_code_of_another(seen, mapped))
    }

    /// Builtins without a frame, in the middle of them: a word on the stack that returns into the very function in whose frame
    /// the frame pointer is.
    fn frameless_caller(&mut self, pid: Pid, leaf: &Leaf, seen: Seen, trust: Trust) -> Option<u64> {
        if !trust.may_read() || seen.object & 1 == 0 || seen.bytecode_offset != 0 {
            return None;
        }
        leaf.words.into_iter().find(|word| {
            let pc = word.wrapping_sub(1);
            // Most words are none that return anywhere: where no code is known to be, none is looked for.
            let mapping = self.spaces.get(&pid).and_then(|space| space.holding(pc)).filter(is_compiled_at_run_time);
            mapping
                .is_some_and(|mapping| self.v8(pid).is_some_and(|v8| v8.is_code_of(Seen { pc, ..seen }, mapping.start)))
        })
    }

    /// It is the file of V8, or code that V8 made.
    fn keeps_frame_pointers(&mut self, pid: Pid, mapping: &Mapping) -> bool {
        self.v8(pid).is_some() && self.spaces.get(&pid).is_some_and(|space| space.v8_inode == Some(mapping.inode))
    }
}

/// The frame is gone, and the return address lies on top: what follows returns or goes on to another function.
fn is_torn_down(before: &[u8], after: &[u8]) -> bool {
    const POP_RBP: u8 = 0x5d;
    if returns_from_here(after) {
        return true;
    }
    let Some(next) = Decoder::new(64, after, DecoderOptions::NONE).iter().next() else { return false };
    // `pop rbp` after `mov rsp, rbp`, or before a jump to another function.
    let popped = before.last() == Some(&POP_RBP)
        && (before.ends_with(&[0x48, 0x89, 0xec, POP_RBP]) || before.ends_with(&[0x48, 0x8b, 0xe5, POP_RBP]));
    let jumps = matches!(next.flow_control(), FlowControl::UnconditionalBranch | FlowControl::IndirectBranch);
    popped || before.last() == Some(&POP_RBP) && jumps
}

/// A return follows, with nothing before it that changes the stack: V8's code first asks how many arguments there are to be taken off, and
/// where they are more than the function has, takes them off below the return address.
fn returns_from_here(after: &[u8]) -> bool {
    let mut decoder = Decoder::new(64, after, DecoderOptions::NONE);
    let mut next = || if decoder.can_decode() { decoder.decode() } else { Instruction::default() };
    let mut instruction = next();
    if instruction.mnemonic() == Mnemonic::Pop {
        let (address, arguments, back) = (instruction, next(), next());
        let is_dropped = matches!(arguments.mnemonic(), Mnemonic::Lea | Mnemonic::Add)
            && arguments.op0_register() == Register::RSP
            && back.mnemonic() == Mnemonic::Push
            && back.op0_register() == address.op0_register();
        return is_dropped && next().flow_control() == FlowControl::Return;
    }
    while matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test)
        || instruction.flow_control() == FlowControl::ConditionalBranch
    {
        instruction = next();
    }
    instruction.flow_control() == FlowControl::Return
}

/// Where the return address is, in words, after the first instructions of a function if they have not set up a frame; `None` if
/// they have, or do more than is understood.
#[must_use]
pub fn not_set_up(code: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut words = 0_usize;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() || is_set_up(&instruction) {
            return None;
        }
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            _ => return None,
        }
        match instruction.mnemonic() {
            Mnemonic::Push => words += 1,
            Mnemonic::Pop => words = words.checked_sub(1)?,
            Mnemonic::Sub if instruction.op0_register() == Register::RSP => {
                let bytes = (instruction.op1_kind() == OpKind::Immediate8to64
                    || instruction.op1_kind() == OpKind::Immediate32to64)
                    .then(|| instruction.immediate(1))?;
                words = words.checked_add(usize::try_from(bytes / 8).ok()?)?;
            }
            _ if writes_stack_pointer(&instruction) => return None,
            _ => {}
        }
    }
    Some(words)
}

/// `mov rbp, rsp`, after which the frame pointer is the function's own.
fn is_set_up(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Lea_r64_m | Code::Enterq_imm16_imm8)
        && instruction.op0_register() == Register::RBP
}

fn writes_stack_pointer(instruction: &Instruction) -> bool {
    instruction.is_stack_instruction()
        || instruction.op0_register() == Register::RSP
            && instruction.mnemonic() != Mnemonic::Cmp
            && instruction.mnemonic() != Mnemonic::Test
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_set_up_when_the_frame_pointer_is_its_own() {
        // endbr64; push rbp; mov rbp, rsp; push r12
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x54];
        let at = |bytes: usize| not_set_up(&code[..bytes]);
        assert_eq!([at(0), at(4), at(5), at(8), at(10)], [Some(0), Some(0), Some(1), None, None]);
    }

    #[test]
    fn what_comes_before_a_frame_is_stepped_over() {
        // mov ebx, [rcx-0x20]; test bl, 1; jne +0; push rbp
        let code = [0x8b, 0x59, 0xe0, 0xf6, 0xc3, 0x01, 0x75, 0x00, 0x55];
        assert_eq!(not_set_up(&code), Some(1));
        // sub rsp, 0x18
        assert_eq!(not_set_up(&[0x48, 0x83, 0xec, 0x18]), Some(3));
        // call +0: who knows
        assert_eq!(not_set_up(&[0xe8, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_frame_is_torn_down_before_a_return() {
        assert!(is_torn_down(&[], &[0xc3]));
        assert!(is_torn_down(&[], &[0xc2, 0x08, 0x00]));
        // mov rsp, rbp; pop rbp | pop rcx
        assert!(is_torn_down(&[0x48, 0x89, 0xec, 0x5d], &[0x59]));
        // mov rsp, rbp; pop rbp; cmp r9, 3 | jg +3; ret 24
        assert!(is_torn_down(&[0x48, 0x89, 0xec, 0x5d, 0x49, 0x83, 0xf9, 0x03], &[0x7f, 0x03, 0xc2, 0x18, 0x00]));
        // pop r10; lea rsp, [rsp + r9 * 8]; push r10; ret
        assert!(is_torn_down(&[0x90], &[0x41, 0x5a, 0x4a, 0x8d, 0x24, 0xcc, 0x41, 0x52, 0xc3]));
        assert!(!is_torn_down(&[0x90], &[0x41, 0x5a, 0xc3]), "a register is put back first");
        assert!(!is_torn_down(&[0x90], &[0x7f, 0x03, 0x5d, 0xc3]), "the frame is still there");
        // pop rbp | jmp
        assert!(is_torn_down(&[0x41, 0x5c, 0x5d], &[0xe9, 0, 0, 0, 0]));
        assert!(!is_torn_down(&[0x5d], &[0x90]));
        assert!(!is_torn_down(&[0x90], &[0x5d, 0xc3]));
    }
}
