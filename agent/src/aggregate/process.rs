//! One process from window to window: its threads, loops, pool, garbage collection and time off CPU.

use std::collections::BTreeMap;

use agent_ebpf::state::{ThreadState, flag};

use super::{
    gc::{self, Gc},
    histogram::Histogram,
    ledger::{self, Reading, ThreadBook, ThreadFigures, Watched},
    off_cpu::{self, Group, OffCpuWindow, Stay, Totals},
    profile::{SampleFigures, SamplePlace, SampleWindow},
    thread_pool::{PoolBook, PoolFigures},
    turns::{LoopBook, Pause, SlowTurn, TurnFigures},
};
use crate::{
    counters::{Counters, Reason},
    decode::{Class, Exit, GcPause, GcType, OffCpu, Sample, Turn},
    limits::{LOOPS_MAX, OFF_CPU_GROUPS_MAX, OFF_CPU_REPORTED_MAX, THREADS_MAX},
    units::{MonoNs, Tid},
};

/// What the figures depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub slow_turn_ns: u64,
    pub delay_period_ns: u64,
    /// Threads of the pool; 0 is not known.
    pub pool_size: u32,
    /// Stays off CPU are told apart by thread, and all groups are reported: nobody sums them up elsewhere.
    pub is_profile: bool,
}

/// A window of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessFigures {
    pub from: MonoNs,
    pub to: MonoNs,
    /// Those that turn an event loop with what is known of its turns; those that do not, without.
    pub threads: Vec<(ThreadFigures, Option<TurnFigures>)>,
    pub slow_turns: Vec<SlowTurn>,
    pub pool: Option<PoolFigures>,
    pub gc: Gc,
    pub off_cpu: Vec<(Group, Totals)>,
    pub off_cpu_other: Totals,
    pub samples: SampleFigures,
    pub run_queue: BTreeMap<Class, Histogram>,
    /// Loops that have run for long without a poll: time so far.
    pub stuck: Vec<(Tid, u64)>,
}

impl ProcessFigures {
    /// Speaks of one stack where several say the same.
    pub fn rename_stacks(&mut self, alias: impl Fn(u64) -> u64) {
        self.samples.rename_stacks(&alias);
        off_cpu::rename_stacks(&mut self.off_cpu, &alias);
        for turn in &mut self.slow_turns {
            turn.rename_stacks(&alias);
        }
    }
}

/// A process that is traced.
#[derive(Clone, Debug)]
pub struct ProcessBook {
    from: MonoNs,
    settings: Settings,
    threads: BTreeMap<Tid, ThreadBook>,
    /// Threads that ended in the window.
    ended: Vec<ThreadFigures>,
    loops: BTreeMap<Tid, LoopBook>,
    pub pool: PoolBook,
    gc: Gc,
    off_cpu: OffCpuWindow,
    /// Of a profile: threads that were off CPU at the last look.
    away: BTreeMap<Tid, Stay>,
    samples: SampleWindow,
}

/// A loop that has not polled for so long is worth a word while it lasts: ten times a timeout that people would notice.
const STUCK_NS: u64 = 1_000_000_000;

impl ProcessBook {
    #[must_use]
    pub fn new(from: MonoNs, settings: Settings) -> Self {
        Self {
            from,
            settings,
            threads: BTreeMap::new(),
            ended: Vec::new(),
            loops: BTreeMap::new(),
            pool: PoolBook::default(),
            gc: Gc::new(),
            off_cpu: OffCpuWindow::default(),
            away: BTreeMap::new(),
            samples: SampleWindow::default(),
        }
    }

