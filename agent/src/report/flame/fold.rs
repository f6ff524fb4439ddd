//! Recursion as one: `next handle layer next handle layer next handle layer` is `next handle layer`, three times.

/// Frames of a cycle that is looked for: Express goes through four for each middleware, and its forks through a few more.
const CYCLE_LEN_MAX: usize = 8;

/// A run of items that comes so many times in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fold<T> {
    pub items: Vec<T>,
    pub times: u32,
}

/// Folds what repeats, cycles of up to eight items. Put one after the other as often as they say, the parts are the whole again.
#[must_use]
pub fn fold<T: Copy + PartialEq>(items: &[T]) -> Vec<Fold<T>> {
    let mut parts: Vec<Fold<T>> = Vec::new();
    let mut rest = items;
    while let Some(first) = rest.first() {
        let (len, times) = best_cycle(rest).unwrap_or((1, 1));
        let (cycle, _) = rest.split_at_checked(len).unwrap_or((std::slice::from_ref(first), &[]));
        let (taken, left) = rest.split_at_checked(len * times).unwrap_or((rest, &[]));
        debug_assert_eq!(taken.len(), len * times);
        rest = left;
        match parts.last_mut() {
            // What does not repeat needs no part of its own.
            Some(last) if times == 1 && last.times == 1 => last.items.extend(cycle),
            _ => parts.push(Fold { items: cycle.to_vec(), times: u32::try_from(times).unwrap_or(u32::MAX) }),
        }
    }
    parts
}

/// The cycle at the beginning that explains most, and of those the shortest.
fn best_cycle<T: PartialEq>(items: &[T]) -> Option<(usize, usize)> {
    let mut best = None;
    let mut most = 0;
    for len in 1..=CYCLE_LEN_MAX.min(items.len() / 2) {
        let mut cycles = items.chunks_exact(len);
        let first = cycles.next();
        let times = 1 + cycles.take_while(|cycle| Some(*cycle) == first).count();
        if times > 1 && len * times > most {
            most = len * times;
            best = Some((len, times));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folded(text: &str) -> String {
        let items: Vec<char> = text.chars().collect();
        let parts = fold(&items).into_iter().map(|Fold { items, times }| {
            let items: String = items.into_iter().collect();
            if times == 1 { items } else { format!("({items}){times}") }
        });
        parts.collect()
    }

    #[test]
    fn what_repeats_is_one() {
        assert_eq!(folded(""), "");
        assert_eq!(folded("abc"), "abc");
        assert_eq!(folded("aaa"), "(a)3");
        assert_eq!(folded("maaab"), "m(a)3b");
        assert_eq!(folded("mnhlnhlnhln"), "m(nhl)3n");
        // The cycle that explains more, not the one that begins first within it.
        assert_eq!(folded("aabaabaab"), "(aab)3");
        assert_eq!(folded("abcdefghabcdefgh"), "(abcdefgh)2");
        assert_eq!(folded("abcdefghiabcdefghi"), "abcdefghiabcdefghi");
    }

    proptest! {
        #[test]
        fn unfolded_it_is_what_it_was(items in prop::collection::vec(0u8..4, 0..200)) {
            let parts = fold(&items);
            let again: Vec<u8> = parts.iter().flat_map(|part| part.items.repeat(part.times as usize)).collect();
            prop_assert_eq!(again, items);
            prop_assert!(parts.iter().all(|part| part.times > 0 && !part.items.is_empty()));
            prop_assert!(parts.iter().all(|part| part.times == 1 || part.items.len() <= CYCLE_LEN_MAX));
        }

        #[test]
        fn deep_recursion_is_short(cycle in 1usize..=CYCLE_LEN_MAX, times in 2usize..60) {
            let one: Vec<usize> = (0..cycle).collect();
            let parts = fold(&one.repeat(times));
            let sizes: Vec<_> = parts.iter().map(|part| (part.items.len(), part.times as usize)).collect();
            prop_assert_eq!(sizes, [(cycle, times)]);
        }
    }
}
