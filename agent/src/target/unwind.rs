//! How code without frame pointers finds its caller: the rows of a file's `.eh_frame`, in the form that the kernel half searches.
//!
//! gimli runs the file's call frame instructions; of its rules, those stay that compilers and authors of assembly code write for ordinary
//! functions. What needs more (the procedure linkage table, signal frames) becomes a row that says so, and a stack ends there.

use agent_ebpf::state::{UnwindRow, cfa};
use gimli::{
    BaseAddresses, CallFrameInstruction, CfaRule, CieOrFde, EhFrame, FrameDescriptionEntry, LittleEndian, Operation,
    Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};

use crate::limits::UNWIND_FILE_ROWS_MAX;

const WORD_BYTES: i64 = 8;

type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;
type Entry<'a> = FrameDescriptionEntry<Slice<'a>>;

/// The rows of an `.eh_frame` section at an address, sorted by the file's own addresses; empty if none can be read.
///
/// A damaged entry costs itself.
#[must_use]
pub fn rows_of(addr: u64, bytes: &[u8]) -> Vec<UnwindRow> {
    let mut table = Table::of(addr, bytes, cfa::UNKNOWN);
    table.each_entry(|table, entry| table.add(&entry));
    table.sorted()
}

/// The same of a file that keeps frame pointers, but for some functions: those that use the frame pointer's register for something
/// else, as OpenSSL's assembly code does, and what they may call near by. Everywhere else a row says to follow frame pointers.
#[must_use]
pub fn exceptions_of(addr: u64, bytes: &[u8]) -> Vec<UnwindRow> {
    /// What assembly code calls of its own is in the same file of the linker's, which is not larger than this.
    const NEAR: u64 = 64 << 10;
    let mut table = Table::of(addr, bytes, cfa::FRAME_POINTERS);
    let (mut exceptions, mut leaves) = (Vec::new(), Vec::new());
    table.each_entry(|table, entry| match table.use_of_frame_pointer(&entry) {
        Use::AsSuch => {}
        Use::Other => {
            exceptions.push(entry.initial_address());
            table.add(&entry);
        }
        Use::None => leaves.push((entry.initial_address(), entry.offset())),
    });
    exceptions.sort_unstable();
    for (start, offset) in leaves {
        let above = exceptions.partition_point(|exception| *exception < start);
        let neighbours = [above.checked_sub(1), Some(above)].into_iter().flatten();
        if neighbours.filter_map(|at| exceptions.get(at)).any(|exception| exception.abs_diff(start) <= NEAR) {
            table.add_at(offset);
        }
    }
    table.sorted()
}

/// What a function does with the register of the frame pointer.
enum Use {
    /// It leaves it alone.
    None,
    /// It points at the frame.
    AsSuch,
    Other,
}

/// Rows on their way.
struct Table<'a> {
    section: EhFrame<Slice<'a>>,
    bases: BaseAddresses,
    context: UnwindContext<usize>,
    rows: Vec<UnwindRow>,
    /// The rule of addresses that no entry is about.
    gap: u16,
}

impl<'a> Table<'a> {
    fn of(addr: u64, bytes: &'a [u8], gap: u16) -> Self {
        let bases = BaseAddresses::default().set_eh_frame(addr);
        let section = EhFrame::new(bytes, LittleEndian);
        Self { section, bases, context: UnwindContext::new(), rows: Vec::new(), gap }
    }

