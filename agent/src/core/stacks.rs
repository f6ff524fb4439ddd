//! Stacks between the record that carries their frames and the line that names them.
//!
//! A user stack is named as soon as it comes, as the collector moves what its frames point at. The line goes out when another
//! line speaks of the stack.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::Output;
use crate::{
    counters::{Counters, Reason},
    decode::{self, Frames, Space},
    limits::{FRAMES_DISTINCT_MAX, STACKS_MAX, STACKS_SHOWN_MAX},
    report::{
        Body,
        model::{Frame, Stack, StackId, Truncated},
    },
    units::{DurationNs, MonoNs, Pid},
};

#[derive(Debug)]
struct Kept {
    pid: Pid,
    at: MonoNs,
    space: Space,
    /// A line speaks of it.
    needed: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nobody has asked for its names yet.
    Addresses(Frames),
    /// Its names are being looked up.
    Asked,
    Named(Box<[Arc<Frame>]>, Option<Truncated>),
}

/// What has to be done for a stack that a line speaks of.
#[derive(Debug)]
pub enum Needed {
    Question(Output),
    Line(Pid, MonoNs, Box<Body>),
}

/// Stacks by id, until their line is out.
#[derive(Debug, Default)]
pub struct Stacks {
    kept: BTreeMap<u64, Kept>,
    /// Those whose line is out, and of whom they are; stacks of the kernel are everybody's.
    shown: BTreeMap<u64, Option<Pid>>,
    /// By what they say: the first stack that said it.
    said: BTreeMap<u64, u64>,
    /// Stacks that say what another one says: a sample that was taken an instruction further is no other place.
    same: BTreeMap<u64, u64>,
    /// Frames that stacks share.
    frames: HashSet<Arc<Frame>>,
}

impl Stacks {
    /// Takes a stack in; the question for its names, where they must be looked up at once.
    pub fn keep(&mut self, pid: Pid, at: MonoNs, stack: decode::Stack, counters: &mut Counters) -> Option<Output> {
        let decode::Stack { id, frames } = stack;
        if self.shown.contains_key(&id) || self.kept.contains_key(&id) || self.same.contains_key(&id) {
            return None;
        }
        if self.kept.len() >= STACKS_MAX {
            counters.add(Reason::StacksFull);
            return None;
        }
        let space = frames.space();
        let (stage, question) = match frames {
            Frames::User(_) => (Stage::Asked, Some(Output::NeedSymbols { stack: StackId(id), pid, frames })),
            Frames::Kernel(_) => (Stage::Addresses(frames), None),
        };
        self.kept.insert(id, Kept { pid, at, space, needed: false, stage });
        question
    }

    /// How long it took until a user stack had its names. Those of kernel stacks are looked up when a line speaks of them.
    #[must_use]
    pub fn delay(&self, id: StackId, named: MonoNs) -> Option<DurationNs> {
        let kept = self.kept.get(&id.0).filter(|kept| kept.space == Space::User)?;
        Some(named.since(kept.at))
    }

    /// The stack that is to be spoken of in this one's place: the first that said the same.
    #[must_use]
    pub fn alias(&self, id: u64) -> u64 {
        self.same.get(&id).copied().unwrap_or(id)
    }

    /// A line speaks of this stack.
    pub fn need(&mut self, id: u64, counters: &mut Counters) -> Option<Needed> {
        if self.shown.contains_key(&id) {
            return None;
        }
        let Some(kept) = self.kept.get_mut(&id) else {
            counters.add(Reason::StackMissing);
            return None;
        };
        kept.needed = true;
        match std::mem::replace(&mut kept.stage, Stage::Asked) {
            Stage::Addresses(frames) => {
                Some(Needed::Question(Output::NeedSymbols { stack: StackId(id), pid: kept.pid, frames }))
            }
            Stage::Asked => None,
            Stage::Named(frames, truncated) => {
                self.show(id, frames.into(), truncated).map(|(pid, at, body)| Needed::Line(pid, at, Box::new(body)))
            }
        }
    }

    /// A process is no more, and its last window is closed: nobody speaks any more of its stacks, but of those whose names are still to
    /// come for a line that is out.
    pub fn forget(&mut self, pid: Pid) {
        self.kept.retain(|_, kept| kept.pid != pid || kept.needed || kept.space == Space::Kernel);
        self.shown.retain(|_, whose| *whose != Some(pid));
        let is_there = |id: &u64| self.shown.contains_key(id) || self.kept.contains_key(id);
        self.said.retain(|_, first| is_there(first));
        self.same.retain(|_, first| is_there(first));
        // Those that no stack has any more.
        self.frames.retain(|frame| Arc::strong_count(frame) > 1);
    }

