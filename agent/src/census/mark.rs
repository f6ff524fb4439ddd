//! Which objects are alive: those to which roots lead, over any number of others.
//!
//! A page is read when something leads into it, and everything that can be reached within it is looked at in that one visit; what it
//! reaches in other pages waits there. So memory is two bits a word of the heap, and not a copy of it.

use std::{collections::VecDeque, ops::Range};

use super::{
    pages::{PAGE_WORDS, Pages},
    shapes::{Body, Shape, Shapes},
};
use crate::{
    limits::{CENSUS_FUNCTIONS_MAX, CENSUS_ROOTS_MAX, CENSUS_ROUNDS_MAX, CENSUS_WEAK_TABLES_MAX},
    target::{
        address_map::{AddressMap, AddressSet},
        memory::Memory,
    },
    units::UserAddr,
};

/// What happened on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub objects: u64,
    /// Words of objects that lead into a page, but to no object: it was moved meanwhile.
    pub strays: u64,
    /// The same outside of V8's pages: mostly numbers that look like pointers, and what is left of earlier ones.
    pub root_strays: u64,
    pub unreadable: u64,
    pub read_bytes: u64,
    pub visits: u64,
    /// Not everything was looked at: there was no time left.
    pub cut_short: bool,
}

/// Words of one read that fills a part of a page.
const BLOCK_WORDS: usize = 512;

/// From this many objects on a page is read at once, which costs what twenty small reads do.
const WHOLE_FROM: usize = 16;

/// The words of the page that is being visited.
struct Window {
    start: u64,
    end: u64,
    words: Vec<u64>,
    bytes: Vec<u8>,
    loaded: [Load; PAGE_WORDS / BLOCK_WORDS],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Not,
    Done,
    Failed,
}

impl Window {
    fn new() -> Self {
        Self { start: 0, end: 0, words: vec![0; PAGE_WORDS], bytes: Vec::new(), loaded: [Load::Not; _] }
    }

    fn open(&mut self, area: &Range<u64>, start: u64) {
        (self.start, self.end) = (start, area.end.min(start + super::pages::PAGE_BYTES));
        self.loaded = [Load::Not; _];
    }

    /// Reads blocks, those that are not there yet.
    fn load(&mut self, memory: &impl Memory, blocks: Range<usize>, tally: &mut Tally) -> bool {
        let from = self.start + (blocks.start * BLOCK_WORDS * 8) as u64;
        let to = (self.start + (blocks.end * BLOCK_WORDS * 8) as u64).min(self.end);
        let bytes = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        self.bytes.resize(bytes, 0);
        let is_read = memory.read_at(UserAddr(from), &mut self.bytes).is_ok();
        if is_read {
            tally.read_bytes += bytes as u64;
            let words = self.words.iter_mut().skip(blocks.start * BLOCK_WORDS);
            for (word, bytes) in words.zip(self.bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
        }
        for block in self.loaded.get_mut(blocks).into_iter().flatten() {
            *block = if is_read { Load::Done } else { Load::Failed };
        }
        is_read
    }

    fn load_all(&mut self, memory: &impl Memory, tally: &mut Tally) {
        let bytes = usize::try_from(self.end - self.start).unwrap_or(0);
        if !self.load(memory, 0..bytes.div_ceil(BLOCK_WORDS * 8), tally) {
            // A part of it is gone: what is left is read piece by piece.
            self.loaded = [Load::Not; _];
        }
    }

    /// Some words, all of which must lie in the page.
    fn get(&mut self, memory: &impl Memory, words: Range<usize>, tally: &mut Tally) -> Option<&[u64]> {
        let blocks = words.start / BLOCK_WORDS..words.end.div_ceil(BLOCK_WORDS);
        for block in blocks {
            match self.loaded.get(block)? {
                Load::Done => {}
                Load::Failed => return None,
                Load::Not => {
                    if !self.load(memory, block..block + 1, tally) {
                        return None;
                    }
                }
            }
        }
        self.words.get(words)
    }
}

/// Where it has got to: pages, and those of them where something waits.
pub struct Reach {
    pub pages: Pages,
    waiting: VecDeque<usize>,
    /// Objects that roots lead to, and words that only look like roots.
    roots: AddressSet<u64>,
}

impl Reach {
    #[must_use]
    pub fn new(pages: Pages) -> Self {
        Self { pages, waiting: VecDeque::new(), roots: AddressSet::default() }
    }

    /// Notes what a word leads to that may be a root.
    pub fn follow_root(&mut self, word: u64) {
        if let Some((page, offset)) = self.new_object(word) {
            if self.roots.len() < CENSUS_ROOTS_MAX {
                self.roots.insert(word - 1);
            }
            self.wait(page, offset);
        }
    }

    /// Notes what a word leads to, if it is a strong pointer.
    pub fn follow(&mut self, word: u64) {
        if let Some((page, offset)) = self.new_object(word) {
            self.wait(page, offset);
        }
    }