    fn each_entry(&mut self, mut take: impl FnMut(&mut Self, Entry<'a>)) {
        let (section, bases) = (self.section, self.bases.clone());
        let mut entries = section.entries(&bases);
        // Neighbours share what they have in common.
        let mut common = None;
        while let Ok(Some(entry)) = entries.next() {
            if self.rows.len() >= UNWIND_FILE_ROWS_MAX {
                break;
            }
            let CieOrFde::Fde(partial) = entry else { continue };
            let entry = partial.parse(|section, bases, offset| match &common {
                Some((at, cie)) if *at == offset => Ok(Clone::clone(cie)),
                _ => {
                    let cie = section.cie_from_offset(bases, offset)?;
                    common = Some((offset, cie.clone()));
                    Ok(cie)
                }
            });
            if let Ok(entry) = entry {
                take(self, entry);
            }
        }
    }

    fn use_of_frame_pointer(&self, entry: &Entry<'a>) -> Use {
        /// A frame pointer points below the return address, at where it is kept itself.
        const AS_SUCH: u64 = 16;
        let (mut found, mut above) = (Use::None, 8);
        let mut instructions = entry.instructions(&self.section, &self.bases);
        while let Ok(Some(instruction)) = instructions.next() {
            match instruction {
                CallFrameInstruction::DefCfaRegister { register: X86_64::RBP } if above == AS_SUCH => {
                    return Use::AsSuch;
                }
                CallFrameInstruction::DefCfa { register: X86_64::RBP, offset: AS_SUCH }
                // Functions that align their stack say so.
                | CallFrameInstruction::Expression { register: X86_64::RBP, .. } => return Use::AsSuch,
                CallFrameInstruction::Offset { register: X86_64::RBP, .. } => found = Use::Other,
                CallFrameInstruction::DefCfa { offset, .. } | CallFrameInstruction::DefCfaOffset { offset } => {
                    above = offset;
                }
                _ => {}
            }
        }
        found
    }

    fn add_at(&mut self, offset: usize) {
        let entry = self.section.fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset);
        if let Ok(entry) = entry {
            self.add(&entry);
        }
    }

    fn add(&mut self, entry: &Entry<'a>) {
        let Ok(mut table) = entry.rows(&self.section, &self.bases, &mut self.context) else { return };
        while let Ok(Some(row)) = table.next_row() {
            if self.rows.len() >= UNWIND_FILE_ROWS_MAX {
                return;
            }
            let Ok(start) = u32::try_from(row.start_address()) else { return };
            self.rows.push(compact(&self.section, start, row));
        }
        let end = entry.initial_address().checked_add(entry.len()).and_then(|end| u32::try_from(end).ok());
        self.rows.extend(end.map(|start| UnwindRow { start, cfa: self.gap, fp: 0 }));
    }

    fn sorted(self) -> Vec<UnwindRow> {
        let Self { mut rows, gap, .. } = self;
        // Where one function ends and another begins at once, the beginning counts.
        rows.sort_by_key(|row| (row.start, row.cfa != gap));
        let mut kept: Vec<UnwindRow> = Vec::with_capacity(rows.len());
        for row in rows {
            match kept.last_mut() {
                Some(last) if last.start == row.start => *last = row,
                Some(last) if (last.cfa, last.fp) == (row.cfa, row.fp) => {}
                _ => kept.push(row),
            }
        }
        kept
    }
}

fn unknown(start: u32) -> UnwindRow {
    UnwindRow { start, cfa: cfa::UNKNOWN, fp: 0 }
}

fn compact(section: &EhFrame<Slice<'_>>, start: u32, row: &UnwindTableRow<usize>) -> UnwindRow {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Offset(at)) if at == -WORD_BYTES => {}
        // The instructions say so where nothing is to return to: `_start`, and the start of a thread.
        Some(RegisterRule::Undefined) => return UnwindRow { start, cfa: cfa::OUTERMOST, fp: 0 },
        _ => return unknown(start),
    }
    let base = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => base(*register, *offset),
        CfaRule::Expression(expression) => saved(section, expression),
    };
    let fp = match row.register(X86_64::RBP) {
        // A register that functions must leave as it was, where no instruction speaks of it.
        None | Some(RegisterRule::Undefined | RegisterRule::SameValue) => Some(0),
        Some(RegisterRule::Offset(at)) if at != 0 && at % WORD_BYTES == 0 => i16::try_from(at / WORD_BYTES).ok(),
        _ => None,
    };
    match (base, fp) {
        (Some(cfa), Some(fp)) => UnwindRow { start, cfa, fp },
        _ => unknown(start),
    }
}

/// Whole words, if there are not too many of them for that many bits.
fn words(bytes: i64, bits: u32) -> Option<u16> {
    (bytes % WORD_BYTES == 0).then_some(())?;
    u16::try_from(bytes / WORD_BYTES).ok().filter(|words| *words < 1 << bits)
}

const WORDS_BITS: u32 = u16::BITS - cfa::BITS;

