//! The turns of one event loop in a window, and the slow ones among them with what happened inside.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
};

use agent_ebpf::abi::event_loop::Ledger;

use super::{delay::DelayTimer, histogram::Histogram, ledger::OpenTurn, off_cpu::Stay, profile::SamplePlace};
use crate::{
    counters::{Counters, Reason},
    decode::{GcPause, Turn},
    limits::{RECENT_MAX, SLOW_TURN_PARTS_MAX, SLOW_TURN_STACKS_MAX, SLOW_TURNS_WINDOW_MAX},
    units::{MonoNs, Tid},
};

/// A turn over the threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct SlowTurn {
    pub tid: Tid,
    pub started: MonoNs,
    pub polled: MonoNs,
    pub ended: MonoNs,
    /// It had not ended when the trace did.
    pub open: bool,
    pub ledger: Ledger,
    /// Longest first.
    pub pauses: Vec<Pause>,
    /// Longest first.
    pub stays: Vec<Stay>,
    /// Pauses and stays that are not among them.
    pub omitted: u64,
    /// Where it was on CPU, most samples first.
    pub samples: Vec<(SamplePlace, u64)>,
}

impl SlowTurn {
    #[must_use]
    pub fn busy_ns(&self) -> u64 {
        self.polled.since(self.started).0
    }

    /// Speaks of one stack where several say the same, and of those with the most samples.
    pub fn rename_stacks(&mut self, alias: &impl Fn(u64) -> u64) {
        for stay in &mut self.stays {
            stay.group = stay.group.renamed(alias);
        }
        let mut together = BTreeMap::<SamplePlace, u64>::new();
        for (place, n) in self.samples.drain(..) {
            *together.entry(place.renamed(alias)).or_default() += n;
        }
        self.samples = together.into_iter().collect();
        self.samples.sort_by_key(|&(place, n)| (Reverse(n), place));
        self.samples.truncate(SLOW_TURN_STACKS_MAX);
    }
}

/// A pause, with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    pub pause: GcPause,
    pub ended: MonoNs,
}

impl Pause {
    #[must_use]
    pub fn duration_ns(&self) -> u64 {
        self.ended.since(self.pause.started).0
    }
}

/// What a window says of a loop's turns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnFigures {
    pub turns: u64,
    pub slow: u64,
    pub busy: Histogram,
    pub delay: Histogram,
    /// Of the window's pauses: off CPU, in stays above the threshold.
    pub gc_off_cpu_ns: u64,
}

/// One loop, from window to window.
#[derive(Clone, Debug)]
pub struct LoopBook {
    tid: Tid,
    slow_turn_ns: u64,
    timer: DelayTimer,
    figures: TurnFigures,
    /// The longest of the window.
    slow: Vec<SlowTurn>,
    stays: VecDeque<Stay>,
    samples: VecDeque<(MonoNs, SamplePlace)>,
    pauses: VecDeque<Pause>,
    /// How many of them, at the end, are of this window.
    pauses_new: usize,
    open: Option<OpenTurn>,
    /// Start of the turn for which a warning was given.
    warned: Option<MonoNs>,
}

impl LoopBook {
    #[must_use]
    pub fn new(tid: Tid, slow_turn_ns: u64, delay_period_ns: u64) -> Self {
        Self {
            tid,
            slow_turn_ns,
            timer: DelayTimer::new(delay_period_ns),
            figures: TurnFigures::default(),
            slow: Vec::new(),
            stays: VecDeque::new(),
            samples: VecDeque::new(),
            pauses: VecDeque::new(),
            pauses_new: 0,
            open: None,
            warned: None,
        }
    }

    pub fn turn(&mut self, turn: &Turn, ended: MonoNs, counters: &mut Counters) {
        if turn.started > turn.polled || turn.polled > ended {
            counters.add(Reason::TimeInverted);
        }
        let started = turn.started;
        let polled = turn.polled.clamp(started, ended.max(started));
        let ended = ended.max(polled);
        self.timer.turn(started, polled, ended, &mut self.figures.delay);
        let busy_ns = polled.since(started).0;
        self.figures.busy.record(busy_ns);
        self.figures.turns += 1;
        if busy_ns >= self.slow_turn_ns {
            self.figures.slow += 1;
            self.keep(slow_turn(self.tid, started, polled, ended, turn.ledger), counters);
        }
    }

    /// Keeps the longest.
    fn keep(&mut self, slow: SlowTurn, counters: &mut Counters) {
        self.slow.push(slow);
        if self.slow.len() > SLOW_TURNS_WINDOW_MAX {
            counters.add(Reason::SlowTurnOmitted);
            let shortest = self.slow.iter().enumerate().min_by_key(|(_, turn)| turn.busy_ns()).map(|(at, _)| at);
            if let Some(at) = shortest {
                self.slow.remove(at);
            }
        }
    }

