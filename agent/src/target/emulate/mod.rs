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

mod integer;
mod memory;
mod operands;
mod vector;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use operands::beyond;
use rustc_hash::FxHashMap;

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
    decoded: FxHashMap<u64, Instruction>,
    /// Pages that a run has read: the next one reads them all at once, in a hundredth of the time.
    pages: Vec<u64>,
}

/// One run after the other over one process.
pub struct Machine<'a, S> {
    source: &'a S,
    known: &'a mut Known,
    pages: FxHashMap<u64, Box<[u8; PAGE as usize]>>,
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
            pages: FxHashMap::default(),
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
