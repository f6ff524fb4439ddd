//! A trace in progress, as seen from below: what is attached, and what the kernel half has counted so far.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use agent_ebpf::{
    abi::family,
    spec::{Group, Part, Tracepoint, id},
    state::{
        AliveKey, Cluster, MainLoop, PgBackend, Scrutiny, SiteKey, SiteState, Switches, Tally, Target, ThreadState,
        counter, flag, is_idle_wait, target_flag,
    },
};
use log::{debug, info, warn};
use tokio::sync::{mpsc, oneshot};
use zerocopy::FromBytes;

use super::{
    allocator::Allocations,
    cost,
    governor::{Counts, Governor},
};
use crate::{
    core::{HitCost, SelfCost, Tick},
    govern::{Action, Budget},
    intake::{Batch, Intake, IntakeError},
    limits::FILES_IDLE_MAX,
    postgres::{OpenWait, WaitEvent},
    probe::{
        attach::{AttachError, LoadError, Probes, Settings, TracepointSkip, Way},
        btf::{BtfError, KernelTypes},
        maps::{Collections, Maps, MapsError, Waits, monotonic_ns},
        tables::Tables,
        tracefs,
    },
    report::model::Degraded,
    target::{
        memory::{LiveMemory, Memory as _},
        procfs::{self, FileIdentity, Mapping},
        v8::FunctionLayout,
    },
    units::{MonoNs, Pid, UserAddr},
};

/// Batches that may wait for the core: 16 of 256 KiB.
const BATCHES_MAX: usize = 16;

/// A thread's state takes two system calls to read, some 2 µs: of hundreds of processes that all sleep, a thousandth of the time is spent
/// on the question how their loops poll.
const POLLS_REST_NS: u64 = 2_000_000;

/// From a `uv_work_t` back to the vtable word of the `node::ThreadPoolWork` around it: vtable, environment, request. The same in
/// Node.js 16 to 26.
const THREAD_POOL_WORK_VTABLE_BACK: u32 = 16;

/// Probes of one file, ready to be attached.
#[derive(Clone, Debug)]
pub struct FileProbes {
    /// Kept open: probes come and go, and the process by whose maps the file was found may go.
    pub file: Arc<File>,
    /// Which file it is: device and inode.
    pub identity: (u64, u64),
    /// File offset and probe id, by group.
    pub points: BTreeMap<Group, Vec<(u64, u64)>>,
    /// The one process that they are for, of a file that all others run, too.
    pub only: Option<Pid>,
}

impl FileProbes {
    /// Each full collection's begin and end is probed.
    #[must_use]
    pub fn counts_gcs(&self) -> bool {
        let has = |id: u64| self.points.values().flatten().any(|(_, probe)| *probe == id);
        [id::GC_START, id::GC_MARK_COMPACT, id::GC_END].into_iter().all(has)
    }

    fn attach(&self, group: Group, probes: &mut Probes) -> Result<(), AttachError> {
        let points = self.points.get(&group).map_or(&[][..], Vec::as_slice);
        probes.attach(group, self.identity, &self.path(), points, self.only)
    }

    /// The process has probes already where these would go, at all places that are looked at: they are in the file's own pages, by
    /// whatever name it was opened.
    fn are_in(&self, pid: Pid, groups: &[Group]) -> bool {
        const LOOKED_AT: usize = 8;
        let Ok(mappings) = procfs::executable_mappings(pid) else { return false };
        let memory = LiveMemory::of(pid);
        let differs = |&(offset, _): &(u64, u64)| {
            let holds = |mapping: &&Mapping| {
                let end = mapping.offset + mapping.end.0.saturating_sub(mapping.start.0);
                mapping.inode == self.identity.1 && (mapping.offset..end).contains(&offset)
            };
            let Some(mapping) = mappings.iter().find(holds) else { return false };
            let (mut own, mut mapped) = ([0], [0]);
            let at = UserAddr(mapping.start.0 + (offset - mapping.offset));
            self.file.read_exact_at(&mut own, offset).is_ok()
                && memory.read_at(at, &mut mapped).is_ok()
                && own != mapped
        };
        let mut points = groups.iter().filter_map(|group| self.points.get(group)).flatten().take(LOOKED_AT).peekable();
        points.peek().is_some() && points.all(differs)
    }