fn base(register: Register, offset: i64) -> Option<u16> {
    let rule = match register {
        X86_64::RSP => cfa::SP,
        X86_64::RBP => cfa::FP,
        _ => {
            let words = words(offset, WORDS_BITS - cfa::REGISTER_BITS)?;
            return Some((words << cfa::REGISTER_BITS | in_pt_regs(register)?) << cfa::BITS | cfa::REGISTER);
        }
    };
    Some(words(offset, WORDS_BITS)? << cfa::BITS | rule)
}

/// Which word of `struct pt_regs` it is (`asm/ptrace.h`), of those that a call may change.
fn in_pt_regs(register: Register) -> Option<u16> {
    match register {
        X86_64::R11 => Some(6),
        X86_64::R10 => Some(7),
        X86_64::R9 => Some(8),
        X86_64::R8 => Some(9),
        X86_64::RAX => Some(10),
        X86_64::RCX => Some(11),
        X86_64::RDX => Some(12),
        X86_64::RSI => Some(13),
        X86_64::RDI => Some(14),
        _ => None,
    }
}

/// The one expression that matters: what the stack pointer was is kept on the stack.
fn saved(section: &EhFrame<Slice<'_>>, expression: &UnwindExpression<usize>) -> Option<u16> {
    let mut operations = expression.get(section).ok()?.operations(gimli::Encoding {
        address_size: 8,
        format: gimli::Format::Dwarf32,
        version: 4,
    });
    let mut next = || operations.next().ok().flatten();
    let Operation::RegisterOffset { register: X86_64::RSP, offset, .. } = next()? else { return None };
    let Operation::Deref { .. } = next()? else { return None };
    let Operation::PlusConstant { value: 8 } = next()? else { return None };
    next().is_none().then_some(())?;
    (offset % WORD_BYTES == 0).then_some(())?;
    let words = i16::try_from(offset / WORD_BYTES).ok()?;
    let shifted = words.checked_mul(1 << cfa::BITS)?;
    Some(shifted.cast_unsigned() | cfa::SAVED_SP)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::target::elf::ElfFile;
    use crate::{target::procfs, units::Pid};

    fn libc() -> ElfFile {
        let maps = procfs::executable_mappings(Pid(std::process::id())).unwrap();
        let libc = maps.into_iter().find(|map| map.path.to_string_lossy().contains("libc.so")).unwrap();
        ElfFile::open(&libc.path).unwrap()
    }

    /// What readelf says of a file: address, rule and offset of the frame, and where the frame pointer is kept.
    fn truth(elf: &ElfFile) -> Vec<(u32, String, String)> {
        let output = Command::new("readelf").args(["--wide", "--debug-dump=frames-interp"]).arg(elf.path()).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let mut columns: Vec<String> = Vec::new();
        let mut in_function = false;
        let mut rows = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if line.contains(" CIE ") || line.contains(" FDE ") {
                in_function = line.contains(" FDE ");
            } else if !in_function {
            } else if words.first() == Some(&"LOC") {
                columns = words.iter().map(|word| (*word).to_owned()).collect();
            } else if words.len() == columns.len() && words.first().is_some_and(|word| word.len() == 16) {
                let column = |name: &str| {
                    let at = columns.iter().position(|column| column == name);
                    at.and_then(|at| words.get(at)).map_or("u", |word| *word).to_owned()
                };
                let Ok(start) = u64::from_str_radix(words[0], 16) else { continue };
                rows.push((u32::try_from(start).unwrap(), column("CFA"), column("rbp")));
            }
        }
        rows
    }

    /// As readelf writes it.
    fn rule(rule: u16) -> String {
        const REGISTERS: [&str; 9] = ["r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"];
        let words = rule >> cfa::BITS;
        let (register, words) = match rule & ((1 << cfa::BITS) - 1) {
            cfa::SP => ("rsp", words),
            cfa::FP => ("rbp", words),
            cfa::REGISTER => (REGISTERS[usize::from(words & 15) - 6], words >> cfa::REGISTER_BITS),
            _ => return "exp".to_owned(),
        };
        format!("{register}+{}", words * 8)
    }

    #[test]
    fn rows_of_libc_are_what_readelf_says() {
        let elf = libc();
        let (addr, bytes) = elf.frames().unwrap();
        let rows = rows_of(addr.0, &bytes);
        let truth = truth(&elf);
        assert!(truth.len() > 10_000, "readelf found {} rows", truth.len());
        let mut compared = 0;
        for (start, frame, rbp) in truth {
            let at = rows.partition_point(|row| row.start <= start);
            let row = rows[at - 1];
            if row.cfa == cfa::UNKNOWN || row.cfa == cfa::OUTERMOST {
                continue;
            }
            assert_eq!(frame, rule(row.cfa), "at {start:#x}");
            let kept = if row.fp == 0 { "u".to_owned() } else { format!("c{}", row.fp * 8) };
            assert_eq!(rbp, kept, "at {start:#x}");
            compared += 1;
        }
        assert!(compared > 10_000, "compared {compared}");
    }

    #[test]
    fn exceptions_are_the_same_rows_as_those_of_the_whole_file() {
        let elf = libc();
        let (addr, bytes) = elf.frames().unwrap();
        let (all, exceptions) = (rows_of(addr.0, &bytes), exceptions_of(addr.0, &bytes));
        let told = exceptions.iter().filter(|row| row.cfa != cfa::FRAME_POINTERS);
        let mut compared = 0;
        for row in told {
            let same = all[all.partition_point(|one| one.start <= row.start) - 1];
            assert_eq!((same.cfa, same.fp), (row.cfa, row.fp), "at {:#x}", row.start);
            compared += 1;
        }
        // This one keeps none at all.
        assert!(compared > all.len() / 2, "{compared} of {}", all.len());
    }

    /// An entry that is about 64 bytes at this address, with these instructions.
    fn function(at: u32, instructions: &[u8]) -> Vec<u8> {
        // Addresses are four bytes, absolute; the return address is kept below the frame's.
        const COMMON: [u8; 20] = [16, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x03, 0x0c, 7, 8];
        const RETURN_ADDRESS: [u8; 4] = [0x90, 1, 0, 0];
        let mut bytes = COMMON.to_vec();
        bytes[0] += 4;
        bytes.extend(RETURN_ADDRESS);
        let length = 4 + 8 + 1 + u32::try_from(instructions.len()).unwrap();
        bytes.extend(length.to_le_bytes());
        bytes.extend(28u32.to_le_bytes());
        bytes.extend(at.to_le_bytes());
        bytes.extend(64u32.to_le_bytes());
        bytes.push(0);
        bytes.extend_from_slice(instructions);
        bytes
    }

    #[test]
    fn a_function_is_an_exception_where_the_register_is_no_frame_pointer() {
        // After one byte the frame pointer is pushed; after three more it is set, or not.
        let keeps = function(0x1000, &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6]);
        let saves = function(0x1000, &[0x41, 0x0e, 16, 0x86, 2, 0x43]);
        // The frame's address is kept on the stack: `DW_OP_breg7 -8`, `DW_OP_deref`, `DW_OP_plus_uconst 8`.
        let aligns = function(0x1000, &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0f, 5, 0x77, 0x78, 0x06, 0x23, 8]);
        assert_eq!(exceptions_of(0, &keeps), []);
        let rules = |bytes: &[u8]| -> Vec<(u32, u16, i16)> {
            exceptions_of(0, bytes).iter().map(|row| (row.start, row.cfa, row.fp)).collect()
        };
        let begins = [(0x1000, 1 << cfa::BITS | cfa::SP, 0), (0x1001, 2 << cfa::BITS | cfa::SP, -2)];
        let ends = (0x1040, cfa::FRAME_POINTERS, 0);
        assert_eq!(rules(&saves), [begins[0], begins[1], ends]);
        let minus_one = (-1i16 << cfa::BITS).cast_unsigned();
        assert_eq!(rules(&aligns), [begins[0], begins[1], (0x1004, minus_one | cfa::SAVED_SP, -2), ends]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(addr in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let rows = rows_of(addr, &bytes);
            prop_assert!(rows.is_sorted_by_key(|row| row.start));
            let exceptions = exceptions_of(addr, &bytes);
            prop_assert!(exceptions.is_sorted_by_key(|row| row.start));
        }
    }
}
