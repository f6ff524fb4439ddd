//! Symbols, code and identity of an ELF file, read piece by piece.
//!
//! A Node.js binary has 100 MB, of which a probe plan needs two symbol tables and a few hundred bytes of code: the file is
//! never mapped or read whole. Only 64-bit little-endian files for x86-64 are taken.

mod source;
mod symbols;

use std::{
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use object::elf;
use source::{OpenFile, ReadAt};
use symbols::Table;
pub use symbols::{Lookup, Symbol, SymbolRange, Via};
use thiserror::Error;

use super::{
    content::{Content, Parts},
    symbol_index::{self, Indexes, TABLES_MAX},
};
use crate::{
    limits::{
        CONSTANTS_BYTES_MAX, DEBUG_INFO_BYTES_MAX, ELF_HEADERS_MAX, ELF_NOTE_BYTES_MAX, FRAME_TABLE_BYTES_MAX,
        SYMBOL_TABLE_BYTES_MAX,
    },
    units::FileOffset,
};

#[derive(Debug, Error)]
pub enum ElfError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no 64-bit little-endian ELF file")]
    NotElf { path: PathBuf },
    #[error("{path} is for machine {machine}, not x86-64")]
    Machine { path: PathBuf, machine: u16 },
    #[error("{path}: the {part} is damaged or too large")]
    Damaged { path: PathBuf, part: &'static str },
}

/// An address as the file's headers give it: before the loader adds its bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileAddr(pub u64);

impl FileAddr {
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::LowerHex for FileAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    addr: u64,
    file_bytes: u64,
    memory_bytes: u64,
    executable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    offset: u64,
    bytes: u64,
}

impl Range {
    /// At most `bytes` from `at` on.
    fn part(self, at: u64, bytes: u64) -> Self {
        Self { offset: self.offset.saturating_add(at), bytes: bytes.min(self.bytes.saturating_sub(at)) }
    }
}

/// An open ELF file: its headers in memory, the rest on disk.
pub struct ElfFile {
    path: PathBuf,
    source: Box<dyn ReadAt>,
    segments: Vec<Segment>,
    tables: Vec<Table>,
    build_id: Option<Vec<u8>>,
    position_independent: bool,
    frame_index: Option<Segment>,
    indexes: Arc<Indexes>,
    has_debug_info: bool,
    debug_ranges: Option<Range>,
    /// All that blazesym may read for it.
    debug: Vec<Range>,
    /// `.eh_frame` and its address.
    frames: Option<(FileAddr, Range)>,
}

impl fmt::Debug for ElfFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElfFile")
            .field("path", &self.path)
            .field("build_id", &self.build_id_hex())
            .finish_non_exhaustive()
    }
}

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;

impl ElfFile {
    pub fn open(path: &Path) -> Result<Self, ElfError> {
        let read = |source| ElfError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        Self::from_file(file, path)
    }

    /// Takes a file that is open already; `path` is for messages.
    pub fn from_file(file: File, path: &Path) -> Result<Self, ElfError> {
        let metadata = file.metadata().map_err(|source| ElfError::Read { path: path.to_owned(), source })?;
        if !metadata.is_file() {
            return Err(ElfError::NotElf { path: path.to_owned() });
        }
        let indexes = symbol_index::of_file(&metadata);
        Self::parse(Box::new(OpenFile { file, len: metadata.len() }), path, indexes)
    }

