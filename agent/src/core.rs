//! The pure middle: `Core::step` turns one input into outputs, and knows the order of the stages.
//!
//! No I/O, no clock, no environment: the same inputs give the same outputs, byte for byte.

mod account;
mod input;
mod postgres;
mod process;
mod stacks;

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{
    abi::family,
    state::{Switches, ThreadState},
};
use zerocopy::FromBytes;

use account::Account;
pub use input::{Await, ClusterFacts, Input, SelfCost, TargetFacts, Tick};
use postgres::Clusters;
use process::Process;
use stacks::{Needed, Stacks};

use crate::{
    aggregate::{
        histogram::Histogram,
        ledger::{ThreadFigures, Watched},
        off_cpu::{self, Group, Totals},
        process::ProcessFigures,
        run_queue::{Latencies, RunQueueBook},
        turns::{Pause, SlowTurn},
    },
    counters::{Counters, Reason},
    decode::{self, Class, Decoder, Event, Frames, UserFrame, UserFrames},
    limits::{GC_PAUSES_WINDOW_MAX, SLOW_TURNS_A_SECOND, SLOW_TURNS_AT_FIRST_MAX, TARGETS_MAX},
    report::{
        Body, Record, build,
        model::{End, EndReason, HeapLimit, Measure, SCHEMA_VERSION, StackId, Warning},
    },
    units::{Clock, MonoNs, Pid, Tid, UserAddr},
};

/// What the core wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A line for the exporters.
    Record(Box<Record>),
    /// Names for these addresses, innermost first; answered by [`Input::Symbolized`].
    NeedSymbols { stack: StackId, pid: Pid, frames: Frames },
    /// The class whose vtable this is; answered by [`Input::WorkClass`].
    NeedWorkClass { pid: Pid, vtable: UserAddr },
    /// Async calls that a process awaits just now; answered by [`Input::Awaits`].
    NeedAwaits { pid: Pid },
}

/// The state of a trace.
#[derive(Debug, Default)]
pub struct Core {
    clock: Clock,
    since: Option<MonoNs>,
    processes: BTreeMap<Pid, Process>,
    /// Processes that exited: records that come late make no new ones of them.
    gone: BTreeSet<Pid>,
    run_queue: RunQueueBook,
    stacks: Stacks,
    clusters: Clusters,
    account: Account,
    counters: Counters,
    slow_turns: u64,
    first_slow_turn: Option<MonoNs>,
    out: Vec<Output>,
}

