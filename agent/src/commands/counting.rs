//! When live objects are counted: while a heap grows, as its full collections may be too few to tell what stays.
//!
//! A census reads the heap from outside and costs the process nothing but memory bandwidth, and the agent some seconds of CPU for a large
//! heap: the dearer the last one was, the later comes the next.

use std::time::{Duration, Instant};

use log::debug;

use super::{
    census::{Counted, Counter, Counting, Queue},
    session::Session,
};
use crate::{
    report::model::{HeapCount, Memory},
    units::Pid,
};

/// A heap that has grown by so much above the least that it had is suspicious.
const GROWN_BYTES: u64 = 3 << 20;
const GROWN_SHARE: u64 = 20;

/// The time between two censuses, at least, and as a multiple of the CPU time that the last one took.
const PACE: Duration = Duration::from_secs(8);
const PACE_TIMES: u32 = 10;

/// The first comes when the heap has been seen for so long: what a start leaves is not yet what stays.
const WINDOWS_LEAST: u32 = 3;

/// Longer than this takes none.
const PATIENCE: Duration = Duration::from_secs(5);

/// The last ones, of all processes, are begun by then, or not at all.
const LAST_WITHIN: Duration = Duration::from_secs(5);

/// Beyond this the end of a trace does not wait for them: where others take all of the CPU, one may take minutes.
pub const LAST_PATIENCE: Duration = LAST_WITHIN.saturating_add(PATIENCE);

/// The last one tells little if the one before was just now.
const LAST_AFTER: Duration = Duration::from_secs(2);

/// The heap of one process.
#[derive(Default)]
pub struct HeapWatch {
    windows: u32,
    least: Option<u64>,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Untouched,
    Counting(Counting),
    Waiting {
        counter: Box<Counter>,
        since: Instant,
        cost: Duration,
    },
    /// It cannot be counted.
    Refused,
}

impl HeapWatch {
    /// CPU time that the last census took.
    #[must_use]
    pub fn cost(&self) -> Duration {
        if let State::Waiting { cost, .. } = self.state { cost } else { Duration::ZERO }
    }

    #[must_use]
    pub fn is_counting(&self) -> bool {
        matches!(&self.state, State::Counting(counting) if !counting.is_done())
    }

    /// Has it counted, if that is due at the end of this window.
    pub fn step(&mut self, pid: Pid, memory: &Memory, session: &Session, queue: &mut Queue) {
        let Some(used) = memory.heaps.iter().filter_map(|heap| heap.used_bytes_min).max() else { return };
        self.windows = self.windows.saturating_add(1);
        let least = self.least.map_or(used, |least| least.min(used));
        self.least = Some(least);
        let grown = used.saturating_sub(least);
        let has_grown = self.windows > WINDOWS_LEAST && grown >= GROWN_BYTES && grown >= least / GROWN_SHARE;
        let is_due = match &self.state {
            State::Untouched => has_grown,
            State::Waiting { since, cost, .. } => {
                has_grown && since.elapsed() >= PACE.max(cost.saturating_mul(PACE_TIMES))
            }
            State::Counting(_) | State::Refused => false,
        };
        if is_due {
            self.count(pid, None, session, queue);
        }
    }

    /// Has it counted once more, as the trace ends, if it was before: one census alone tells no growth.
    pub fn count_at_last(&mut self, pid: Pid, session: &Session, queue: &mut Queue) {
        if matches!(&self.state, State::Waiting { since, .. } if since.elapsed() >= LAST_AFTER) {
            self.count(pid, Instant::now().checked_add(LAST_WITHIN), session, queue);
        }
    }

    fn count(&mut self, pid: Pid, latest: Option<Instant>, session: &Session, queue: &mut Queue) {
        let known = match std::mem::replace(&mut self.state, State::Refused) {
            State::Waiting { counter, .. } => Some(*counter),
            _ => None,
        };
        let collections = session.collections().ok();
        let of_process = move || collections.as_ref().and_then(|all| all.of(pid.0)).map(|(_, all)| all);
        match queue.add(pid, known, PATIENCE, latest, Box::new(of_process)) {
            Ok(counting) => self.state = State::Counting(counting),
            Err(error) => debug!("objects are not counted, pid={pid}: {error}"),
        }
    }

    /// What was counted by the end of a window, which was then.
    pub fn counted(&mut self, looked: Instant) -> Option<HeapCount> {
        let counting = match std::mem::replace(&mut self.state, State::Refused) {
            State::Counting(counting) if counting.is_done() => counting,
            other => {
                self.state = other;
                return None;
            }
        };
        let Counted { counter, count, at, cost } =
            counting.end()?.map_err(|error| debug!("objects are not counted: {error}")).ok()?;
        self.state = State::Waiting { counter: Box::new(counter), since: Instant::now(), cost };
        let count = count.map_err(|error| debug!("objects are not counted: {error}")).ok()?;
        let ns = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let age_ns = ns(looked.saturating_duration_since(at)) - ns(at.saturating_duration_since(looked));
        Some(HeapCount { age_ns, ..count })
    }
}
