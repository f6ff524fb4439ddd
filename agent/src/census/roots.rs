//! Where the search begins: every word outside of V8's pages that may be a pointer to an object.
//!
//! V8 keeps its roots in many places: the isolate, blocks of handles, the stacks of threads. All of them are writable memory, so all of
//! that is looked through. A number that happens to look like a pointer keeps alive what is dead, which is rare; a root that is
//! missed would lose what is alive.

use std::ops::{Range, RangeInclusive};

use super::{
    mark::{Reach, Tally},
    pages::{PAGE_BYTES, Pages},
};
use crate::{
    target::{address_map::AddressMap, memory::Memory},
    units::UserAddr,
};

/// Bytes of a page of the processor.
const SMALL_PAGE: u64 = 4096;

/// A stretch of a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub range: Range<u64>,
    pub writable: bool,
    /// Parts of it that nobody uses, in order of addresses.
    pub free: Vec<Range<u64>>,
    /// Parts of it that may be blocks of handles, in order of addresses.
    pub blocks: Vec<Range<u64>>,
}

/// Blocks of handles. The youngest is used up to where `HandleScopeData` says, which has that place and next to it where the block ends;
/// what lies beyond is left of handles long gone.
struct Blocks {
    all: Vec<Range<u64>>,
    /// By their ends: how far they are used, if something says so.
    used: AddressMap<u64, u64>,
}

impl Blocks {
    fn new(regions: &[Region]) -> Self {
        Self { all: regions.iter().flat_map(|region| &region.blocks).cloned().collect(), used: AddressMap::default() }
    }

    fn ends(&self) -> RangeInclusive<u64> {
        let ends = || self.all.iter().map(|block| block.end);
        ends().min().unwrap_or(1)..=ends().max().unwrap_or(0)
    }

    /// Looks at two words in a row. Scopes on a stack say how far it was used before them, so the most counts.
    fn look_at(&mut self, next: u64, end: u64) {
        if self.all.iter().any(|block| block.end == end && (block.start..=end).contains(&next)) {
            let used = self.used.entry(end).or_insert(next);
            *used = next.max(*used);
        }
    }

    fn used(&self) -> impl Iterator<Item = Range<u64>> {
        self.all.iter().map(|block| block.start..self.used.get(&block.end).copied().unwrap_or(block.end))
    }
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
    let blocks = Blocks::new(regions);
    let ends = blocks.ends();
    let mut search = Search { memory, present, reach, tally, bytes: Vec::new(), blocks, ends };
    for region in regions.iter().filter(|region| region.writable) {
        search.region(region);
    }
    for used in search.blocks.used().collect::<Vec<_>>() {
        for within in chunks(used) {
            let there = search.there(&within);
            search.words(&within, there, &[]);
        }
    }
}

/// The parts of a range that lie in one chunk each of the size of V8's.
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let first = range.start / PAGE_BYTES * PAGE_BYTES;
    let step = usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX);
    (first..range.end).step_by(step).map(move |chunk| chunk.max(range.start)..(chunk + PAGE_BYTES).min(range.end))
}

struct Search<'a, M> {
    memory: &'a M,
    present: &'a Present<'a>,
    reach: &'a mut Reach,
    tally: &'a mut Tally,
    bytes: Vec<u8>,
    blocks: Blocks,
    /// Of blocks.
    ends: RangeInclusive<u64>,
}

impl<M: Memory> Search<'_, M> {
    /// All of a region but for V8's pages, which are no roots, and blocks of handles, whose turn comes when it is known how far each is used.
    fn region(&mut self, region: &Region) {
        let mut skipped: Vec<_> = region.free.iter().chain(&region.blocks).cloned().collect();
        skipped.sort_unstable_by_key(|range| range.start);
        let mut is_abandoned = false;
        for within in chunks(region.range.clone()) {
            let chunk = within.start / PAGE_BYTES * PAGE_BYTES;
            if self.reach.pages.covers(chunk) {
                is_abandoned = false;
                continue;
            }
            let there = self.there(&within);
            is_abandoned |= within.start == chunk && there & 1 == 1 && was_page(self.memory, chunk);
            if !is_abandoned {
                self.words(&within, there, &skipped);
            }
        }
    }

    /// Which pages there are of the chunk that holds this.
    fn there(&self, within: &Range<u64>) -> u64 {
        (self.present)(UserAddr(within.start / PAGE_BYTES * PAGE_BYTES))
    }

    /// The words of a part of a chunk that are there and not skipped.
    fn words(&mut self, within: &Range<u64>, there: u64, skipped: &[Range<u64>]) {
        let chunk = within.start / PAGE_BYTES * PAGE_BYTES;
        for run in runs(chunk, there, within) {
            self.bytes.resize(usize::try_from(run.end - run.start).unwrap_or(0), 0);
            if self.memory.read_at(UserAddr(run.start), &mut self.bytes).is_err() {
                continue;
            }
            self.tally.read_bytes += run.end - run.start;
            let first = skipped.partition_point(|range| range.end <= run.start);
            let mut skipped = skipped.iter().skip(first).peekable();
            let mut before = 0;
            for (at, word) in (run.start..).step_by(8).zip(self.bytes.as_chunks::<8>().0) {
                while skipped.next_if(|range| range.end <= at).is_some() {}
                if skipped.peek().is_none_or(|range| at < range.start) {
                    let word = u64::from_le_bytes(*word);
                    self.reach.follow_root(word);
                    if self.ends.contains(&word) {
                        self.blocks.look_at(before, word);
                    }
                    before = word;
                }
            }
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
    fn a_block_of_handles_is_used_up_to_where_something_says() {
        let block = |start: u64| start..start + 8176;
        let region =
            Region { range: 0..1 << 20, writable: true, free: Vec::new(), blocks: vec![block(0x1000), block(0x8000)] };
        let mut blocks = Blocks::new(&[region]);
        assert_eq!(blocks.ends(), 0x1000 + 8176..=0x8000 + 8176);
        for (next, end) in [
            (0x8010, 0x8000 + 8176),
            (0x8020, 0x8000 + 8176),
            (0x8018, 0x8000 + 8176),
            (0x7ff8, 0x1000 + 8176),
            (0x8030, 7),
        ] {
            blocks.look_at(next, end);
        }
        assert!(blocks.used().eq([block(0x1000), 0x8000..0x8020]));
    }

    #[test]
    fn a_range_is_taken_by_chunks() {
        let parts = |range: Range<u64>| chunks(range).collect::<Vec<_>>();
        assert_eq!(parts(PAGE_BYTES - 8..2 * PAGE_BYTES + 8).len(), 3);
        assert_eq!(parts(8..16).first(), Some(&(8..16)));
    }

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
