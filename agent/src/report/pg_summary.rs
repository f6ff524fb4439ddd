//! What the lines about a PostgreSQL cluster add up to.

use std::collections::BTreeMap;

use super::{
    Body,
    model::{PgCluster, PgDeadlock, PgLock, PgWaits, PgWindow},
};
use crate::limits::PG_LOCKS_MAX;

/// Deadlocks that are kept whole.
const DEADLOCKS_KEPT_MAX: usize = 20;

/// The sums of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSummary {
    pub cluster: Option<PgCluster>,
    pub duration_ns: u64,
    pub processes: u32,
    /// Waits that are going on at the end, and the most at one time.
    pub waiting: u64,
    pub waiting_max: u64,
    /// Waits that ended, by kind of lock.
    pub waits: BTreeMap<String, PgWaits>,
    /// By the lock's text.
    pub locks: BTreeMap<String, LockSummary>,
    /// Locks for which there was no room, in a window or here.
    pub locks_more: u64,
    pub deadlocks: Vec<(String, PgDeadlock)>,
    pub deadlocks_more: u64,
}

/// One lock over the trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LockSummary {
    /// Time of its first line and of its last.
    pub first: String,
    pub last: String,
    /// Its line with the most waiters, and the time of that.
    pub worst: PgLock,
    pub worst_at: String,
    /// As it was last.
    pub is_over: bool,
    /// Waits that ended in all of its windows.
    pub ended: PgWaits,
}

impl ClusterSummary {
    pub fn add(&mut self, time: &str, body: &Body) {
        match body {
            Body::PgCluster(cluster) => {
                self.processes = cluster.processes;
                self.cluster = Some(cluster.as_ref().clone());
            }
            Body::PgWindow(window) => self.window(window),
            Body::PgLock(lock) => self.lock(time, lock),
            Body::PgDeadlock(deadlock) => {
                if self.deadlocks.len() < DEADLOCKS_KEPT_MAX {
                    self.deadlocks.push((time.to_owned(), deadlock.as_ref().clone()));
                } else {
                    self.deadlocks_more += 1;
                }
            }
            _ => {}
        }
    }

    fn window(&mut self, window: &PgWindow) {
        let PgWindow { duration_ns, processes, waiting, waiting_max, locks: _, locks_more, waits } = window;
        self.duration_ns = self.duration_ns.saturating_add(*duration_ns);
        self.processes = *processes;
        self.waiting = *waiting;
        self.waiting_max = self.waiting_max.max(*waiting_max);
        self.locks_more = self.locks_more.saturating_add(*locks_more);
        for (kind, of_kind) in waits {
            // Foreign text from a file: PostgreSQL has a dozen kinds.
            if self.waits.len() < 64 || self.waits.contains_key(kind) {
                merge(self.waits.entry(kind.clone()).or_default(), of_kind);
            }
        }
    }

    fn lock(&mut self, time: &str, lock: &PgLock) {
        if self.locks.len() >= PG_LOCKS_MAX && !self.locks.contains_key(&lock.lock.text) {
            self.locks_more += 1;
            return;
        }
        let sum = self
            .locks
            .entry(lock.lock.text.clone())
            .or_insert_with(|| LockSummary { first: time.to_owned(), ..LockSummary::default() });
        time.clone_into(&mut sum.last);
        sum.is_over = lock.is_over;
        merge(&mut sum.ended, &lock.ended);
        if (lock.waiting, lock.oldest_wait_ns) >= (sum.worst.waiting, sum.worst.oldest_wait_ns) {
            let name = sum.worst.lock.name.take();
            sum.worst = lock.clone();
            sum.worst.lock.name = sum.worst.lock.name.take().or(name);
            time.clone_into(&mut sum.worst_at);
        }
    }
}

fn merge(sum: &mut PgWaits, other: &PgWaits) {
    let PgWaits { granted, cancelled, deadlocked, wait } = other;
    sum.granted = sum.granted.saturating_add(*granted);
    sum.cancelled = sum.cancelled.saturating_add(*cancelled);
    sum.deadlocked = sum.deadlocked.saturating_add(*deadlocked);
    sum.wait.merge(wait);
}
