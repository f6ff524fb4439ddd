//! Names of user stacks: of native code, of V8's builtins, and of JavaScript as far as the heap can be trusted.

use std::sync::Arc;

use log::debug;

use super::{
    Symbolizer, file_name, is_compiled_at_run_time,
    kept::{Asked, Frames, Stack, Trust},
    unknown,
    v8::{
        frames::{ANONYMOUS, Decoded, Seen, is_interpreter, is_interpreters_entry},
        heap::Heap,
        proof::Proof,
    },
};
use crate::{
    decode::{FunctionName, UserFrames, WalkEnd},
    limits::V8_CODE_BYTES_MAX,
    report::model::{Frame, FrameKind, Truncated},
    symbolize::Named,
    target::{address_map::AddressMap, memory::Memory, procfs::Mapping},
    units::{Pid, UserAddr},
};

/// Counts the collections of a process, from any thread.
pub trait GcClock: Send {
    /// Beginnings and ends of full collections so far, and of all; `None` where they are not seen.
    fn of(&self, pid: Pid) -> Option<(u32, u32)>;
}

/// Sees no collections.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoClock;

impl GcClock for NoClock {
    fn of(&self, _: Pid) -> Option<(u32, u32)> {
        None
    }
}

/// What a frame was named, and what that rests on.
#[derive(Debug, Default)]
struct Answer {
    frames: Vec<Frame>,
    proofs: Vec<Proof>,
    /// It will be the same next time.
    lasts: bool,
}

impl Answer {
    fn lasting(frame: Frame) -> Self {
        Self { frames: vec![frame], proofs: Vec::new(), lasts: true }
    }

    fn passing(frame: Frame) -> Self {
        Self { lasts: false, ..Self::lasting(frame) }
    }
}

impl Symbolizer {
    /// Names user stacks of one process, which are better asked about together: what they rest on is looked at once for all of
    /// them. Every address but the first of each is a return address: the call lies before it.
    pub fn symbolize_user(&mut self, pid: Pid, stacks: &[&UserFrames]) -> Vec<Named> {
        self.enter(pid);
        if let Some(v8) = self.v8(pid) {
            v8.heap.forget();
        }
        let now = self.majors(pid);
        let mut all = self.asked_all(pid, stacks, now);
        let then = self.majors(pid);
        if then != now {
            // A collection began, and may have moved what was read. Of a stack from before it nothing more is read.
            all = self.asked_all(pid, stacks, then);
        }
        let on_stack: Vec<usize> = all.iter().map(|stack| stack.frames.len()).collect();
        let truncated = stacks.iter().zip(&all).map(|(stack, asked)| self.truncated(pid, stack.end, &asked.frames));
        let truncated: Vec<Option<Truncated>> = truncated.collect();
        for (stack, asked) in stacks.iter().zip(&mut all) {
            asked.frames.extend(stack.awaits.iter().map(|frame| Asked::suspended(*frame)));
        }
        let space = self.spaces.entry(pid).or_default();
        let memory = space.v8.get().map(|v8| &v8.heap.memory);
        let mut named = space.kept.find(&all, memory);
        self.name_the_others(pid, &all, &mut named);
        let each = named.into_iter().zip(on_stack).zip(truncated);
        each.map(|((named, on_stack), truncated)| Named { frames: self.put_together(&named, on_stack), truncated })
            .collect()
    }

    fn majors(&self, pid: Pid) -> Option<u32> {
        self.clock.of(pid).map(|(majors, _)| majors)
    }

    /// Frames on the stack, and below a marker those that await them.
    fn put_together(&self, named: &[Option<Frames>], on_stack: usize) -> Vec<Arc<Frame>> {
        let (running, awaiting) = named.split_at(on_stack.min(named.len()));
        let mut frames = Vec::with_capacity(named.len() + 1);
        frames.extend(running.iter().flatten().flat_map(|frames| frames.iter().cloned()));
        if !awaiting.is_empty() {
            frames.push(Arc::clone(&self.awaits));
            frames.extend(awaiting.iter().flatten().flat_map(|frames| frames.iter().cloned()));
        }
        frames
    }

