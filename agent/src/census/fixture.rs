//! A heap that is made up, for tests and for fuzzing: two pages, Maps of some types, and any words behind them.

use super::{Census, Subject, Types, roots::Region, take};
use crate::{
    symbolize::v8::{heap::Heap, layout::Layout},
    target::memory::Fixture,
    units::UserAddr,
};

pub const PAGE: u64 = 0x40_0000;
pub const AREA: u64 = PAGE + 0x100;
pub const OTHER_PAGE: u64 = 0x80_0000;
const ROOTS: u64 = 0x10_0000;
/// Bytes of a page, as its head says.
const PAGE_BYTES: u64 = 0x4_0000;

/// Instance types and sizes in words of the Maps: of Maps, of arrays, of objects, of weak maps, of functions and of one-byte strings.
const SHAPES: [(u64, u64); 6] = [(255, 10), (178, 0), (1057, 4), (2110, 4), (2070, 8), (8, 0)];
/// Words of a Map.
const MAP_WORDS: u64 = 10;
/// Where the Maps are.
pub const MAPS: [u64; 6] = [AREA, AREA + 80, AREA + 160, AREA + 240, AREA + 320, AREA + 400];
/// What lies behind them.
pub const OBJECTS: u64 = AREA + SHAPES.len() as u64 * MAP_WORDS * 8;

fn types() -> Types {
    Types {
        map: 255,
        first_nonstring: 128,
        first_js: 278,
        functions: (2066, 2081),
        arrays: vec![178],
        weak_collections: vec![2110],
        ..Types::default()
    }
}

/// The tagged address of a word after [`OBJECTS`].
#[must_use]
pub fn at(word: u64) -> u64 {
    OBJECTS + word * 8 + 1
}

/// The head of a page whose objects begin there.
#[must_use]
pub fn header(area: u64) -> Vec<u64> {
    let mut words = vec![PAGE_BYTES, 0, 0, area, (area & !(PAGE_BYTES - 1)) + PAGE_BYTES];
    words.resize(0x100 / 8, 0);
    words
}

/// A page with the Maps, then these words from [`OBJECTS`] on.
#[must_use]
pub fn page(objects: &[u64]) -> Vec<u64> {
    let mut words = header(AREA);
    for (map, (instance_type, size)) in (0..).zip(SHAPES) {
        words.extend([AREA + 1, instance_type << 32 | size, 0, 0, 0, 0, 0, 0, 0, map]);
    }
    words.extend(objects);
    words.resize((PAGE_BYTES / 8) as usize, 0);
    words
}

/// Counts what the roots lead to in these pages.
#[must_use]
pub fn census(pages: &[(u64, Vec<u64>)], roots: &[u64]) -> Option<Census> {
    let mut memory = Fixture::default();
    let mut regions = Vec::new();
    for (at, words) in pages.iter().map(|(at, words)| (*at, words.as_slice())).chain([(ROOTS, roots)]) {
        memory.map(UserAddr(at), words.iter().flat_map(|word| word.to_le_bytes()).collect());
        regions.push(Region {
            range: at..at + words.len() as u64 * 8,
            writable: true,
            free: Vec::new(),
            blocks: Vec::new(),
        });
    }
    let heap = Heap::new(memory, Layout::row([11, 3, 244]).ok()?);
    let subject = Subject { heap: &heap, types: types(), shared: 24, regions, present: Box::new(|_| u64::MAX) };
    Some(take(&subject, &mut |_| true))
}

/// Counts a heap of these words, each of which is made a Map, a pointer, a length or an address by its lowest byte, or left as it is.
#[must_use]
pub fn of(words: &[u64]) -> Option<Census> {
    let made = |word: &u64| {
        let [kind, ..] = word.to_le_bytes();
        let rest = word >> 8;
        match kind % 8 {
            0..=2 => MAPS.get((rest % MAPS.len() as u64) as usize).map_or(0, |map| map + 1),
            3 | 4 => at(rest % (words.len().max(1) as u64)),
            5 => (rest % 600) << 32,
            6 => AREA + rest % 0x1000,
            _ => *word,
        }
    };
    let made: Vec<u64> = words.iter().map(made).collect();
    census(&[(PAGE, page(&made)), (OTHER_PAGE, made.clone())], &made)
}