    /// Loops that are known already keep the settings that they began with.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    pub fn turn(&mut self, tid: Tid, turn: &Turn, ended: MonoNs, counters: &mut Counters) {
        if let Some(of_loop) = self.loop_of(tid, counters) {
            of_loop.turn(turn, ended, counters);
        }
    }

    fn loop_of(&mut self, tid: Tid, counters: &mut Counters) -> Option<&mut LoopBook> {
        if self.loops.len() >= LOOPS_MAX && !self.loops.contains_key(&tid) {
            counters.add(Reason::LoopsFull);
            return None;
        }
        let Settings { slow_turn_ns, delay_period_ns, pool_size: _, is_profile: _ } = self.settings;
        Some(self.loops.entry(tid).or_insert_with(|| LoopBook::new(tid, slow_turn_ns, delay_period_ns)))
    }

    pub fn gc_pause(&mut self, tid: Tid, pause: GcPause, ended: MonoNs) {
        let pause = Pause { pause, ended };
        gc::add(&mut self.gc, tid, pause.pause.gc_type, pause.duration_ns(), Some(pause.pause.reason));
        if let Some(of_loop) = self.loops.get_mut(&tid) {
            of_loop.pause(pause);
        }
    }

    pub fn gc_step(&mut self, tid: Tid, started: MonoNs, ended: MonoNs) {
        gc::add(&mut self.gc, tid, GcType::Incremental, ended.since(started).0, None);
    }

    pub fn off_cpu(&mut self, tid: Tid, off_cpu: &OffCpu, back: MonoNs, counters: &mut Counters) {
        let mut stay = Stay::of(off_cpu, back);
        stay.group.tid = self.settings.is_profile.then_some(tid);
        self.off_cpu.add(&stay, off_cpu.over_budget, counters);
        if let Some(of_loop) = self.loops.get_mut(&tid) {
            of_loop.stay(stay);
        }
    }

    pub fn sample(&mut self, tid: Tid, sample: &Sample, at: MonoNs, counters: &mut Counters) {
        self.samples.add(tid, sample, counters);
        if let Some(of_loop) = self.loops.get_mut(&tid) {
            of_loop.sample(at, SamplePlace { user_stack: sample.user_stack, kernel_stack: sample.kernel_stack });
        }
    }

    /// A thread ended; its exit carries its last totals.
    pub fn exit(&mut self, tid: Tid, exit: &Exit, at: MonoNs, counters: &mut Counters) {
        let known = self.threads.remove(&tid);
        let Some(first) = exit.first else { return };
        let mut book = known.filter(|book| book.is(first)).unwrap_or_else(|| ThreadBook::new(first));
        if self.ended.len() >= THREADS_MAX {
            counters.add(Reason::ThreadsFull);
            return;
        }
        book.rename(&exit.name);
        self.ended.push(book.close(tid, exit.flags, &Reading { at, ledger: exit.ledger }));
    }

    /// The window's look at a thread's state, when it is, and what the kernel half watches by then.
    pub fn thread(
        &mut self,
        state: &ThreadState,
        name: Option<&str>,
        (now, watched): (MonoNs, Watched),
        counters: &mut Counters,
    ) -> Option<ThreadFigures> {
        let state = &ledger::as_watched(*state, &watched);
        let until = watched.until(state);
        let tid = Tid(state.tid);
        let first = MonoNs(state.first_ns);
        if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&tid) {
            counters.add(Reason::ThreadsFull);
            return None;
        }
        let book = self.threads.entry(tid).or_insert_with(|| ThreadBook::new(first));
        if !book.is(first) {
            counters.add(Reason::ThreadVanished);
            *book = ThreadBook::new(first);
        }
        if let Some(name) = name {
            book.rename(name);
        }
        let figures = book.close(tid, state.flags, &ledger::read_until(state, now, until));
        if self.settings.is_profile && until.is_none() {
            self.away.extend(Stay::open(state, now).map(|stay| (tid, stay)));
        }
        if state.flags & flag::LOOP != 0 {
            let open = ledger::open_turn(state, now, until);
            if let Some(of_loop) = self.loop_of(tid, counters) {
                of_loop.open(open);
            }
        }
        Some(figures)
    }

    /// Ends the window. `seen` is what [`Self::thread`] gave for it.
    pub fn close(
        &mut self,
        to: MonoNs,
        seen: Vec<ThreadFigures>,
        run_queue: BTreeMap<Class, Histogram>,
        counters: &mut Counters,
    ) -> ProcessFigures {
        self.forget_missing(&seen, counters);
        self.away.retain(|_, stay| stay.back >= to);
        let mut threads = std::mem::take(&mut self.ended);
        threads.extend(seen);
        let mut slow_turns = Vec::new();
        let mut stuck = Vec::new();
        let mut turns = BTreeMap::new();
        for (&tid, of_loop) in &mut self.loops {
            let (figures, slow) = of_loop.close();
            turns.insert(tid, figures);
            slow_turns.extend(slow);
            stuck.extend(of_loop.stuck_ns(STUCK_NS.max(self.settings.slow_turn_ns)).map(|ns| (tid, ns)));
        }
        let threads: Vec<_> = threads
            .into_iter()
            .map(|thread| {
                let turns = turns.remove(&thread.tid);
                let is_loop = thread.flags & flag::LOOP != 0 || turns.is_some();
                (thread, is_loop.then(|| turns.unwrap_or_default()))
            })
            .collect();
        let alive = &self.threads;
        self.loops.retain(|tid, _| alive.contains_key(tid));
        let reported_max = if self.settings.is_profile { OFF_CPU_GROUPS_MAX } else { OFF_CPU_REPORTED_MAX };
        let (off_cpu, off_cpu_other) = self.off_cpu.close(reported_max);
        // A process that was first heard of after the tick has a window of no length.
        let to = to.max(self.from);
        let from = std::mem::replace(&mut self.from, to);
        ProcessFigures {
            from,
            to,
            threads,
            slow_turns,
            pool: self.pool.close(from, to, self.settings.pool_size),
            gc: std::mem::take(&mut self.gc),
            off_cpu,
            off_cpu_other,
            samples: self.samples.close(),
            run_queue,
            stuck,
        }
    }

    fn forget_missing(&mut self, seen: &[ThreadFigures], counters: &mut Counters) {
        let seen: std::collections::BTreeSet<_> = seen.iter().map(|thread| thread.tid).collect();
        self.threads.retain(|tid, book| {
            let gone = !seen.contains(tid) && book.miss();
            if gone {
                counters.add(Reason::ThreadVanished);
            }
            !gone
        });
    }

    /// Stays that have not ended as the profile does: of threads that hang, there are no others.
    pub fn close_away(&mut self) -> Vec<(Group, Totals)> {
        let stays = std::mem::take(&mut self.away).into_values();
        stays.map(|stay| (stay.group, Totals::of(&stay))).collect()
    }

    /// Slow turns that are still going on as the trace ends.
    pub fn close_open(&mut self) -> Vec<SlowTurn> {
        self.loops.values_mut().filter_map(LoopBook::close_open).collect()
    }
}
