//! A made-up heap: what is alive on it is counted, and any other bytes are survived.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::{symbolize::v8::layout::Layout, target::memory::Fixture, units::UserAddr};

const PAGE: u64 = 0x40_0000;
const AREA: u64 = PAGE + 0x100;
const OTHER_PAGE: u64 = 0x80_0000;
const ROOTS: u64 = 0x10_0000;
const WORDS: usize = 512;

const MAP_TYPE: u64 = 255;
const ARRAY_TYPE: u64 = 178;
const OBJECT_TYPE: u64 = 1057;
const WEAK_MAP_TYPE: u64 = 2110;

/// Where the Maps are: of Maps, of arrays, of objects of four words, of weak maps.
const MAPS: [u64; 4] = [AREA, AREA + 80, AREA + 160, AREA + 240];
const OBJECTS: u64 = AREA + 320;

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

fn header(area: u64) -> Vec<u64> {
    let mut words = vec![0x4_0000, 0, 0, area, (area & !0x3_ffff) + 0x4_0000];
    words.resize(0x100 / 8, 0);
    words
}

/// A page with the Maps, then these words from [`OBJECTS`] on.
fn page(objects: &[u64]) -> Vec<u64> {
    let mut words = header(AREA);
    for (map, (instance_type, size)) in
        [(MAP_TYPE, 10), (ARRAY_TYPE, 0), (OBJECT_TYPE, 4), (WEAK_MAP_TYPE, 4)].into_iter().enumerate()
    {
        words.extend([MAPS[0] + 1, instance_type << 32 | size, 0, 0, 0, 0, 0, 0, 0, map as u64]);
    }
    words.extend(objects);
    words.resize(0x4_0000 / 8, 0);
    words
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn census(pages: &[(u64, Vec<u64>)], roots: &[u64]) -> Census {
    let mut memory = Fixture::default();
    let mut regions = Vec::new();
    for (at, words) in pages.iter().map(|(at, words)| (*at, &words[..])).chain([(ROOTS, roots)]) {
        memory.map(UserAddr(at), bytes(words));
        regions.push(Region { range: at..at + words.len() as u64 * 8, writable: true, free: Vec::new() });
    }
    let heap = Heap::new(memory, Layout::row([11, 3, 244]).unwrap());
    let subject = Subject { heap: &heap, types: types(), shared: 24, regions, present: Box::new(|_| u64::MAX) };
    take(&subject, &mut |_| true)
}

fn count(census: &Census, name: &str) -> (u64, u64) {
    let of = Constructor { name: name.to_owned(), place: None };
    census.by_constructor.get(&of).map_or((0, 0), |count| (count.objects, count.bytes))
}

/// The tagged address of a word after [`OBJECTS`].
fn at(word: u64) -> u64 {
    OBJECTS + word * 8 + 1
}

#[test]
fn what_roots_lead_to_is_alive_and_nothing_else() {
    let object = MAPS[2] + 1;
    let array = MAPS[1] + 1;
    let words = [
        // 0: leads to 4 and, weakly, to 8.
        [object, at(4), at(8) + 2, 0],
        // 4: an array that leads to the other page.
        [array, 2 << 32, OTHER_PAGE + 0x100 + 1, 7 << 32],
        // 8: only weakly held.
        [object, 0, 0, 0],
        // 12: dead, though it leads to what lives.
        [object, at(0), 0, 0],
    ]
    .concat();
    let other = [header(OTHER_PAGE + 0x100), vec![object, at(0), 0, 0], vec![0; 0x4_0000 / 8 - 36]].concat();
    let census = census(&[(PAGE, page(&words)), (OTHER_PAGE, other)], &[0, at(0), 12345]);
    assert_eq!(count(&census, "Object"), (2, 64));
    assert_eq!(count(&census, "(array)"), (1, 32));
    assert_eq!(census.pages, 2);
    assert_eq!((census.tally.strays, census.tally.unreadable, census.tally.cut_short), (0, 0, false));
}

#[test]
fn values_of_weak_maps_live_as_long_as_their_keys() {
    let object = MAPS[2] + 1;
    let words = [
        vec![MAPS[3] + 1, 0, 0, at(4)],
        // 4: a table of two pairs, after three counts.
        vec![MAPS[1] + 1, 7 << 32, 2 << 32, 0, 2 << 32, at(13), at(17), at(21), at(25)],
        // 13: a key that is alive, and 17: its value; 21: one that is not, and 25: its value.
        vec![object, 0, 0, 0],
        vec![object, 0, 0, 0],
        vec![object, 0, 0, 0],
        vec![object, 0, 0, 0],
    ]
    .concat();
    let census = census(&[(PAGE, page(&words))], &[at(0), at(13)]);
    // The map itself, the key and the value.
    assert_eq!(count(&census, "Object"), (3, 96));
}

#[test]
fn what_leads_to_no_object_is_counted_as_astray() {
    let words = [MAPS[2] + 1, at(5), at(6), 0, 0, 99, at(3), 0];
    let census = census(&[(PAGE, page(&words))], &[at(0), at(7)]);
    assert_eq!(count(&census, "Object"), (1, 32));
    assert_eq!((census.tally.strays, census.tally.root_strays), (2, 1));
    assert!((census.stray_share() - 0.4).abs() < 0.3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Words that are pointers, Maps, lengths and anything else.
    #[test]
    fn any_heap_is_survived(words in proptest::collection::vec((0_u8..8, any::<u64>()), 0..WORDS)) {
        let made: Vec<u64> = words
            .iter()
            .map(|(kind, word)| match kind {
                0..=2 => MAPS[(word % 4) as usize] + 1,
                3 | 4 => at(word % WORDS as u64),
                5 => (word % 600) << 32,
                6 => AREA + word % 0x1000,
                _ => *word,
            })
            .collect();
        let census = census(&[(PAGE, page(&made)), (OTHER_PAGE, made.clone())], &made);
        prop_assert!(census.tally.objects <= 2 * 0x4_0000 / 8);
        prop_assert!(!census.tally.cut_short);
    }
}