    fn new_object(&self, word: u64) -> Option<(usize, usize)> {
        if word & 7 != 1 {
            return None;
        }
        let (page, offset) = self.pages.find(word - 1)?;
        (!self.pages.pages.get(page)?.is_seen(offset)).then_some((page, offset))
    }

    fn wait(&mut self, number: usize, offset: usize) {
        if let Some(page) = self.pages.pages.get_mut(number)
            && page.see(offset)
            && page.pending == 1
        {
            self.waiting.push_back(number);
        }
    }

    /// As [`Self::follow`], while a page is visited: what leads to that page is put on `stack`.
    fn follow_within(&mut self, word: u64, visited: usize, stack: &mut Vec<usize>) {
        let Some((number, offset)) = self.new_object(word) else { return };
        if number != visited {
            return self.wait(number, offset);
        }
        if let Some(page) = self.pages.pages.get_mut(number)
            && page.see(offset)
        {
            page.finish(offset);
            stack.push(offset);
        }
    }

    fn is_reached(&self, word: u64) -> bool {
        let place = if word & 7 == 1 { self.pages.find(word - 1) } else { None };
        place.is_some_and(|(page, offset)| self.pages.pages.get(page).is_some_and(|page| page.is_seen(offset)))
    }
}

/// Looks at all that can be reached.
pub struct Marker<'a, M> {
    memory: &'a M,
    pub reach: Reach,
    pub shapes: Shapes,
    pub tally: Tally,
    /// Functions by what may be the Map of what they construct.
    pub functions: AddressMap<u64, u64>,
    weak_tables: AddressSet<u64>,
    window: Window,
}

impl<'a, M: Memory> Marker<'a, M> {
    #[must_use]
    pub fn new(memory: &'a M, reach: Reach, shapes: Shapes) -> Self {
        Self {
            memory,
            reach,
            shapes,
            tally: Tally::default(),
            functions: AddressMap::default(),
            weak_tables: AddressSet::default(),
            window: Window::new(),
        }
    }

    /// Goes on until nothing waits, or `go_on` says no.
    pub fn run(&mut self, go_on: &mut dyn FnMut(&Tally) -> bool) {
        for _ in 0..CENSUS_ROUNDS_MAX {
            while let Some(page) = self.reach.waiting.pop_front() {
                if !go_on(&self.tally) {
                    self.tally.cut_short = true;
                    return;
                }
                self.visit(page);
            }
            // Values whose keys were reached meanwhile.
            for table in self.weak_tables.iter().copied().collect::<Vec<_>>() {
                self.look_into(table);
            }
            if self.reach.waiting.is_empty() {
                return;
            }
        }
        self.tally.cut_short = true;
    }

    fn visit(&mut self, number: usize) {
        let Some(page) = self.reach.pages.pages.get_mut(number) else { return };
        let (start, area, is_large) = (page.start, page.area.clone(), page.is_large());
        let mut stack = page.take_pending();
        self.tally.visits += 1;
        self.window.open(&area, start);
        if stack.len() >= WHOLE_FROM && !is_large {
            self.window.load_all(self.memory, &mut self.tally);
        }
        while let Some(offset) = stack.pop() {
            self.object(number, start, area.end, offset, &mut stack);
        }
    }

    fn object(&mut self, number: usize, start: u64, end: u64, offset: usize, stack: &mut Vec<usize>) {
        let at = start + offset as u64 * 8;
        let Some([map, second]) = self.window.get(self.memory, offset..offset + 2, &mut self.tally) else {
            self.tally.unreadable += 1;
            return;
        };
        let (map, second) = (*map, *second);
        let shape = self.shapes.of(map, self.memory).and_then(|shape| self.shapes.all.get_mut(shape));
        let Some(shape) = shape else {
            if self.reach.roots.contains(&at) {
                self.tally.root_strays += 1;
            } else {
                self.tally.strays += 1;
            }
            return;
        };
        let Extent { bytes, follow } = extent(shape, second);
        // A length that leads out of the page is none.
        let (bytes, follow) = if bytes <= end - at { (bytes, follow) } else { (16, 0..0) };
        shape.live += 1;
        shape.live_bytes += bytes;
        self.tally.objects += 1;
        let body = shape.body;
        self.reach.follow_within(map, number, stack);
        if self.weak_tables.contains(&at) {
            return;
        }
        let last = follow.end.min(bytes / 8);
        let mut next = follow.start;
        while next < last {
            let from = offset + usize::try_from(next).unwrap_or(PAGE_WORDS);
            let to = (offset + usize::try_from(last).unwrap_or(PAGE_WORDS)).min(PAGE_WORDS);
            if from >= to {
                // What is left lies beyond the page's size: the rest of a large object.
                return self.rest(number, at + next * 8..at + last * 8, stack);
            }
            let Some(words) = self.window.get(self.memory, from..to, &mut self.tally) else {
                self.tally.unreadable += 1;
                return;
            };
            for (index, word) in (next..).zip(words) {
                match (body, index) {
                    (Body::WeakCell, 2 | 3) => continue,
                    (Body::WeakCollection, 3) if self.weak_tables.len() < CENSUS_WEAK_TABLES_MAX => {
                        self.weak_tables.insert(word.wrapping_sub(1));
                    }
                    (Body::Function, 7) if self.functions.len() < CENSUS_FUNCTIONS_MAX => {
                        self.functions.insert(*word, at + 1);
                    }
                    _ => {}
                }
                self.reach.follow_within(*word, number, stack);
            }
            next += (to - from) as u64;
        }
    }

