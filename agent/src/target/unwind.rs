//! How code without frame pointers finds its caller: the rows of a file's `.eh_frame`, in the form that the kernel half searches.
//!
//! gimli runs the file's call frame instructions; of its rules, those stay that compilers write for ordinary functions. What
//! needs more (the procedure linkage table, signal frames) becomes a row that says so, and a stack ends there.

use agent_ebpf::state::{UnwindRow, cfa};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, FrameDescriptionEntry, LittleEndian, Register, RegisterRule,
    UnwindContext, UnwindSection, UnwindTableRow, X86_64,
};

use super::elf::ElfFile;
use crate::limits::UNWIND_FILE_ROWS_MAX;

const WORD_BYTES: i64 = 8;

type Slice<'a> = gimli::EndianSlice<'a, LittleEndian>;

/// The rows of a file, sorted by its own addresses; empty if it has none, or none that can be read.
///
/// A damaged entry costs itself.
#[must_use]
pub fn rows(elf: &ElfFile) -> Vec<UnwindRow> {
    elf.frames().map(|(addr, bytes)| rows_of(addr.0, &bytes)).unwrap_or_default()
}

/// The rows of an `.eh_frame` section at an address.
#[must_use]
pub fn rows_of(addr: u64, bytes: &[u8]) -> Vec<UnwindRow> {
    let section = EhFrame::new(bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(addr);
    let mut context = UnwindContext::new();
    let mut rows = Vec::new();
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        if rows.len() >= UNWIND_FILE_ROWS_MAX {
            break;
        }
        let CieOrFde::Fde(partial) = entry else { continue };
        if let Ok(fde) = partial.parse(EhFrame::cie_from_offset) {
            add_function(&section, &bases, &mut context, &fde, &mut rows);
        }
    }
    // Where one function ends and another begins at once, the beginning counts.
    rows.sort_by_key(|row| (row.start, row.cfa != UNKNOWN));
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

const UNKNOWN: u16 = cfa::UNKNOWN;

fn add_function(
    section: &EhFrame<Slice<'_>>,
    bases: &BaseAddresses,
    context: &mut UnwindContext<usize>,
    fde: &FrameDescriptionEntry<Slice<'_>>,
    rows: &mut Vec<UnwindRow>,
) {
    let Ok(mut table) = fde.rows(section, bases, context) else { return };
    while let Ok(Some(row)) = table.next_row() {
        if rows.len() >= UNWIND_FILE_ROWS_MAX {
            return;
        }
        let Ok(start) = u32::try_from(row.start_address()) else { return };
        rows.push(compact(start, row));
    }
    let end = fde.initial_address().checked_add(fde.len()).and_then(|end| u32::try_from(end).ok());
    rows.extend(end.map(unknown));
}

fn unknown(start: u32) -> UnwindRow {
    UnwindRow { start, cfa: UNKNOWN, fp: 0 }
}

fn compact(start: u32, row: &UnwindTableRow<usize>) -> UnwindRow {
    match row.register(X86_64::RA) {
        Some(RegisterRule::Offset(at)) if at == -WORD_BYTES => {}
        // The instructions say so where nothing is to return to: `_start`, and the start of a thread.
        Some(RegisterRule::Undefined) => return UnwindRow { start, cfa: cfa::OUTERMOST, fp: 0 },
        _ => return unknown(start),
    }
    let base = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => base(*register, *offset),
        CfaRule::Expression(_) => None,
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

fn base(register: Register, offset: i64) -> Option<u16> {
    let rule = match register {
        X86_64::RSP => cfa::SP,
        X86_64::RBP => cfa::FP,
        _ => return None,
    };
    if offset % WORD_BYTES != 0 {
        return None;
    }
    let words = u16::try_from(offset / WORD_BYTES).ok().filter(|words| *words < 1 << (u16::BITS - cfa::BITS))?;
    Some(words << cfa::BITS | rule)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
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

    #[test]
    fn rows_of_libc_are_what_readelf_says() {
        let elf = libc();
        let rows = rows(&elf);
        let truth = truth(&elf);
        assert!(truth.len() > 10_000, "readelf found {} rows", truth.len());
        let mut compared = 0;
        for (start, frame, rbp) in truth {
            let at = rows.partition_point(|row| row.start <= start);
            let row = rows[at - 1];
            if row.cfa == UNKNOWN || row.cfa == cfa::OUTERMOST {
                continue;
            }
            let register = if row.cfa & 3 == cfa::SP { "rsp" } else { "rbp" };
            assert_eq!(frame, format!("{register}+{}", row.cfa >> cfa::BITS << 3), "at {start:#x}");
            let kept = if row.fp == 0 { "u".to_owned() } else { format!("c{}", row.fp * 8) };
            assert_eq!(rbp, kept, "at {start:#x}");
            compared += 1;
        }
        assert!(compared > 10_000, "compared {compared}");
    }

    proptest! {
        #[test]
        fn any_bytes_end(addr in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let rows = rows_of(addr, &bytes);
            prop_assert!(rows.is_sorted_by_key(|row| row.start));
        }
    }
}