    /// Works out what is not known yet, and keeps it if nothing has changed meanwhile.
    fn name_the_others(&mut self, pid: Pid, stacks: &[Stack], named: &mut [Vec<Option<Frames>>]) {
        let mut settled: AddressMap<Asked, Frames> = AddressMap::default();
        for (stack, named) in stacks.iter().zip(named) {
            if !stack.trust.may_read() {
                settled.clear();
            }
            let others = |named: &[Option<Frames>], settled: &AddressMap<Asked, Frames>| -> Vec<Asked> {
                let pairs = stack.frames.iter().zip(named);
                let others = pairs.filter(|(one, known)| known.is_none() && !settled.contains_key(one));
                others.map(|(one, _)| *one).collect()
            };
            let unknown = others(named, &settled);
            let lasts = unknown.is_empty() || self.settle(pid, unknown, stack.trust, &mut settled);
            for (one, place) in stack.frames.iter().zip(named.iter_mut()).filter(|(_, place)| place.is_none()) {
                *place = settled.get(one).cloned();
            }
            if !lasts {
                settled.clear();
            }
        }
    }

    /// Works frames out. False if the heap changed meanwhile, or might not be read: others may know more of the same frames.
    fn settle(&mut self, pid: Pid, asked: Vec<Asked>, trust: Trust, settled: &mut AddressMap<Asked, Frames>) -> bool {
        if let Some(v8) = self.v8(pid) {
            v8.heap.forget();
        }
        let mut answers: AddressMap<Asked, Answer> = AddressMap::default();
        for one in asked {
            answers.entry(one).or_insert_with(|| self.answer(pid, one, trust.may_read()));
        }
        let still = self.still(pid, &answers, trust);
        for (one, mut answer) in answers {
            let rests_on_heap = !answer.proofs.is_empty();
            if rests_on_heap && !still {
                answer = self.answer(pid, one, false);
            }
            let frames: Frames = answer.frames.into_iter().map(Arc::new).collect();
            if answer.lasts {
                let majors = if let Trust::Heap { majors } = trust { majors } else { None };
                self.spaces.entry(pid).or_default().kept.keep(one, &frames, answer.proofs, majors);
            }
            settled.insert(one, frames);
        }
        still && trust.may_read()
    }

    /// Nothing that was read has changed since it was read.
    fn still(&mut self, pid: Pid, answers: &AddressMap<Asked, Answer>, trust: Trust) -> bool {
        let proofs: Vec<&Proof> = answers.values().flat_map(|answer| &answer.proofs).collect();
        if proofs.is_empty() {
            return true;
        }
        let mut parts: Vec<_> = proofs.iter().map(|proof| proof.part()).collect();
        let Some(v8) = self.spaces.entry(pid).or_default().v8.get() else { return false };
        v8.heap.memory.read_parts(&mut parts);
        let same = proofs.iter().zip(&parts).all(|(proof, part)| proof.holds(part));
        same && trust == Trust::Heap { majors: self.majors(pid) }
    }

    /// Names one frame; `heap` says whether that of V8 may be read.
    fn answer(&mut self, pid: Pid, asked: Asked, heap: bool) -> Answer {
        if asked == Asked::LOST {
            let name = "[unknown]".to_owned();
            return Answer::passing(Frame { name, kind: FrameKind::Unknown, ..Frame::default() });
        }
        if asked.is_suspended() {
            return self.suspended(pid, asked, heap);
        }
        let mut answer = self.unsuspended(pid, asked, heap);
        if let Some(frame) = answer.frames.last_mut().filter(|frame| frame.name == ANONYMOUS)
            && let Some(name) = self.spaces.get(&pid).and_then(|space| space.names.get(asked.seen.name))
        {
            name.clone_into(&mut frame.name);
        }
        answer
    }

