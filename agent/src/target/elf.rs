//! Symbols, code and identity of an ELF file, read piece by piece.
//!
//! A Node.js binary has 100 MB, of which a probe plan needs two symbol tables and a few hundred bytes of code: the file is
//! never mapped or read whole. Only 64-bit little-endian files for x86-64 are taken.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use object::elf;
use thiserror::Error;

use super::symbol_index::{self, HASHED_BYTES_MAX, Indexes, SymbolIndex, TABLES_MAX};
use crate::{
    limits::{
        CONSTANTS_BYTES_MAX, DEBUG_INFO_BYTES_MAX, ELF_FUNCTIONS_MAX, ELF_HEADERS_MAX, ELF_NOTE_BYTES_MAX,
        FRAME_TABLE_BYTES_MAX, SYMBOL_NAME_BYTES_MAX, SYMBOL_TABLE_BYTES_MAX,
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

/// Where a symbol was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Symtab,
    Dynsym,
    /// By the shape of the code around exported functions.
    Recovered,
}

impl Via {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Symtab => "symtab",
            Self::Dynsym => "dynsym",
            Self::Recovered => "recovered",
        }
    }
}

/// A function or a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub addr: FileAddr,
    /// 0 where it is not known.
    pub size: u64,
    pub via: Via,
}

/// What a file has under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    #[default]
    Absent,
    Found(Symbol),
    /// Only clones that the compiler made (`.part.0`, `.isra.0`, `.constprop.0`, `.cold`): they take other arguments or hold a
    /// piece of the function, so none of them stands for it.
    CloneOnly {
        clone: String,
    },
    /// Several functions of that name in several units: no telling which.
    Ambiguous {
        count: usize,
    },
}

/// What files and buffers have in common.
trait ReadAt: Send + Sync {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    fn len(&self) -> u64;
}

struct OpenFile {
    file: File,
    len: u64,
}