    /// The words of a large object that are not in the window.
    fn rest(&mut self, number: usize, words: Range<u64>, stack: &mut Vec<usize>) {
        let mut at = words.start;
        let mut bytes = Vec::new();
        while at < words.end {
            let most = (words.end - at).min(super::pages::PAGE_BYTES);
            bytes.resize(usize::try_from(most).unwrap_or(0), 0);
            if self.memory.read_at(UserAddr(at), &mut bytes).is_err() {
                self.tally.unreadable += 1;
                return;
            }
            self.tally.read_bytes += most;
            for word in bytes.as_chunks::<8>().0 {
                self.reach.follow_within(u64::from_le_bytes(*word), number, stack);
            }
            at += most;
        }
    }

    /// Follows the values of a weak table whose keys are alive: an array with three counts, then pairs.
    fn look_into(&mut self, table: u64) {
        const HEAD: u64 = 5;
        let mut head = [[0; 8]; 2];
        if self.memory.read_at(UserAddr(table), head.as_flattened_mut()).is_err() {
            return;
        }
        let [_, length] = head.map(u64::from_le_bytes);
        let Some((page, _)) = self.reach.pages.find(table) else { return };
        let Some(end) = self.reach.pages.pages.get(page).map(|page| page.area.end) else { return };
        let last = (table + 16 + smi(length).unwrap_or(0) * 8).min(end);
        let mut at = table + HEAD * 8;
        let mut bytes = Vec::new();
        while at + 16 <= last {
            let most = ((last - at) / 16 * 16).min(super::pages::PAGE_BYTES);
            bytes.resize(usize::try_from(most).unwrap_or(0), 0);
            if self.memory.read_at(UserAddr(at), &mut bytes).is_err() {
                return;
            }
            self.tally.read_bytes += most;
            for pair in bytes.as_chunks::<8>().0.as_chunks::<2>().0 {
                let [key, value] = pair.map(u64::from_le_bytes);
                if self.reach.is_reached(key) {
                    self.reach.follow(value);
                }
            }
            at += most;
        }
    }
}

/// How far an object reaches, and which of its words lead on.
struct Extent {
    bytes: u64,
    follow: Range<u64>,
}

/// A small integer that is a length.
fn smi(word: u64) -> Option<u64> {
    (word.trailing_zeros() >= 32 && word >> 63 == 0).then_some(word >> 32)
}

fn extent(shape: &Shape, second: u64) -> Extent {
    const NONE: Range<u64> = 0..0;
    let length = smi(second);
    let all = |head: u64, words: u64| Extent { bytes: (head + words) * 8, follow: 2..head + words };
    let or_map_says = |bytes: u64| if shape.bytes == 0 { bytes } else { shape.bytes };
    match shape.body {
        Body::Fixed | Body::WeakCell | Body::WeakCollection | Body::Function => {
            Extent { bytes: shape.bytes, follow: 1..shape.bytes / 8 }
        }
        Body::WeakRef => Extent { bytes: shape.bytes, follow: 1..3 },
        Body::Text { unit_bytes } => {
            let bytes = 16 + ((second >> 32) * unit_bytes).next_multiple_of(8);
            Extent { bytes: or_map_says(bytes), follow: NONE }
        }
        Body::Raw { unit_bytes } => {
            let bytes = 16 + (length.unwrap_or(0) * unit_bytes).next_multiple_of(8);
            Extent { bytes: or_map_says(bytes), follow: NONE }
        }
        Body::Array => match length {
            Some(length) => all(2, length),
            None => Extent { bytes: 16, follow: NONE },
        },
        Body::Scope => Extent { bytes: 64, follow: NONE },
        Body::Properties => all(2, length.unwrap_or(0) & 0x3ff),
        Body::WeakList => all(3, length.unwrap_or(0)),
        Body::Descriptors => all(3, (second & 0xffff) * 3),
        Body::Feedback => all(6, second & 0xff_ffff),
        Body::Code => {
            const HEAD: u64 = 7;
            Extent { bytes: (HEAD * 8 + length.unwrap_or(0)).next_multiple_of(8), follow: 1..HEAD }
        }
    }
}
