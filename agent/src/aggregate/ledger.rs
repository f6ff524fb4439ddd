//! Where a thread's time went in a window: the difference of two readings of its ledger.
//!
//! The kernel half charges a stretch of time when it ends; a reading in between adds the open stretch by the same rules,
//! so windows add up to the totals and each closes to its wall time. Nothing here depends on records that a ring may drop.

use agent_ebpf::{
    abi::{
        event_loop::{Ledger, phase},
        sched::reason,
    },
    state::{Switches, ThreadState, flag},
};

use crate::units::{MonoNs, Tid};

const BLOCKING_POLL: u32 = flag::IN_POLL | flag::POLL_MAY_BLOCK;

/// A thread's totals at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub at: MonoNs,
    pub ledger: Ledger,
}

/// What the kernel half watches as a window ends.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// How often it has changed whether polls are watched.
    pub polls_epoch: u32,
    pub switches: Switches,
}

impl Watched {
    /// The state is of a time in which polls are watched.
    fn has_polls(&self, state: &ThreadState) -> bool {
        state.polls_epoch == self.polls_epoch && self.polls_epoch.is_multiple_of(2)
    }

    /// Up to when it is known what a thread does, if not up to now: from then on its switches were not watched.
    #[must_use]
    pub fn until(&self, state: &ThreadState) -> Option<MonoNs> {
        let is_current = state.switches_epoch == self.switches.epoch && state.switches_epoch.is_multiple_of(2);
        (!is_current).then(|| MonoNs(self.switches.until(state.switches_epoch)))
    }
}

/// Reads a state: its ledger, and the open stretch up to `now`.
#[must_use]
pub fn read(state: &ThreadState, now: MonoNs) -> Reading {
    read_until(state, now, None)
}

/// The same where it is known what the thread did up to some moment only: see [`Watched::until`].
#[must_use]
pub fn read_until(state: &ThreadState, now: MonoNs, until: Option<MonoNs>) -> Reading {
    // The thread may have been charged after the clock was read.
    let at = now.0.max(state.mark_ns);
    let until = until.map_or(at, |until| until.0.min(at));
    let mut ledger = state.ledger;
    if state.flags & flag::OFF_CPU == 0 {
        let phase = state.phase as usize;
        let slot = if phase < phase::COUNT { phase } else { phase::UNSPLIT as usize };
        if let Some(ns) = ledger.on_cpu_ns.get_mut(slot) {
            *ns = ns.saturating_add(until.saturating_sub(state.mark_ns));
        }
    } else {
        // Up to the switch the kernel half charged by itself.
        let away = until.saturating_sub(state.out_ns);
        let runnable = match state.out_reason {
            reason::PREEMPTED => away,
            _ if state.woken_ns == 0 => 0,
            _ => until.saturating_sub(state.woken_ns.max(state.out_ns)).min(away),
        };
        let waited = away - runnable;
        ledger.runnable_ns = ledger.runnable_ns.saturating_add(runnable);
        if state.out_reason == reason::STOPPED {
            ledger.stopped_ns = ledger.stopped_ns.saturating_add(waited);
        } else if is_idle(state) {
            ledger.idle_ns = ledger.idle_ns.saturating_add(waited);
        } else {
            ledger.blocked_ns = ledger.blocked_ns.saturating_add(waited);
        }
    }
    if state.flags & BLOCKING_POLL == BLOCKING_POLL && state.poll_entered_ns != 0 {
        ledger.poll_ns = ledger.poll_ns.saturating_add(at.saturating_sub(state.poll_entered_ns));
    }
    if state.gc_started_ns != 0 {
        ledger.gc_ns = ledger.gc_ns.saturating_add(at.saturating_sub(state.gc_started_ns));
    }
    Reading { at: MonoNs(at), ledger }
}

/// Waits for work as it should: in poll, or on the pool's queue. The kernel half's rule: where the two differ, a stay is
/// charged to one part in one window and to another in the next, and neither window closes.
#[must_use]
pub fn is_idle(state: &ThreadState) -> bool {
    state.flags & BLOCKING_POLL == BLOCKING_POLL || (state.flags & flag::POOL != 0 && state.work == 0)
}

/// The turn that a loop thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTurn {
    pub started: MonoNs,
    /// Entry into poll, where it is in poll.
    pub polled: Option<MonoNs>,
    pub at: MonoNs,
    pub ledger: Ledger,
}

/// What the kernel half goes by of a thread whose polls are not watched: nobody knows of its turn whether it goes on, and in which
/// phase it is.
#[must_use]
pub fn as_watched(mut state: ThreadState, watched: &Watched) -> ThreadState {
    if !watched.has_polls(&state) && state.flags & flag::LOOP != 0 {
        state.flags &= !(flag::IN_TURN | flag::POLL_WAS_EMPTY);
        state.phase = phase::UNSPLIT;
    }
    state
}

