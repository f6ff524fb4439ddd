//! Tries a layout on a live heap, before anybody relies on it.
//!
//! Memory is searched for what tells itself: the map of maps, whose first word points at itself; maps of functions and of code, which
//! point at that; objects, which point at those. Then a number of them are read as a frame's would be. Some are dead and half
//! overwritten, and some words only look like an object's first, so a few refusals are no fault of the layout.

use std::collections::HashMap;

use super::{
    V8,
    function::Body,
    heap::{Object, Refusal},
    layout::{Layout, fixed},
};
use crate::{
    limits::{V8_TRIAL_BYTES_MAX, V8_TRIAL_OBJECTS},
    symbolize::v8::code::Kind,
    target::memory::Memory,
    units::UserAddr,
};

/// V8's pages.
const CHUNK_BYTES: u64 = 256 << 10;

/// How many of a kind were read, of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub read: usize,
    pub of: usize,
}

impl Score {
    fn add<T>(&mut self, result: &Result<T, Refusal>) {
        self.of += 1;
        self.read += usize::from(result.is_ok());
    }

    /// Nothing was there to be tried.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.of == 0
    }

    /// Most could be read.
    #[must_use]
    pub fn is_good(self) -> bool {
        const PERCENT: usize = 80;
        self.read * 100 >= self.of * PERCENT
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trial {
    /// Functions with their names and scripts.
    pub functions: Score,
    /// Of those with bytecode, lines in it.
    pub lines: Score,
    /// Optimised code with the functions that are inlined into it.
    pub optimised: Score,
    /// Bytes that were searched.
    pub searched: u64,
}

/// Tries a layout on memory that may hold a heap.
pub fn run<M: Memory>(memory: M, layout: Layout, regions: &[(UserAddr, UserAddr)]) -> Trial {
    let mut v8 = V8::new(memory, layout);
    let mut trial = Trial::default();
    let types = v8.heap.layout.types;
    let meta = first_words(&v8, regions, &mut trial.searched, |at, word, next| {
        (word == at | 1 && instance_type(next) == types.map).then_some(word)
    });
    let mut maps = HashMap::new();
    first_words(&v8, regions, &mut trial.searched, |at, word, next| {
        let wanted = [types.function_info, types.code].contains(&instance_type(next));
        if wanted && meta.contains(&word) {
            maps.insert(at | 1, instance_type(next));
        }
        None::<()>
    });
    let (mut functions, mut codes) = (Vec::new(), Vec::new());
    first_words(&v8, regions, &mut trial.searched, |at, word, _| {
        if let Some(found) = maps.get(&word) {
            let list = if *found == types.code { &mut codes } else { &mut functions };
            list.push(Object(UserAddr(at)));
        }
        None::<()>
    });
    for function in spread(&functions) {
        try_function(&mut v8, *function, &mut trial);
    }
    // Most are of builtins.
    codes.retain(|code| is_optimised(&v8, *code));
    for code in spread(&codes) {
        try_code(&mut v8, *code, &mut trial);
    }
    trial
}

fn instance_type(second_word: u64) -> u16 {
    u16::try_from(second_word >> 32 & 0xffff).unwrap_or(0)
}

/// Some of many, from all over.
fn spread<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().step_by(all.len() / V8_TRIAL_OBJECTS + 1)
}

/// What is found among words, by a word's address, the word and the next one.
fn first_words<M: Memory, T>(
    v8: &V8<M>,
    regions: &[(UserAddr, UserAddr)],
    searched: &mut u64,
    mut find: impl FnMut(u64, u64, u64) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    let mut left = V8_TRIAL_BYTES_MAX;
    let mut buffer = Vec::new();
    for (start, end) in regions {
        let mut at = start.0;
        while at < end.0 && left > 0 {
            let bytes = CHUNK_BYTES.min(end.0 - at).min(left);
            left -= bytes;
            buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
            if v8.heap.memory.read_at(UserAddr(at), &mut buffer).is_ok() {
                let words = buffer.as_chunks::<8>().0;
                for (index, [word, next]) in words.array_windows().enumerate() {
                    let place = at + index as u64 * 8;
                    found.extend(find(place, u64::from_le_bytes(*word), u64::from_le_bytes(*next)));
                }
            }
            at += bytes;
        }
    }
    *searched = V8_TRIAL_BYTES_MAX - left;
    found
}

fn try_function<M: Memory>(v8: &mut V8<M>, at: Object, trial: &mut Trial) {
    v8.heap.begin();
    let function = v8.heap.function(at, &mut v8.functions, 0);
    trial.functions.add(&function);
    let Ok(function) = function else { return };
    if let (Some(script), Ok(Body::Bytecode(bytecode))) = (&function.script, v8.heap.body(at)) {
        let position = v8.heap.position_in_bytecode(bytecode, 0);
        let place = position.and_then(|position| {
            let place = position.offset().and_then(|offset| script.place(offset));
            place.ok_or(Refusal::OutOfRange)
        });
        // Some have no position at all: they were made without a source.
        if place != Err(Refusal::Absent) {
            trial.lines.add(&place);
        }
    }
}

fn is_optimised<M: Memory>(v8: &V8<M>, code: Object) -> bool {
    let layout = &v8.heap.layout;
    v8.heap.begin();
    let flags = code.field(layout.code.flags).and_then(|flags| v8.heap.u32(flags));
    let kind = flags.map(|flags| flags & fixed::CODE_KIND_MASK).ok();
    kind.is_some_and(|kind| kind == layout.code.turbofan || Some(kind) == layout.code.maglev)
}

fn try_code<M: Memory>(v8: &mut V8<M>, at: Object, trial: &mut Trial) {
    v8.heap.begin();
    let layout = &v8.heap.layout;
    let start = if layout.types.instruction_stream.is_some() {
        let Ok(start) = at.field(layout.code.start).and_then(|field| v8.heap.word(field)) else { return };
        start
    } else {
        at.0.0 + u64::from(layout.code.start)
    };
    // Those of builtins lead to where no code is made, and those whose machine code is gone to nothing.
    let Ok(code) = v8.heap.code_at(start, UserAddr(start.saturating_sub(CHUNK_BYTES)), &mut v8.codes) else { return };
    if code.object != at || !matches!(code.kind, Kind::Optimised(_)) {
        return;
    }
    let functions = v8.heap.optimised(&code, code.start).and_then(|all| {
        let V8 { heap, functions, .. } = v8;
        all.iter().try_for_each(|one| heap.function(one.function, functions, 0).map(drop))
    });
    trial.optimised.add(&functions);
}