impl ReadAt for OpenFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(into.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn len(&self) -> u64 {
        u64::try_from(self.as_slice().len()).unwrap_or(u64::MAX)
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
struct Table {
    symbols: Range,
    names: Range,
    via: Via,
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
    starts: OnceLock<Vec<FileAddr>>,
    variables: OnceLock<Vec<FunctionSymbol>>,
    has_debug_info: bool,
    debug_ranges: Option<Range>,
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
const SYMBOL_BYTES: usize = 24;
/// Of what a compiler adds to the name of a clone.
const CLONE_BYTES_MAX: u64 = 64;
/// Pieces in which tables are read: whole symbols, and names with room for the longest that is hashed.
const SYMBOLS_PIECE_BYTES: usize = SYMBOL_BYTES << 14;
const NAMES_PIECE_BYTES: u64 = 1 << 19;

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
            starts: OnceLock::new(),
            variables: OnceLock::new(),
            has_debug_info: false,
            debug_ranges: None,
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
        let section = |wanted: &[u8]| {
            let found = sections.iter().find(|entry| {
                let name = u32_at(entry, 0).and_then(|at| names.get(usize::try_from(at).ok()?..));
                name.and_then(|name| name.split(|byte| *byte == 0).next()) == Some(wanted)
            });
            found.and_then(|entry| Some((FileAddr(u64_at(entry, 16)?), range(entry)?)))
        };
        self.has_debug_info = section(b".debug_info").is_some_and(|(_, range)| range.bytes <= DEBUG_INFO_BYTES_MAX);
        self.debug_ranges = section(b".debug_aranges").map(|(_, range)| range);
        self.frames = section(b".eh_frame");
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

    /// Looks names up in `.symtab`, and those that it lacks in `.dynsym`.
    ///
    /// An exact name is preferred to anything; see [`Lookup`] for what else there may be.
    pub fn lookup<'a>(&self, wanted: impl IntoIterator<Item = &'a str>) -> Result<BTreeMap<&'a str, Lookup>, ElfError> {
        self.lookup_in(wanted, |_| true)
    }

    /// Looks names up in `.dynsym` only, which is smaller and which stripping leaves alone.
    pub fn lookup_exported<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<BTreeMap<&'a str, Lookup>, ElfError> {
        self.lookup_in(wanted, |via| via == Via::Dynsym)
    }

    fn lookup_in<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
        is_asked: impl Fn(Via) -> bool,
    ) -> Result<BTreeMap<&'a str, Lookup>, ElfError> {
        let mut found: BTreeMap<&str, Lookup> = wanted.into_iter().map(|name| (name, Lookup::Absent)).collect();
        for (table, index) in self.tables.iter().zip(self.indexes.iter()).filter(|(table, _)| is_asked(table.via)) {
            for (name, lookup) in &mut found {
                if matches!(lookup, Lookup::Absent | Lookup::CloneOnly { .. }) {
                    self.look_up(table, index, name, lookup)?;
                }
            }
        }
        Ok(found)
    }

    fn look_up(
        &self,
        table: &Table,
        index: &OnceLock<SymbolIndex>,
        wanted: &str,
        lookup: &mut Lookup,
    ) -> Result<(), ElfError> {
        if index.get().is_none() {
            // Another thread may have been faster, with the same.
            let _ = index.set(self.index(table)?);
        }
        let Some(index) = index.get() else { return Ok(()) };
        for number in index.candidates(wanted) {
            let at = u64::from(number) * SYMBOL_BYTES as u64;
            let entry = table.symbols.part(at, SYMBOL_BYTES as u64);
            let entry = self.read(entry, SYMBOL_BYTES as u64, "symbol table")?;
            let Some(symbol) = RawSymbol::parse(&entry) else { continue };
            let most = wanted.len() as u64 + CLONE_BYTES_MAX;
            let name = self.read(table.names.part(u64::from(symbol.name), most), most, "string table")?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let Some(suffix) = name.strip_prefix(wanted.as_bytes()) else { continue };
            if suffix.is_empty() {
                lookup.add(Symbol { addr: FileAddr(symbol.value), size: symbol.size, via: table.via });
            } else if suffix.first() == Some(&b'.') && *lookup == Lookup::Absent {
                *lookup = Lookup::CloneOnly { clone: format!("{wanted}{}", String::from_utf8_lossy(suffix)) };
            }
        }
        Ok(())
    }

    /// Reads the names of all defined symbols, a piece of either table at a time: Node.js has 15 MB of them.
    fn index(&self, table: &Table) -> Result<SymbolIndex, ElfError> {
        let mut names = Vec::new();
        for first in (0..table.symbols.bytes.min(SYMBOL_TABLE_BYTES_MAX)).step_by(SYMBOLS_PIECE_BYTES) {
            let piece = table.symbols.part(first, SYMBOLS_PIECE_BYTES as u64);
            let piece = self.read(piece, SYMBOLS_PIECE_BYTES as u64, "symbol table")?;
            let first = u32::try_from(first / SYMBOL_BYTES as u64).map_err(|_| self.damaged("symbol table"))?;
            let symbols = (first..).zip(piece.chunks_exact(SYMBOL_BYTES));
            names.extend(symbols.filter_map(|(number, entry)| {
                let symbol = RawSymbol::parse(entry)?;
                (symbol.section != elf::SHN_UNDEF && symbol.value != 0).then_some((symbol.name, number))
            }));
        }
        names.sort_unstable();
        let mut piece = Vec::new();
        let mut piece_at = 0;
        for entry in &mut names {
            let at = u64::from(entry.0);
            // Each name lies in a piece as far as it is hashed.
            if piece.is_empty() || at + HASHED_BYTES_MAX as u64 > piece_at + NAMES_PIECE_BYTES {
                piece_at = at;
                piece = self.read(table.names.part(at, NAMES_PIECE_BYTES), NAMES_PIECE_BYTES, "string table")?;
            }
            let within = usize::try_from(at - piece_at).ok().and_then(|within| piece.get(within..));
            entry.0 = symbol_index::hash(within.unwrap_or_default());
        }
        Ok(SymbolIndex::new(names))
    }

    /// The functions of the fullest symbol table, by address; of several at one address, one.
    pub fn functions(&self) -> Result<Vec<FunctionSymbol>, ElfError> {
        self.symbols_of(&[elf::STT_FUNC, elf::STT_GNU_IFUNC])
    }

    fn symbols_of(&self, kinds: &[u8]) -> Result<Vec<FunctionSymbol>, ElfError> {
        let Some(table) = self.tables.first() else { return Ok(Vec::new()) };
        let symbols = self.read(table.symbols, SYMBOL_TABLE_BYTES_MAX, "symbol table")?;
        let defined = symbols
            .chunks_exact(SYMBOL_BYTES)
            .filter_map(RawSymbol::parse)
            .filter(|symbol| kinds.contains(&symbol.kind) && symbol.section != elf::SHN_UNDEF && symbol.value != 0);
        let mut functions: Vec<FunctionSymbol> = defined
            .take(ELF_FUNCTIONS_MAX)
            .map(|symbol| FunctionSymbol {
                addr: FileAddr(symbol.value),
                size: u32::try_from(symbol.size).unwrap_or(u32::MAX),
                name: symbol.name,
            })
            .collect();
        // The largest of several at one address is the function; the others are marks in it.
        functions.sort_by_key(|function| (function.addr, std::cmp::Reverse(function.size)));
        functions.dedup_by_key(|function| function.addr);
        functions.shrink_to_fit();
        Ok(functions)
    }

    /// The name of a function that [`Self::functions`] gave, as far as it is text.
    #[must_use]
    pub fn name_of(&self, function: &FunctionSymbol) -> Option<String> {
        let names = self.tables.first()?.names;
        let left = names.bytes.checked_sub(u64::from(function.name))?;
        let offset = names.offset.checked_add(u64::from(function.name))?;
        let bytes =
            self.read(Range { offset, bytes: left.min(SYMBOL_NAME_BYTES_MAX) }, SYMBOL_NAME_BYTES_MAX, "name").ok()?;
        let name = bytes.split(|byte| *byte == 0).next()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
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
        let starts = self.starts.get_or_init(|| self.read_frame_index().unwrap_or_default());
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

    /// The class (mangled, without `_ZTV`) whose vtable a base of an object points into. The primary base's pointer is two words
    /// (offset to top, type info) behind the symbol, those of further bases lie further behind.
    #[must_use]
    pub fn class_of_vptr(&self, vptr: FileAddr) -> Option<String> {
        // A damaged table costs the names of classes, nothing else.
        let table = self.variables.get_or_init(|| self.symbols_of(&[elf::STT_OBJECT]).unwrap_or_default());
        let next = table.partition_point(|variable| variable.addr <= vptr);
        let variable = table.get(next.checked_sub(1)?)?;
        (vptr.0 - variable.addr.0 < u64::from(variable.size.max(24))).then_some(())?;
        self.name_of(variable)?.strip_prefix("_ZTV").map(str::to_owned)
    }
}

