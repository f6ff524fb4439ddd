//! A PostgreSQL cluster that is to be traced: what it is, where its probes go, and what its memory says once a window.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_ebpf::{
    spec::{Feature, Group},
    state::Cluster,
};

use super::session::FileProbes;
use crate::{
    core::ClusterFacts,
    postgres::{PgPid, Reading, WaitEvent},
    probe::{
        maps::monotonic_ns,
        plan::{self, FeatureState, Plan},
    },
    report::model::Degraded,
    target::{
        elf::ElfError,
        identity::{Attributes, Identity},
        postgres::{PostgresError, Server, StatementText},
        sockets::{self, Peers},
    },
    units::{Clock, MonoNs, Pid},
};

/// A reading within a window may take this part of the time.
const GLANCE_REST: u32 = 50;

/// A server process, and what it waits for.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    pub pid: Pid,
    pub event: WaitEvent,
    /// Address of the lock, and when the wait for it began by the server's own clock.
    pub lock: Option<(u64, u64)>,
}

/// A cluster under watch.
#[derive(Debug)]
pub struct Watch {
    server: Server,
    clock: Clock,
    text: StatementText,
    /// What the kernel half was told.
    told: Cluster,
    /// When the last reading began, and how long it took.
    read_at: MonoNs,
    took: Duration,
}

impl Watch {
    /// Looks at the cluster that a process belongs to.
    pub fn begin(pid: Pid, clock: Clock, text: StatementText) -> Result<Self, PostgresError> {
        let server = Server::of_process(pid)?;
        let told = layout(&server);
        Ok(Self { server, clock, text, told, read_at: MonoNs(0), took: Duration::ZERO })
    }

    /// The wall clock was set.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// The postmaster.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }

    #[must_use]
    pub fn layout(&self) -> Cluster {
        self.told
    }

    /// What is known now, if it was not before.
    pub fn layout_found(&mut self) -> Option<Cluster> {
        let now = layout(&self.server);
        (std::mem::replace(&mut self.told, now) != now).then_some(now)
    }

    /// The server's processes, with what each of them waits for just now.
    #[must_use]
    pub fn processes(&self) -> Vec<Waiting> {
        let pids = self.server.backends().map(|(pid, _)| pid);
        let waiting = |pid| Waiting {
            pid,
            event: self.server.waits_for(pid).unwrap_or_default(),
            lock: self.server.lock_of(pid),
        };
        pids.map(waiting).collect()
    }

    /// Those alone.
    #[must_use]
    pub fn pids(&self) -> Vec<Waiting> {
        self.server.backends().map(|(pid, _)| Waiting { pid, event: WaitEvent::default(), lock: None }).collect()
    }

    /// What one of them waits for just now, by its own word.
    #[must_use]
    pub fn waits_for(&self, pid: Pid) -> Option<WaitEvent> {
        self.server.waits_for(pid)
    }

    /// What the server calls those events that were not asked for before.
    pub fn wait_event_names(&mut self, events: impl IntoIterator<Item = WaitEvent>) -> Vec<(WaitEvent, String)> {
        self.server.wait_event_names(events)
    }

    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.server.version.as_deref()
    }

    pub fn read(&mut self) -> Reading {
        let begin = Instant::now();
        self.read_at = monotonic_ns();
        let reading = self.server.read(self.read_at, self.clock, self.text);
        self.took = begin.elapsed();
        reading
    }

    /// The same within a window, if a wait that began then has not been there at a reading.
    pub fn glance(&mut self, since: MonoNs) -> Option<Reading> {
        let rested = u64::try_from(self.took.as_nanos()).map_or(u64::MAX, |ns| ns.saturating_mul(GLANCE_REST.into()));
        let is_due = since > self.read_at && monotonic_ns().since(self.read_at).0 >= rested;
        is_due.then(|| Reading { is_glance: true, ..self.read() })
    }

    /// When the youngest of the waits for locks began that go on since then or longer, by the server's own clock.
    #[must_use]
    pub fn lock_wait_since(&self, then: MonoNs) -> Option<MonoNs> {
        self.server.lock_waits(self.clock).filter(|since| *since <= then).max()
    }

    /// Takes note of backends that came and went.
    pub fn look_again(&mut self) {
        self.server.refresh();
    }

    /// Whether a backend is one of its own.
    #[must_use]
    pub fn has(&self, backend: PgPid) -> bool {
        self.server.backends().any(|(_, pid)| pid == backend)
    }

    /// The backends that serve the connections of a process on this host, one a connection.
    #[must_use]
    pub fn serving(&self, client: Pid, unix: &Peers) -> Vec<PgPid> {
        let backends: BTreeMap<Pid, PgPid> = self.server.backends().collect();
        let pids: Vec<Pid> = backends.keys().copied().collect();
        sockets::links(client, &pids, unix).iter().filter_map(|link| backends.get(&link.peer).copied()).collect()
    }

    /// The probes of its program, and what is said of the cluster.
    pub fn prepare(&mut self) -> Result<(FileProbes, ClusterFacts), ElfError> {
        let plan = plan::plan_postgres(&self.server.elf)?;
        let path = &self.server.path;
        let file = File::open(path).map_err(|source| ElfError::Read { path: path.clone(), source })?;
        let points = plan.placements.iter().map(|placement| (placement.offset.0, placement.probe.id)).collect();
        let probes = FileProbes {
            file: Arc::new(file),
            identity: (self.server.identity.device, self.server.identity.inode),
            points: BTreeMap::from([(Group::Postgres, points)]),
            only: None,
        };
        let mut degraded: Vec<Degraded> = degraded(&plan).into_iter().collect();
        let own = self.server.degraded().into_iter();
        degraded.extend(own.map(|(feature, reason)| Degraded { feature: feature.to_owned(), reason }));
        let facts = ClusterFacts {
            pid: self.pid(),
            since: monotonic_ns(),
            clock: self.clock,
            start_time: self.server.started,
            exe: self.server.postmaster.exe.display().to_string(),
            server_version: self.server.version.clone(),
            processes: self.server.processes(),
            degraded,
            resource: Identity::read(&self.server.postmaster, None, None).resource(&Attributes::new()),
        };
        Ok((probes, facts))
    }
}

/// What the kernel half has to know.
fn layout(server: &Server) -> Cluster {
    let (proc_pid, proc_wait_lock) = server.offsets();
    Cluster { proc_pid, proc_wait_lock, wait_pointer: server.wait_pointer(), my_proc: server.my_proc() }
}

fn degraded(plan: &Plan) -> Option<Degraded> {
    let how = match plan.feature(Feature::PostgresLocks) {
        FeatureState::On => return None,
        FeatureState::Poorer { missing: _ } => "poorer",
        FeatureState::Off { missing: _ } => "off",
    };
    let why: Vec<String> = plan.skips.iter().map(|skip| format!("{}: {}", skip.probe.name, skip.reason)).collect();
    Some(Degraded { feature: "postgres_locks".into(), reason: format!("{how}: {}", why.join("; ")) })
}
