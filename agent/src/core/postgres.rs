//! PostgreSQL clusters that the core follows.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{ClusterFacts, Tick};
use crate::{
    aggregate::{pg_locks::LockBook, pg_waits::WaitBook},
    counters::{Counters, Reason},
    decode::Body,
    limits::{PG_CLUSTERS_MAX, PG_LOCK_WAIT_MIN_NS, PG_RELATIONS_MAX, SUSPENDED_PACE_WINDOWS, TARGETS_MAX},
    postgres::{PgPid, Reading, WaitEvent},
    report::{
        self,
        model::{PgAwait, PgCluster, StackId},
        postgres::RelationNames,
    },
    units::{Clock, MonoNs, Pid},
};

#[derive(Debug, Default)]
pub struct Clusters {
    clusters: BTreeMap<Pid, Cluster>,
    /// What the processes await that they serve.
    awaits: BTreeMap<Pid, Awaits>,
}

/// Calls that a process has suspended.
#[derive(Debug, Default)]
struct Awaits {
    /// Stack and count, as of the last answer.
    calls: Vec<(u64, u64)>,
    /// Windows since it was asked for.
    age: u32,
}

#[derive(Debug)]
struct Cluster {
    book: LockBook,
    waits: WaitBook,
    names: RelationNames,
    /// Backends by the process that they serve, as of the last tick.
    clients: BTreeMap<Pid, Vec<PgPid>>,
}

impl Clusters {
    pub fn add(&mut self, pid: Pid, since: MonoNs, counters: &mut Counters) {
        if self.clusters.len() >= PG_CLUSTERS_MAX {
            counters.add(Reason::TargetsFull);
            return;
        }
        let new = || Cluster {
            book: LockBook::new(since),
            waits: WaitBook::new(since),
            names: RelationNames::new(),
            clients: BTreeMap::new(),
        };
        self.clusters.entry(pid).or_insert_with(new);
    }

    /// False where it was not there.
    pub fn remove(&mut self, pid: Pid) -> bool {
        self.clusters.remove(&pid).is_some()
    }

    /// A wait for a lock begins or ends in a backend.
    pub fn event(&mut self, backend: Pid, at: MonoNs, body: &Body, counters: &mut Counters) {
        let pid = match body {
            Body::LockWait(wait) => wait.cluster,
            Body::LockEnd(end) => end.cluster,
            Body::Turn(_)
            | Body::Work(_)
            | Body::GcPause(_)
            | Body::GcStep { .. }
            | Body::HeapLimit(_)
            | Body::OffCpu(_)
            | Body::Stack(_)
            | Body::Sample(_)
            | Body::Fork { .. }
            | Body::Exec { .. }
            | Body::Stranger
            | Body::Exit(_) => return,
        };
        let Some(cluster) = self.clusters.get_mut(&pid) else {
            counters.add(Reason::ClusterUnknown);
            return;
        };
        match body {
            Body::LockWait(wait) => cluster.book.begin(backend, wait, at, counters),
            Body::LockEnd(end) => cluster.book.end(backend, end, at, counters),
            _ => {}
        }
    }

    pub fn read(&mut self, reading: Reading, counters: &mut Counters) {
        match self.clusters.get_mut(&reading.cluster) {
            Some(cluster) => cluster.book.read(reading, counters),
            None => counters.add(Reason::ClusterUnknown),
        }
    }

    pub fn serve(&mut self, client: Pid, pid: Pid, backends: Vec<PgPid>) {
        if let Some(cluster) = self.clusters.get_mut(&pid)
            && (cluster.clients.len() < TARGETS_MAX || cluster.clients.contains_key(&client))
        {
            cluster.clients.insert(client, backends);
        }
    }

    pub fn awaited(&mut self, client: Pid, calls: Vec<(u64, u64)>) {
        if let Some(awaits) = self.awaits.get_mut(&client) {
            awaits.calls = calls;
        }
    }

    /// Processes whose connections wait for locks, and of which it is time to see who awaits them.
    pub fn wanted(&self) -> Vec<Pid> {
        let is_due = |(client, awaits): (&Pid, &Awaits)| (awaits.age == 0).then_some(*client);
        self.awaits.iter().filter_map(is_due).collect()
    }

    /// A window in which connections of the process waited, or none did.
    fn waits(&mut self, client: Pid, waiting: bool) -> Vec<(u64, u64)> {
        if !waiting {
            self.awaits.remove(&client);
            return Vec::new();
        }
        if self.awaits.len() >= TARGETS_MAX && !self.awaits.contains_key(&client) {
            return Vec::new();
        }
        match self.awaits.entry(client) {
            Entry::Vacant(entry) => {
                entry.insert(Awaits::default());
                Vec::new()
            }
            Entry::Occupied(entry) => {
                let awaits = entry.into_mut();
                awaits.age = (awaits.age + 1) % SUSPENDED_PACE_WINDOWS;
                awaits.calls.clone()
            }
        }
    }

    pub fn name_events(&mut self, pid: Pid, names: Vec<(WaitEvent, String)>) {
        if let Some(cluster) = self.clusters.get_mut(&pid) {
            for (event, name) in names {
                cluster.waits.name(event, name);
            }
        }
    }

    pub fn name(&mut self, pid: Pid, relation: (u32, u32), name: String) {
        if let Some(cluster) = self.clusters.get_mut(&pid)
            && cluster.names.len() < PG_RELATIONS_MAX
        {
            cluster.names.insert(relation, name);
        }
    }

    /// Ends the window: the lines of each cluster.
    pub fn close(&mut self, tick: &Tick, clock: Clock, counters: &mut Counters) -> Vec<(Pid, MonoNs, report::Body)> {
        let mut lines = Vec::new();
        let mut of_clients = Vec::new();
        for (pid, cluster) in &mut self.clusters {
            let figures = cluster.book.close(tick.now);
            let waits = cluster.waits.close(*pid, tick.now, &tick.pg_waits, &tick.pg_open_waits, counters);
            let of_cluster = report::postgres::cluster(&figures, &waits, tick.waits_seen_ns, &cluster.names, clock);
            for (client, backends) in std::mem::take(&mut cluster.clients) {
                let line = report::postgres::client(&figures, &cluster.names, *pid, &backends);
                of_clients.extend(line.map(|line| (client, figures.to, line)));
            }
            lines.extend(of_cluster.into_iter().map(|(at, body)| (*pid, at, body)));
        }
        for (client, at, mut line) in of_clients {
            let calls = self.waits(client, line.waiting > 0);
            let call = |(stack, count)| PgAwait { stack: StackId(stack), count };
            line.awaits = calls.into_iter().map(call).collect();
            lines.push((client, at, report::Body::PgClient(Box::new(line))));
        }
        lines
    }
}

pub fn cluster_record(facts: &ClusterFacts, clock: Clock) -> PgCluster {
    PgCluster {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        server_version: facts.server_version.clone(),
        process_start_time: facts.start_time.map(|at| at.to_string()),
        trace_start_time: clock.wall(facts.since).to_string(),
        exe: facts.exe.clone(),
        processes: facts.processes,
        lock_wait_min_ns: PG_LOCK_WAIT_MIN_NS,
        degraded: facts.degraded.clone(),
        resource: facts.resource.clone(),
    }
}
