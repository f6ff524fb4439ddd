//! A trace in progress, as seen from below: what is attached, and what the kernel half has counted so far.

mod clusters;
mod duty;
mod files;

use std::{collections::BTreeMap, thread::JoinHandle};

use agent_ebpf::{
    abi::family,
    spec::{Group, Part, Tracepoint},
    state::{
        AliveKey, Cluster, MainLoop, PgWaitKey, PgWaitSum, Scrutiny, SiteKey, SiteState, Switches, Target, ThreadState,
        target_flag,
    },
};
use log::{debug, warn};
use tokio::sync::{mpsc, oneshot};

use duty::Polls;
pub use files::FileProbes;

use super::{allocator::Allocations, cost, governor::Governor};
use crate::{
    core::{SelfCost, Tick},
    govern::Budget,
    intake::{Batch, Intake, IntakeError},
    probe::{
        attach::{AttachError, LoadError, Probes, Settings, TracepointSkip, advice},
        btf::{BtfError, KernelTypes},
        maps::{Collections, Maps, MapsError, monotonic_ns},
        tables::{Covered, Tables},
        tracefs,
        way::Way,
    },
    report::model::Degraded,
    target::{procfs::FileIdentity, v8::FunctionLayout},
    units::{MonoNs, Pid, nanoseconds},
};

/// Batches that may wait for the core: 16 of 256 KiB.
const BATCHES_MAX: usize = 16;

