//! Lock waits in PostgreSQL.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Degraded, StackId};
use crate::{aggregate::histogram::Histogram, report::histogram_json};
pub use crate::{
    aggregate::pg_locks::Advice,
    postgres::{BackendKind, BackendState},
};

/// A PostgreSQL cluster is traced from here on; the record's `pid` is its postmaster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgCluster {
    pub agent_version: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub process_start_time: Option<String>,
    pub trace_start_time: String,
    pub exe: String,
    /// Server processes beside the postmaster.
    pub processes: u32,
    /// Locks of which no wait lasted so long are not reported one by one.
    pub lock_wait_min_ns: u64,
    pub degraded: Vec<Degraded>,
    /// Who it is: attributes by their names in OpenTelemetry's conventions for resources.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub resource: BTreeMap<String, String>,
}

/// A window of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PgWindow {
    pub duration_ns: u64,
    /// Of which was watched what backends wait for: `wait_events`, and the ends of waits for locks, are those of that time. `None` is all of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub waits_seen_ns: Option<u64>,
    pub processes: u32,
    /// Waits for locks that are going on at its end, and the most at one time.
    pub waiting: u64,
    pub waiting_max: u64,
    /// Locks that have a line of their own, and those for which there was no room.
    pub locks: u64,
    pub locks_more: u64,
    /// Waits that ended, by `pg_locks.locktype`.
    pub waits: BTreeMap<String, PgWaits>,
    /// How long the oldest wait that is going on has lasted, by `pg_locks.locktype`.
    #[serde(default)]
    pub oldest_wait_ns: BTreeMap<String, u64>,
    /// What backends waited for, most time first; waits for work, clients and timers are left out.
    #[serde(default)]
    pub wait_events: Vec<PgWaitEvent>,
}

impl PgWindow {
    /// For how long it was watched what backends wait for.
    #[must_use]
    pub fn watched_ns(&self) -> u64 {
        self.waits_seen_ns.unwrap_or(self.duration_ns)
    }
}

/// Waits for one event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PgWaitEvent {
    /// `pg_stat_activity.wait_event_type`.
    pub class: String,
    /// `pg_stat_activity.wait_event`; `#` and its number where the server does not say what it is called.
    pub event: String,
    /// That backends spent in it within the window, also in waits that go on: divided by `waits_seen_ns`, how many waited on average.
    pub time_ns: u64,
    /// Waits that are going on at its end.
    pub waiting: u64,
    /// How long the oldest of those has lasted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub oldest_wait_ns: Option<u64>,
    /// Or longer: it began before the trace did.
    #[serde(default)]
    pub oldest_is_older: bool,
    /// Waits that ended: each time that a backend was off CPU.
    #[serde(with = "histogram_json")]
    pub wait: Histogram,
}

/// Waits that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PgWaits {
    pub granted: u64,
    /// Cancelled, timed out, or given up as the backend had to end.
    pub cancelled: u64,
    /// Given up to break a deadlock.
    pub deadlocked: u64,
    #[serde(with = "histogram_json")]
    pub wait: Histogram,
}

/// One lock that was waited for in a window: who holds it, who waits, and what would help.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PgLock {
    pub lock: PgLockName,
    /// Nobody waits any more: the lines say how it was.
    pub is_over: bool,
    pub waiting: u64,
    /// Of the waits that are going on.
    pub oldest_wait_ns: u64,
    pub oldest_since: String,
    /// That wait may be older: it began before the trace did, and the server does not say when.
    #[serde(default)]
    pub oldest_is_older: bool,
    pub holders: Vec<PgHolder>,
    /// There may be more holders.
    #[serde(default)]
    pub holders_more: bool,
    /// First in line: everybody else is behind.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub head: Option<PgWaiter>,
    /// Those behind the head by mode and statement, most first.
    pub behind: Vec<PgQueued>,
    /// From the head to who waits for nobody.
    pub chain: Vec<PgLink>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub root: Option<PgRoot>,
    /// Waits for it that ended in the window.
    pub ended: PgWaits,
    /// Process ids of all waiters, and whom each waits for: `pg_blocking_pids()`; at most 256 of them.
    pub waits_for: Vec<PgWaitsFor>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PgLockName {
    /// `pg_locks.locktype`.
    pub locktype: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub database: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relation: Option<u32>,
    /// Name of the relation, where it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// As the server's log has it.
    pub text: String,
}

/// A backend as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgBackend {
    /// As PostgreSQL knows it, for `pg_cancel_backend()`; 0 is a prepared transaction.
    pub pid: u32,
    /// In the initial pid namespace.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host_pid: Option<u32>,
    pub kind: BackendKind,
    pub state: BackendState,
    /// Without its literals, unless they were asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statement: Option<String>,
    /// How long ago the statement, and the transaction, began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statement_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub transaction_ns: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgHolder {
    #[serde(flatten)]
    pub backend: PgBackend,
    pub modes: Vec<String>,
    /// The head of the queue waits for it, not only for others.
    pub blocks_head: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgWaiter {
    #[serde(flatten)]
    pub backend: PgBackend,
    pub mode: String,
    pub wait_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgQueued {
    pub mode: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statement: Option<String>,
    pub count: u64,
    pub oldest_wait_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgLink {
    pub pid: u32,
    pub mode: String,
    pub lock: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub statement: Option<String>,
}

/// The one backend to act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgRoot {
    #[serde(flatten)]
    pub backend: PgBackend,
    pub advice: Advice,
    /// Waiters that would go on at once.
    pub frees: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgWaitsFor {
    pub pid: u32,
    pub mode: String,
    pub wait_ns: u64,
    pub blocked_by: Vec<u32>,
}

/// A deadlock that the server broke.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgDeadlock {
    /// Whose statement was given up.
    pub victim: PgBackend,
    pub wait_ns: u64,
    /// Each waits for the next one, the last for the first, which is the victim; empty where it is not known.
    pub cycle: Vec<PgLink>,
}

/// A process's connections to a cluster on this host, at the end of a window; the record's `pid` is the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgClient {
    /// The postmaster.
    pub cluster: u32,
    pub connections: u64,
    /// Of which: the backend waits for a lock, for 100 ms or more.
    pub waiting: u64,
    pub locks: Vec<PgClientLock>,
    /// Async calls of the process that were suspended when it was last looked at, most first: who awaits an answer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub awaits: Vec<PgAwait>,
}

/// Async calls that are suspended at one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgAwait {
    /// The function and those that await it, innermost first: the line of type `stack` names them.
    pub stack: StackId,
    pub count: u64,
}

/// What some of them wait for; the line of type `pg_lock` says more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgClientLock {
    pub lock: PgLockName,
    pub waiting: u64,
    pub oldest_wait_ns: u64,
    /// First in line, and the backend to act on.
    pub head: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub root: Option<u32>,
}
