//! Inlined functions, where a file has line information.
//!
//! Official builds of Node.js have it of libuv and some other C code only. blazesym maps the file, and to name an address that
//! line information does not know, it reads all symbols: so it is asked for nothing else.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use blazesym::symbolize::{
    CodeInfo, Input, Sym, Symbolized, Symbolizer,
    source::{Elf, Source},
};

use crate::{
    limits::DEBUG_RANGES_MAX,
    target::{
        content::{Content, Shared},
        elf::{ElfFile, FileAddr},
    },
};

/// The line information of one file.
pub struct Lines {
    /// Kept open: the process, and with it the path to the file, may go.
    file: File,
    /// Sorted; `None` is the whole file.
    ranges: Option<Vec<(u64, u64)>>,
}

/// A function, and the place in it.
pub struct Place {
    pub name: String,
    pub file: Option<String>,
    pub line: Option<u32>,
}

/// Those that are open, by the symbols and the line information of their files.
static KNOWN: Mutex<Shared<(usize, Content), Lines>> = Mutex::new(Shared::EMPTY);

impl Lines {
    /// `None` if the file has none, or too much. Files that have the same share what is read of it, as long as one of them is open.
    pub fn of(elf: &ElfFile, file: &File) -> Option<Arc<Self>> {
        if !elf.has_debug_info() {
            return None;
        }
        let file = file.try_clone().ok()?;
        let read = || Self { file, ranges: elf.debug_ranges().map(|bytes| parse_debug_ranges(&bytes)) };
        match elf.symbols_held().zip(elf.debug_content()) {
            Some(((symbols, _), content)) => {
                Some(KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get((symbols, content), read))
            }
            None => Some(Arc::new(read())),
        }
    }

    /// Functions at an address, innermost first: all but the last are inlined. Empty if the address is not known.
    pub fn places(&self, addr: FileAddr, symbolizer: &Symbolizer) -> Vec<Place> {
        if self.ranges.as_ref().is_some_and(|ranges| !contain(ranges, addr.0)) {
            return Vec::new();
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let found = symbolizer.symbolize_single(&Source::Elf(Elf::new(path)), Input::VirtOffset(addr.0));
        let Ok(Symbolized::Sym(Sym { name, inlined, code_info, .. })) = found else { return Vec::new() };
        let inner = inlined.iter().rev().map(|inner| place(&inner.name, inner.code_info.as_ref()));
        inner.chain([place(&name, code_info.as_deref())]).collect()
    }
}

fn place(name: &str, info: Option<&CodeInfo<'_>>) -> Place {
    let file = info.map(|info| info.to_path().display().to_string());
    Place { name: name.to_owned(), file, line: info.and_then(|info| info.line) }
}

fn contain(ranges: &[(u64, u64)], addr: u64) -> bool {
    let next = ranges.partition_point(|(start, _)| *start <= addr);
    next.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, end)| addr < *end)
}

/// Ranges of addresses in `.debug_aranges` (DWARF 4, 6.1.2), sorted and joined; those before the first damage.
#[must_use]
pub fn parse_debug_ranges(mut bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    while let Some((set, rest)) = next_set(bytes) {
        ranges.extend(set.chunks_exact(16).filter_map(|pair| {
            let (start, bytes) = pair.split_first_chunk::<8>()?;
            let (start, bytes) = (u64::from_le_bytes(*start), u64::from_le_bytes(*bytes.first_chunk()?));
            (bytes > 0).then_some((start, start.checked_add(bytes)?))
        }));
        if ranges.len() >= DEBUG_RANGES_MAX {
            break;
        }
        bytes = rest;
    }
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let joined = next.0 <= before.1;
        if joined {
            before.1 = before.1.max(next.1);
        }
        joined
    });
    ranges
}

/// The pairs of the first set, and the sets after it. Only the 32-bit form, and 64-bit addresses.
fn next_set(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    /// Length 4, version 2, offset of the unit 4, sizes of an address and of a segment 1 each; then up to a multiple of a pair.
    const HEAD_BYTES: usize = 16;
    const SIZES_AT: usize = 10;
    let length = usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let (set, rest) = bytes.split_at_checked(length.checked_add(4)?)?;
    (set.get(SIZES_AT..SIZES_AT + 2)? == [8, 0]).then_some(())?;
    Some((set.get(HEAD_BYTES..)?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pairs: &[(u64, u64)]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0];
        for (start, bytes) in pairs.iter().chain(&[(0, 0)]) {
            body.extend(start.to_le_bytes());
            body.extend(bytes.to_le_bytes());
        }
        let length = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
        [length.as_slice(), &body].concat()
    }

    #[test]
    fn ranges_of_all_sets_are_joined() {
        let bytes = [set(&[(0x2000, 0x100), (0x1000, 0x10)]), set(&[(0x1010, 0x10)]), vec![9, 9]].concat();
        let ranges = parse_debug_ranges(&bytes);
        assert_eq!(ranges, [(0x1000, 0x1020), (0x2000, 0x2100)]);
        assert!(contain(&ranges, 0x101f) && !contain(&ranges, 0x1020) && !contain(&ranges, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_debug_ranges(&bytes).is_sorted());
        }
    }
}