/// From a `uv_work_t` back to the vtable word of the `node::ThreadPoolWork` around it: vtable, environment, request. The same in
/// Node.js 16 to 26.
const THREAD_POOL_WORK_VTABLE_BACK: u32 = 16;

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Maps(#[from] MapsError),
    #[error(transparent)]
    Intake(#[from] IntakeError),
    #[error("a tracepoint without which no time can be accounted for cannot be attached: {0}")]
    NoFrame(String),
}

/// Everything that is attached; dropping it detaches all of it.
pub struct Session {
    probes: Option<Probes>,
    maps: Maps,
    tables: Tables,
    files: Vec<FileProbes>,
    /// Who runs which of them.
    users: BTreeMap<Pid, Vec<(u64, u64)>>,
    /// Uprobes that every file gets.
    groups: &'static [Group],
    governor: Governor,
    /// Attached on suspicion.
    demanded: Vec<Group>,
    received: [u64; family::COUNT],
    flush: mpsc::Sender<oneshot::Sender<()>>,
    allocations: Allocations,
    hit_cost_ns: Option<u64>,
    calibrated: bool,
    polls: Polls,
    /// When it is next looked at which of them are needed.
    polls_due: MonoNs,
    /// Waits for locks are learnt of from uprobes.
    lock_probes: bool,
    /// Clusters whose waits are followed, and their processes as of the last window.
    waiting: BTreeMap<Pid, Cluster>,
    backends: BTreeMap<u32, Pid>,
    /// What waits took of the window that went on when they were followed no more.
    cut_waits: Vec<(PgWaitKey, PgWaitSum)>,
    waits_are_back: bool,
    /// Since when they are followed without a gap.
    waits_since: MonoNs,
    pub batches: mpsc::Receiver<Batch>,
    pub degraded: Vec<Degraded>,
    pub way: Way,
}

impl Session {
    /// Loads the kernel half and attaches what does not depend on a target. Must be called inside the runtime.
    pub fn start(
        settings: &Settings,
        groups: &'static [Group],
        wanted: (PhasesWanted, SwitchesWanted),
        budget: Budget,
        types: TypesAhead,
    ) -> Result<Self, SessionError> {
        let mut degraded = Vec::new();
        let types = match types.take() {
            Ok(types) => Some(types),
            Err(error) => {
                warn!("{error}; exits and new threads are not seen at once, and exit codes not at all");
                degraded.push(Degraded { feature: "life".into(), reason: error.to_string() });
                None
            }
        };
        let uring = tracefs::find().map(|place| tracefs::UringFields::read(&place)).unwrap_or_default();
        let mut probes = Probes::load(settings, types.as_ref(), &uring)?;
        let skips = probes.attach_tracepoints();
        if let Some(fatal) = skips.iter().find(|skip| skip.tracepoint.required) {
            let Tracepoint { category, event, .. } = fatal.tracepoint;
            let reason = one_line(&fatal.reason);
            return Err(SessionError::NoFrame(format!("{category}:{event}: {reason}{}", advice(&reason))));
        }
        degraded.extend(skips.iter().map(tracepoint_degraded));
        let mut maps = Maps::take(&mut probes)?;
        if let SwitchesWanted::Auto = wanted.1 {
            maps.set_stack_prices(Switches::PREEMPTED_TOKENS_LONG, Switches::OTHER_TOKENS_LONG)?;
        }
        let tables = Tables::take(&mut probes)?;
        let polls: &[Group] = if probes.has_part(Part::Polls) { &[Group::Polls] } else { &[] };
        let governed = [groups, polls, &[Group::Waits]].concat();
        let (to_core, batches) = mpsc::channel(BATCHES_MAX);
        let (flush, requests) = mpsc::channel(1);
        tokio::spawn(Intake::take(&mut probes)?.run(to_core, requests));
        Ok(Self {
            way: probes.way(),
            probes: Some(probes),
            maps,
            tables,
            files: Vec::new(),
            users: BTreeMap::new(),
            groups,
            governor: Governor::new(&governed, wanted, budget, monotonic_ns()),
            demanded: Vec::new(),
            received: [0; family::COUNT],
            flush,
            allocations: Allocations::default(),
            hit_cost_ns: None,
            calibrated: false,
            polls: Polls::default(),
            polls_due: MonoNs(0),
            waiting: BTreeMap::new(),
            lock_probes: settings.lock_probes,
            backends: BTreeMap::new(),
            cut_waits: Vec::new(),
            waits_are_back: false,
            waits_since: MonoNs(0),
            batches,
            degraded,
        })
    }

    /// From now on, this process is traced.
    pub fn add_target(
        &mut self,
        pid: Pid,
        functions: FunctionLayout,
        handle_space: u32,
        counts_gcs: bool,
        follow: bool,
    ) -> Result<(), SessionError> {
        self.watch_all_polls(follow);
        let target = Target {
            flags: if follow { target_flag::FOLLOW } else { 0 } | if counts_gcs { target_flag::COUNTS_GCS } else { 0 },
            vtable_back: THREAD_POOL_WORK_VTABLE_BACK,
            function_shared: functions.shared,
            function_type_first: functions.types.0,
            function_type_last: functions.types.1,
            major_gcs: 0,
            gcs: 0,
            major_gc_ns: 0,
            awaits: functions.awaits,
            handle_space,
            reserved: 0,
        };
        self.maps.add_target(pid.0, target).inspect_err(|_| self.tables.forget(pid))?;
        Ok(())
    }

    /// Tells the kernel half which loop the main thread of a process turns, before the process is a target.
    pub fn set_main_loop(&mut self, pid: Pid, main: MainLoop) -> Result<(), SessionError> {
        Ok(self.maps.add_main_loop(pid.0, main)?)
    }

    /// How many collections there were in a process: full ones, and all.
    #[must_use]
    pub fn collections_of(&self, pid: Pid) -> Option<(u32, u32)> {
        self.maps.collections_of(pid.0)
    }

    /// Since when a thread has been switched out: what only it changes is as it was then.
    #[must_use]
    pub fn out_since(&self, tid: u32) -> Option<MonoNs> {
        self.maps.out_since(tid)
    }

    /// Reads how many collections there were in a process, from any thread.
    pub fn collections(&self) -> Result<Collections, SessionError> {
        Ok(self.maps.collections()?)
    }

    /// Tells the kernel half of threads that sleep.
    pub fn add_threads(&mut self, asleep: &[ThreadState]) {
        for state in asleep {
            self.maps.add_thread(*state);
        }
    }

    /// From now on, nothing is recorded.
    pub fn quiet(&mut self) {
        self.maps.quiet();
    }

    /// Makes stacks of a process complete in code without frame pointers, as which everything counts but the file that holds V8.
    pub fn cover(&mut self, pid: Pid, v8: Option<FileIdentity>) {
        self.covering(pid, |tables| Some(tables.cover(pid, v8)));
    }

    /// The same for what a process has mapped since.
    pub fn cover_again(&mut self, pid: Pid) {
        self.covering(pid, |tables| tables.cover_again(pid));
    }

    fn covering(&mut self, pid: Pid, cover: impl FnOnce(&mut Tables) -> Option<Covered>) {
        let begin = std::time::Instant::now();
        let Some(covered) = cover(&mut self.tables) else { return };
        debug!("pid={pid} unwound by table: {covered:?} in {:?}", begin.elapsed());
        if covered.left_out > 0 {
            warn!("pid={pid} {} mapped files do not fit the unwind tables: stacks may end there", covered.left_out);
        }
    }

    pub fn remove_target(&mut self, pid: Pid) {
        self.tables.forget(pid);
        self.maps.remove_target(pid.0);
        self.users.remove(&pid);
        self.release_files();
    }

    /// A process is no more: it has no part of the budget. What was counted of it may still be read.
    pub fn ended(&mut self, pid: Pid) {
        self.users.remove(&pid);
    }

    /// Notes that a batch has arrived.
    pub fn count(&mut self, batch: &Batch) {
        if let Some(received) = self.received.get_mut(batch.family as usize) {
            *received += batch.count;
        }
    }

    /// Records of a family that found no room in their ring, by now.
    #[must_use]
    pub fn dropped(&self, family: u32) -> u64 {
        let families = self.maps.families().ok();
        families.and_then(|families| families.get(family as usize).map(|family| family.dropped)).unwrap_or(0)
    }

    /// Asks for everything that lies in the rings; the answer comes when all of it is in `batches`.
    pub async fn request_flush(&self) -> oneshot::Receiver<()> {
        let (answer, done) = oneshot::channel();
        // An intake that is gone drops the answer, which ends the wait just as well.
        let _ = self.flush.send(answer).await;
        done
    }

    /// Reads the maps as of `now`, a moment that has just passed.
    pub fn snapshot(&mut self, now: MonoNs) -> Result<Tick, SessionError> {
        let snapshot = self.maps.snapshot(now)?;
        self.shed_polls(&snapshot.threads);
        self.governor.mark(snapshot.now, self.there());
        self.allocations.count(&snapshot.hits, self.hit_cost_ns);
        let (mut waits, pg_open_waits) = self.take_waits(now)?;
        waits.ended.sort_unstable_by_key(|(key, _)| (key.cluster, key.event, key.bucket, key.epoch));
        let hits = (0..).zip(&snapshot.hits).filter(|(_, hits)| **hits > 0).map(|(slot, hits)| (slot, *hits)).collect();
        Ok(Tick {
            now: snapshot.now,
            phases_seen_ns: self.governor.take_seen_ns(Group::Phases),
            requests_seen_ns: self.governor.take_seen_ns(Group::Requests),
            pool_seen_ns: self.governor.take_seen_ns(Group::Pool),
            turns_seen_ns: self.governor.take_seen_ns(Group::Polls),
            waits_seen_ns: self.governor.take_seen_ns(Group::Waits),
            switches_seen_ns: self.governor.take_seen_ns(Group::Switches),
            switches_epoch: self.maps.switches().epoch,
            switches_until_ns: self.maps.switches().until_ns,
            polls_epoch: self.maps.polls_epoch(),
            threads: snapshot.threads,
            works: snapshot.works,
            run_queue: snapshot.run_queue,
            pg_waits: waits.ended,
            pg_open_waits,
            families: snapshot.families,
            received: self.received,
            kernel_counters: snapshot.counters,
            thread_names: Vec::new(),
            self_cost: SelfCost {
                stacks_rarer: self.governor.stacks_rarer(),
                samples_rarer: self.governor.samples_rarer(),
                looks_rarer: self.governor.looks_rarer(),
                records_rarer: self.governor.records_rarer(),
                budget_ns: nanoseconds(self.governor.budget()),
                ..cost::of_self(hits, self.hit_cost_ns)
            },
        })
    }

    /// Closes the books of a tick whose rings have been emptied since its snapshot. Once everything is detached, nothing is added
    /// any more: then they balance exactly, with what was sent between the snapshot and the last detach.
    pub fn settle(&self, tick: &mut Tick) {
        tick.received = self.received;
        if self.probes.is_none()
            && let Ok(families) = self.maps.families()
        {
            tick.families = families;
        }
    }

    /// What was made where, since the trace began.
    #[must_use]
    pub fn sites(&self) -> Vec<(SiteKey, SiteState)> {
        self.maps.sites()
    }

    /// Of what was made and is not gone, up to so many: where, and by which stack.
    #[must_use]
    pub fn alive(&self, most: usize) -> Vec<(AliveKey, u64)> {
        self.maps.alive(most)
    }

    /// Nanoseconds for which it was watched who allocates native memory.
    #[must_use]
    pub fn allocations_seen_ns(&self) -> u64 {
        self.allocations.seen_ns(monotonic_ns())
    }

    /// What is looked at in a process on suspicion.
    pub fn set_scrutiny(&mut self, pid: Pid, scrutiny: Scrutiny) {
        if let Err(error) = self.maps.set_scrutiny(pid.0, scrutiny) {
            warn!("what is looked at in {pid}: {error}");
        }
    }

    /// Detaches everything; the maps and what lies in the rings stay.
    pub fn detach(&mut self) {
        self.probes = None;
    }
}

/// The kernel's types, read while something else is done: they take as long as all symbols of a Node.js.
pub struct TypesAhead(Option<JoinHandle<Result<KernelTypes, BtfError>>>);

impl TypesAhead {
    #[must_use]
    pub fn read() -> Self {
        Self(std::thread::Builder::new().name("agent-types".into()).spawn(KernelTypes::read).ok())
    }

    fn take(self) -> Result<KernelTypes, BtfError> {
        self.0.and_then(|reader| reader.join().ok()).unwrap_or_else(KernelTypes::read)
    }
}

/// Whether time on CPU is split by phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhasesWanted {
    Auto,
    Always,
    Never,
}

/// Whether switches come off where they cost too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwitchesWanted {
    Auto,
    Always,
}

fn tracepoint_degraded(skip: &TracepointSkip) -> Degraded {
    let name = format!("{}:{}", skip.tracepoint.category, skip.tracepoint.event);
    Degraded {
        feature: skip.tracepoint.program.to_owned(),
        reason: format!("tracepoint {name}: {}", one_line(&skip.reason)),
    }
}

/// The first line: the verifier's log is for `RUST_LOG=debug`.
pub fn one_line(text: &str) -> String {
    debug!("{text}");
    text.lines().next().unwrap_or_default().to_owned()
}
