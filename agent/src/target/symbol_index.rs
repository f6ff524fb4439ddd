//! Finds names in a symbol table without reading all of it each time.
//!
//! Node.js has two hundred thousand symbols, and is asked for some of them by the plan of probes, by the heap's reader, by the names of
//! stacks. The first question reads the names once and keeps a hash of each; the others read but the names whose hash fits.
//! Files that are opened again share it, as do other files with the same table, and the last few files keep it while nobody has them
//! open: of a program that is started fifty times, or in fifty containers, each would read it anew.

use std::{
    collections::VecDeque,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{
    content::{Content, Shared},
    elf::{FileAddr, SymbolRange},
};
use crate::limits::SYMBOL_INDEXES_KEPT_MAX;

/// Symbols of one table by the hash of their stem: 8 bytes a symbol.
#[derive(Debug, Default)]
pub struct SymbolIndex {
    /// Hash and number of the symbol, sorted.
    entries: Vec<(u32, u32)>,
}

/// Of a name so much is hashed.
pub const HASHED_BYTES_MAX: usize = 4096;

impl SymbolIndex {
    /// Of the hashes and numbers of symbols.
    #[must_use]
    pub fn new(mut entries: Vec<(u32, u32)>) -> Self {
        entries.sort_unstable();
        Self { entries }
    }

    /// Numbers of symbols that may have this name, or be its clones, in the order of the table; others may be among them.
    pub fn candidates(&self, name: &str) -> impl Iterator<Item = u32> {
        let hash = hash(name.as_bytes());
        let first = self.entries.partition_point(|(other, _)| *other < hash);
        self.entries.iter().skip(first).take_while(move |(other, _)| *other == hash).map(|(_, number)| *number)
    }
}

/// FNV-1a of the stem of a name: up to its NUL or its end, or up to the first dot, behind which compilers say what clone it is.
#[must_use]
pub fn hash(name: &[u8]) -> u32 {
    let stem = name.iter().take(HASHED_BYTES_MAX).take_while(|byte| !matches!(byte, 0 | b'.'));
    stem.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// What a symbol table tells, each part once it is asked for.
#[derive(Debug, Default)]
pub struct Symbols {
    pub names: OnceLock<SymbolIndex>,
    /// By address; of several at one address, one.
    pub functions: OnceLock<Vec<SymbolRange>>,
    pub variables: OnceLock<Vec<SymbolRange>>,
}

impl Symbols {
    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let ranges =
            [&self.functions, &self.variables].into_iter().filter_map(OnceLock::get).map(Vec::len).sum::<usize>();
        let names = self.names.get().map_or(0, |index| index.entries.len());
        ranges * size_of::<SymbolRange>() + names * size_of::<(u32, u32)>()
    }
}

/// What is found out about a file once, when it is first asked for.
#[derive(Debug, Default)]
pub struct Indexes {
    /// One a table, which all files share that have the same.
    pub symbols: [OnceLock<Arc<Symbols>>; TABLES_MAX],
    /// Where functions begin, sorted.
    pub starts: OnceLock<Arc<OnceLock<Vec<FileAddr>>>>,
}

impl Indexes {
    fn is_large(&self) -> bool {
        /// Fewer are read within some milliseconds.
        const MANY_BYTES: usize = size_of::<(u32, u32)>() << 14;
        self.symbols.iter().filter_map(OnceLock::get).any(|symbols| symbols.bytes() >= MANY_BYTES)
    }
}

/// Symbol tables of a file that are looked at: `.symtab` and `.dynsym`.
pub const TABLES_MAX: usize = 2;

/// What is known of tables that somebody has open.
static SYMBOLS: Mutex<Shared<Content, Symbols>> = Mutex::new(Shared::EMPTY);
static STARTS: Mutex<Shared<Content, OnceLock<Vec<FileAddr>>>> = Mutex::new(Shared::EMPTY);

/// What is known of a symbol table, which all share that have the same.
#[must_use]
pub fn symbols_of(content: Content) -> Arc<Symbols> {
    SYMBOLS.lock().unwrap_or_else(PoisonError::into_inner).get(content, Default::default)
}

/// Where functions begin by an unwind index, which all share that have the same.
#[must_use]
pub fn starts_of(content: Content) -> Arc<OnceLock<Vec<FileAddr>>> {
    STARTS.lock().unwrap_or_else(PoisonError::into_inner).get(content, Default::default)
}

/// What tells one state of one file from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Indexes of files that are open somewhere in this process, and of the last few that were.
static KNOWN: Mutex<Known> = Mutex::new(Known { all: Shared::EMPTY, last: VecDeque::new() });

#[derive(Debug)]
struct Known {
    all: Shared<Identity, Indexes>,
    /// The last one that was asked for comes last.
    last: VecDeque<Arc<Indexes>>,
}

/// The indexes of a file, which it shares with all who have it open.
#[must_use]
pub fn of_file(metadata: &Metadata) -> Arc<Indexes> {
    let identity = Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let indexes = known.all.get(identity, Indexes::default);
    let last = &mut known.last;
    // Only those take a place that were much work: every other program's dozen libraries are looked into, too.
    last.retain(|kept| !Arc::ptr_eq(kept, &indexes) && kept.is_large());
    if last.len() >= SYMBOL_INDEXES_KEPT_MAX {
        last.pop_front();
    }
    last.push_back(Arc::clone(&indexes));
    indexes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_clones_are_candidates() {
        let names: [&[u8]; 4] = [b"uv_run\0uv", b"uv_run.part.0\0", b"uv_runs\0", b"uv_loop\0"];
        let index = SymbolIndex::new(names.iter().map(|name| hash(name)).zip(0..).collect());
        assert_eq!(index.candidates("uv_run").collect::<Vec<_>>(), [0, 1]);
        assert_eq!(index.candidates("uv_loop").collect::<Vec<_>>(), [3]);
        assert_eq!(index.candidates("uv").count(), 0);
    }

    #[test]
    fn a_file_that_is_open_twice_is_read_once() {
        let file = std::fs::File::open("/proc/self/exe")
            .and_then(|file| file.metadata())
            .unwrap_or_else(|error| panic!("{error}"));
        let first = of_file(&file);
        assert!(Arc::ptr_eq(&first, &of_file(&file)));
        let symbols = symbols_of(Content::of("a table"));
        assert!(symbols.names.set(SymbolIndex::new(vec![(0, 0); 1 << 14])).is_ok());
        assert!(first.symbols[0].set(symbols).is_ok());
        drop(first);
        assert!(of_file(&file).symbols[0].get().is_some(), "it is kept while nobody has it open");
        assert!(symbols_of(Content::of("a table")).names.get().is_some(), "and another file with this table has it");
        let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(known.last.len() <= SYMBOL_INDEXES_KEPT_MAX);
    }
}
