//! Async functions that are suspended just now, found in the heap: what a process awaits while no stack says it.
//!
//! A process that waits for a database has nothing on its stack. Each call that waits is an object, though, that knows its function, where
//! in it the call goes on, and the promise that it settles in the end, to which whoever awaits that call is attached. Objects of that
//! type are found by their Map, which is found by its type: all of memory is read once, and none of it is believed without a check. What
//! the collector moves meanwhile is missed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Range,
};

use super::heap::{Heap, Object, Tagged};
use crate::{
    limits::{SUSPENDED_BYTES_MAX, SUSPENDED_CALLS_MAX, SUSPENDED_CHAIN_MAX, SUSPENDED_MAPS_MAX, SUSPENDED_TOLD_MAX},
    target::{
        memory::Memory,
        regions::{self, Region},
        v8::FunctionLayout,
    },
    units::UserAddr,
};

/// Offsets from an object's untagged address that are the same in each V8 from 9.4 to 14.6.
mod offset {
    /// `Map::instance_type`.
    pub const TYPE: u64 = 12;
    /// `JSGeneratorObject`, in words.
    pub const FUNCTION: usize = 3;
    pub const POSITION: usize = 6;
    pub const CONTINUATION: usize = 8;
    pub const PROMISE: usize = 10;
    pub const WORDS: usize = 11;
    /// `JSPromise`.
    pub const REACTIONS: u32 = 24;
    pub const FLAGS: u32 = 32;
    /// `PromiseCapability`.
    pub const CAPABILITY_PROMISE: u32 = 8;
    /// The first two slots of a context of a builtin's own: generator or promise; capability.
    pub const CONTEXT_FIRST: u32 = 32;
    pub const CONTEXT_SECOND: u32 = 40;
}

/// Where a call goes on: the tagged address of its `SharedFunctionInfo`, and the offset in its bytecode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub shared: u64,
    pub offset: u64,
}

/// Calls by place and by who awaits them, innermost first; most calls first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspended {
    pub calls: Vec<(Vec<Place>, u64)>,
    pub read_bytes: u64,
    /// There is more memory, or there are more calls, than were looked at.
    pub is_cut: bool,
}

struct Call {
    place: Place,
    promise: u64,
}

/// The status of a promise, in its flags.
const STATUS: i32 = 3;
const PENDING: i32 = 0;

/// What is read at once.
const CHUNK_BYTES: u64 = 1 << 18;

/// Bytes of a page, of which the kernel tells 64 at a time.
const PAGE_BYTES: u64 = 4096;

/// Which pages there are, of the 64 from an address on: untouched memory is not read, as that would make it.
pub type Present<'a> = dyn Fn(UserAddr) -> u64 + 'a;

impl<M: Memory> Heap<M> {
    /// Looks through all memory that may be the heap's.
    pub fn suspended(&self, layout: &FunctionLayout, regions: &[Region], present: &Present) -> Suspended {
        let mut found = Suspended::default();
        if layout.awaits.async_function == 0 {
            return found;
        }
        let maps = self.maps_of(layout.awaits.async_function, regions, present, &mut found);
        if maps.is_empty() {
            return found;
        }
        let mut calls = HashMap::new();
        self.each_word(regions, present, &mut found, |at, word, _| {
            if maps.contains(&word) && calls.len() < SUSPENDED_CALLS_MAX {
                calls.extend(self.call(at, layout).map(|call| (at, call)));
            }
        });
        found.is_cut |= calls.len() >= SUSPENDED_CALLS_MAX;
        found.calls = self.by_place(&calls, layout);
        found
    }

    /// Maps of an instance type: objects whose Map is one of those that are their own.
    fn maps_of(
        &self,
        instance_type: u16,
        regions: &[Region],
        present: &Present,
        found: &mut Suspended,
    ) -> HashSet<u64> {
        let map_type = self.layout.types.map;
        let mut own = HashSet::new();
        let mut maybe = Vec::new();
        self.each_word(regions, present, found, |at, word, next| {
            // Bytes 12 and 13 of the object.
            let of_type = (next >> (8 * (offset::TYPE - 8)) & 0xffff) as u16;
            if word == at + 1 && of_type == map_type && own.len() < SUSPENDED_MAPS_MAX {
                own.insert(word);
            } else if of_type == instance_type && word & 3 == 1 && maybe.len() < SUSPENDED_CALLS_MAX {
                maybe.push((at, word));
            }
        });
        let maps = maybe.into_iter().filter(|(_, map)| own.contains(map)).map(|(at, _)| at + 1);
        maps.take(SUSPENDED_MAPS_MAX).collect()
    }

    /// Every aligned word of memory that there is, with its address and the word after it.
    fn each_word(
        &self,
        regions: &[Region],
        present: &Present,
        found: &mut Suspended,
        mut take: impl FnMut(u64, u64, u64),
    ) {
        let mut bytes = Vec::new();
        let mut left = SUSPENDED_BYTES_MAX;
        for region in regions.iter().filter(|region| region.anonymous && region.kind != regions::Kind::Stack) {
            let mut chunk = region.range.start;
            while chunk < region.range.end {
                let end = chunk.saturating_add(CHUNK_BYTES).min(region.range.end);
                for run in runs(chunk..end, present(UserAddr(chunk))) {
                    let len = run.end - run.start;
                    if len > left {
                        found.is_cut = true;
                        return;
                    }
                    left -= len;
                    bytes.resize(usize::try_from(len).unwrap_or(0), 0);
                    if self.memory.read_at(UserAddr(run.start), &mut bytes).is_err() {
                        continue;
                    }
                    found.read_bytes = found.read_bytes.saturating_add(len);
                    let words = bytes.as_chunks::<8>().0;
                    let after = words.iter().skip(1).map(|word| u64::from_le_bytes(*word)).chain([0]);
                    for ((word, next), at) in words.iter().zip(after).zip((run.start..).step_by(8)) {
                        take(at, u64::from_le_bytes(*word), next);
                    }
                }
                chunk = end;
            }
        }
    }