    pub fn stay(&mut self, stay: Stay) {
        if self.stays.len() >= RECENT_MAX {
            self.stays.pop_front();
        }
        self.stays.push_back(stay);
    }

    pub fn sample(&mut self, at: MonoNs, place: SamplePlace) {
        if self.samples.len() >= RECENT_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((at, place));
    }

    pub fn pause(&mut self, pause: Pause) {
        if self.pauses.len() >= RECENT_MAX {
            self.pauses.pop_front();
        }
        self.pauses.push_back(pause);
        self.pauses_new += 1;
    }

    /// The window's last look at the thread: the turn it is in.
    pub fn open(&mut self, open: Option<OpenTurn>) {
        if let Some(OpenTurn { started, polled: Some(polled), at, .. }) = open {
            // The timer ran while the loop sat there idle, however long that turn will last yet.
            self.timer.turn(started, polled, at, &mut self.figures.delay);
        }
        self.open = open;
    }

    /// How long the loop has run without a poll, once for each turn in which that exceeds `threshold_ns`.
    pub fn stuck_ns(&mut self, threshold_ns: u64) -> Option<u64> {
        let open = self.open.filter(|open| open.polled.is_none())?;
        let busy_ns = open.at.since(open.started).0;
        if busy_ns < threshold_ns || self.warned == Some(open.started) {
            return None;
        }
        self.warned = Some(open.started);
        Some(busy_ns)
    }

    /// Ends the window.
    pub fn close(&mut self) -> (TurnFigures, Vec<SlowTurn>) {
        let mut slow = std::mem::take(&mut self.slow);
        slow.sort_by_key(|turn| turn.ended);
        for turn in &mut slow {
            self.explain(turn);
        }
        self.figures.gc_off_cpu_ns = self.gc_off_cpu_ns();
        self.pauses_new = 0;
        (std::mem::take(&mut self.figures), slow)
    }

    /// A pause is wall time; what part of it the thread was off CPU is told by the stays inside it.
    fn gc_off_cpu_ns(&self) -> u64 {
        let overlap =
            |pause: &Pause, stay: &Stay| stay.back.min(pause.ended).since(stay.out.max(pause.pause.started)).0;
        let of_pause = |pause: &Pause| self.stays.iter().map(|stay| overlap(pause, stay)).fold(0, u64::saturating_add);
        self.pauses.iter().rev().take(self.pauses_new).map(of_pause).fold(0, u64::saturating_add)
    }

    /// The turn that is still going on as the trace ends, if it is a slow one.
    #[must_use]
    pub fn close_open(&mut self) -> Option<SlowTurn> {
        let open = self.open.take().filter(|open| open.polled.is_none())?;
        let mut turn = slow_turn(self.tid, open.started, open.at, open.at, open.ledger);
        turn.open = true;
        (turn.busy_ns() >= self.slow_turn_ns).then(|| {
            self.explain(&mut turn);
            turn
        })
    }

    /// Puts beside a turn what fell inside it.
    fn explain(&self, turn: &mut SlowTurn) {
        let (started, polled) = (turn.started, turn.polled);
        let inside = |from: MonoNs, to: MonoNs| from < polled && to > started;
        turn.pauses = self.pauses.iter().filter(|pause| inside(pause.pause.started, pause.ended)).copied().collect();
        turn.stays = self.stays.iter().filter(|stay| inside(stay.out, stay.back)).copied().collect();
        turn.pauses.sort_by_key(|pause| (Reverse(pause.duration_ns()), pause.ended));
        turn.stays.sort_by_key(|stay| (Reverse(stay.duration_ns()), stay.back));
        let all = turn.pauses.len() + turn.stays.len();
        turn.pauses.truncate(SLOW_TURN_PARTS_MAX);
        turn.stays.truncate(SLOW_TURN_PARTS_MAX);
        turn.omitted = (all - turn.pauses.len() - turn.stays.len()) as u64;
        let mut samples = BTreeMap::new();
        for (_, place) in self.samples.iter().filter(|&&(at, _)| at >= started && at <= polled) {
            *samples.entry(*place).or_default() += 1;
        }
        turn.samples = samples.into_iter().collect();
        turn.samples.sort_by_key(|&(place, n)| (Reverse(n), place));
    }
}

fn slow_turn(tid: Tid, started: MonoNs, polled: MonoNs, ended: MonoNs, ledger: Ledger) -> SlowTurn {
    SlowTurn {
        tid,
        started,
        polled,
        ended,
        open: false,
        ledger,
        pauses: Vec::new(),
        stays: Vec::new(),
        omitted: 0,
        samples: Vec::new(),
    }
}
