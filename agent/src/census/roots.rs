//! Where the search begins: every word outside of V8's pages that may be a pointer to an object.
//!
//! V8 keeps its roots in many places: the isolate, blocks of handles, the stacks of threads. All of them are writable memory, so all of
//! that is looked through. A number that happens to look like a pointer keeps alive what is dead, which is rare; a root that is
//! missed would lose what is alive.

use std::ops::Range;

use super::{
    mark::{Reach, Tally},
    pages::{PAGE_BYTES, Pages},
};
use crate::{target::memory::Memory, units::UserAddr};

/// Bytes of a page of the processor.
const SMALL_PAGE: u64 = 4096;

/// A stretch of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub range: Range<u64>,
    pub writable: bool,
    /// Parts of it that nobody uses, in order of addresses.
    pub free: Vec<Range<u64>>,
}

/// Which pages of the processor there are, of the 64 from an address on: untouched memory is not read, as that would make it.
pub type Present<'a> = dyn Fn(UserAddr) -> u64 + 'a;

/// Finds V8's pages.
pub fn pages(memory: &impl Memory, regions: &[Region], present: &Present) -> Pages {
    let mut pages = Pages::default();
    for Region { range, .. } in regions {
        let mut at = range.start.next_multiple_of(PAGE_BYTES);
        while at < range.end {
            if present(UserAddr(at)) & 1 == 1 {
                pages.look_at(memory, at, range.end);
            }
            at += PAGE_BYTES;
        }
    }
    pages
}

/// Follows every root.
pub fn follow(memory: &impl Memory, regions: &[Region], present: &Present, reach: &mut Reach, tally: &mut Tally) {
    let mut bytes = Vec::new();
    for Region { range, free, .. } in regions.iter().filter(|region| region.writable) {
        let mut chunk = range.start / PAGE_BYTES * PAGE_BYTES;
        let mut is_abandoned = false;
        while chunk < range.end {
            let is_page = reach.pages.covers(chunk);
            is_abandoned = !is_page && (is_abandoned || range.contains(&chunk) && was_page(memory, chunk));
            if !is_page && !is_abandoned {
                let within = chunk.max(range.start)..(chunk + PAGE_BYTES).min(range.end);
                for run in runs(chunk, present(UserAddr(chunk)), &within) {
                    bytes.resize(usize::try_from(run.end - run.start).unwrap_or(0), 0);
                    if memory.read_at(UserAddr(run.start), &mut bytes).is_err() {
                        continue;
                    }
                    tally.read_bytes += run.end - run.start;
                    follow_used(&bytes, &run, free, reach);
                }
            }
            chunk += PAGE_BYTES;
        }
    }
}

/// Follows the words of a run that are in use.
fn follow_used(bytes: &[u8], run: &Range<u64>, free: &[Range<u64>], reach: &mut Reach) {
    let first = free.partition_point(|range| range.end <= run.start);
    let mut free = free.iter().skip(first).peekable();
    for (at, word) in (run.start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
        while free.next_if(|range| range.end <= at).is_some() {}
        if free.peek().is_none_or(|range| at < range.start) {
            reach.follow_root(u64::from_le_bytes(*word));
        }
    }
}

/// A chunk of V8's that it keeps for later: there is no metadata any more, but what lies in it is what is left of a heap.
fn was_page(memory: &impl Memory, at: u64) -> bool {
    let mut bytes = [[0; 8]; 3];
    if memory.read_at(UserAddr(at), bytes.as_flattened_mut()).is_err() {
        return false;
    }
    let [flags, metadata, map] = bytes.map(u64::from_le_bytes);
    let word = |tagged: u64| {
        let addr = Some(tagged).filter(|word| word & 7 == 1)?;
        memory.word_at(UserAddr(addr - 1)).ok()
    };
    // An object has a Map, which has one, and so has that.
    let has_object = || word(map).and_then(word).and_then(word).is_some_and(|word| word & 7 == 1);
    flags >> 32 == 0 && metadata.is_multiple_of(8) && metadata > 0xffff && has_object()
}

/// Stretches of a chunk that are there.
fn runs(chunk: u64, mut present: u64, within: &Range<u64>) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    while present != 0 {
        let first = present.trailing_zeros();
        let count = (present >> first).trailing_ones();
        let start = chunk + u64::from(first) * SMALL_PAGE;
        let run = start.max(within.start)..(start + u64::from(count) * SMALL_PAGE).min(within.end);
        if run.start < run.end {
            runs.push(run);
        }
        present &= u64::MAX.checked_shl(first + count).unwrap_or(0);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_is_read() {
        let page = SMALL_PAGE;
        let check = |present, within: Range<u64>, expected: &[(u64, u64)]| {
            let runs: Vec<_> = runs(0, present, &within).into_iter().map(|run| (run.start, run.end)).collect();
            assert_eq!(runs, expected);
        };
        check(0b0110, 0..64 * page, &[(page, 3 * page)]);
        check(u64::MAX, 8..64 * page, &[(8, 64 * page)]);
        check(1 | 1 << 63, 0..64 * page, &[(0, page), (63 * page, 64 * page)]);
        check(1, page..2 * page, &[]);
    }
}
