//! Memory that glibc's allocator keeps for later: what is left in it are old contents, to which nothing leads any more.
//!
//! A heap is a row of chunks: each begins with its size, whose lowest bit says whether the chunk before is in use. Small chunks that
//! were freed just now stay marked as used, and are in lists: their first word is a link to another one, mangled with its own place
//! since 2.32; before, only those in the cache are found, a table in the heap's first chunk. A cache is a thread's, and holds chunks of
//! any heap. Another allocator has no such rows; then nothing is found, and all of it counts as used.
//!
//! Where something lies behind the main heap, as V8 18's code does now and then, that grows by blocks which are mapped elsewhere. They begin
//! at any page, other large chunks are between them, and the top of the youngest, from which new chunks are cut, looks as if it were
//! in use.

use std::ops::{Range, RangeInclusive};

use super::memory::Memory;
use crate::{
    limits::{MALLOC_CHUNKS_MAX, MALLOC_FREE_MAX},
    units::UserAddr,
};

/// Sizes are multiples of 16; the bits below are flags.
const FLAGS: u64 = 15;
const PREVIOUS_IN_USE: u64 = 1;
/// The chunk is a mapping of its own.
const MAPPED: u64 = 2;

const PAGE_BYTES: u64 = 4096;

/// Chunks for four words: two more where the rest would be too small for a chunk.
const FOUR_WORDS_IN: RangeInclusive<u64> = 48..=64;

const FOUR_WORDS_BYTES: u64 = 32;

/// What V8 asks for to put handles in.
pub const BLOCK_BYTES: u64 = 1022 * 8;
const BLOCK_CHUNKS: RangeInclusive<u64> = 8192..=8208;

/// At the end of a block, there are two, smaller than any chunk.
const FENCE_BYTES: u64 = 16;

/// Links by which the top of a block is looked for: any that leads to the arena does.
const LINKS_MAX: usize = 64;
/// Chunks one of which may be the top.
const TOPS_MAX: usize = 4096;

/// Address of a chunk to the address of what it was asked for.
const HEAD_BYTES: u64 = 16;

/// What a chunk uses of the next one's head, which needs it only once this chunk is free.
const TAIL_BYTES: u64 = 8;

/// `tcache_perthread_struct`: counts and heads of 64 lists.
const CACHE_BYTES: u64 = 0x290;
const CACHE_LISTS: u64 = 64;
/// `tcache_count`; a process may set more, hardly any does.
const CACHE_LENGTH_MAX: usize = 7;

/// Where the first chunk of an arena's heap may be: after `heap_info` and `malloc_state`.
const FIRST_CHUNK_WITHIN: u64 = 0x1000;

/// `HEAP_MAX_SIZE`: heaps of threads begin at a multiple of this.
const ARENA_BYTES: u64 = 64 << 20;

/// Tells by the words whether what a chunk was asked for is of just four words. A chunk may have more, which then are left from earlier
/// use; nothing else tells how much of it was asked for.
pub type HasFourWords = fn([u64; 4]) -> bool;

/// What is known of a mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Memory that nobody uses, in order of addresses.
    pub free: Vec<Range<u64>>,
    /// What was asked for in [`BLOCK_BYTES`], more or less.
    pub blocks: Vec<u64>,
}

/// What the allocator says of a mapping; `is_brk` is the main heap.
pub fn look_at(memory: &impl Memory, mapping: &Range<u64>, is_brk: bool, four: HasFourWords) -> Allocated {
    let is_arena = !is_brk && mapping.start.is_multiple_of(ARENA_BYTES);
    let firsts = (mapping.start..mapping.end.min(mapping.start + FIRST_CHUNK_WITHIN)).step_by(16);
    let row = if is_brk {
        walk(memory, mapping.clone(), four)
    } else if is_arena {
        firsts.into_iter().find_map(|first| walk(memory, first..mapping.end, four))
    } else {
        None
    };
    let mut allocated = match row {
        Some(row) => row.allocated,
        None if is_brk => Allocated::default(),
        None => look_at_blocks(memory, mapping, four),
    };
    allocated.free.sort_unstable_by_key(|range| range.start);
    allocated
}

