//! V8's pages: where they are, and which of their words are known to begin a live object.
//!
//! V8 takes memory in chunks that begin at a multiple of 256 KiB. A chunk says itself where its objects are: until 12.x in its first
//! words, since then in a `MemoryChunkMetadata` to which they point. An object that is too large for a page has a chunk of its own.

use std::ops::Range;

use crate::{limits::CENSUS_PAGES_MAX, target::memory::Memory, units::UserAddr};

/// `kRegularPageSize`, of all versions.
pub const PAGE_BYTES: u64 = 1 << 18;

/// Words of a page.
pub const PAGE_WORDS: usize = (PAGE_BYTES / 8) as usize;

/// A header is the least of a page: one with bits for code or slots is three pages of the processor long.
const HEADER_BYTES_MAX: u64 = 16 << 10;

/// Addresses of processes end here, and so does what the index covers.
const USER_END: u64 = 1 << 47;

/// Pages of one part of the index.
const PART: u64 = 4096;

/// One of V8's pages.
#[derive(Debug)]
pub struct Page {
    pub start: u64,
    /// Where its objects are.
    pub area: Range<u64>,
    /// Words that begin an object to which something leads.
    seen: Box<[u64]>,
    /// Of these, those that were looked at.
    done: Box<[u64]>,
    /// Words that are seen and not done.
    pub pending: usize,
}

impl Page {
    fn new(start: u64, area: Range<u64>) -> Self {
        let words = if area.end - start > PAGE_BYTES { HEADER_BYTES_MAX / 8 } else { PAGE_BYTES / 8 };
        let bits = vec![0; usize::try_from(words / 64).unwrap_or(0)].into_boxed_slice();
        Self { start, area, done: bits.clone(), seen: bits, pending: 0 }
    }

    /// It holds one object, which is larger than a page.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.area.end - self.start > PAGE_BYTES
    }

    /// Notes that an object begins at a word, counted from the page's start; whether that is new.
    pub fn see(&mut self, word: usize) -> bool {
        let Some(bits) = self.seen.get_mut(word / 64) else { return false };
        let bit = 1 << (word % 64);
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.pending += usize::from(is_new);
        is_new
    }

    #[must_use]
    pub fn is_seen(&self, word: usize) -> bool {
        self.seen.get(word / 64).is_some_and(|bits| bits >> (word % 64) & 1 == 1)
    }

    /// Words that are still to be looked at; from now on they count as done.
    pub fn take_pending(&mut self) -> Vec<usize> {
        let mut words = Vec::with_capacity(self.pending);
        for (index, (seen, done)) in self.seen.iter().zip(&mut self.done).enumerate() {
            let mut left = seen & !*done;
            *done |= left;
            while left != 0 {
                words.push(index * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
        self.pending = 0;
        words
    }

    /// A word that was seen and looked at in one go.
    pub fn finish(&mut self, word: usize) {
        if let Some(bits) = self.done.get_mut(word / 64) {
            *bits |= 1 << (word % 64);
            self.pending = self.pending.saturating_sub(1);
        }
    }
}

/// What lies at a multiple of 256 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Slot {
    #[default]
    Other,
    Page(u32),
    /// The inside of a large object.
    Inside,
}

/// All pages of a process, by address.
#[derive(Debug, Default)]
pub struct Pages {
    pub pages: Vec<Page>,
    index: Vec<Option<Box<[Slot]>>>,
}

impl Pages {
    fn slot(&self, addr: u64) -> Slot {
        let number = addr / PAGE_BYTES;
        let part = usize::try_from(number / PART).ok().and_then(|part| self.index.get(part)?.as_ref());
        let slot = part.and_then(|part| part.get(usize::try_from(number % PART).ok()?));
        slot.copied().unwrap_or_default()
    }

    fn set(&mut self, addr: u64, slot: Slot) {
        let number = addr / PAGE_BYTES;
        let (Ok(part), Ok(within)) = (usize::try_from(number / PART), usize::try_from(number % PART)) else { return };
        if addr >= USER_END {
            return;
        }
        if self.index.len() <= part {
            self.index.resize(part + 1, None);
        }
        let Some(place) = self.index.get_mut(part) else { return };
        let part =
            place.get_or_insert_with(|| vec![Slot::Other; usize::try_from(PART).unwrap_or(0)].into_boxed_slice());
        if let Some(place) = part.get_mut(within) {
            *place = slot;
        }
    }

    /// The page whose objects lie around an address, and the address's word in it.
    #[must_use]
    pub fn find(&self, addr: u64) -> Option<(usize, usize)> {
        let Slot::Page(number) = self.slot(addr) else { return None };
        let number = number as usize;
        let page = self.pages.get(number)?;
        let word = usize::try_from((addr - page.start) / 8).ok()?;
        page.area.contains(&addr).then_some((number, word))
    }

    /// An address that is part of one of V8's pages, be it the header.
    #[must_use]
    pub fn covers(&self, addr: u64) -> bool {
        self.slot(addr) != Slot::Other
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|page| (page.area.end - page.start).next_multiple_of(4096)).sum()
    }

    /// Adds the page at an address, if there is one; `end` is that of the mapping.
    pub fn look_at(&mut self, memory: &impl Memory, at: u64, end: u64) {
        if self.covers(at) || self.pages.len() >= CENSUS_PAGES_MAX {
            return;
        }
        let Some(area) = area(memory, at, end) else { return };
        let Ok(number) = u32::try_from(self.pages.len()) else { return };
        self.set(at, Slot::Page(number));
        let mut inside = at + PAGE_BYTES;
        while inside < area.end {
            self.set(inside, Slot::Inside);
            inside += PAGE_BYTES;
        }
        self.pages.push(Page::new(at, area));
    }
}

