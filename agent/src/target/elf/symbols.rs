//! Names of functions and variables, in `.symtab` and `.dynsym`.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use object::elf;

use super::{ElfError, ElfFile, FileAddr, Range, u16_at, u32_at, u64_at};
use crate::{
    limits::{ELF_FUNCTIONS_MAX, SYMBOL_NAME_BYTES_MAX, SYMBOL_TABLE_BYTES_MAX},
    target::symbol_index::{self, HASHED_BYTES_MAX, SymbolIndex, Symbols},
};

pub(super) const SYMBOL_BYTES: usize = 24;
/// Of what a compiler adds to the name of a clone.
const CLONE_BYTES_MAX: u64 = 64;
/// Pieces in which tables are read: whole symbols, and names with room for the longest that is hashed.
const SYMBOLS_PIECE_BYTES: usize = SYMBOL_BYTES << 14;
const NAMES_PIECE_BYTES: u64 = 1 << 19;

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

#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub symbols: Range,
    pub names: Range,
    pub via: Via,
}

impl ElfFile {
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
        for (table, symbols) in self.tables.iter().zip(&self.indexes.symbols).filter(|(table, _)| is_asked(table.via)) {
            let symbols = self.symbols(table, symbols);
            for (name, lookup) in &mut found {
                if matches!(lookup, Lookup::Absent | Lookup::CloneOnly { .. }) {
                    self.look_up(table, &symbols.names, name, lookup)?;
                }
            }
        }
        Ok(found)
    }

    /// What is known of a table. Only a large one is looked for among those of other files: that takes to read it once.
    fn symbols<'a>(&self, table: &Table, known: &'a OnceLock<Arc<Symbols>>) -> &'a Symbols {
        const LARGE_BYTES: u64 = (SYMBOL_BYTES as u64) << 14;
        known.get_or_init(|| {
            let is_large = (LARGE_BYTES..SYMBOL_TABLE_BYTES_MAX).contains(&table.symbols.bytes);
            let content = is_large.then(|| self.content(&[table.symbols, table.names])).flatten();
            content.map_or_else(Arc::default, symbol_index::symbols_of)
        })
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

    /// The functions of the fullest symbol table, by address; of several at one address, one. Of a damaged table, none.
    #[must_use]
    pub fn functions(&self) -> &[SymbolRange] {
        let Some(symbols) = self.fullest() else { return &[] };
        symbols.functions.get_or_init(|| self.ranges_of(&[elf::STT_FUNC, elf::STT_GNU_IFUNC]))
    }

    fn variables(&self) -> &[SymbolRange] {
        let Some(symbols) = self.fullest() else { return &[] };
        symbols.variables.get_or_init(|| self.ranges_of(&[elf::STT_OBJECT]))
    }

    fn fullest(&self) -> Option<&Symbols> {
        Some(self.symbols(self.tables.first()?, self.indexes.symbols.first()?))
    }

    /// Bytes of memory that functions and variables take, which files share that have the same, and by what to tell those.
    #[must_use]
    pub fn symbols_held(&self) -> Option<(usize, usize)> {
        let symbols = self.fullest()?;
        Some((std::ptr::from_ref(symbols).addr(), symbols.bytes()))
    }

    fn ranges_of(&self, kinds: &[u8]) -> Vec<SymbolRange> {
        let Some(table) = self.tables.first() else { return Vec::new() };
        // A damaged table costs names, nothing else.
        let symbols = self.read(table.symbols, SYMBOL_TABLE_BYTES_MAX, "symbol table").unwrap_or_default();
        let defined = symbols
            .chunks_exact(SYMBOL_BYTES)
            .filter_map(RawSymbol::parse)
            .filter(|symbol| kinds.contains(&symbol.kind) && symbol.section != elf::SHN_UNDEF && symbol.value != 0);
        let mut ranges: Vec<SymbolRange> = defined
            .take(ELF_FUNCTIONS_MAX)
            .map(|symbol| SymbolRange {
                addr: FileAddr(symbol.value),
                size: u32::try_from(symbol.size).unwrap_or(u32::MAX),
                name: symbol.name,
            })
            .collect();
        // The largest of several at one address is the function; the others are marks in it.
        ranges.sort_by_key(|range| (range.addr, std::cmp::Reverse(range.size)));
        ranges.dedup_by_key(|range| range.addr);
        ranges.shrink_to_fit();
        ranges
    }

    /// The name of a function that [`Self::functions`] gave, as far as it is text.
    #[must_use]
    pub fn name_of(&self, function: &SymbolRange) -> Option<String> {
        let names = self.tables.first()?.names;
        let left = names.bytes.checked_sub(u64::from(function.name))?;
        let offset = names.offset.checked_add(u64::from(function.name))?;
        let bytes =
            self.read(Range { offset, bytes: left.min(SYMBOL_NAME_BYTES_MAX) }, SYMBOL_NAME_BYTES_MAX, "name").ok()?;
        let name = bytes.split(|byte| *byte == 0).next()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    }

    /// The class (mangled, without `_ZTV`) whose vtable a base of an object points into. The primary base's pointer is two words
    /// (offset to top, type info) behind the symbol, those of further bases lie further behind.
    #[must_use]
    pub fn class_of_vptr(&self, vptr: FileAddr) -> Option<String> {
        let table = self.variables();
        let next = table.partition_point(|variable| variable.addr <= vptr);
        let variable = table.get(next.checked_sub(1)?)?;
        (vptr.0 - variable.addr.0 < u64::from(variable.size.max(24))).then_some(())?;
        self.name_of(variable)?.strip_prefix("_ZTV").map(str::to_owned)
    }
}

/// A function or variable of a symbol table; the name stays in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SymbolRange {
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
