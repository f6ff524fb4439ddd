//! The words in which everything else speaks of PostgreSQL: locks, modes, backends, and a reading of who waits for whom.
//!
//! Pure: what is read where is the business of `target`, what it means that of `aggregate`.

mod statement;
mod wait_event;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use statement::fingerprint;
pub use wait_event::{OpenWait, WaitEvent};

use crate::units::{MonoNs, Pid};

/// A process id as PostgreSQL knows it, in its own pid namespace: what `pg_cancel_backend` takes. 0 is a prepared transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PgPid(pub u32);

impl fmt::Display for PgPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `LOCKTAG`: which lock it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockId {
    pub field1: u32,
    pub field2: u32,
    pub field3: u32,
    pub field4: u16,
    pub kind: u8,
    pub method: u8,
}

/// `LockTagType` of version 14 and newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// A table, an index or the like.
    Relation,
    /// Growing a relation.
    Extend,
    FrozenIds,
    Page,
    /// One row version: waited for by those who are second in line for the row.
    Tuple,
    /// The end of a transaction: what waiting for a changed row is.
    Transaction,
    VirtualTransaction,
    Speculative,
    /// A database object that is no relation.
    Object,
    User,
    Advisory,
    #[default]
    Other,
}

impl LockKind {
    /// As `pg_locks.locktype` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Relation => "relation",
            Self::Extend => "extend",
            Self::FrozenIds => "frozenid",
            Self::Page => "page",
            Self::Tuple => "tuple",
            Self::Transaction => "transactionid",
            Self::VirtualTransaction => "virtualxid",
            Self::Speculative => "spectoken",
            Self::Object => "object",
            Self::User => "userlock",
            Self::Advisory => "advisory",
            Self::Other => "other",
        }
    }
}

impl LockId {
    #[must_use]
    pub fn kind(self) -> LockKind {
        match self.kind {
            0 => LockKind::Relation,
            1 => LockKind::Extend,
            2 => LockKind::FrozenIds,
            3 => LockKind::Page,
            4 => LockKind::Tuple,
            5 => LockKind::Transaction,
            6 => LockKind::VirtualTransaction,
            7 => LockKind::Speculative,
            8 => LockKind::Object,
            9 => LockKind::User,
            10 => LockKind::Advisory,
            _ => LockKind::Other,
        }
    }

    /// Object id of the database, where the lock is within one.
    #[must_use]
    pub fn database(self) -> Option<u32> {
        match self.kind() {
            LockKind::Relation
            | LockKind::Extend
            | LockKind::FrozenIds
            | LockKind::Page
            | LockKind::Tuple
            | LockKind::Object
            | LockKind::Advisory => Some(self.field1),
            LockKind::Transaction
            | LockKind::VirtualTransaction
            | LockKind::Speculative
            | LockKind::User
            | LockKind::Other => None,
        }
    }

    /// Object id of the relation that the lock is on or in.
    #[must_use]
    pub fn relation(self) -> Option<u32> {
        match self.kind() {
            LockKind::Relation | LockKind::Extend | LockKind::Page | LockKind::Tuple => Some(self.field2),
            LockKind::FrozenIds
            | LockKind::Transaction
            | LockKind::VirtualTransaction
            | LockKind::Speculative
            | LockKind::Object
            | LockKind::User
            | LockKind::Advisory
            | LockKind::Other => None,
        }
    }
}

/// In PostgreSQL's own words, as its log has them.
impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { field1, field2, field3, field4, kind, method: _ } = self;
        match self.kind() {
            LockKind::Relation => write!(f, "relation {field2} of database {field1}"),
            LockKind::Extend => write!(f, "extension of relation {field2} of database {field1}"),
            LockKind::FrozenIds => write!(f, "pg_database.datfrozenxid of database {field1}"),
            LockKind::Page => write!(f, "page {field3} of relation {field2} of database {field1}"),
            LockKind::Tuple => write!(f, "tuple ({field3},{field4}) of relation {field2} of database {field1}"),
            LockKind::Transaction => write!(f, "transaction {field1}"),
            LockKind::VirtualTransaction => write!(f, "virtual transaction {field1}/{field2}"),
            LockKind::Speculative => write!(f, "speculative token {field2} of transaction {field1}"),
            LockKind::Object => write!(f, "object {field3} of class {field2} of database {field1}"),
            LockKind::User => write!(f, "user lock [{field1},{field2},{field3}]"),
            LockKind::Advisory => write!(f, "advisory lock [{field1},{field2},{field3},{field4}]"),
            LockKind::Other => write!(f, "lock of kind {kind} [{field1},{field2},{field3},{field4}]"),
        }
    }
}

/// A lock mode, 1 to 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mode(pub u8);

