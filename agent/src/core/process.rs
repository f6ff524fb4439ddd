//! A process that the core follows: its facts, its figures, its life.

use crate::{
    aggregate::process::{ProcessBook, Settings},
    core::TargetFacts,
    counters::{Counters, Reason},
    decode::{Body, Turn},
    limits::LIFE_WINDOW_MAX,
    report::model::{self, Measure, TraceConfig},
    units::{Clock, MonoNs, Pid, Tid},
};

#[derive(Debug)]
pub struct Process {
    facts: Option<TargetFacts>,
    pub book: ProcessBook,
    /// When it exited; it is forgotten at the next tick.
    pub exited: Option<MonoNs>,
    /// There was a line about its end.
    end_told: bool,
    /// A turn of one of its loops was seen.
    turned: bool,
    /// Lines in this window.
    pub gc_pauses: usize,
    pub life_lines: usize,
}

impl Process {
    pub fn new(since: MonoNs, facts: Option<TargetFacts>) -> Self {
        let book = ProcessBook::new(since, settings(facts.as_ref()));
        Self { facts, book, exited: None, end_told: false, turned: false, gc_pauses: 0, life_lines: 0 }
    }

    /// The facts come, or come anew after an exec.
    pub fn learn(&mut self, facts: TargetFacts) {
        self.book.set(settings(Some(&facts)));
        self.facts = Some(facts);
    }

    /// What is profiled, where nothing else is wanted.
    pub fn profile(&self) -> Option<Measure> {
        self.facts.as_ref().and_then(|facts| facts.config.profile)
    }

    /// 0 is not known.
    pub fn pool_size(&self) -> u32 {
        self.facts.as_ref().and_then(|facts| facts.thread_pool_size).unwrap_or(0)
    }

    /// Takes in a turn; the line about the first one, as whoever starts a trace waits to see that it works.
    pub fn turn(&mut self, tid: Tid, turn: &Turn, at: MonoNs, counters: &mut Counters) -> Option<model::Process> {
        self.book.turn(tid, turn, at, counters);
        let is_first = !std::mem::replace(&mut self.turned, true) && self.profile().is_none();
        is_first.then_some(model::Process::FirstTurn { tid: tid.0 })
    }

    /// Takes in a fork, an exec or an exit; the line about it, if there is room for one.
    pub fn life(
        &mut self,
        pid: Pid,
        tid: Tid,
        at: MonoNs,
        body: &Body,
        counters: &mut Counters,
    ) -> Option<model::Process> {
        let line = match body {
            Body::Fork { child_pid, child_tid } if *child_pid == pid => {
                model::Process::ThreadStart { tid: child_tid.0, parent_tid: tid.0 }
            }
            Body::Fork { child_pid, .. } => model::Process::Fork { child_pid: child_pid.0 },
            Body::Exec { name } => model::Process::Exec { name: name.clone() },
            Body::Exit(exit) => {
                self.book.exit(tid, exit, at, counters);
                // Threads that end at the same time may each be taken for the last one.
                if exit.process && !std::mem::replace(&mut self.end_told, true) {
                    self.exited = Some(at);
                    let (name, code, signal) = (exit.name.clone(), exit.code, exit.signal);
                    // The process's end is never left out.
                    return Some(model::Process::Exit { name, code, signal, core_dumped: exit.core_dumped });
                }
                model::Process::ThreadEnd { tid: tid.0, name: exit.name.clone() }
            }
            Body::Turn(_)
            | Body::Stranger
            | Body::Work(_)
            | Body::GcPause(_)
            | Body::GcStep { .. }
            | Body::HeapLimit(_)
            | Body::OffCpu(_)
            | Body::Stack(_)
            | Body::Sample(_)
            | Body::LockWait(_)
            | Body::LockEnd(_) => return None,
        };
        self.life_lines += 1;
        if self.life_lines > LIFE_WINDOW_MAX {
            counters.add(Reason::LifeOmitted);
            return None;
        }
        Some(line)
    }
}

fn settings(facts: Option<&TargetFacts>) -> Settings {
    let config = facts.map_or_else(TraceConfig::default, |facts| facts.config);
    Settings {
        slow_turn_ns: config.slow_turn_ns,
        delay_period_ns: config.delay_resolution_ns,
        pool_size: facts.and_then(|facts| facts.thread_pool_size).unwrap_or(0),
        is_profile: config.profile.is_some(),
    }
}

pub fn target_record(facts: &TargetFacts, clock: Clock) -> model::Target {
    model::Target {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        process_start_time: facts.start_time.map(|at| at.to_string()),
        trace_start_time: clock.wall(facts.since).to_string(),
        exe: facts.exe.clone(),
        command: facts.command.clone(),
        node_version: facts.node_version.clone(),
        thread_pool_size: facts.thread_pool_size,
        config: facts.config,
        degraded: facts.degraded.clone(),
        kernel_release: facts.kernel_release.clone(),
        cpus: facts.cpus,
        resource: facts.resource.clone(),
    }
}