/// `None` if the thread has not begun a turn.
#[must_use]
pub fn open_turn(state: &ThreadState, now: MonoNs, until: Option<MonoNs>) -> Option<OpenTurn> {
    if state.flags & flag::IN_TURN == 0 {
        return None;
    }
    let reading = read_until(state, now, until);
    let at = reading.at;
    if state.flags & flag::POLL_WAS_EMPTY != 0 {
        // Either a second poll follows at once, or this is the next turn already.
        let ledger = saturating_since(&reading.ledger, &state.poll_base);
        return Some(OpenTurn { started: MonoNs(state.poll_returned_ns), polled: None, at, ledger });
    }
    let polled = (state.flags & flag::IN_POLL != 0).then_some(MonoNs(state.polled_ns));
    let ledger = saturating_since(&reading.ledger, &state.turn_base);
    Some(OpenTurn { started: MonoNs(state.turn_started_ns), polled, at, ledger })
}

/// Time in the five parts that make up wall time.
#[must_use]
pub fn accounted_ns(ledger: &Ledger) -> u64 {
    let parts = [ledger.idle_ns, ledger.blocked_ns, ledger.runnable_ns, ledger.stopped_ns, on_cpu_ns(ledger)];
    parts.into_iter().fold(0, u64::saturating_add)
}

#[must_use]
pub fn on_cpu_ns(ledger: &Ledger) -> u64 {
    ledger.on_cpu_ns.iter().fold(0, |sum, &ns| sum.saturating_add(ns))
}

/// What was added since `base`, with 0 where a reading was torn.
#[must_use]
pub fn saturating_since(ledger: &Ledger, base: &Ledger) -> Ledger {
    combine(ledger, base, u64::saturating_sub)
}

#[must_use]
pub fn saturating_add(a: &Ledger, b: &Ledger) -> Ledger {
    combine(a, b, u64::saturating_add)
}

fn combine(a: &Ledger, b: &Ledger, with: impl Fn(u64, u64) -> u64) -> Ledger {
    let mut on_cpu_ns = a.on_cpu_ns;
    for (mine, theirs) in on_cpu_ns.iter_mut().zip(b.on_cpu_ns) {
        *mine = with(*mine, theirs);
    }
    // No `..`: a new field must be thought of here.
    Ledger {
        idle_ns: with(a.idle_ns, b.idle_ns),
        on_cpu_ns,
        blocked_ns: with(a.blocked_ns, b.blocked_ns),
        runnable_ns: with(a.runnable_ns, b.runnable_ns),
        stopped_ns: with(a.stopped_ns, b.stopped_ns),
        poll_ns: with(a.poll_ns, b.poll_ns),
        gc_ns: with(a.gc_ns, b.gc_ns),
        switches: with(a.switches, b.switches),
        events: with(a.events, b.events),
        sync_fs: with(a.sync_fs, b.sync_fs),
        requests: with(a.requests, b.requests),
    }
}

/// A thread in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadFigures {
    pub tid: Tid,
    pub name: String,
    /// Bits of [`flag`], as last seen.
    pub flags: u32,
    pub wall_ns: u64,
    pub ledger: Ledger,
}

impl ThreadFigures {
    /// Wall time that no part accounts for; negative where parts overlap.
    #[must_use]
    pub fn unaccounted_ns(&self) -> i64 {
        let wall = i64::try_from(self.wall_ns).unwrap_or(i64::MAX);
        wall.saturating_sub(i64::try_from(accounted_ns(&self.ledger)).unwrap_or(i64::MAX))
    }
}

/// What is remembered of a thread from one window to the next.
#[derive(Clone, Debug)]
pub struct ThreadBook {
    first: MonoNs,
    base: Reading,
    flags: u32,
    name: String,
    /// Ticks that did not show it.
    missing: u32,
}

/// A thread that two snapshots in a row do not show, and whose exit record had a whole window to come, is gone.
const MISSING_MAX: u32 = 2;

impl ThreadBook {
    #[must_use]
    pub fn new(first: MonoNs) -> Self {
        let base = Reading { at: first, ledger: Ledger::ZERO };
        Self { first, base, flags: 0, name: String::new(), missing: 0 }
    }

    /// Whether a state or an exit of this first sight is of this very thread: ids are reused.
    #[must_use]
    pub fn is(&self, first: MonoNs) -> bool {
        self.first == first
    }

    pub fn rename(&mut self, name: &str) {
        if self.name != name {
            name.clone_into(&mut self.name);
        }
    }

    /// Closes a window at a reading.
    pub fn close(&mut self, tid: Tid, flags: u32, reading: &Reading) -> ThreadFigures {
        let ledger = saturating_since(&reading.ledger, &self.base.ledger);
        let wall_ns = reading.at.since(self.base.at).0;
        // A torn reading can lie behind the last one in a field: what it lacks comes with the next, and not twice.
        self.base.ledger = combine(&self.base.ledger, &reading.ledger, u64::max);
        self.base.at = self.base.at.max(reading.at);
        self.flags = flags;
        self.missing = 0;
        ThreadFigures { tid, name: self.name.clone(), flags, wall_ns, ledger }
    }

    /// A tick did not show the thread; true if it is gone for good.
    pub fn miss(&mut self) -> bool {
        self.missing += 1;
        self.missing >= MISSING_MAX
    }
}