/// `LockConflicts` of `lock.c`: by mode, the modes that conflict with it, as bits.
const CONFLICTS: [u32; 9] = [
    0,
    1 << 8,
    1 << 7 | 1 << 8,
    1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
    1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
    1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8,
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
    1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
    1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
];

impl Mode {
    #[must_use]
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 9] = [
            "an unknown mode",
            "AccessShareLock",
            "RowShareLock",
            "RowExclusiveLock",
            "ShareUpdateExclusiveLock",
            "ShareLock",
            "ShareRowExclusiveLock",
            "ExclusiveLock",
            "AccessExclusiveLock",
        ];
        NAMES.get(usize::from(self.0)).copied().unwrap_or("an unknown mode")
    }

    /// As a set of one.
    #[must_use]
    pub fn bit(self) -> Modes {
        Modes(1_u32.checked_shl(u32::from(self.0)).unwrap_or(0))
    }

    /// Held, one of `modes` makes who wants this one wait.
    #[must_use]
    pub fn conflicts_with(self, modes: Modes) -> bool {
        CONFLICTS.get(usize::from(self.0)).is_some_and(|conflicts| conflicts & modes.0 != 0)
    }
}

/// A set of modes: bit n is mode n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Modes(pub u32);

impl Modes {
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Weakest first.
    pub fn iter(self) -> impl Iterator<Item = Mode> {
        (1..=8).map(Mode).filter(move |mode| self.0 & mode.bit().0 != 0)
    }
}

/// Who holds a lock, and in which modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    pub pid: PgPid,
    pub modes: Modes,
}

/// Who waits for a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    pub pid: PgPid,
    pub mode: Mode,
    /// As the server itself noted it (version 14 and newer).
    pub since: Option<MonoNs>,
}

/// What a backend is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// It serves a client.
    Client,
    AutovacuumWorker,
    /// Autovacuum of a table so old that it cannot be put off: the server does not cancel it for those who wait.
    WraparoundVacuum,
    /// A part of a parallel query.
    ParallelWorker,
    Background,
    #[default]
    Unknown,
}

/// What a backend does just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    Active,
    Idle,
    IdleInTransaction,
    #[default]
    Unknown,
}

/// A backend that holds or waits, as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub pid: PgPid,
    /// In the initial pid namespace.
    pub host_pid: Pid,
    pub kind: BackendKind,
    pub state: BackendState,
    /// Its statement with the literals stripped, or as it is where that was asked for; what autovacuum says of itself.
    pub statement: Option<String>,
    /// When the statement, and the transaction, began.
    pub statement_since: Option<MonoNs>,
    pub transaction_since: Option<MonoNs>,
}

/// A lock that somebody waits for, as it was found in shared memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReading {
    pub id: LockId,
    pub holders: Vec<Holder>,
    /// From the head on.
    pub queue: Vec<Waiter>,
    /// Not all of it could be read.
    pub cut: bool,
}

/// Everybody who waits for a lock in a cluster, and whom for, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The postmaster, in the initial pid namespace.
    pub cluster: Pid,
    /// Before this moment the reading began.
    pub at: MonoNs,
    /// All server processes of the cluster.
    pub processes: u32,
    pub locks: Vec<LockReading>,
    /// Those that the locks speak of.
    pub backends: Vec<Backend>,
    /// Locks that changed while they were read, three times in a row, and are left out.
    pub torn: u32,
    /// Taken within a window, for waits that may be over before it ends: of a wait that it does not know the end may be told later.
    #[serde(default)]
    pub is_glance: bool,
    /// Ends of waits are told since then; of a wait that began before, and that it does not know, none is told any more.
    #[serde(default)]
    pub ends_told_since: MonoNs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_mutual() {
        for one in (1..=8).map(Mode) {
            for other in (1..=8).map(Mode) {
                assert_eq!(one.conflicts_with(other.bit()), other.conflicts_with(one.bit()), "{one:?} {other:?}");
            }
        }
        assert!(!Mode(1).conflicts_with(Mode(4).bit()), "a SELECT passes a vacuum");
        assert!(Mode(8).conflicts_with(Mode(1).bit()));
        assert!(!Mode(77).conflicts_with(Modes(u32::MAX)));
    }

    #[test]
    fn locks_are_named_as_in_the_log() {
        let lock = LockId { field1: 5, field2: 16384, field3: 9, field4: 3, kind: 0, method: 1 };
        assert_eq!(lock.to_string(), "relation 16384 of database 5");
        assert_eq!(LockId { kind: 4, ..lock }.to_string(), "tuple (9,3) of relation 16384 of database 5");
        assert_eq!(LockId { kind: 5, ..lock }.to_string(), "transaction 5");
        assert_eq!(LockId { kind: 200, ..lock }.kind(), LockKind::Other);
    }
}
