//! PostgreSQL servers, whose backends are followed.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{
    spec::{Group, Part, id},
    state::{Cluster, PgBackend, PgLockWait, WAIT_CLASS_LOCK, is_idle_wait},
};

use log::{debug, warn};

use super::{FileProbes, Session, SessionError, tracepoint_degraded};
use crate::{
    commands::postgres::Waiting,
    govern::Action,
    postgres::{OpenWait, WaitEvent},
    probe::maps::{Waits, monotonic_ns},
    report::model::Degraded,
    target::procfs,
    units::{MonoNs, Pid},
};

/// Programs by which PostgreSQL's waits are followed.
const WAITS: [&str; 3] = ["postgres_switch", "postgres_fork", "postgres_exit"];

impl Session {
    /// From now on, waits are traced in the backends of this postmaster. What of it cannot be had is returned.
    pub fn add_cluster(&mut self, pid: Pid, file: FileProbes, cluster: Cluster) -> Result<Vec<Degraded>, SessionError> {
        let mut degraded = Vec::new();
        if cluster.wait_pointer != 0 {
            if self.waiting.is_empty()
                && let Some(probes) = &mut self.probes
            {
                degraded.extend(probes.attach_part(Part::Waits).iter().map(tracepoint_degraded));
                self.lock_probes |= !degraded.is_empty();
                self.maps.take_waits(monotonic_ns())?;
                self.governor.start(Group::Waits, monotonic_ns());
            }
            self.waiting.insert(pid, cluster);
        }
        self.set_cluster(pid, cluster)?;
        // Both are hit with the lock's partition locked, which makes others wait for as long as they take.
        let by_switches = self.lock_waits(cluster).my_proc != 0;
        let file = if by_switches { file.without(&[id::LOCK_WAIT, id::LOCK_GRANTED]) } else { file };
        if let Some(probes) = &mut self.probes
            && !self.files.iter().any(|known| known.identity == file.identity)
        {
            probes.load_uprobe(Group::Postgres)?;
            file.attach(Group::Postgres, probes)?;
            self.files.push(file);
        }
        Ok(degraded)
    }

    /// What backends wait for is followed no more, or again, where that costs too much. What they wait for now has taken its time up to now;
    /// afterwards the driver says what they wait for by then: [`Self::are_waits_back`].
    pub(super) fn apply_waits(&mut self, action: Action) {
        let Some(probes) = &mut self.probes else { return };
        if action == Action::Attach {
            for (pid, _) in self.maps.backends().collect::<Vec<_>>() {
                self.maps.remove_backend(pid);
            }
            self.backends.clear();
            for skip in probes.attach_part(Part::Waits) {
                warn!("waits are not seen: {}", skip.reason);
            }
            self.waits_are_back = true;
            self.waits_since = monotonic_ns();
        } else {
            probes.detach_tracepoints(&WAITS);
            self.cut_waits.extend(self.maps.open_waits(monotonic_ns()));
        }
        debug!("waits: {action:?}");
    }

    /// True once after each time that waits are followed again.
    pub fn are_waits_back(&mut self) -> bool {
        std::mem::take(&mut self.waits_are_back)
    }

    /// Since when the ends of a cluster's waits for locks are told.
    #[must_use]
    pub fn ends_told_since(&self, cluster: Pid) -> MonoNs {
        if self.lock_probes || !self.waiting.contains_key(&cluster) {
            return MonoNs(0);
        }
        if self.follows_waits() { self.waits_since } else { MonoNs(u64::MAX) }
    }

    /// Whether waits are followed just now, where there are any.
    #[must_use]
    pub fn follows_waits(&self) -> bool {
        self.governor.is_attached(Group::Waits)
    }

    /// Offsets that were found since.
    pub fn set_cluster(&mut self, pid: Pid, cluster: Cluster) -> Result<(), SessionError> {
        Ok(self.maps.add_cluster(pid.0, self.lock_waits(cluster))?)
    }

    /// What the kernel half is told: it learns of waits for locks from switches where all is known that it takes, else from uprobes.
    fn lock_waits(&self, cluster: Cluster) -> Cluster {
        let by_switches = !self.lock_probes && cluster.wait_pointer != 0 && cluster.proc_wait_lock != 0;
        Cluster { my_proc: if by_switches { cluster.my_proc } else { 0 }, ..cluster }
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
    pub fn follow_backends(&mut self, cluster: Pid, since: MonoNs, processes: &[Waiting]) {
        let Some(Cluster { wait_pointer, .. }) = self.waiting.get(&cluster).copied() else { return };
        if !self.follows_waits() {
            return;
        }
        for Waiting { pid, event: WaitEvent(event), lock } in
            processes.iter().filter(|process| !self.backends.contains_key(&process.pid.0))
        {
            let event = if is_idle_wait(*event) { 0 } else { *event };
            let lock =
                lock.filter(|_| event >> 24 == WAIT_CLASS_LOCK).map_or(PgLockWait::NONE, |(lock, server_start)| {
                    PgLockWait { since_ns: PgLockWait::BEFORE, lock, server_start, ..PgLockWait::NONE }
                });
            let backend = PgBackend { out_ns: since.0, event, lock, ..PgBackend::new(cluster.0, wait_pointer) };
            self.maps.add_backend(pid.0, backend);
        }
        let there: BTreeSet<u32> = processes.iter().map(|process| process.pid.0).collect();
        let strays = self.backends.iter().filter(|(pid, of)| **of == cluster && !there.contains(*pid));
        for (pid, _) in strays.filter(|(pid, _)| !procfs::is_alive(Pid(**pid))) {
            self.maps.remove_backend(*pid);
        }
    }

    /// When the youngest of the waits for locks began that go on since then or longer, by cluster.
    #[must_use]
    pub fn lock_waits_since(&self, then: MonoNs) -> BTreeMap<Pid, MonoNs> {
        let mut youngest = BTreeMap::new();
        if !self.follows_waits() {
            return youngest;
        }
        for (_, PgBackend { cluster, event, lock, .. }) in self.maps.backends() {
            if event >> 24 == WAIT_CLASS_LOCK && lock.since_ns != 0 && lock.since_ns <= then.0 {
                let since = youngest.entry(Pid(cluster)).or_insert(MonoNs(lock.since_ns));
                *since = MonoNs(lock.since_ns).max(*since);
            }
        }
        youngest
    }

    /// Whether the kernel half still takes this to be what the process waits for.
    #[must_use]
    pub fn is_open(&self, wait: &OpenWait) -> bool {
        let is_same = |backend: PgBackend| (backend.event, backend.out_ns) == (wait.event.0, wait.since.0);
        self.maps.backend(wait.pid.0).is_some_and(is_same)
    }

    /// Ends a window of PostgreSQL's waits.
    pub(super) fn take_waits(&mut self, now: MonoNs) -> Result<(Waits, Vec<OpenWait>), SessionError> {
        if self.waiting.is_empty() {
            return Ok(Default::default());
        }
        let mut waits = self.maps.take_waits(now)?;
        waits.ended.append(&mut self.cut_waits);
        if !self.follows_waits() {
            return Ok((waits, Vec::new()));
        }
        self.backends = waits.backends.iter().map(|(pid, backend)| (*pid, Pid(backend.cluster))).collect();
        let wait = |&(pid, PgBackend { out_ns, cluster, event, .. }): &(u32, PgBackend)| OpenWait {
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
}