    /// The object at an address, if it is a call that is suspended.
    fn call(&self, at: u64, layout: &FunctionLayout) -> Option<Call> {
        self.begin();
        let words: [u64; offset::WORDS] = self.words(Object(UserAddr(at))).ok()?;
        let word = |index: usize| words.get(index).copied().map(Tagged);
        word(offset::CONTINUATION)?.smi().filter(|state| *state >= 0)?;
        let position = word(offset::POSITION)?.smi().and_then(|position| u64::try_from(position).ok())?;
        let promise = word(offset::PROMISE)?;
        let of_promise = promise.object().ok()?;
        let is_promise = self.type_of(of_promise).ok()? == layout.awaits.promise;
        // What is settled already awaits nothing.
        let is_pending = self.tagged(of_promise, offset::FLAGS).ok()?.smi()? & STATUS == PENDING;
        let function = word(offset::FUNCTION)?.object().ok()?;
        let shared = self.tagged(function, layout.shared).ok()?;
        let is_function = self.type_of(shared.object().ok()?).ok()? == self.layout.types.function_info;
        (is_promise && is_pending && is_function)
            .then_some(Call { place: Place { shared: shared.0, offset: position }, promise: promise.0 })
    }

    fn by_place(&self, calls: &HashMap<u64, Call>, layout: &FunctionLayout) -> Vec<(Vec<Place>, u64)> {
        let awaiting: HashMap<u64, u64> = calls
            .iter()
            .filter_map(|(at, call)| Some((*at, self.awaiter(call.promise, layout)?)))
            .filter(|(at, by)| at != by)
            .collect();
        let outer: BTreeSet<u64> = awaiting.values().copied().collect();
        let mut sums = BTreeMap::<Vec<Place>, u64>::new();
        for at in calls.keys().filter(|at| !outer.contains(at)) {
            let mut chain = Vec::new();
            let mut next = Some(*at);
            while let Some(call) = next.and_then(|at| calls.get(&at))
                && chain.len() < SUSPENDED_CHAIN_MAX
            {
                chain.push(call.place);
                next = next.and_then(|at| awaiting.get(&at).copied());
            }
            *sums.entry(chain).or_default() += 1;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        sums.truncate(SUSPENDED_TOLD_MAX);
        sums
    }

    /// The call that goes on when a promise is settled: through promises that it settles, if need be.
    fn awaiter(&self, promise: u64, layout: &FunctionLayout) -> Option<u64> {
        let awaits = &layout.awaits;
        let mut promise = Tagged(promise).object().ok()?;
        for _ in 0..SUSPENDED_CHAIN_MAX {
            self.begin();
            let reaction = self.object(promise, offset::REACTIONS).ok()?;
            (self.type_of(reaction).ok()? == awaits.reaction).then_some(())?;
            let field = |index: u32| self.tagged(reaction, u32::from(awaits.reaction_next) + 8 * index).ok();
            let (handler, settles) = (field(2)?, field(3)?);
            if let Some(next) = self.of_handler(handler, layout) {
                let instance_type = self.type_of(next).ok()?;
                if instance_type == awaits.async_function {
                    return Some(next.0.0);
                }
                promise = next;
                continue;
            }
            promise = self.settled(settles.object().ok()?, layout)?;
        }
        None
    }

    /// A promise, or that of a capability.
    fn settled(&self, object: Object, layout: &FunctionLayout) -> Option<Object> {
        let instance_type = self.type_of(object).ok()?;
        if instance_type == layout.awaits.promise {
            return Some(object);
        }
        (instance_type == layout.awaits.capability)
            .then(|| self.object(object, offset::CAPABILITY_PROMISE).ok())
            .flatten()
    }

    /// What a builtin closure goes on with: a call, or a promise.
    fn of_handler(&self, handler: Tagged, layout: &FunctionLayout) -> Option<Object> {
        let handler = handler.object().ok()?;
        let (first, last) = layout.types;
        (first..=last).contains(&self.type_of(handler).ok()?).then_some(())?;
        let context = self.object(handler, u32::from(layout.awaits.function_context)).ok()?;
        let first = self.object(context, offset::CONTEXT_FIRST).ok()?;
        let instance_type = self.type_of(first).ok()?;
        if [layout.awaits.async_function, layout.awaits.promise].contains(&instance_type) {
            return Some(first);
        }
        self.settled(self.object(context, offset::CONTEXT_SECOND).ok()?, layout)
    }
}

/// Stretches of pages that there are; `range` is no longer than what the bits say.
fn runs(range: Range<u64>, present: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (index, page) in (range.start..range.end).step_by(usize::try_from(PAGE_BYTES).unwrap_or(1)).enumerate() {
        if present >> index.min(63) & 1 == 0 {
            continue;
        }
        let end = (page + PAGE_BYTES).min(range.end);
        match runs.last_mut() {
            Some(run) if run.end == page => run.end = end,
            _ => runs.push(page..end),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_there_are_are_read() {
        assert_eq!(runs(0x1000..0x5000, 0b1011), [0x1000..0x3000, 0x4000..0x5000]);
        assert!(runs(0x1000..0x1000, u64::MAX).is_empty());
        assert_eq!(runs(0..CHUNK_BYTES, u64::MAX).len(), 1);
    }
}