    /// Names a frame that is on the stack.
    fn unsuspended(&mut self, pid: Pid, asked: Asked, heap: bool) -> Answer {
        let at = asked.seen.pc;
        let mapping = self.mapping(pid, at);
        let Some(floor) = self.code_floor(pid, at, mapping.as_ref()) else {
            return self.in_file(pid, asked, mapping.as_ref(), heap);
        };
        match heap.then(|| self.v8(pid)).flatten().map(|v8| v8.run_time(asked.seen, floor)) {
            Some(Ok(decoded)) => return decoded.into(),
            Some(Err(because)) => {
                debug!("frame not named, pid={pid} pc={at:#x}: {because}");
                // No code was made there, so perhaps something else has been mapped meanwhile.
                let now = self.mapping_at_once(pid, at).filter(|now| !is_compiled_at_run_time(now));
                if now.is_some() {
                    return self.in_file(pid, asked, now.as_ref(), heap);
                }
            }
            None => {}
        }
        self.run_time(pid, asked, heap)
    }

    /// Names code that is in a file, or in nothing that is known.
    fn in_file(&mut self, pid: Pid, asked: Asked, mapping: Option<&Mapping>, heap: bool) -> Answer {
        let at = asked.seen.pc;
        let Some(mapping) = mapping else {
            return Answer::passing(unknown(at.saturating_add(u64::from(asked.has_called))));
        };
        if !mapping.is_file() {
            let name = mapping.path.to_string_lossy().into_owned();
            return Answer::lasting(Frame { name, kind: FrameKind::Native, ..Frame::default() });
        }
        let offset = at.wrapping_sub(mapping.start.0).wrapping_add(mapping.offset);
        let mut frames = Vec::new();
        if let Some((module, lines)) = self.modules.get(pid, mapping) {
            module.frames(offset, lines, &mut frames);
        }
        match frames.as_slice() {
            [] => {
                // A stripped library: the place in the file can be named later, by whoever has its symbols.
                let module = file_name(mapping);
                let name = format!("{}+{offset:#x}", module.as_deref().unwrap_or("?"));
                Answer::lasting(Frame { name, module, kind: FrameKind::Unknown, ..Frame::default() })
            }
            [symbol] if symbol.kind == FrameKind::Builtin => self.builtin(pid, asked, symbol.clone(), heap),
            _ => Answer { frames, proofs: Vec::new(), lasts: true },
        }
    }

    /// Names a function that awaits.
    fn suspended(&mut self, pid: Pid, asked: Asked, heap: bool) -> Answer {
        let decoded = heap.then(|| self.v8(pid)).flatten().and_then(|v8| v8.suspended(asked.seen).ok());
        decoded.map_or_else(|| Answer::passing(javascript()), Answer::from)
    }

    /// Names code that V8 brought along.
    fn builtin(&mut self, pid: Pid, asked: Asked, symbol: Frame, heap: bool) -> Answer {
        let seen = asked.seen;
        // The interpreter runs a function, also where that could not be read, as it was just being moved.
        if seen.object == 0 && is_interpreters_entry(&symbol.name) {
            return Answer::passing(javascript());
        }
        if heap && let Some(v8) = self.v8(pid) {
            match v8.builtin(seen, symbol.clone()) {
                Ok(decoded) => return decoded.into(),
                Err(because) => debug!("frame not named, pid={pid} pc={:#x}: {because}", seen.pc),
            }
        }
        if seen.object & 1 == 0 {
            return Answer::lasting(symbol);
        }
        // The address says which builtin it is, whatever the heap has become; not which function it runs for.
        if is_interpreter(&symbol.name) { Answer::passing(javascript()) } else { Answer::passing(symbol) }
    }

    /// Names code that V8 made, where the code itself does not tell.
    fn run_time(&mut self, pid: Pid, asked: Asked, heap: bool) -> Answer {
        let seen = asked.seen;
        // The frame of a function that has called is set up: its function is in it.
        let v8 = (heap && asked.has_called).then(|| self.v8(pid)).flatten();
        if let Some(decoded) = v8.and_then(|v8| v8.function_only(seen).ok()) {
            return decoded.into();
        }
        let is_mapped = self.mapping(pid, seen.pc).is_some();
        let space = self.spaces.entry(pid).or_default();
        let unnamed =
            || if is_mapped { javascript() } else { unknown(seen.pc.saturating_add(u64::from(asked.has_called))) };
        Answer::passing(space.perf_map.frame(pid, seen.pc).unwrap_or_else(unnamed))
    }