/// Blocks by which the main heap grew.
fn look_at_blocks(memory: &impl Memory, mapping: &Range<u64>, four: HasFourWords) -> Allocated {
    /// Pages without a chunk, after which there is none.
    const MISSES_MAX: usize = 16;
    let (mut all, mut at, mut misses) = (Allocated::default(), mapping.start, 0);
    while at < mapping.end && misses < MISSES_MAX && all.free.len() < MALLOC_FREE_MAX {
        let Some([_, size, _]) = head_at(memory, at) else { break };
        let bytes = size & !FLAGS;
        if size & FLAGS == MAPPED && bytes > 0 && bytes.is_multiple_of(PAGE_BYTES) && bytes <= mapping.end - at {
            at += bytes;
        } else if size & FLAGS == PREVIOUS_IN_USE
            && let Some(row) = walk(memory, at..mapping.end, four)
        {
            all.free.extend(top(memory, &row));
            all.free.extend(row.allocated.free);
            all.blocks.extend(row.allocated.blocks);
            at = row.end.next_multiple_of(PAGE_BYTES).max(at + PAGE_BYTES);
        } else {
            misses += 1;
            at += PAGE_BYTES;
        }
    }
    all
}

/// The size of the chunk before, if that is free; the size; and the first word of what was asked for.
fn head_at(memory: &impl Memory, chunk: u64) -> Option<[u64; 3]> {
    words_at(memory, chunk)
}

fn words_at<const N: usize>(memory: &impl Memory, at: u64) -> Option<[u64; N]> {
    let mut words = [[0; 8]; N];
    memory.read_at(UserAddr(at), words.as_flattened_mut()).ok()?;
    Some(words.map(u64::from_le_bytes))
}

/// What a row of chunks has.
#[derive(Default)]
struct Row {
    allocated: Allocated,
    end: u64,
    /// Chunks in use that end with a page: one of them may be the top.
    to_page_end: Vec<Range<u64>>,
    /// Where lists of free chunks lead to outside of the row: to other rows, and to where the lists begin.
    links: Vec<u64>,
}

/// Looks at a row of chunks; `None` if it is no such row.
fn walk(memory: &impl Memory, within: Range<u64>, four: HasFourWords) -> Option<Row> {
    /// A row that is this long is not one by chance.
    const CHUNKS_MIN: usize = 16;
    let mut row = Row::default();
    let mut at = within.start;
    let [_, mut size, mut first] = head_at(memory, at)?;
    for chunks in 0..MALLOC_CHUNKS_MAX {
        let bytes = size & !FLAGS;
        let next = at.checked_add(bytes)?;
        row.end = at;
        if bytes < 32 || next > within.end {
            // A fence ends a block; any other ends a row that changed while it was read, and what was found so far holds.
            let is_fence = chunks > 0 && bytes == FENCE_BYTES && (at + 2 * FENCE_BYTES).is_multiple_of(PAGE_BYTES);
            return (is_fence || chunks >= CHUNKS_MIN).then_some(row);
        }
        if chunks == 0 && bytes == CACHE_BYTES {
            cached(memory, at + HEAD_BYTES, &within, &mut row.allocated.free);
        }
        if next + HEAD_BYTES > within.end {
            // The top: never used, or given back.
            row.allocated.free.push(at + HEAD_BYTES..within.end);
            row.end = within.end;
            return Some(row);
        }
        let [before_next, of_next, first_of_next] = head_at(memory, next)?;
        let is_binned = of_next & PREVIOUS_IN_USE == 0 && of_next != 0;
        if is_binned && before_next != bytes {
            return (chunks >= CHUNKS_MIN).then_some(row);
        }
        if is_binned && row.links.len() < LINKS_MAX {
            let links = [first, memory.word_at(UserAddr(at + HEAD_BYTES + 8)).unwrap_or(0)];
            row.links.extend(links.into_iter().filter(|link| !within.contains(link)));
        }
        let unused = if is_binned || is_listed(memory, at + HEAD_BYTES, first, bytes) {
            Some(at + HEAD_BYTES)
        } else if FOUR_WORDS_IN.contains(&bytes) && words_at(memory, at + HEAD_BYTES).is_some_and(four) {
            Some(at + HEAD_BYTES + FOUR_WORDS_BYTES)
        } else {
            // The last word is the odd one, which neither an array that grows by doubling nor any object with a pointer to JavaScript at its
            // end needs; mostly it is left from earlier use.
            (row.allocated.free.len() < MALLOC_FREE_MAX / 2).then_some(next)
        };
        if let Some(from) = unused
            && row.allocated.free.len() < MALLOC_FREE_MAX
        {
            row.allocated.free.push(from..next + TAIL_BYTES);
        }
        let is_used = unused.is_none_or(|from| from > at + HEAD_BYTES);
        if is_used && BLOCK_CHUNKS.contains(&bytes) {
            row.allocated.blocks.push(at + HEAD_BYTES);
        }
        if is_used && next.is_multiple_of(PAGE_BYTES) && row.to_page_end.len() < TOPS_MAX {
            row.to_page_end.push(at..next);
        }
        // The top of an arena's heap ends before the mapping does.
        if of_next == 0 {
            row.allocated.free.push(at + HEAD_BYTES..next);
            return (chunks >= CHUNKS_MIN).then_some(row);
        }
        (at, size, first) = (next, of_next, first_of_next);
    }
    Some(row)
}

