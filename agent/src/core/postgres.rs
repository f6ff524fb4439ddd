//! PostgreSQL clusters that the core follows.

use std::collections::BTreeMap;

use super::ClusterFacts;
use crate::{
    aggregate::pg_locks::{LOCK_WAIT_MIN_NS, LockBook},
    counters::{Counters, Reason},
    decode::Body,
    limits::{PG_CLUSTERS_MAX, PG_RELATIONS_MAX, TARGETS_MAX},
    postgres::{PgPid, Reading},
    report::{self, model::PgCluster, postgres::RelationNames},
    units::{Clock, MonoNs, Pid},
};

#[derive(Debug, Default)]
pub struct Clusters {
    clusters: BTreeMap<Pid, Cluster>,
}

#[derive(Debug)]
struct Cluster {
    book: LockBook,
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
        let new = || Cluster { book: LockBook::new(since), names: RelationNames::new(), clients: BTreeMap::new() };
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

    pub fn name(&mut self, pid: Pid, relation: (u32, u32), name: String) {
        if let Some(cluster) = self.clusters.get_mut(&pid)
            && cluster.names.len() < PG_RELATIONS_MAX
        {
            cluster.names.insert(relation, name);
        }
    }

    /// Ends the window: the lines of each cluster.
    pub fn close(&mut self, now: MonoNs, clock: Clock) -> Vec<(Pid, MonoNs, report::Body)> {
        let mut lines = Vec::new();
        for (pid, cluster) in &mut self.clusters {
            let figures = cluster.book.close(now);
            let of_cluster = report::postgres::cluster(&figures, &cluster.names, clock);
            for (client, backends) in std::mem::take(&mut cluster.clients) {
                if let Some(body) = report::postgres::client(&figures, &cluster.names, *pid, &backends) {
                    lines.push((client, figures.to, body));
                }
            }
            lines.extend(of_cluster.into_iter().map(|(at, body)| (*pid, at, body)));
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
        lock_wait_min_ns: LOCK_WAIT_MIN_NS,
        degraded: facts.degraded.clone(),
    }
}