    /// The line for a stack whose names have come, if another speaks of it.
    pub fn symbolized(
        &mut self,
        id: StackId,
        frames: Vec<Arc<Frame>>,
        truncated: Option<Truncated>,
    ) -> Option<(Pid, MonoNs, Body)> {
        let kept = self.kept.get(&id.0)?;
        if kept.needed {
            return self.show(id.0, frames, truncated);
        }
        if let Some(first) = self.first_that_says(kept.pid, id.0, &frames, truncated) {
            self.kept.remove(&id.0);
            if self.same.len() >= STACKS_SHOWN_MAX {
                self.same.pop_first();
            }
            self.same.insert(id.0, first);
            return None;
        }
        if self.frames.len() >= FRAMES_DISTINCT_MAX {
            self.frames.clear();
        }
        let shared = frames.into_iter().map(|frame| {
            if let Some(known) = self.frames.get(&frame) {
                return Arc::clone(known);
            }
            self.frames.insert(Arc::clone(&frame));
            frame
        });
        let stage = Stage::Named(shared.collect(), truncated);
        if let Some(kept) = self.kept.get_mut(&id.0) {
            kept.stage = stage;
        }
        None
    }

    /// Another stack that said the same before; else, this is the first.
    fn first_that_says(
        &mut self,
        pid: Pid,
        id: u64,
        frames: &[Arc<Frame>],
        truncated: Option<Truncated>,
    ) -> Option<u64> {
        let said = meaning(pid, frames, truncated);
        if let Some(&first) = self.said.get(&said)
            && (self.shown.contains_key(&first) || self.kept.contains_key(&first))
        {
            return Some(first);
        }
        if self.said.len() >= STACKS_SHOWN_MAX {
            self.said.pop_first();
        }
        self.said.insert(said, id);
        None
    }

    fn show(&mut self, id: u64, frames: Vec<Arc<Frame>>, truncated: Option<Truncated>) -> Option<(Pid, MonoNs, Body)> {
        let Kept { pid, at, space, .. } = self.kept.remove(&id)?;
        if self.shown.len() >= STACKS_SHOWN_MAX {
            self.shown.pop_first();
        }
        self.shown.insert(id, (space == Space::User).then_some(pid));
        Some((pid, at, Body::Stack(Stack { id: StackId(id), space, frames, truncated })))
    }
}

/// What a stack says to a reader: all but where in its line a frame was, which is kept of the first.
fn meaning(pid: Pid, frames: &[Arc<Frame>], truncated: Option<Truncated>) -> u64 {
    // The same in each run, so that a recording gives the same ids again.
    let mut hasher = DefaultHasher::new();
    (pid, truncated, frames.len()).hash(&mut hasher);
    for frame in frames {
        let Frame {
            name,
            kind,
            module,
            inlined,
            file,
            line,
            column: _,
            start_line,
            function_line,
            function_column,
            tier,
        } = frame.as_ref();
        (name, kind, module, inlined, file, line, start_line, function_line, function_column, tier).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_that_nobody_speaks_of_go_with_their_process() {
        let (mut stacks, mut counters) = (Stacks::default(), Counters::default());
        let [gone, other] = [Pid(7), Pid(8)];
        let user = || Frames::User(Box::default());
        for (id, pid, frames) in
            [(1, gone, user()), (2, gone, user()), (3, other, user()), (4, gone, Frames::Kernel(Box::default()))]
        {
            stacks.keep(pid, MonoNs(0), decode::Stack { id, frames }, &mut counters);
        }
        // A line speaks of the second: its names are still to come.
        assert!(stacks.need(2, &mut counters).is_none());
        stacks.forget(gone);
        assert_eq!(stacks.kept.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
        assert!(stacks.symbolized(StackId(1), Vec::new(), None).is_none());
        assert!(stacks.symbolized(StackId(2), Vec::new(), None).is_some());
        assert_eq!(stacks.kept.keys().copied().collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn what_was_said_of_a_process_goes_with_it_and_what_the_kernel_did_stays() {
        let (mut stacks, mut counters) = (Stacks::default(), Counters::default());
        let [gone, other] = [Pid(7), Pid(8)];
        let frames = || vec![Arc::new(Frame::default())];
        let user = || Frames::User(Box::default());
        // The second says what the first said.
        for (id, pid) in [(1, gone), (2, gone), (3, other)] {
            stacks.keep(pid, MonoNs(0), decode::Stack { id, frames: user() }, &mut counters);
            stacks.symbolized(StackId(id), frames(), None);
        }
        assert_eq!(stacks.alias(2), 1);
        let kernel = Frames::Kernel(Box::default());
        stacks.keep(gone, MonoNs(0), decode::Stack { id: 4, frames: kernel }, &mut counters);
        for id in [1, 3, 4] {
            stacks.need(id, &mut counters);
        }
        stacks.symbolized(StackId(4), frames(), None);
        assert_eq!(stacks.shown.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
        stacks.forget(gone);
        assert_eq!(stacks.shown.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(stacks.said.values().copied().collect::<Vec<_>>(), [3]);
        assert!(stacks.same.is_empty() && stacks.frames.is_empty());
    }
}