impl Core {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input in.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Begin { since, clock } => self.begin(since, clock),
            Input::ClockSet(clock) => self.clock = clock,
            Input::Target(facts) => self.target(*facts),
            Input::Cluster(facts) => self.cluster(&facts),
            Input::PgReading(reading) => self.clusters.read(*reading, &mut self.counters),
            Input::PgClient { client, cluster, backends } => self.clusters.serve(client, cluster, backends),
            Input::PgWaitEvents { cluster, names } => self.clusters.name_events(cluster, names),
            Input::PgRelation { cluster, database, relation, name } => {
                self.clusters.name(cluster, (database, relation), name);
            }
            Input::TargetGone { pid, now } => self.target_gone(pid, now),
            Input::Records { family, bytes } => self.records(family, &bytes),
            Input::Tick(tick) => self.tick(&tick),
            Input::Memory { pid, now, mut memory } => {
                memory.rename_stacks(|id| self.stacks.alias(id));
                let stacks: Vec<_> = memory.sites.iter().map(|site| site.stack.0).collect();
                self.record(now, pid, Body::Memory(memory));
                for stack in stacks {
                    self.need(Some(stack));
                }
            }
            Input::Awaits { pid, at, awaits } => self.awaits(pid, at, awaits),
            Input::WorkClass { pid, vtable, class } => {
                if let Some(process) = self.processes.get_mut(&pid) {
                    process.book.pool.learn(vtable, class.as_deref());
                }
            }
            Input::Symbolized { stack, frames, truncated, at } => {
                if let Some(delay) = at.and_then(|at| self.stacks.delay(stack, at)) {
                    self.account.named(delay);
                }
                if let Some((pid, at, body)) = self.stacks.symbolized(stack, frames, truncated) {
                    self.record(at, pid, body);
                }
            }
            Input::Stop { now, reason } => self.stop(now, reason),
        }
        std::mem::take(&mut self.out)
    }

    /// Calls that a client of a cluster has suspended, each way to one of them as a stack.
    fn awaits(&mut self, pid: Pid, at: MonoNs, awaits: Vec<Await>) {
        let mut told = Vec::new();
        for Await { stack, count, frames, major_gcs, gcs } in awaits {
            let awaits =
                frames.into_iter().map(|(object, bytecode_offset)| UserFrame { pc: 0, object, bytecode_offset });
            let frames = UserFrames { awaits: awaits.collect(), major_gcs, gcs, ..UserFrames::default() };
            let stack = decode::Stack { id: stack, frames: Frames::User(Box::new(frames)) };
            told.push((stack.id, count));
            self.out.extend(self.stacks.keep(pid, at, stack, &mut self.counters));
        }
        self.clusters.awaited(pid, told);
    }

    fn record(&mut self, at: MonoNs, pid: Pid, body: Body) {
        let time = self.clock.wall(at).to_string();
        self.out.push(Output::Record(Box::new(Record { schema_version: SCHEMA_VERSION, time, pid: pid.0, body })));
    }

    /// The first thing that is traced begins the trace, where it was not told to begin before there is any.
    fn begin(&mut self, since: MonoNs, clock: Clock) {
        if self.since.is_none() {
            self.since = Some(since);
            self.clock = clock;
            self.account.begin(since);
        }
    }

    fn cluster(&mut self, facts: &ClusterFacts) {
        self.begin(facts.since, facts.clock);
        let (pid, since) = (facts.pid, facts.since);
        self.record(since, pid, Body::PgCluster(Box::new(postgres::cluster_record(facts, self.clock))));
        self.clusters.add(pid, since, &mut self.counters);
    }

    fn target(&mut self, facts: TargetFacts) {
        self.begin(facts.since, facts.clock);
        let (pid, since) = (facts.pid, facts.since);
        let body = Body::Target(Box::new(process::target_record(&facts, self.clock)));
        self.record(since, pid, body);
        self.gone.remove(&pid);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.learn(facts);
        } else if self.processes.len() < TARGETS_MAX {
            self.processes.insert(pid, Process::new(since, Some(facts)));
        } else {
            self.counters.add(Reason::TargetsFull);
        }
    }

    fn target_gone(&mut self, pid: Pid, now: MonoNs) {
        if self.clusters.remove(pid) {
            let (code, message) = ("postgres_gone".to_owned(), "the PostgreSQL server is gone".to_owned());
            self.record(now, pid, Body::Warning(Warning { code, message }));
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.exited.is_none() {
            process.exited = Some(now);
            self.record(now, pid, Body::Process(crate::report::model::Process::Gone));
        }
    }

    fn records(&mut self, family: u32, bytes: &[u8]) {
        let mut decoder = Decoder::new(family, bytes);
        for event in decoder.by_ref() {
            match event {
                Ok(event) => {
                    self.account.decoded(family);
                    self.event(event);
                }
                Err(reason) => self.counters.add(reason),
            }
        }
        self.counters.add_n(Reason::CodeUnknown, decoder.unknown_codes());
    }

    fn event(&mut self, event: Event) {
        let Event { pid, tid, at, body } = event;
        if body == decode::Body::Stranger {
            return;
        }
        if let decode::Body::LockWait(_) | decode::Body::LockEnd(_) = body {
            self.clusters.event(pid, at, &body, &mut self.counters);
            return;
        }
        if !self.processes.contains_key(&pid) {
            // A child that is followed: its facts come when the driver has found them.
            if self.gone.contains(&pid) {
                self.counters.add(Reason::TargetUnknown);
                return;
            }
            if self.processes.len() >= TARGETS_MAX {
                self.counters.add(Reason::TargetsFull);
                return;
            }
            self.processes.insert(pid, Process::new(at, None));
        }
        let Some(process) = self.processes.get_mut(&pid) else { return };
        match body {
            decode::Body::Turn(turn) => {
                if let Some(body) = process.turn(tid, &turn, at, &mut self.counters) {
                    self.record(at, pid, Body::Process(body));
                }
            }
            decode::Body::Work(work) => {
                process.book.pool.add(&work, at, &mut self.counters);
                self.out.extend(process.book.pool.wanted().map(|vtable| Output::NeedWorkClass { pid, vtable }));
            }
            decode::Body::GcPause(pause) => self.gc_pause(pid, tid, Pause { pause, ended: at }),
            decode::Body::GcStep { started } => process.book.gc_step(tid, started, at),
            decode::Body::HeapLimit(severity) => {
                self.record(at, pid, Body::HeapLimit(HeapLimit { tid: tid.0, severity }));
            }
            decode::Body::OffCpu(stay) => process.book.off_cpu(tid, &stay, at, &mut self.counters),
            decode::Body::Stack(stack) => self.out.extend(self.stacks.keep(pid, at, stack, &mut self.counters)),
            decode::Body::Sample(sample) => process.book.sample(tid, &sample, at, &mut self.counters),
            decode::Body::LockWait(_) | decode::Body::LockEnd(_) | decode::Body::Stranger => {}
            decode::Body::Fork { .. } | decode::Body::Exec { .. } | decode::Body::Exit(_) => {
                let body = process.life(pid, tid, at, &body, &mut self.counters);
                if let Some(body) = body {
                    self.record(at, pid, Body::Process(body));
                }
            }
        }
    }

    fn gc_pause(&mut self, pid: Pid, tid: Tid, pause: Pause) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.book.gc_pause(tid, pause.pause, pause.ended);
        if process.profile().is_some() {
            return;
        }
        process.gc_pauses += 1;
        if process.gc_pauses > GC_PAUSES_WINDOW_MAX {
            self.counters.add(Reason::GcPauseOmitted);
            return;
        }
        self.record(pause.ended, pid, Body::GcPause(build::gc_pause(tid, &pause)));
    }

    fn tick(&mut self, tick: &Tick) {
        let names: BTreeMap<Tid, &str> = tick.thread_names.iter().map(|(tid, name)| (*tid, name.as_str())).collect();
        let mut seen = BTreeMap::<Pid, Vec<_>>::new();
        let watched = Watched {
            polls_epoch: tick.polls_epoch,
            switches: Switches {
                epoch: tick.switches_epoch,
                quiet: 0,
                stack_token_ns: 0,
                preempted_tokens: 0,
                other_tokens: 0,
                sample_step: 0,
                reserved: 0,
                until_ns: tick.switches_until_ns,
            },
        };
        for bytes in tick.threads.chunks_exact(size_of::<ThreadState>()) {
            let Ok(state) = ThreadState::read_from_bytes(bytes) else { continue };
            let Some(process) = self.processes.get_mut(&Pid(state.tgid)) else {
                self.counters.add(Reason::TargetUnknown);
                continue;
            };
            let name = names.get(&Tid(state.tid)).copied();
            seen.entry(Pid(state.tgid)).or_default().extend(process.book.thread(
                &state,
                name,
                (tick.now, watched),
                &mut self.counters,
            ));
        }
        let mut latencies = self.run_queue.close(&tick.run_queue, &mut self.counters);
        let pids: Vec<_> = self.processes.keys().copied().collect();
        for pid in pids {
            let threads = seen.remove(&pid).unwrap_or_default();
            let run_queue = of_process(&mut latencies, pid);
            self.close_window(pid, tick, threads, run_queue);
        }
        for (pid, at, body) in self.clusters.close(tick, self.clock, &mut self.counters) {
            let stacks: Vec<_> = match &body {
                Body::PgClient(client) => client.awaits.iter().map(|call| call.stack.0).collect(),
                _ => Vec::new(),
            };
            self.record(at, pid, body);
            for stack in stacks {
                self.need(Some(stack));
            }
        }
        self.out.extend(self.clusters.wanted().into_iter().map(|pid| Output::NeedAwaits { pid }));
        let body = Body::Agent(Box::new(self.account.close(tick, &self.counters)));
        self.record(tick.now, Pid(0), body);
    }

    fn close_window(
        &mut self,
        pid: Pid,
        tick: &Tick,
        threads: Vec<ThreadFigures>,
        run_queue: BTreeMap<Class, Histogram>,
    ) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.book.pool.in_flight(pid.0, &tick.works, &mut self.counters);
        let to = process.exited.map_or(tick.now, |exited| exited.min(tick.now));
        let mut figures = process.book.close(to, threads, run_queue, &mut self.counters);
        figures.rename_stacks(|id| self.stacks.alias(id));
        process.gc_pauses = 0;
        process.life_lines = 0;
        let gone = process.exited.is_some();
        let seen = build::Seen {
            phases_ns: tick.phases_seen_ns,
            requests_ns: tick.requests_seen_ns,
            pool_ns: tick.pool_seen_ns,
            turns_ns: tick.turns_seen_ns,
            switches_ns: tick.switches_seen_ns,
        };
        let measure = process.profile();
        let window = build::window(pid, &figures, seen, process.pool_size());
        let profile = match measure {
            None => {
                self.record(to, pid, Body::Window(Box::new(window)));
                self.slow_turns_and_stuck_loops(pid, &figures, to);
                build::profile(&figures.samples)
            }
            // A window without samples counts, too: idle time is part of a profile.
            Some(measure) => Some(build::profile_window(&figures.samples, window, measure)),
        };
        self.off_cpu(pid, to, &figures.off_cpu, &figures.off_cpu_other);
        if let Some(profile) = profile {
            self.record(to, pid, Body::Profile(profile));
            for (key, _) in &figures.samples.stacks {
                self.need(key.place.user_stack);
                self.need(key.place.kernel_stack);
            }
        }
        if gone {
            self.processes.remove(&pid);
            self.run_queue.forget(pid);
            self.stacks.forget(pid);
            if self.gone.len() >= TARGETS_MAX {
                self.gone.pop_first();
            }
            self.gone.insert(pid);
        }
    }

    fn slow_turns_and_stuck_loops(&mut self, pid: Pid, figures: &ProcessFigures, to: MonoNs) {
        for turn in &figures.slow_turns {
            self.slow_turn(pid, turn);
        }
        for (tid, busy_ns) in &figures.stuck {
            let message = format!("loop thread {tid} has not polled for {} ms", busy_ns / 1_000_000);
            self.record(to, pid, Body::Warning(Warning { code: "loop_stuck".to_owned(), message }));
        }
    }

    fn off_cpu(&mut self, pid: Pid, to: MonoNs, groups: &[(Group, Totals)], other: &Totals) {
        let Some(off_cpu) = build::off_cpu(groups, other) else { return };
        self.record(to, pid, Body::OffCpu(off_cpu));
        for (group, _) in groups {
            self.need(group.user_stack);
            self.need(group.kernel_stack);
        }
    }

    fn slow_turn(&mut self, pid: Pid, turn: &SlowTurn) {
        let since = *self.first_slow_turn.get_or_insert(turn.ended);
        let seconds = turn.ended.since(since).0 / 1_000_000_000;
        if self.slow_turns >= SLOW_TURNS_AT_FIRST_MAX.saturating_add(seconds.saturating_mul(SLOW_TURNS_A_SECOND)) {
            self.counters.add(Reason::SlowTurnOmitted);
            return;
        }
        self.slow_turns += 1;
        self.record(turn.ended, pid, Body::SlowTurn(Box::new(build::slow_turn(turn, self.clock))));
        for stay in &turn.stays {
            self.need(stay.group.user_stack);
            self.need(stay.group.kernel_stack);
        }
        for (place, _) in &turn.samples {
            self.need(place.user_stack);
            self.need(place.kernel_stack);
        }
    }

    /// Asks for a stack's line, once.
    fn need(&mut self, id: Option<u64>) {
        let Some(id) = id else { return };
        match self.stacks.need(id, &mut self.counters) {
            Some(Needed::Question(question)) => self.out.push(question),
            Some(Needed::Line(pid, at, body)) => self.record(at, pid, *body),
            None => {}
        }
    }

    fn stop(&mut self, now: MonoNs, reason: EndReason) {
        let pids: Vec<_> = self.processes.keys().copied().collect();
        for pid in pids {
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            let measure = process.profile();
            let mut open = if measure.is_some() { Vec::new() } else { process.book.close_open() };
            let mut away = process.book.close_away();
            // Where switches are not followed, nobody knows who came back meanwhile.
            if measure == Some(Measure::OnCpu) {
                away.clear();
            }
            let alias = |id| self.stacks.alias(id);
            for turn in &mut open {
                turn.rename_stacks(&alias);
            }
            off_cpu::rename_stacks(&mut away, alias);
            for turn in &open {
                self.slow_turn(pid, turn);
            }
            self.off_cpu(pid, now, &away, &Totals::default());
        }
        let families = self.account.families();
        let balanced = families.iter().all(|family| family.pending == 0);
        let duration_ns = now.since(self.since.unwrap_or(now)).0;
        self.record(now, Pid(0), Body::End(End { reason, duration_ns, families, balanced }));
    }
}

fn of_process(latencies: &mut Latencies, pid: Pid) -> BTreeMap<Class, Histogram> {
    let keys: Vec<_> =
        latencies.range((pid, Class::EventLoop)..=(pid, Class::Other)).map(|(&(_, class), _)| class).collect();
    keys.into_iter().filter_map(|class| Some((class, latencies.remove(&(pid, class))?))).collect()
}

/// Indices into per-family arrays are codes below this.
const FAMILIES: usize = family::COUNT;
