//! What the lines about a PostgreSQL cluster add up to.

use std::collections::BTreeMap;

use super::{
    Body,
    model::{PgCluster, PgDeadlock, PgLock, PgWaitEvent, PgWaits, PgWindow},
};
use crate::{
    aggregate::histogram::Histogram,
    limits::{PG_LOCKS_MAX, PG_WAIT_EVENTS_MAX},
};

/// Deadlocks that are kept whole.
const DEADLOCKS_KEPT_MAX: usize = 20;

/// The sums of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSummary {
    pub cluster: Option<PgCluster>,
    pub duration_ns: u64,
    /// Of which was watched what backends wait for.
    pub waits_seen_ns: u64,
    pub processes: u32,
    /// Waits that are going on at the end, and the most at one time.
    pub waiting: u64,
    pub waiting_max: u64,
    /// Waits that ended, by kind of lock.
    pub waits: BTreeMap<String, PgWaits>,
    /// By class and event.
    pub wait_events: BTreeMap<(String, String), WaitEventSummary>,
    /// By the lock's text.
    pub locks: BTreeMap<String, LockSummary>,
    /// Locks for which there was no room, in a window or here.
    pub locks_more: u64,
    pub deadlocks: Vec<(String, PgDeadlock)>,
    pub deadlocks_more: u64,
}

/// Waits for one event over the trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WaitEventSummary {
    pub wait: Histogram,
    pub time_ns: u64,
    /// At the end: waits that are going on, how long the oldest has lasted, and whether it may be longer.
    pub waiting: u64,
    pub oldest_wait_ns: u64,
    pub oldest_is_older: bool,
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
        let PgWindow {
            duration_ns,
            waits_seen_ns: _,
            processes,
            waiting,
            waiting_max,
            locks: _,
            locks_more,
            waits,
            oldest_wait_ns: _,
            wait_events,
        } = window;
        self.duration_ns = self.duration_ns.saturating_add(*duration_ns);
        self.waits_seen_ns = self.waits_seen_ns.saturating_add(window.watched_ns());
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
        for sum in self.wait_events.values_mut() {
            (sum.waiting, sum.oldest_wait_ns, sum.oldest_is_older) = (0, 0, false);
        }
        for event in wait_events {
            self.wait_event(event);
        }
    }

    fn wait_event(&mut self, event: &PgWaitEvent) {
        let PgWaitEvent { class, event, time_ns, waiting, oldest_wait_ns, oldest_is_older, wait } = event;
        let key = (class.clone(), event.clone());
        // Those of one cluster, and one more a class.
        if self.wait_events.len() >= 2 * PG_WAIT_EVENTS_MAX && !self.wait_events.contains_key(&key) {
            return;
        }
        let sum = self.wait_events.entry(key).or_default();
        sum.wait.merge(wait);
        sum.time_ns = sum.time_ns.saturating_add(*time_ns);
        sum.waiting = *waiting;
        sum.oldest_wait_ns = oldest_wait_ns.unwrap_or(0);
        sum.oldest_is_older = *oldest_is_older;
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
