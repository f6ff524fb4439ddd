//! A made-up heap: what is alive on it is counted, and any other bytes are survived.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::{
    fixture::{MAPS, OTHER_PAGE, PAGE, at, header, of, page},
    *,
};

const WORDS: usize = 512;

/// Words of a page.
const PAGE_WORDS: u64 = 0x4_0000 / 8;

fn census(pages: &[(u64, Vec<u64>)], roots: &[u64]) -> Census {
    fixture::census(pages, roots).unwrap()
}

fn count(census: &Census, name: &str) -> (u64, u64) {
    let of = Constructor { name: name.to_owned(), place: None };
    census.by_constructor.get(&of).map_or((0, 0), |count| (count.objects, count.bytes))
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
    fn any_heap_is_survived(words in proptest::collection::vec(any::<u64>(), 0..WORDS)) {
        let census = of(&words).unwrap();
        prop_assert!(census.tally.objects <= 2 * PAGE_WORDS);
        prop_assert!(!census.tally.cut_short);
    }
}
