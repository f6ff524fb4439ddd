//! Processes that come, become another program, and go.

use std::time::Duration;

use agent_ebpf::abi::{
    family, kind,
    process::{Exec, Exit, exec_flag, exit_flag},
};
use log::{info, warn};
use zerocopy::FromBytes;

use super::{Driver, DriverError, say};
use crate::{
    commands::{
        asleep,
        resident::{Resident, Verdict},
        session::FileProbes,
        subject::Subject,
    },
    config::ProcessSettings,
    core::Input,
    intake::Batch,
    limits::TARGETS_MAX,
    printable::printable,
    probe::maps::monotonic_ns,
    report::model::TraceConfig,
    target::heap::HeapReader,
    units::{Pid, nanoseconds},
};

/// What the driver itself must react to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Life {
    Exited(Pid),
    Executed(Pid),
    /// One that is not traced.
    Began(Pid),
}

impl Driver {
    /// Begins to trace a process.
    pub(super) fn add(&mut self, subject: Subject) -> Result<(), DriverError> {
        self.add_as(subject, self.usual())
    }

    /// How a process is traced of which no rule says anything.
    pub(super) fn usual(&self) -> ProcessSettings {
        ProcessSettings { slow_turn: Duration::from_nanos(self.mission.config.slow_turn_ns), memory: true }
    }

    pub(super) fn add_as(&mut self, mut subject: Subject, how: ProcessSettings) -> Result<(), DriverError> {
        let pid = subject.pid;
        let counts_gcs = subject.files.iter().any(FileProbes::counts_gcs);
        self.session.add_files(pid, subject.files)?;
        let main = subject.heaps.as_mut().and_then(HeapReader::default_loop).and_then(|at| asleep::main_loop(pid, at));
        if let Some(main) = main {
            self.session.set_main_loop(pid, main)?;
        }
        // First, as without its tables a stack may end in its first frame.
        self.session.cover(pid, subject.v8);
        self.session.add_target(pid, subject.functions, subject.handle_space, counts_gcs, self.follow)?;
        if let Some(lookout) = &mut self.lookout
            && how.memory
        {
            lookout.add(pid, subject.heaps);
        }
        let mut facts = subject.facts;
        facts.since = monotonic_ns();
        self.session.add_threads(&asleep::states(pid, facts.since, main));
        facts.clock = self.clock.told();
        facts.config = TraceConfig { slow_turn_ns: nanoseconds(how.slow_turn), ..self.mission.config };
        facts.degraded.extend(self.session.degraded.iter().cloned());
        self.targets.push(pid);
        if !self.mission.quiet {
            let doing = self.mission.doing;
            let command = printable(&facts.command.join(" "));
            say(&format!("agent: {doing} pid {pid} ({command}); Ctrl-C ends it with a report"));
        }
        info!("pid={pid} attached by {}", self.session.way.name());
        if let Some(resident) = &mut self.resident {
            resident.traced(&facts);
        }
        self.feed(Input::Target(Box::new(facts)));
        Ok(())
    }

    /// Begins to trace whoever has come; of a daemon.
    pub(super) fn meet(&mut self) {
        if self.resident.as_mut().is_some_and(Resident::is_file_changed) {
            self.reload();
        }
        let Some(resident) = &mut self.resident else { return };
        resident.count_lost(self.session.dropped(family::PROCESS));
        for pid in resident.replaced() {
            self.gone(pid);
        }
        let Some(resident) = &mut self.resident else { return };
        let (targets, left) = (&self.targets, &self.left);
        for (subject, how) in resident.newcomers(|pid| targets.contains(&pid) || left.contains(&pid)) {
            let pid = subject.pid;
            if self.targets.len() >= TARGETS_MAX {
                warn!("pid={pid} is left out: {TARGETS_MAX} processes are traced already");
            } else if let Err(error) = self.add_as(subject, how) {
                warn!("pid={pid} is left out: {error}");
            }
        }
        let verdicts = self.resident.as_mut().map(Resident::rematch).unwrap_or_default();
        self.carry_out(verdicts);
    }