/// The top of a row that another one follows: the arena says which chunk that is, in the word where its lists of free chunks begin.
fn top(memory: &impl Memory, row: &Row) -> Option<Range<u64>> {
    const LISTS: u64 = 127;
    const LIST_BYTES: u64 = 16;
    // A list has its links where a chunk has them, and the first one leads back to it.
    let begins_lists = |at: u64| {
        let first = memory.word_at(UserAddr(at + HEAD_BYTES));
        first.and_then(|first| memory.word_at(UserAddr(first + HEAD_BYTES + 8))).is_ok_and(|back| back == at)
    };
    row.links.iter().find_map(|link| {
        let first = (link + LIST_BYTES).checked_sub(LISTS * LIST_BYTES)?;
        let words: [u64; (LISTS * LIST_BYTES / 8) as usize] = words_at(memory, first)?;
        (first..).step_by(8).zip(words).find_map(|(at, word)| {
            let chunk = row.to_page_end.binary_search_by_key(&word, |chunk| chunk.start).ok()?;
            let top = row.to_page_end.get(chunk).filter(|_| begins_lists(at))?;
            Some(top.start + HEAD_BYTES..top.end)
        })
    })
}

/// The first word of a chunk is a mangled link, to a chunk of the same size or to none: the chunk waits in a list.
fn is_listed(memory: &impl Memory, at: u64, first: u64, bytes: u64) -> bool {
    /// The largest chunks of the cache; other lists have smaller ones.
    const LISTED_BYTES_MAX: u64 = 1056;
    let link = first ^ (at >> 12);
    if bytes > LISTED_BYTES_MAX || link == 0 {
        return bytes <= LISTED_BYTES_MAX;
    }
    // The cache's links lead to what was asked for, the others' to the chunk; the next one may lie in another heap.
    let is_same = |size_at: u64| memory.word_at(UserAddr(size_at)).is_ok_and(|size| size & !FLAGS == bytes);
    link.is_multiple_of(16) && (is_same(link - 8) || is_same(link + 8))
}