    /// Takes the bytes of a file: for tests and fuzzing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ElfError> {
        Self::parse(Box::new(bytes.to_vec()), Path::new("(bytes)"), Arc::default())
    }

    fn parse(source: Box<dyn ReadAt>, path: &Path, indexes: Arc<Indexes>) -> Result<Self, ElfError> {
        let not_elf = || ElfError::NotElf { path: path.to_owned() };
        let mut header = [0; HEADER_BYTES];
        source.read_exact_at(&mut header, 0).map_err(|_| not_elf())?;
        let ident = [elf::ELFMAG[0], elf::ELFMAG[1], elf::ELFMAG[2], elf::ELFMAG[3], elf::ELFCLASS64, elf::ELFDATA2LSB];
        if !header.starts_with(&ident) {
            return Err(not_elf());
        }
        let field = |at| u16_at(&header, at).ok_or_else(not_elf);
        let machine = field(18)?;
        if machine != elf::EM_X86_64 {
            return Err(ElfError::Machine { path: path.to_owned(), machine });
        }
        let mut this = Self {
            path: path.to_owned(),
            source,
            segments: Vec::new(),
            tables: Vec::new(),
            build_id: None,
            position_independent: field(16)? == elf::ET_DYN,
            frame_index: None,
            indexes,
            has_debug_info: false,
            debug_ranges: None,
            debug: Vec::new(),
            frames: None,
        };
        let programs = u64_at(&header, 32).ok_or_else(not_elf)?;
        let sections = u64_at(&header, 40).ok_or_else(not_elf)?;
        this.read_segments(programs, u64::from(field(56)?))?;
        this.read_tables(sections, u64::from(field(60)?), usize::from(field(62)?))?;
        Ok(this)
    }

    fn damaged(&self, part: &'static str) -> ElfError {
        ElfError::Damaged { path: self.path.clone(), part }
    }

    /// Reads a range that must lie in the file, so a lying header cannot make us allocate more than the file has.
    fn read(&self, range: Range, most: u64, part: &'static str) -> Result<Vec<u8>, ElfError> {
        let end = range.offset.checked_add(range.bytes);
        if range.bytes > most || end.is_none_or(|end| end > self.source.len()) {
            return Err(self.damaged(part));
        }
        let bytes = usize::try_from(range.bytes).map_err(|_| self.damaged(part))?;
        let mut buffer = vec![0; bytes];
        self.source
            .read_exact_at(&mut buffer, range.offset)
            .map_err(|source| ElfError::Read { path: self.path.clone(), source })?;
        Ok(buffer)
    }

    /// What ranges hold; `None` if they are too large or cannot be read.
    fn content(&self, ranges: &[Range]) -> Option<Content> {
        const PIECE_BYTES: u64 = 1 << 18;
        if ranges.iter().fold(0, |sum: u64, range| sum.saturating_add(range.bytes)) > SYMBOL_TABLE_BYTES_MAX {
            return None;
        }
        let mut parts = Parts::default();
        for range in ranges {
            // The end of one is not the begin of the next.
            parts.add(&range.bytes.to_le_bytes());
            let mut at = 0;
            while at < range.bytes {
                parts.add(&self.read(range.part(at, PIECE_BYTES), PIECE_BYTES, "content").ok()?);
                at += PIECE_BYTES;
            }
        }
        Some(parts.end())
    }

    fn read_segments(&mut self, offset: u64, count: u64) -> Result<(), ElfError> {
        const PART: &str = "program header table";
        let most = ELF_HEADERS_MAX * PROGRAM_HEADER_BYTES as u64;
        let table = self.read(Range { offset, bytes: count * PROGRAM_HEADER_BYTES as u64 }, most, PART)?;
        let mut notes = Vec::new();
        for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            let field = |at| u64_at(entry, at).ok_or_else(|| self.damaged(PART));
            let kind = u32_at(entry, 0).ok_or_else(|| self.damaged(PART))?;
            let flags = u32_at(entry, 4).ok_or_else(|| self.damaged(PART))?;
            let segment = Segment {
                offset: field(8)?,
                addr: field(16)?,
                file_bytes: field(32)?,
                memory_bytes: field(40)?,
                executable: flags & elf::PF_X != 0,
            };
            match kind {
                elf::PT_LOAD => self.segments.push(segment),
                elf::PT_GNU_EH_FRAME => self.frame_index = Some(segment),
                elf::PT_NOTE => notes.push(Range { offset: segment.offset, bytes: segment.file_bytes }),
                _ => {}
            }
        }
        for range in notes {
            // A damaged note costs the build id, not the file.
            if let Ok(note) = self.read(range, ELF_NOTE_BYTES_MAX, "note")
                && let Some(id) = build_id(&note)
            {
                self.build_id = Some(id.to_vec());
                break;
            }
        }
        Ok(())
    }

    fn read_tables(&mut self, offset: u64, count: u64, names_index: usize) -> Result<(), ElfError> {
        const PART: &str = "section header table";
        let most = ELF_HEADERS_MAX * SECTION_HEADER_BYTES as u64;
        let table = self.read(Range { offset, bytes: count * SECTION_HEADER_BYTES as u64 }, most, PART)?;
        let sections: Vec<&[u8]> = table.chunks_exact(SECTION_HEADER_BYTES).collect();
        let range = |entry: &[u8]| Some(Range { offset: u64_at(entry, 24)?, bytes: u64_at(entry, 32)? });
        for entry in &sections {
            let via = match u32_at(entry, 4) {
                Some(elf::SHT_SYMTAB) => Via::Symtab,
                Some(elf::SHT_DYNSYM) => Via::Dynsym,
                _ => continue,
            };
            let names = u32_at(entry, 40).and_then(|link| sections.get(usize::try_from(link).ok()?));
            if let (Some(symbols), Some(names)) = (range(entry), names.and_then(|names| range(names))) {
                self.tables.push(Table { symbols, names, via });
            }
        }
        self.tables.sort_by_key(|table| table.via != Via::Symtab);
        self.tables.truncate(TABLES_MAX);
        // Without names of sections, a file merely seems to have no line information.
        let names = sections.get(names_index).and_then(|entry| range(entry));
        let names =
            names.and_then(|names| self.read(names, ELF_NOTE_BYTES_MAX, "section names").ok()).unwrap_or_default();
        let name = |entry: &[u8]| {
            let name = u32_at(entry, 0).and_then(|at| names.get(usize::try_from(at).ok()?..));
            name.and_then(|name| name.split(|byte| *byte == 0).next()).unwrap_or_default()
        };
        let section = |wanted: &[u8]| {
            let found = sections.iter().find(|entry| name(entry) == wanted);
            found.and_then(|entry| Some((FileAddr(u64_at(entry, 16)?), range(entry)?)))
        };
        self.has_debug_info = section(b".debug_info").is_some_and(|(_, range)| range.bytes <= DEBUG_INFO_BYTES_MAX);
        self.debug_ranges = section(b".debug_aranges").map(|(_, range)| range);
        self.frames = section(b".eh_frame");
        let debug = sections.iter().filter(|entry| name(entry).starts_with(b".debug_"));
        self.debug = debug.filter_map(|entry| range(entry)).collect();
        Ok(())
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    #[must_use]
    pub fn build_id_hex(&self) -> Option<String> {
        let id = self.build_id.as_ref()?;
        Some(id.iter().fold(String::with_capacity(id.len() * 2), |mut hex, byte| {
            for nibble in [byte >> 4, byte & 15] {
                hex.extend(char::from_digit(u32::from(nibble), 16));
            }
            hex
        }))
    }

    #[must_use]
    pub fn has_symtab(&self) -> bool {
        self.tables.iter().any(|table| table.via == Via::Symtab)
    }

    /// The loader adds a bias to the file's addresses.
    #[must_use]
    pub fn is_position_independent(&self) -> bool {
        self.position_independent
    }

    /// What to add to the file's addresses, given one executable mapping of it.
    #[must_use]
    pub fn bias(&self, mapped_at: u64, file_offset: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| {
            segment.executable
                && segment.offset & !0xfff <= file_offset
                && file_offset < segment.offset.saturating_add(segment.file_bytes)
        })?;
        // Wraps for files that were linked high and mapped low; the sum wraps back.
        Some(mapped_at.wrapping_sub(segment.addr.wrapping_sub(segment.offset).wrapping_add(file_offset)))
    }

    /// Where in the file the byte at `addr` is.
    #[must_use]
    pub fn file_offset(&self, addr: FileAddr) -> Option<FileOffset> {
        self.segments.iter().find_map(|segment| {
            let within = addr.0.checked_sub(segment.addr)?;
            (within < segment.file_bytes).then_some(())?;
            segment.offset.checked_add(within).map(FileOffset)
        })
    }

    /// The address is in code.
    #[must_use]
    pub fn is_code(&self, addr: FileAddr) -> bool {
        self.segments.iter().any(|segment| {
            segment.executable && addr.0.checked_sub(segment.addr).is_some_and(|at| at < segment.file_bytes)
        })
    }

    /// The address is in memory that the file occupies, zeroed or not.
    #[must_use]
    pub fn is_mapped(&self, addr: FileAddr) -> bool {
        self.segments.iter().any(|segment| addr.0.checked_sub(segment.addr).is_some_and(|at| at < segment.memory_bytes))
    }

    /// At most `bytes` from `addr` on, less where the segment ends; none where it is not in the file.
    #[must_use]
    pub fn bytes_at(&self, addr: FileAddr, bytes: u64) -> Vec<u8> {
        let Some(segment) = self
            .segments
            .iter()
            .find(|segment| addr.0.checked_sub(segment.addr).is_some_and(|at| at < segment.file_bytes))
        else {
            return Vec::new();
        };
        let within = addr.0 - segment.addr;
        let bytes = bytes.min(segment.file_bytes - within);
        let Some(offset) = segment.offset.checked_add(within) else { return Vec::new() };
        self.read(Range { offset, bytes }, bytes, "segment").unwrap_or_default()
    }

    /// The first string among the file's constants that begins with `head` and of whose rest `accept` makes something.
    #[must_use]
    pub fn constant_text<T>(&self, head: &[u8], accept: impl Fn(&str) -> Option<T>) -> Option<T> {
        let constants = self.segments.iter().filter(|segment| !segment.executable);
        constants.into_iter().find_map(|segment| {
            let range = Range { offset: segment.offset, bytes: segment.file_bytes };
            let bytes = self.read(range, CONSTANTS_BYTES_MAX, "segment").ok()?;
            bytes.split(|byte| *byte == 0).find_map(|text| accept(str::from_utf8(text.strip_prefix(head)?).ok()?))
        })
    }

    #[must_use]
    pub fn u32_at(&self, addr: FileAddr) -> Option<u32> {
        u32_at(&self.bytes_at(addr, 4), 0)
    }

    /// The address that is stored at `addr`, in a file that the loader does not move.
    #[must_use]
    pub fn address_at(&self, addr: FileAddr) -> Option<FileAddr> {
        u64_at(&self.bytes_at(addr, 8), 0).map(FileAddr)
    }

    /// Whether the file has line information, and so perhaps inlined functions, and not too much of it to be read.
    #[must_use]
    pub fn has_debug_info(&self) -> bool {
        self.has_debug_info
    }

    /// `.debug_aranges`: which addresses the line information is about; `None` if the file does not say.
    #[must_use]
    pub fn debug_ranges(&self) -> Option<Vec<u8>> {
        self.read(self.debug_ranges?, DEBUG_INFO_BYTES_MAX, "address ranges").ok()
    }

    /// What line information there is; `None` if it cannot be read, or is too much.
    #[must_use]
    pub fn debug_content(&self) -> Option<Content> {
        self.content(&self.debug)
    }

    /// `.eh_frame`, by which code without frame pointers is unwound, and its address; `None` if there is none, or too much.
    #[must_use]
    pub fn frames(&self) -> Option<(FileAddr, Vec<u8>)> {
        let (addr, range) = self.frames?;
        Some((addr, self.read(range, FRAME_TABLE_BYTES_MAX, "unwind table").ok()?))
    }

    /// The address of the byte at a file offset.
    #[must_use]
    pub fn addr_of_offset(&self, offset: u64) -> Option<FileAddr> {
        self.segments.iter().find_map(|segment| {
            let within = offset.checked_sub(segment.offset)?;
            (within < segment.file_bytes).then_some(())?;
            segment.addr.checked_add(within).map(FileAddr)
        })
    }

    /// Bytes from the function's start to that of the next (so perhaps with padding), if the unwind table says that a
    /// function begins there.
    #[must_use]
    pub fn function_bytes(&self, start: FileAddr) -> Option<u64> {
        let starts = self.indexes.starts.get_or_init(|| self.starts());
        let starts = starts.get_or_init(|| self.read_frame_index().unwrap_or_default());
        let at = starts.binary_search(&start).ok()?;
        let end = match starts.get(at + 1) {
            Some(next) => next.0,
            None => self
                .segments
                .iter()
                .find(|segment| segment.executable)
                .map(|code| code.addr.saturating_add(code.file_bytes))?,
        };
        end.checked_sub(start.0).filter(|_| self.is_code(start))
    }

    /// Those of all files that have the same index.
    fn starts(&self) -> Arc<OnceLock<Vec<FileAddr>>> {
        let content = self.frame_index.and_then(|Segment { offset, file_bytes: bytes, addr, .. }| {
            Some(Content::of((addr, self.content(&[Range { offset, bytes }])?)))
        });
        content.map_or_else(Arc::default, symbol_index::starts_of)
    }

    /// Starts of functions, sorted, from the binary search table of `.eh_frame_hdr` (Linux Standard Base, 10.6.2), in the only form
    /// that linkers write: pairs of 32-bit offsets from the table's header.
    fn read_frame_index(&self) -> Option<Vec<FileAddr>> {
        const VERSION_AND_ENCODINGS: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
        const HEADER_BYTES: usize = 12;
        let index = self.frame_index?;
        let range = Range { offset: index.offset, bytes: index.file_bytes };
        let table = self.read(range, SYMBOL_TABLE_BYTES_MAX, "unwind index").ok()?;
        if !table.starts_with(&VERSION_AND_ENCODINGS) {
            return None;
        }
        let count = usize::try_from(u32_at(&table, 8)?).ok()?;
        let entries = table.get(HEADER_BYTES..)?.chunks_exact(8).take(count);
        let mut starts: Vec<FileAddr> = entries
            .filter_map(|entry| index.addr.checked_add_signed(i64::from(u32_at(entry, 0)?.cast_signed())).map(FileAddr))
            .collect();
        starts.sort();
        starts.dedup();
        Some(starts)
    }
}

/// The description of the note `GNU`, type 3.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"GNU\0";
    let padded = |bytes: u32| usize::try_from(bytes).ok()?.checked_next_multiple_of(4);
    loop {
        let (name_bytes, bytes, kind) = (u32_at(notes, 0)?, u32_at(notes, 4)?, u32_at(notes, 8)?);
        let rest = notes.get(12..)?;
        let name = rest.get(..usize::try_from(name_bytes).ok()?)?;
        let rest = rest.get(padded(name_bytes)?..)?;
        if kind == elf::NT_GNU_BUILD_ID && name == NAME {
            return rest.get(..usize::try_from(bytes).ok()?).filter(|id| !id.is_empty());
        }
        notes = rest.get(padded(bytes)?..)?;
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::indexing_slicing, reason = "tests")]
mod tests;
