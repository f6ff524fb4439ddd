//! A PostgreSQL cluster that is to be traced: what it is, where its probes go, and what its memory says once a window.

use std::{collections::BTreeMap, fs::File, sync::Arc};

use agent_ebpf::spec::{Feature, Group};

use super::session::FileProbes;
use crate::{
    core::ClusterFacts,
    postgres::{PgPid, Reading},
    probe::{
        maps::monotonic_ns,
        plan::{self, FeatureState, Plan},
    },
    report::model::Degraded,
    target::{
        elf::ElfError,
        identity::{Attributes, Identity},
        postgres::{PostgresError, Server, StatementText},
        sockets,
    },
    units::{Clock, Pid},
};

/// A cluster under watch.
#[derive(Debug)]
pub struct Watch {
    server: Server,
    clock: Clock,
    text: StatementText,
    /// What the kernel half was told.
    told: (u32, u32),
}

impl Watch {
    /// Looks at the cluster that a process belongs to.
    pub fn begin(pid: Pid, clock: Clock, text: StatementText) -> Result<Self, PostgresError> {
        let server = Server::of_process(pid)?;
        let told = server.offsets();
        Ok(Self { server, clock, text, told })
    }

    /// The postmaster.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.server.pid()
    }

    #[must_use]
    pub fn offsets(&self) -> (u32, u32) {
        self.told
    }

    /// Offsets that are known now, if they were not before.
    pub fn offsets_found(&mut self) -> Option<(u32, u32)> {
        let now = self.server.offsets();
        (std::mem::replace(&mut self.told, now) != now).then_some(now)
    }

    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.server.version.as_deref()
    }

    pub fn read(&mut self) -> Reading {
        self.server.read(monotonic_ns(), self.clock, self.text)
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
    pub fn serving(&self, client: Pid) -> Vec<PgPid> {
        let backends: BTreeMap<Pid, PgPid> = self.server.backends().collect();
        let pids: Vec<Pid> = backends.keys().copied().collect();
        sockets::links(client, &pids).iter().filter_map(|link| backends.get(&link.peer).copied()).collect()
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

fn degraded(plan: &Plan) -> Option<Degraded> {
    let how = match plan.feature(Feature::PostgresLocks) {
        FeatureState::On => return None,
        FeatureState::Poorer { missing: _ } => "poorer",
        FeatureState::Off { missing: _ } => "off",
    };
    let why: Vec<String> = plan.skips.iter().map(|skip| format!("{}: {}", skip.probe.name, skip.reason)).collect();
    Some(Degraded { feature: "postgres_locks".into(), reason: format!("{how}: {}", why.join("; ")) })
}
