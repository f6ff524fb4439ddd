//! The handles of an event loop, counted from outside by walking libuv's own list of them.
//!
//! Offsets are those of `uv_loop_t` and `uv_handle_t` in libuv 1.43 to 1.52 (`include/uv.h`): they are part of its binary interface and
//! have not moved. The list changes while it is walked; a walk that loses its way is tried again.

use std::collections::BTreeMap;

use super::memory::Memory;
use crate::{limits::LOOP_HANDLES_MAX, units::UserAddr};

/// `uv_loop_t::handle_queue`.
const LOOP_HANDLE_QUEUE: u64 = 16;
/// `uv_handle_t::handle_queue`.
const HANDLE_QUEUE: u64 = 32;
/// Where a handle is read from: its `loop`.
const HANDLE_READ_FROM: u64 = 8;

const ATTEMPTS: u32 = 3;

/// `uv_handle_type`.
const TYPES: [&str; 18] = [
    "unknown", "async", "check", "fs_event", "fs_poll", "handle", "idle", "pipe", "poll", "prepare", "process",
    "stream", "tcp", "timer", "tty", "udp", "signal", "file",
];

/// `UV_HANDLE_CLOSING` and `UV_HANDLE_CLOSED`: on its way out.
const CLOSING_FLAGS: u64 = 3;

/// One handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    pub at: UserAddr,
    pub kind: &'static str,
    pub is_closing: bool,
}

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handles {
    /// Open ones by type.
    pub by_type: BTreeMap<&'static str, u64>,
    /// The walk ended at its bound or lost its way: there may be more.
    pub partial: bool,
}

/// Counts a loop's open handles.
#[must_use]
pub fn count(memory: &impl Memory, event_loop: UserAddr) -> Handles {
    let mut best = Handles { partial: true, ..Handles::default() };
    for _ in 0..ATTEMPTS {
        let mut found = Handles::default();
        found.partial = !walk(memory, event_loop, LOOP_HANDLES_MAX, |handle| {
            if !handle.is_closing {
                *found.by_type.entry(handle.kind).or_default() += 1;
            }
        });
        let is_whole = !found.partial;
        if is_whole || sum(&found) > sum(&best) {
            best = found;
        }
        if is_whole {
            break;
        }
    }
    best
}

fn sum(handles: &Handles) -> u64 {
    handles.by_type.values().sum()
}

/// The first handles of a loop: those that Node.js itself opens.
#[must_use]
pub fn first(memory: &impl Memory, event_loop: UserAddr, most: usize) -> Vec<Handle> {
    let mut handles = Vec::new();
    walk(memory, event_loop, most, |handle| handles.push(handle));
    handles
}

/// False if it did not come back to where it began.
fn walk(memory: &impl Memory, event_loop: UserAddr, most: usize, mut visit: impl FnMut(Handle)) -> bool {
    let Some(head) = event_loop.0.checked_add(LOOP_HANDLE_QUEUE) else { return false };
    let Ok(mut node) = memory.word_at(UserAddr(head)) else { return false };
    for _ in 0..most {
        if node == head {
            return true;
        }
        let Some(at) = node.checked_sub(HANDLE_QUEUE) else { return false };
        // loop, type, close_cb, handle_queue, u, next_closing, flags.
        let mut bytes = [0; 88];
        if at.checked_add(HANDLE_READ_FROM).is_none_or(|from| memory.read_at(UserAddr(from), &mut bytes).is_err()) {
            return false;
        }
        let word = |offset: usize| {
            let bytes = bytes.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        let kind = usize::try_from(word(8) & 0xffff_ffff).ok().and_then(|kind| TYPES.get(kind));
        let (Some(kind), true) = (kind, word(0) == event_loop.0) else { return false };
        let is_closing = word(80) & CLOSING_FLAGS != 0;
        visit(Handle { at: UserAddr(at), kind, is_closing });
        node = word(24);
    }
    false
}
