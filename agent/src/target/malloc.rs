//! Memory that glibc's allocator keeps for later: what is left in it are old contents, to which nothing leads any more.
//!
//! A heap is a row of chunks: each begins with its size, whose lowest bit says whether the chunk before is in use. Small chunks that
//! were freed just now stay marked as used, and are in lists: their first word is a link to another one, mangled with its own place
//! since 2.32; before, only those in the cache are found, a table in the heap's first chunk. A cache is a thread's, and holds chunks of
//! any heap. Another allocator has no such rows; then nothing is found, and all of it counts as used.

use std::ops::Range;

use super::memory::Memory;
use crate::{
    limits::{MALLOC_CHUNKS_MAX, MALLOC_FREE_MAX},
    units::UserAddr,
};

/// Sizes are multiples of 16; the bits below are flags.
const FLAGS: u64 = 15;
const PREVIOUS_IN_USE: u64 = 1;

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

/// Memory in a mapping that is free, in order of addresses; `is_brk` is the main heap.
pub fn free(memory: &impl Memory, mapping: &Range<u64>, is_brk: bool) -> Vec<Range<u64>> {
    if !is_brk && !mapping.start.is_multiple_of(ARENA_BYTES) {
        return Vec::new();
    }
    let firsts = (mapping.start..mapping.end.min(mapping.start + FIRST_CHUNK_WITHIN)).step_by(16);
    for first in firsts.take(if is_brk { 1 } else { usize::MAX }) {
        if let Some(mut free) = walk(memory, first..mapping.end) {
            free.sort_unstable_by_key(|range| range.start);
            return free;
        }
    }
    Vec::new()
}

/// Free memory in a row of chunks; `None` if it is no such row.
fn walk(memory: &impl Memory, row: Range<u64>) -> Option<Vec<Range<u64>>> {
    /// A row that is this long is not one by chance.
    const CHUNKS_MIN: usize = 16;
    let mut free = Vec::new();
    let mut at = row.start;
    let head_at = |chunk: u64| {
        let mut head = [[0; 8]; 2];
        memory.read_at(UserAddr(chunk + 8), head.as_flattened_mut()).ok()?;
        Some(head.map(u64::from_le_bytes))
    };
    let [mut size, mut first] = head_at(at)?;
    for chunks in 0..MALLOC_CHUNKS_MAX {
        let bytes = size & !FLAGS;
        let next = at.checked_add(bytes)?;
        if bytes < 32 || next > row.end {
            // A row that changed while it was read: what was found so far holds.
            return (chunks >= CHUNKS_MIN).then_some(free);
        }
        if chunks == 0 && bytes == CACHE_BYTES {
            cached(memory, at + HEAD_BYTES, &row, &mut free);
        }
        if next + HEAD_BYTES > row.end {
            // The top: never used, or given back.
            free.push(at + HEAD_BYTES..row.end);
            return Some(free);
        }
        let [of_next, first_of_next] = head_at(next)?;
        let is_free = of_next & PREVIOUS_IN_USE == 0 || is_listed(memory, at + HEAD_BYTES, first, bytes);
        if is_free && free.len() < MALLOC_FREE_MAX {
            free.push(at + HEAD_BYTES..next + TAIL_BYTES);
        }
        // The top of an arena's heap ends before the mapping does.
        if of_next == 0 {
            free.push(at + HEAD_BYTES..next);
            return (chunks >= CHUNKS_MIN).then_some(free);
        }
        (at, size, first) = (next, of_next, first_of_next);
    }
    Some(free)
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
            words.extend([0, size, first, 1, 2, 3]);
        }
        words.extend([0, 65, 0, 0, 0, 0, 0, 0]);
        let mut memory = Fixture::default();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let row = HEAP..HEAP + bytes.len() as u64;
        memory.map(UserAddr(HEAP), bytes);
        memory.map(UserAddr(OTHER_HEAP), [0_u64, 0x31, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect());
        let free = free(&memory, &row, true);
        let numbers: Vec<u64> = free.iter().map(|range| (range.start - HEAP) / 48).collect();
        assert_eq!(numbers, [3, 6, 9, 14, 20]);
        // With the first word of the next chunk.
        assert_eq!(free.first(), Some(&(HEAP + 3 * 48 + HEAD_BYTES..HEAP + 4 * 48 + TAIL_BYTES)));
        assert_eq!(super::free(&memory, &(HEAP + 8..row.end), true), []);
        assert_eq!(super::free(&memory, &(row.end..row.end + 4096), true), []);
    }
}