/// Where the objects of a chunk are; `None` if it is no chunk of V8's.
fn area(memory: &impl Memory, at: u64, end: u64) -> Option<Range<u64>> {
    const WORDS: usize = 12;
    let header: [u64; WORDS] = words(memory, at)?;
    let fits = |area: &Range<u64>, size: u64| {
        (at + 1..=at + HEADER_BYTES_MAX).contains(&area.start)
            && area.start.is_multiple_of(8)
            && area.end.is_multiple_of(8)
            && size.is_multiple_of(4096)
            && area.start < area.end
            && area.end - at <= size
            && size <= end - at
    };
    // A size among the first words, then begin and end side by side.
    let sizes = || header.iter().take(4).copied();
    for pair in header.windows(2).take(6) {
        let [start, end] = *pair else { continue };
        let area = start..end;
        if sizes().any(|size| fits(&area, size)) {
            return Some(area);
        }
    }
    // A pointer among the first words, to what begins with a table of functions, the chunk's address and its size.
    for pointer in
        header.iter().take(2).filter(|pointer| pointer.is_multiple_of(8) && (0x1_0000..USER_END).contains(pointer))
    {
        let Some(metadata) = words::<WORDS>(memory, *pointer) else { continue };
        let Some(own) = metadata.iter().position(|word| *word == at) else { continue };
        let after = || metadata.iter().skip(own + 1).copied();
        let Some(size) = after().next() else { continue };
        let Some(start) = after().find(|word| (at + 1..=at + HEADER_BYTES_MAX).contains(word)) else { continue };
        let Some(last) = after().filter(|word| (start + 1..=at.saturating_add(size)).contains(word)).max() else {
            continue;
        };
        if fits(&(start..last), size) {
            return Some(start..last);
        }
    }
    None
}

fn words<const N: usize>(memory: &impl Memory, at: u64) -> Option<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    memory.read_at(UserAddr(at), bytes.as_flattened_mut()).ok()?;
    Some(bytes.map(u64::from_le_bytes))
}
