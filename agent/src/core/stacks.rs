//! Stacks between the record that carries their frames and the line that names them.
//!
//! A user stack is named as soon as it comes, as the collector moves what its frames point at. The line goes out when another
//! line speaks of the stack.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
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
    units::{MonoNs, Pid},
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
    Line(Pid, MonoNs, Body),
}

/// Stacks by id, until their line is out.
#[derive(Debug, Default)]
pub struct Stacks {
    kept: BTreeMap<u64, Kept>,
    shown: BTreeSet<u64>,
    /// Frames that stacks share.
    frames: HashSet<Arc<Frame>>,
}

impl Stacks {
    /// Takes a stack in; the question for its names, where they must be looked up at once.
    pub fn keep(&mut self, pid: Pid, at: MonoNs, stack: decode::Stack, counters: &mut Counters) -> Option<Output> {
        let decode::Stack { id, frames } = stack;
        if self.shown.contains(&id) || self.kept.contains_key(&id) {
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

    /// A line speaks of this stack.
    pub fn need(&mut self, id: u64, counters: &mut Counters) -> Option<Needed> {
        if self.shown.contains(&id) {
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
                self.show(id, frames.into(), truncated).map(|(pid, at, body)| Needed::Line(pid, at, body))
            }
        }
    }

    /// The line for a stack whose names have come, if another speaks of it.
    pub fn symbolized(
        &mut self,
        id: StackId,
        frames: Vec<Arc<Frame>>,
        truncated: Option<Truncated>,
    ) -> Option<(Pid, MonoNs, Body)> {
        let kept = self.kept.get_mut(&id.0)?;
        if kept.needed {
            return self.show(id.0, frames, truncated);
        }
        if self.frames.len() >= FRAMES_DISTINCT_MAX {
            self.frames.clear();
        }
        let shared = frames.into_iter().map(|frame| match self.frames.get(&frame) {
            Some(known) => Arc::clone(known),
            None => {
                self.frames.insert(Arc::clone(&frame));
                frame
            }
        });
        kept.stage = Stage::Named(shared.collect(), truncated);
        None
    }

    fn show(&mut self, id: u64, frames: Vec<Arc<Frame>>, truncated: Option<Truncated>) -> Option<(Pid, MonoNs, Body)> {
        let Kept { pid, at, space, .. } = self.kept.remove(&id)?;
        if self.shown.len() >= STACKS_SHOWN_MAX {
            self.shown.pop_first();
        }
        self.shown.insert(id);
        Some((pid, at, Body::Stack(Stack { id: StackId(id), space, frames, truncated })))
    }
}