impl Lookup {
    fn add(&mut self, symbol: Symbol) {
        match self {
            Self::Found(first) if first.addr == symbol.addr => {}
            Self::Found(_) => *self = Self::Ambiguous { count: 2 },
            Self::Ambiguous { count } => *count += 1,
            Self::Absent | Self::CloneOnly { .. } => *self = Self::Found(symbol),
        }
    }

    #[must_use]
    pub fn symbol(&self) -> Option<Symbol> {
        match self {
            Self::Found(symbol) => Some(*symbol),
            Self::Absent | Self::CloneOnly { .. } | Self::Ambiguous { .. } => None,
        }
    }
}

/// A function or variable of a symbol table; the name stays in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FunctionSymbol {
    pub addr: FileAddr,
    /// Bytes; 0 where the table does not say.
    pub size: u32,
    /// For [`ElfFile::name_of`].
    name: u32,
}

struct RawSymbol {
    name: u32,
    kind: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl RawSymbol {
    fn parse(entry: &[u8]) -> Option<Self> {
        let kind = *entry.get(4)? & 0xf;
        Some(Self {
            name: u32_at(entry, 0)?,
            kind,
            section: u16_at(entry, 6)?,
            value: u64_at(entry, 8)?,
            size: u64_at(entry, 16)?,
        })
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x40_0000;

    /// A file of one segment with a build id and these symbols, all of them in `.symtab`.
    fn file(symbols: &[(&str, u64)]) -> Vec<u8> {
        let mut names = vec![0u8];
        let mut table = vec![0u8; SYMBOL_BYTES];
        for (name, addr) in symbols {
            table.extend(u32::try_from(names.len()).expect("short").to_le_bytes());
            let kind = if name.starts_with("_ZTV") { elf::STT_OBJECT } else { elf::STT_FUNC };
            table.extend([elf::STB_GLOBAL << 4 | kind, 0, 1, 0]);
            table.extend(addr.to_le_bytes());
            table.extend(8u64.to_le_bytes());
            names.extend(name.as_bytes());
            names.push(0);
        }
        let note =
            [&4u32.to_le_bytes()[..], &2u32.to_le_bytes(), &3u32.to_le_bytes(), b"GNU\0", &[0xab, 0xcd, 0, 0]].concat();
        let note_at = (HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES) as u64;
        let table_at = note_at + note.len() as u64;
        let names_at = table_at + table.len() as u64;
        let sections_at = names_at + names.len() as u64;
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();

        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 62, 0, 1, 0, 0, 0];
        bytes.extend(words(&[BASE, HEADER_BYTES as u64, sections_at]));
        bytes.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 3, 0, 0, 0]);
        bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
        bytes.extend(words(&[0, BASE, BASE, sections_at, sections_at + 0x1000, 0x1000]));
        bytes.extend([4, 0, 0, 0, 4, 0, 0, 0]);
        bytes.extend(words(&[note_at, BASE + note_at, BASE + note_at, note.len() as u64, note.len() as u64, 4]));
        bytes.extend(note);
        bytes.extend(&table);
        bytes.extend(&names);
        bytes.extend([0; SECTION_HEADER_BYTES]);
        for (kind, at, size, link) in [(2u32, table_at, table.len(), 2u32), (3, names_at, names.len(), 0)] {
            bytes.extend(0u32.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(words(&[0, 0, at, size as u64]));
            bytes.extend(link.to_le_bytes());
            bytes.extend([0; 20]);
        }
        bytes
    }