    /// A path that leads to the open file.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

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
    hit_cost: Option<HitCost>,
    calibrated: bool,
    polls: Polls,
    /// When it is next looked at which of them are needed.
    polls_due: MonoNs,
    /// Clusters whose waits are followed, and their processes as of the last window.
    waiting: BTreeMap<Pid, Cluster>,
    backends: BTreeMap<u32, Pid>,
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
            return Err(SessionError::NoFrame(format!("{category}:{event}: {}", one_line(&fatal.reason))));
        }
        degraded.extend(skips.iter().map(tracepoint_degraded));
        let mut maps = Maps::take(&mut probes)?;
        if let SwitchesWanted::Auto = wanted.1 {
            maps.set_stack_prices(Switches::PREEMPTED_TOKENS_LONG, Switches::OTHER_TOKENS_LONG)?;
        }
        let tables = Tables::take(&mut probes)?;
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
            governor: Governor::new(groups, wanted, budget, monotonic_ns()),
            demanded: Vec::new(),
            received: [0; family::COUNT],
            flush,
            allocations: Allocations::default(),
            hit_cost: None,
            calibrated: false,
            polls: Polls::default(),
            polls_due: MonoNs(0),
            waiting: BTreeMap::new(),
            backends: BTreeMap::new(),
            batches,
            degraded,
        })
    }

    /// Attaches the probes of a process's files.
    pub fn add_files(&mut self, pid: Pid, mut files: Vec<FileProbes>) -> Result<(), SessionError> {
        for file in &mut files {
            if let Some(known) = self.same_file(pid, file) {
                file.identity = known;
            }
        }
        self.users.insert(pid, files.iter().map(|file| file.identity).collect());
        files.into_iter().try_for_each(|file| self.add_file(file))
    }

    /// The file by another name, whose probes this process passes already. Images that share a layer show its files on a device each, and
    /// the kernel puts probes on the one file below: once for each name, if it is asked to.
    fn same_file(&self, pid: Pid, file: &FileProbes) -> Option<(u64, u64)> {
        let is_alike = |known: &&FileProbes| {
            known.identity.1 == file.identity.1 && known.only == file.only && known.points == file.points
        };
        let mut alike = self.files.iter().filter(is_alike).peekable();
        alike.peek()?;
        if alike.clone().any(|known| known.identity == file.identity) {
            return None;
        }
        file.are_in(pid, &self.attached()).then(|| alike.next().map(|known| known.identity)).flatten()
    }

    /// Groups whose probes are in all files now.
    fn attached(&self) -> Vec<Group> {
        let always = self.groups.iter().copied().filter(|group| !self.governor.governs(*group));
        always.chain(self.governor.attached()).chain(self.demanded.iter().copied()).collect()
    }

    /// Detaches the oldest files that nobody runs any more, but for the last few.
    fn release_files(&mut self) {
        let is_used = |file: &FileProbes| {
            file.points.contains_key(&Group::Postgres)
                || self.users.values().flatten().any(|used| *used == file.identity)
        };
        let idle: Vec<(u64, u64)> = self.files.iter().filter(|file| !is_used(file)).map(|file| file.identity).collect();
        for identity in idle.iter().take(idle.len().saturating_sub(FILES_IDLE_MAX)) {
            self.files.retain(|file| file.identity != *identity);
            if let Some(probes) = &mut self.probes {
                probes.detach_file(*identity);
            }
        }
    }

    /// Attaches a file's probes, unless they are already.
    fn add_file(&mut self, file: FileProbes) -> Result<(), SessionError> {
        if self.files.iter().any(|known| known.identity == file.identity && known.only == file.only) {
            return Ok(());
        }
        let now = self.attached();
        if let Some(probes) = &mut self.probes {
            for group in now {
                file.attach(group, probes)?;
            }
            if self.files.is_empty() {
                if self.governor.is_attached(Group::Requests) {
                    self.maps.count_requests(true)?;
                }
                self.governor.begin(monotonic_ns());
            }
        }
        self.files.push(file);
        Ok(())
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
        self.maps.add_target(pid.0, target)?;
        Ok(())
    }

    /// From now on, waits are traced in the backends of this postmaster. What of it cannot be had is returned.
    pub fn add_cluster(&mut self, pid: Pid, file: FileProbes, cluster: Cluster) -> Result<Vec<Degraded>, SessionError> {
        self.set_cluster(pid, cluster)?;
        if let Some(probes) = &mut self.probes
            && !self.files.iter().any(|known| known.identity == file.identity)
        {
            probes.load_uprobe(Group::Postgres)?;
            file.attach(Group::Postgres, probes)?;
            self.files.push(file);
        }
        let mut degraded = Vec::new();
        if cluster.wait_pointer != 0 {
            if self.waiting.is_empty()
                && let Some(probes) = &mut self.probes
            {
                degraded.extend(probes.attach_part(Part::Waits).iter().map(tracepoint_degraded));
                self.maps.take_waits(monotonic_ns())?;
            }
            self.waiting.insert(pid, cluster);
        }
        Ok(degraded)
    }

    /// Offsets that were found since.
    pub fn set_cluster(&mut self, pid: Pid, cluster: Cluster) -> Result<(), SessionError> {
        Ok(self.maps.add_cluster(pid.0, cluster)?)
    }

    /// The postmaster is gone.
    pub fn remove_cluster(&mut self, pid: Pid) {
        self.maps.quiet_cluster(pid.0);
        if self.waiting.remove(&pid).is_some()
            && self.waiting.is_empty()
            && let Some(probes) = &mut self.probes
        {
            probes.detach_tracepoints(&WAITS);
        }
    }

    /// Follows the waits of a cluster's processes that are not followed yet: those that were there before it was traced, with what they
    /// wait for since then. New ones are seen as they are started. Those that are gone are forgotten.
    pub fn follow_backends(&mut self, cluster: Pid, since: MonoNs, processes: &[(Pid, WaitEvent)]) {
        let Some(Cluster { wait_pointer, .. }) = self.waiting.get(&cluster).copied() else { return };
        for (pid, WaitEvent(event)) in processes.iter().filter(|(pid, _)| !self.backends.contains_key(&pid.0)) {
            let event = if is_idle_wait(*event) { 0 } else { *event };
            self.maps.add_backend(pid.0, PgBackend { wait_pointer, out_ns: since.0, cluster: cluster.0, event });
        }
        let there: BTreeSet<u32> = processes.iter().map(|(pid, _)| pid.0).collect();
        let strays = self.backends.iter().filter(|(pid, of)| **of == cluster && !there.contains(*pid));
        for (pid, _) in strays.filter(|(pid, _)| !procfs::is_alive(Pid(**pid))) {
            self.maps.remove_backend(*pid);
        }
    }

    /// Whether the kernel half still takes this to be what the process waits for.
    #[must_use]
    pub fn is_open(&self, wait: &OpenWait) -> bool {
        let is_same = |backend: PgBackend| (backend.event, backend.out_ns) == (wait.event.0, wait.since.0);
        self.maps.backend(wait.pid.0).is_some_and(is_same)
    }

    /// Ends a window of PostgreSQL's waits.
    fn take_waits(&mut self, now: MonoNs) -> Result<(Waits, Vec<OpenWait>), SessionError> {
        if self.waiting.is_empty() {
            return Ok(Default::default());
        }
        let waits = self.maps.take_waits(now)?;
        self.backends = waits.backends.iter().map(|(pid, backend)| (*pid, Pid(backend.cluster))).collect();
        let wait = |&(pid, PgBackend { wait_pointer: _, out_ns, cluster, event }): &(u32, PgBackend)| OpenWait {
            pid: Pid(pid),
            cluster: Pid(cluster),
            event: WaitEvent(event),
            since: MonoNs(out_ns),
        };
        let mut open: Vec<OpenWait> = waits.backends.iter().map(wait).filter(|wait| wait.event.0 != 0).collect();
        // As the map has them in no order.
        open.sort_unstable_by_key(|wait| (wait.cluster, wait.pid));
        Ok((waits, open))
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
        let begin = std::time::Instant::now();
        let covered = self.tables.cover(pid, v8);
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
        self.governor.mark(snapshot.now, !self.files.is_empty());
        self.allocations.count(&snapshot.hits, self.hit_cost);
        let (mut waits, pg_open_waits) = self.take_waits(now)?;
        waits.ended.sort_unstable_by_key(|(key, _)| (key.cluster, key.event, key.bucket, key.epoch));
        let hits = (0..).zip(&snapshot.hits).filter(|(_, hits)| **hits > 0).map(|(slot, hits)| (slot, *hits)).collect();
        Ok(Tick {
            now: snapshot.now,
            phases_seen_ns: self.governor.take_seen_ns(Group::Phases),
            requests_seen_ns: self.governor.take_seen_ns(Group::Requests),
            pool_seen_ns: self.governor.take_seen_ns(Group::Pool),
            turns_seen_ns: self.governor.take_seen_ns(Group::Polls),
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
                ..cost::of_self(hits, self.hit_cost)
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

    /// Attaches or detaches probes as their budget has it. Until they have polled once, loops are looked at, too: others that poll a
    /// hundred thousand times a second shall not pass tracepoints that no target does.
    pub fn govern(&mut self) {
        if self.polls == Polls::Unknown && monotonic_ns() >= self.polls_due {
            let threads = self.maps.threads();
            self.shed_polls(&threads);
            let count = threads.len() / size_of::<ThreadState>();
            let rest_ns = POLLS_REST_NS.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
            self.polls_due = MonoNs(monotonic_ns().0.saturating_add(rest_ns));
        }
        let Ok(Tally { families, counters, hits }) = self.maps.tally() else { return };
        let emitted = |of: u32| families.get(of as usize).map_or(0, |family| family.emitted);
        let counts = Counts {
            hits: &hits,
            turns: emitted(family::EVENT_LOOP),
            stacks: counters.get(counter::STACKS_WALKED as usize).copied().unwrap_or(0),
            sampled: emitted(family::SAMPLE),
            own: cost::cpu_time(),
            targets: self.users.len(),
            has_files: !self.files.is_empty(),
        };
        let (stacks_rarer, samples_rarer) = (self.governor.stacks_rarer(), self.governor.samples_rarer());
        let actions = self.governor.decide(monotonic_ns(), &counts);
        if actions.contains(&(Group::Requests, Action::Detach)) {
            self.count_requests(false);
        }
        if self.governor.stacks_rarer() != stacks_rarer {
            debug!("stacks are {} times rarer than usual", self.governor.stacks_rarer());
            if let Err(error) = self.maps.make_stacks_dearer(self.governor.stacks_rarer()) {
                warn!("{error}");
            }
        }
        if self.governor.samples_rarer() != samples_rarer {
            debug!("samples are {} times rarer than usual", self.governor.samples_rarer());
            if let Err(error) = self.maps.make_samples_rarer(self.governor.samples_rarer()) {
                warn!("{error}");
            }
        }
        for (group, action) in actions {
            self.apply(group, action);
            if action == Action::Attach {
                if group == Group::Requests {
                    self.count_requests(true);
                }
                self.governor.is_back(group, monotonic_ns());
            }
        }
        self.drop_suspicions(&hits);
    }

    /// So many times rarer than usual heaps shall be looked at. What was attached on suspicion of one is not to stay for longer.
    #[must_use]
    pub fn looks_rarer(&self) -> u32 {
        if self.demanded.is_empty() { self.governor.looks_rarer() } else { 1 }
    }

    /// Requests count while their probe is there as a whole: what is counted is scaled up by that time.
    fn count_requests(&mut self, counts: bool) {
        if let Err(error) = self.maps.count_requests(counts) {
            warn!("requests are not counted: {error}");
        }
    }

    /// Detaches what is attached on suspicion and takes too much.
    fn drop_suspicions(&mut self, hits: &[u64]) {
        let demanded = self.demanded.iter().copied().filter(|group| SUSPICIONS.contains(group)).collect::<Vec<_>>();
        let dear = self.governor.too_dear(monotonic_ns(), hits, &demanded);
        for group in &dear {
            self.demanded.retain(|kept| kept != group);
            self.apply(*group, Action::Detach);
            info!("{group:?} probes are hit too often here: they are left out for a while");
        }
        if dear.iter().any(|group| matches!(group, Group::Makers | Group::Takers)) {
            // What was seen to be made may be gone by now, unseen.
            self.maps.forget_handles();
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

    /// Attaches probes that are on suspicion only, or detaches them.
    pub fn demand(&mut self, wanted: &[(Group, bool)]) {
        for &(group, is_wanted) in wanted {
            let is_wanted = is_wanted
                && self.allocations.allow(group)
                && self.governor.allows(group, monotonic_ns())
                && self.has(group);
            let is_attached = self.demanded.contains(&group);
            if is_wanted && !is_attached {
                self.demanded.push(group);
                self.apply(group, Action::Attach);
            } else if is_attached && !is_wanted {
                self.demanded.retain(|kept| *kept != group);
                self.apply(group, Action::Detach);
            }
        }
    }

    fn has(&self, group: Group) -> bool {
        self.files.iter().any(|file| file.points.get(&group).is_some_and(|points| !points.is_empty()))
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

    fn apply(&mut self, group: Group, action: Action) {
        match group {
            Group::Polls => return self.apply_polls(action),
            Group::Switches => return self.apply_switches(action),
            _ => {}
        }
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach
            && let Err(error) = probes.load_uprobe(group)
        {
            warn!("{group:?} probes: {error}");
            return;
        }
        if group == Group::Allocations {
            self.allocations.mark(monotonic_ns(), action);
        }
        if group == Group::Pool && action == Action::Attach {
            self.maps.forget_works();
        }
        let result = match action {
            Action::Keep => Ok(()),
            Action::Detach => {
                probes.detach(group);
                Ok(())
            }
            Action::Attach => self.files.iter().try_for_each(|file| file.attach(group, probes)),
        };
        if group == Group::Pool && action == Action::Detach {
            // What is in flight now would stay so for ever.
            self.maps.forget_works();
        }
        if let Err(error) = result {
            warn!("{group:?} probes: {error}");
        }
        debug!("{group:?} probes: {action:?}");
    }

    /// Measures what a hit costs, once: after the first window, as the first record shall not wait for it.
    pub fn calibrate(&mut self) {
        // Where it cannot be measured, it is not tried again.
        if std::mem::replace(&mut self.calibrated, true) {
            return;
        }
        let measured = self.probes.as_mut().and_then(cost::calibrate);
        if let Some(cost) = measured {
            info!("a uprobe hit costs {} ns here", cost.uprobe_ns);
            self.governor.set_hit_cost(Duration::from_nanos(cost.uprobe_ns));
        }
        self.hit_cost = measured;
    }

    /// A program that is new here may poll either way. Those that a process starts, if they are followed, are seen too late for that.
    fn watch_all_polls(&mut self, follow: bool) {
        let are_there = self.probes.as_ref().is_some_and(|probes| probes.has_part(Part::Polls));
        self.polls = if follow || !are_there { Polls::All } else { Polls::Unknown };
        if self.governor.is_attached(Group::Polls) {
            self.attach_polls();
        }
    }

    fn attach_polls(&mut self) {
        let Some(probes) = &mut self.probes else { return };
        if let Err(error) = probes.attach_again(self.polls.programs()) {
            warn!("polls are not seen: {error}");
        }
    }

    /// Turns come off as a whole where there are more of them than anybody can be told of.
    fn apply_polls(&mut self, action: Action) {
        // First of all the kernel half learns of it: what a loop waits for in between is the next event.
        if let Err(error) = self.maps.change_polls() {
            warn!("{error}");
            return;
        }
        if action == Action::Attach {
            self.attach_polls();
        } else if let Some(probes) = &mut self.probes {
            probes.detach_tracepoints(Polls::All.programs());
        }
        debug!("polls: {action:?}");
    }

    /// Switches come off as a whole: whoever makes more of them than can be paid for, traced or not, is then left alone.
    fn apply_switches(&mut self, action: Action) {
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach
            && let Err(error) = probes.attach_again(&SWITCHES)
        {
            warn!("switches are not seen: {error}");
            return;
        }
        if let Err(error) = self.maps.change_switches() {
            warn!("{error}");
            return;
        }
        if action == Action::Detach {
            probes.detach_tracepoints(&SWITCHES);
        }
        debug!("switches: {action:?}");
    }

    /// Tracepoints of the call by which no loop polls come off: every poll of every other process would pass them.
    fn shed_polls(&mut self, threads: &[u8]) {
        if self.polls != Polls::Unknown {
            return;
        }
        let states =
            threads.chunks_exact(size_of::<ThreadState>()).filter_map(|state| ThreadState::read_from_bytes(state).ok());
        let seen = states.fold(0, |seen, state| seen | state.flags);
        let (kept, idle): (Polls, &[&str]) = match (seen & flag::POLLS_BY_WAIT != 0, seen & flag::POLLS_BY_PWAIT != 0) {
            (true, false) => (Polls::ByWait, &BY_PWAIT),
            (false, true) => (Polls::ByPwait, &BY_WAIT),
            (false, false) => return,
            (true, true) => (Polls::All, &[]),
        };
        self.polls = kept;
        if let Some(probes) = &mut self.probes {
            probes.detach_tracepoints(idle);
            debug!("tracepoints detached, as no loop polls by them: {idle:?}");
        }
    }

    /// Detaches everything; the maps and what lies in the rings stay.
    pub fn detach(&mut self) {
        self.probes = None;
    }
}

/// Groups that come on suspicion, but for those with a limit of their own.
const SUSPICIONS: [Group; 4] = [Group::Makers, Group::Takers, Group::Scopes, Group::Allocators];

/// Programs by which PostgreSQL's waits are followed.
const WAITS: [&str; 3] = ["postgres_switch", "postgres_fork", "postgres_exit"];

/// Programs by which time is accounted for; the kernel has some of them.
const SWITCHES: [&str; 5] =
    ["sched_switch", "sched_wakeup", "sched_wakeup_new", "sched_switch_record", "sched_wakeup_record"];

/// Programs on the two calls by which loops poll.
const BY_WAIT: [&str; 2] = ["enter_epoll_wait", "exit_epoll_wait"];
const BY_PWAIT: [&str; 2] = ["enter_epoll_pwait", "exit_epoll_pwait"];
const BY_EITHER: [&str; 4] = [BY_WAIT[0], BY_WAIT[1], BY_PWAIT[0], BY_PWAIT[1]];

/// Which of those are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Polls {
    /// Both: no loop has polled yet.
    #[default]
    Unknown,
    /// Both, as both are needed.
    All,
    ByWait,
    ByPwait,
}

impl Polls {
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Unknown | Self::All => &BY_EITHER,
            Self::ByWait => &BY_WAIT,
            Self::ByPwait => &BY_PWAIT,
        }
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
