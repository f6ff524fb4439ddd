//! Stacks between the record that carries their frames and the line that names them.

use std::collections::{BTreeMap, BTreeSet};

use super::Output;
use crate::{
    counters::{Counters, Reason},
    decode,
    limits::{STACKS_MAX, STACKS_SHOWN_MAX},
    report::{
        Body,
        model::{Frame, Space, Stack, StackId},
    },
    units::{MonoNs, Pid},
};

#[derive(Debug)]
struct Waiting {
    pid: Pid,
    at: MonoNs,
    space: Space,
    frames: Box<[u64]>,
}

/// Frames by stack id, until they are asked for.
#[derive(Debug, Default)]
pub struct Stacks {
    waiting: BTreeMap<u64, Waiting>,
    /// The driver was asked for their names.
    asked: BTreeMap<u64, (Pid, MonoNs, Space)>,
    shown: BTreeSet<u64>,
}

impl Stacks {
    pub fn keep(&mut self, pid: Pid, at: MonoNs, stack: decode::Stack, counters: &mut Counters) {
        if self.shown.contains(&stack.id) || self.asked.contains_key(&stack.id) {
            return;
        }
        if self.waiting.len() >= STACKS_MAX {
            counters.add(Reason::StacksFull);
            return;
        }
        self.waiting.insert(stack.id, Waiting { pid, at, space: stack.space, frames: stack.frames });
    }

    /// The question for a stack's names, if it was not asked before.
    pub fn ask(&mut self, id: u64, counters: &mut Counters) -> Option<Output> {
        if self.shown.contains(&id) || self.asked.contains_key(&id) {
            return None;
        }
        if self.asked.len() >= STACKS_SHOWN_MAX {
            counters.add(Reason::StacksFull);
            return None;
        }
        let Some(Waiting { pid, at, space, frames }) = self.waiting.remove(&id) else {
            counters.add(Reason::StackMissing);
            return None;
        };
        self.asked.insert(id, (pid, at, space));
        Some(Output::NeedSymbols { stack: StackId(id), pid, space, frames: frames.into_vec() })
    }

    /// The line for a stack whose names have come.
    pub fn symbolized(&mut self, id: StackId, frames: Vec<Frame>) -> Option<(Pid, MonoNs, Body)> {
        let (pid, at, space) = self.asked.remove(&id.0)?;
        if self.shown.len() < STACKS_SHOWN_MAX {
            self.shown.insert(id.0);
        }
        Some((pid, at, Body::Stack(Stack { id, space, frames })))
    }
}