    fn lookup(symbols: &[(&str, u64)], name: &str) -> Lookup {
        let elf = ElfFile::from_bytes(&file(symbols)).expect("a well-formed file");
        elf.lookup([name, "uv", "uv_run_longer"]).expect("a well-formed table").remove(name).expect("it was asked for")
    }

    fn found(addr: u64) -> Lookup {
        Lookup::Found(Symbol { addr: FileAddr(addr), size: 8, via: Via::Symtab })
    }

    #[test]
    fn the_exact_name_wins() {
        assert_eq!(
            lookup(&[("uv_run.part.0", BASE + 8), ("uv_run", BASE + 16), ("uv_run.cold", BASE)], "uv_run"),
            found(BASE + 16)
        );
        assert_eq!(lookup(&[("uv_runx", BASE + 8), ("xuv_run", BASE + 16)], "uv_run"), Lookup::Absent);
    }

    #[test]
    fn a_clone_is_never_taken_for_the_function() {
        let clone = Lookup::CloneOnly { clone: "uv_run.isra.3".to_owned() };
        assert_eq!(lookup(&[("uv_run.isra.3", BASE + 8)], "uv_run"), clone);
    }

    #[test]
    fn two_functions_of_one_name_are_ambiguous() {
        assert_eq!(lookup(&[("uv_run", BASE + 8), ("uv_run", BASE + 8)], "uv_run"), found(BASE + 8));
        assert_eq!(lookup(&[("uv_run", BASE + 8), ("uv_run", BASE + 16)], "uv_run"), Lookup::Ambiguous { count: 2 });
    }

    #[test]
    fn addresses_and_identity() {
        let elf =
            ElfFile::from_bytes(&file(&[("_ZTVN4node14ThreadPoolWorkE", BASE + 64)])).expect("a well-formed file");
        assert_eq!(elf.build_id_hex().as_deref(), Some("abcd"));
        assert_eq!(elf.file_offset(FileAddr(BASE + 5)), Some(FileOffset(5)));
        assert_eq!(elf.file_offset(FileAddr(BASE - 1)), None);
        assert!(elf.is_mapped(FileAddr(BASE + 0x1000)));
        assert_eq!(elf.file_offset(FileAddr(BASE + 0x1000)), None);
        assert_eq!(elf.class_of_vptr(FileAddr(BASE + 80)).as_deref(), Some("N4node14ThreadPoolWorkE"));
        assert_eq!(elf.class_of_vptr(FileAddr(BASE + 88)).as_deref(), None);
        assert_eq!(elf.bytes_at(FileAddr(BASE), u64::MAX).get(..4), Some(&b"\x7fELF"[..]));
    }

    /// Asks for everything that reads the file.
    fn read_all(bytes: &[u8]) {
        let Ok(elf) = ElfFile::from_bytes(bytes) else { return };
        let _ = (elf.lookup(["uv_run", "a"]), elf.lookup_exported(["b"]), elf.class_of_vptr(FileAddr(BASE)));
        let _ = (elf.function_bytes(FileAddr(BASE)), elf.bytes_at(FileAddr(BASE), u64::MAX), elf.bias(BASE, 0));
        let _ = (crate::target::libuv::recover(&elf), elf.build_id_hex());
    }

    proptest! {
        #[test]
        fn a_truncated_file_is_survived(bytes in 0usize..600) {
            let whole = file(&[("uv_run", BASE), ("uv_fs_open", BASE + 8)]);
            read_all(whole.get(..bytes.min(whole.len())).unwrap_or_default());
        }

        #[test]
        fn a_damaged_file_is_survived(damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24)) {
            let mut bytes = file(&[("uv_run", BASE), ("uv_fs_open", BASE + 8)]);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            read_all(&bytes);
        }

        #[test]
        fn any_note_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = build_id(&bytes);
        }
    }
}