    pub(super) fn carry_out(&mut self, verdicts: Vec<Verdict>) {
        for verdict in verdicts {
            match verdict {
                Verdict::Leave(pid) => self.gone(pid),
                Verdict::Change { facts, memory, had_memory } => {
                    let pid = facts.pid;
                    if let Some(lookout) = &mut self.lookout
                        && memory != had_memory
                    {
                        lookout.remove(pid);
                        if memory && let Ok(subject) = (self.examine)(pid) {
                            lookout.add(pid, subject.heaps);
                        }
                    }
                    self.feed(Input::Target(facts));
                }
            }
        }
    }

    /// Reads the configuration again, and traces no more whom it leaves out. Whoever it takes in is met next.
    pub(super) fn reload(&mut self) {
        let Some(resident) = &mut self.resident else { return };
        if !resident.reload() {
            return;
        }
        self.mission.config.slow_turn_ns = nanoseconds(resident.config().trace.slow_turn);
        let verdicts = resident.review();
        self.carry_out(verdicts);
    }

    /// Reacts to the life of a target.
    pub(super) fn live_event(&mut self, event: Life) {
        match event {
            Life::Exited(pid) => self.gone(pid),
            Life::Executed(pid) => self.executed(pid),
            Life::Began(pid) => {
                if let Some(resident) = &mut self.resident {
                    resident.announce(pid);
                }
            }
        }
    }

    /// A process runs another program now: look at it again.
    pub(super) fn executed(&mut self, pid: Pid) {
        match (self.examine)(pid) {
            Ok(mut subject) => {
                // To a daemon's rules it is another one.
                let how = match &mut self.resident {
                    Some(resident) => resident.judge(&mut subject),
                    None => Some(self.usual()),
                };
                let Some(how) = how else { return self.gone(pid) };
                self.targets.retain(|known| *known != pid);
                if let Err(error) = self.add_as(subject, how) {
                    warn!("pid={pid} cannot be traced after its exec: {error}");
                    self.gone(pid);
                }
            }
            Err(error) => {
                if self.targets.contains(&pid) {
                    say(&format!("agent: pid {pid} now runs another program: {error}"));
                }
                self.session.remove_target(pid);
                self.gone(pid);
            }
        }
    }

    pub(super) fn gone(&mut self, pid: Pid) {
        if !self.targets.contains(&pid) {
            return;
        }
        self.targets.retain(|known| *known != pid);
        self.clusters.retain(|watch| watch.pid() != pid);
        if let Some(lookout) = &mut self.lookout {
            lookout.remove(pid);
        }
        self.session.ended(pid);
        if let Some(resident) = &mut self.resident {
            resident.forget(pid);
            // Its threads' last states are in the records of their ends; what stays of it would fill the maps in time.
            self.session.remove_target(pid);
            if let Some(diagnosis) = &mut self.mission.diagnosis {
                diagnosis.forget(pid.0);
            }
            self.findings.forget(pid.0);
            self.left.push(pid);
        }
        self.feed(Input::TargetGone { pid, now: monotonic_ns() });
    }
}

/// The ends and the new beginnings of processes in a batch.
pub(super) fn lives(batch: &Batch) -> Vec<Life> {
    let mut events = Vec::new();
    let mut rest: &[u8] = &batch.bytes;
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let Some((record, tail)) = tail.split_at_checked(u32::from_le_bytes(*len) as usize) else { break };
        rest = tail;
        let record_kind = record.first_chunk::<4>().map_or(0, |kind| u32::from_le_bytes(*kind));
        if record_kind == kind::PROCESS_EXIT
            && let Ok((exit, _)) = Exit::read_from_prefix(record)
            && exit.header.flags & exit_flag::PROCESS != 0
        {
            events.push(Life::Exited(Pid(exit.header.tgid)));
        } else if record_kind == kind::PROCESS_EXEC
            && let Ok((exec, _)) = Exec::read_from_prefix(record)
        {
            let pid = Pid(exec.header.tgid);
            let is_stranger = exec.header.flags & exec_flag::STRANGER != 0;
            events.push(if is_stranger { Life::Began(pid) } else { Life::Executed(pid) });
        }
    }
    events
}