    /// How far down code may begin that was made at run time and holds an address; `None` if the address is in other code. What is in
    /// no mapping yet that is known, is in a new one: V8 makes them faster than maps may be read. But not above all files, where the
    /// main thread's stack is: the kernel complains of who reads below that.
    pub(super) fn code_floor(&mut self, pid: Pid, at: u64, mapping: Option<&Mapping>) -> Option<UserAddr> {
        if let Some(mapping) = mapping {
            return is_compiled_at_run_time(mapping).then_some(mapping.start);
        }
        let may_be_mapped = self.spaces.get(&pid).is_some_and(|space| space.has_file_above(at));
        (may_be_mapped && self.v8(pid).is_some()).then(|| UserAddr(at.saturating_sub(V8_CODE_BYTES_MAX)))
    }

    /// Why a stack does not reach down to where its thread began.
    fn truncated(&mut self, pid: Pid, end: WalkEnd, asked: &[Asked]) -> Option<Truncated> {
        match end {
            WalkEnd::Outermost => return None,
            WalkEnd::Deep => return Some(Truncated::TooDeep),
            WalkEnd::Unreadable | WalkEnd::NotAbove | WalkEnd::Unknown => {}
        }
        // libc starts threads, and does it without a frame pointer.
        let outermost = asked.last().and_then(|last| self.mapping(pid, last.seen.pc));
        let is_start =
            asked.len() > 1 && outermost.as_ref().and_then(file_name).is_some_and(|name| starts_threads(&name));
        (!is_start).then_some(Truncated::NoFramePointer)
    }

    /// The frames to be named, while there have been `now` collections.
    fn asked_all(&mut self, pid: Pid, stacks: &[&UserFrames], now: Option<u32>) -> Vec<Stack> {
        let asked = |stack: &&UserFrames| {
            let trust = Trust::new(stack.major_gcs, now);
            Stack { frames: self.asked(pid, stack, trust), trust }
        };
        stacks.iter().map(asked).collect()
    }

    /// The frames to be named.
    fn asked(&mut self, pid: Pid, stack: &UserFrames, trust: Trust) -> Vec<Asked> {
        let mut asked: Vec<Asked> = Vec::with_capacity(stack.frames.len() + 1);
        asked.extend(stack.frames.iter().enumerate().map(|(depth, frame)| Asked {
            seen: Seen {
                pc: frame.pc.saturating_sub(u64::from(depth > 0)),
                object: frame.object,
                bytecode_offset: frame.bytecode_offset,
                live: None,
                name: 0,
            },
            has_called: depth > 0,
        }));
        for FunctionName { frame, words } in &stack.names {
            let heap = if trust.may_read() { self.v8(pid).map(|v8| &v8.heap) } else { None };
            if let Some(text) = heap.and_then(|heap| own_name(heap, *words))
                && let Some(named) = usize::try_from(*frame).ok().and_then(|at| asked.get_mut(at))
                && let Some(space) = self.spaces.get_mut(&pid)
            {
                named.seen.name = space.names.number(text);
            }
        }
        if let Some(leaf) = &stack.leaf {
            self.repair(pid, leaf, &mut asked, trust);
        }
        asked
    }
}

impl From<Decoded> for Answer {
    /// Where only a function's begin is known, the code may just have been changing: it is asked again.
    fn from(Decoded { frames, proofs }: Decoded) -> Self {
        let lasts = frames.iter().all(|frame| !frame.start_line);
        Self { frames, proofs, lasts }
    }
}

/// What a function calls itself.
fn own_name(heap: &Heap<impl Memory>, words: [u64; 5]) -> Option<String> {
    heap.begin();
    heap.forget();
    heap.text_of_words(words).ok().filter(|text| !text.is_empty())
}

/// A function of which nothing is known.
fn javascript() -> Frame {
    Frame { name: "[js]".to_owned(), kind: FrameKind::Js, ..Frame::default() }
}

fn starts_threads(file: &str) -> bool {
    ["libc.", "libc-", "libpthread", "ld-linux", "ld-musl"].iter().any(|name| file.starts_with(name))
}