/// Chunks in a thread's cache.
fn cached(memory: &impl Memory, cache: u64, row: &Range<u64>, free: &mut Vec<Range<u64>>) {
    for list in 0..CACHE_LISTS {
        // Counts have two bytes each since 2.30.
        let Ok(mut at) = memory.word_at(UserAddr(cache + CACHE_LISTS * 2 + list * 8)) else { return };
        for _ in 0..CACHE_LENGTH_MAX {
            if !row.contains(&at) || !at.is_multiple_of(16) {
                break;
            }
            let (Ok(size), Ok(next)) = (memory.word_at(UserAddr(at - 8)), memory.word_at(UserAddr(at))) else { break };
            let end = at - HEAD_BYTES + (size & !FLAGS);
            if end > row.end || size & !FLAGS != (list + 2) * 16 {
                break;
            }
            free.push(at..end + TAIL_BYTES);
            // The link is mangled with its own place since 2.32.
            at = next ^ (at >> 12);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::Fixture;

    const HEAP: u64 = 0x10_0000;

    const OTHER_HEAP: u64 = 0x40_0000;

    fn bytes(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn without_tails(mut free: Vec<Range<u64>>) -> Vec<Range<u64>> {
        free.retain(|range| range.end - range.start > TAIL_BYTES);
        free
    }

    /// A block of two pages: chunks of 48 bytes, one of which is free, up to the middle, and the top.
    fn block(at: u64, list: u64) -> Vec<u64> {
        let mut words = Vec::new();
        for chunk in 0..85_u64 {
            let (before, size) = if chunk == 4 { (0x30, 0x30) } else { (0, 0x30 | PREVIOUS_IN_USE) };
            let [first, second] = if chunk == 3 { [list; 2] } else { [chunk; 2] };
            words.extend([before, size, first, second, 2, 3]);
        }
        words.extend([0, (2 * PAGE_BYTES - 85 * 48) | PREVIOUS_IN_USE]);
        assert!(at.is_multiple_of(PAGE_BYTES));
        words.resize(1024, 7);
        words
    }

    #[test]
    fn a_block_of_a_few_chunks_is_known_by_its_fence() {
        let rest = PAGE_BYTES - 0x30 - 0x40 - 0x40 - 0x20;
        let mut words = vec![0, 0x31, 1, 2, 3, 4, 0, 0x41, 5, 6, 7, 8, 0, 0];
        words.extend([0x40, 0x40, 16, 0, 0, 0, 9, 9, 9, rest | PREVIOUS_IN_USE]);
        words.resize(508, 9);
        words.extend([0, 0x11, 0, 0x11]);
        let mapping = HEAP..HEAP + PAGE_BYTES;
        let found = |words: &[u64]| {
            let mut memory = Fixture::default();
            memory.map(UserAddr(HEAP), bytes(words));
            look_at(&memory, &mapping, false, |words| words == [16, 0, 0, 0]).free
        };
        let behind_four = HEAP + 0x70 + HEAD_BYTES + 32..HEAP + 0xb0 + TAIL_BYTES;
        let expected = [HEAP + 0x30 + HEAD_BYTES..HEAP + 0x70 + TAIL_BYTES, behind_four];
        assert_eq!(without_tails(found(&words)), expected);
        words.truncate(508);
        words.extend([8; 4]);
        assert_eq!(found(&words), []);
    }

    #[test]
    fn what_is_free_in_blocks_is_found_and_the_top_of_the_youngest() {
        const LISTS: u64 = 0x7f00_0000_1000;
        const YOUNGEST: u64 = HEAP + 4 * PAGE_BYTES;
        let mut memory = Fixture::default();
        // A chunk of its own, a page of something else, the youngest block, and an older one with a fence at its end.
        let mut words = vec![0, (3 * PAGE_BYTES) | MAPPED];
        words.resize(4 * 512, 5);
        words.extend(block(YOUNGEST, LISTS + 32));
        let mut older = block(YOUNGEST + 2 * PAGE_BYTES, LISTS + 32);
        older.splice(85 * 6 + 1..85 * 6 + 2, [(2 * PAGE_BYTES - 85 * 48 - 32) | PREVIOUS_IN_USE]);
        older.splice(1021..1024, [0x11, 0, 0x11]);
        words.extend(older);
        let mapping = HEAP..HEAP + words.len() as u64 * 8;
        memory.map(UserAddr(HEAP), bytes(&words));
        let top = YOUNGEST + 85 * 48;
        // A list with nothing in it leads to itself.
        let mut arena = vec![0; 512];
        arena.extend([top, 0, LISTS, LISTS, LISTS + 16, LISTS + 16, 0, 0]);
        memory.map(UserAddr(LISTS - PAGE_BYTES), bytes(&arena));
        let ranges = |at: u64| at + 3 * 48 + HEAD_BYTES..at + 4 * 48 + TAIL_BYTES;
        let older = YOUNGEST + 2 * PAGE_BYTES;
        let expected = [ranges(YOUNGEST), top + HEAD_BYTES..older, ranges(older)];
        assert_eq!(without_tails(look_at(&memory, &mapping, false, |_| false).free), expected);
    }

    /// Chunks of 48 bytes, of which some are free, and some wait in lists.
    #[test]
    fn chunks_that_are_free_are_found() {
        let mut words = Vec::new();
        for chunk in 0..20_u64 {
            // A chunk says of the one before whether it is in use: the fourth is not.
            let size = if chunk == 4 { 0x30 } else { 0x30 | PREVIOUS_IN_USE };
            let at = HEAP + chunk * 48 + HEAD_BYTES;
            // The seventh leads to the tenth, which leads nowhere.
            let first = match chunk {
                6 => (HEAP + 9 * 48 + HEAD_BYTES) ^ (at >> 12),
                9 => at >> 12,
                // This one leads into another heap.
                14 => (OTHER_HEAP + HEAD_BYTES) ^ (at >> 12),
                _ => chunk,
            };
            let before = if chunk == 4 { 0x30 } else { 0 };
            words.extend([before, size, first, 1, 2, 3]);
        }
        words.extend([0, 65, 0, 0, 0, 0, 0, 0]);
        let mut memory = Fixture::default();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let row = HEAP..HEAP + bytes.len() as u64;
        memory.map(UserAddr(HEAP), bytes);
        memory.map(UserAddr(OTHER_HEAP), [0_u64, 0x31, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect());
        let free = look_at(&memory, &row, true, |_| false).free;
        assert_eq!(free.first(), Some(&(HEAP + 48..HEAP + 48 + TAIL_BYTES)), "the odd word");
        let free = without_tails(free);
        let numbers: Vec<u64> = free.iter().map(|range| (range.start - HEAP) / 48).collect();
        assert_eq!(numbers, [3, 6, 9, 14, 20]);
        // With the first word of the next chunk.
        assert_eq!(free.first(), Some(&(HEAP + 3 * 48 + HEAD_BYTES..HEAP + 4 * 48 + TAIL_BYTES)));
        assert_eq!(look_at(&memory, &(HEAP + 8..row.end), true, |_| false).free, []);
        assert_eq!(look_at(&memory, &(row.end..row.end + 4096), true, |_| false).free, []);
    }
}
