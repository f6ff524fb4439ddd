//! Waits for PostgreSQL's heavyweight locks, as its backends enter and leave them.
//!
//! Process ids in here are those that PostgreSQL knows: of its own pid namespace. Only `header.tgid` is one of the initial one.

use super::{Header, record};

/// Parties of a lock that a record lists: holders, and waiters ahead. What is beyond is counted; user space reads the whole
/// queue once a window.
pub const PARTIES_MAX: usize = 16;

record! {
    /// `LOCKTAG` of `storage/lock.h`: which lock it is.
    pub struct LockTag[16] {
        /// Object id of the database, 0 for shared objects.
        pub field1: u32,
        pub field2: u32,
        pub field3: u32,
        pub field4: u16,
        /// `LockTagType`.
        pub kind: u8,
        /// `LOCKMETHODID`: 1 is ordinary, 2 is advisory.
        pub method: u8,
    }
}

record! {
    /// A process that holds a lock or waits for it.
    pub struct Party[8] {
        /// 0 where it could not be read.
        pub pid: u32,
        /// Of a holder, the set of its modes (bit n is mode n); of a waiter, the mode that it wants, 0 where that is not known.
        pub modes: u32,
    }
}

/// `Header::flags` of a [`LockWait`].
pub mod wait_flag {
    /// The lock's lists were where they were looked for: `holders` and `queue` are what they say.
    pub const LISTS: u32 = 1;
    /// There may be more holders than are listed.
    pub const HOLDERS_CUT: u32 = 2;
    /// There are more waiters ahead than are listed.
    pub const QUEUE_CUT: u32 = 4;
    /// The backend gives the wait up just now, and is one of those in the queue.
    pub const GIVES_UP: u32 = 8;
}

record! {
    /// A backend is about to wait for a lock: the entry into `ProcSleep`, with the lock as it is just then. The backend
    /// itself is not in the queue yet. Where the scheduler's switches tell of waits, only one that is given up has such a record,
    /// at its end: the time is that of its beginning, and the lock is as it is now.
    pub struct LockWait[352] {
        pub header: Header,
        /// Process id of the postmaster in the initial pid namespace.
        pub cluster: u32,
        /// Process id of the waiter.
        pub pid: u32,
        /// Addresses of the `LOCK`, the waiter's `PROCLOCK` and its `PGPROC`.
        pub lock: u64,
        pub proclock: u64,
        pub proc: u64,
        pub tag: LockTag,
        /// The mode that is wanted, 1 to 8.
        pub mode: u32,
        /// Modes that are held, and that are waited for.
        pub granted_modes: u32,
        pub waited_modes: u32,
        /// Waiters ahead.
        pub queue_len: u32,
        /// Of `holders` and `queue`, how many are filled.
        pub holders_listed: u32,
        pub queue_listed: u32,
        pub holders: [Party; PARTIES_MAX],
        /// From the head on.
        pub queue: [Party; PARTIES_MAX],
    }
}

/// How a wait ended.
pub mod outcome {
    pub const GRANTED: u32 = 1;
    /// The statement was cancelled, timed out, or the backend was told to end.
    pub const CANCELLED: u32 = 2;
    /// It would have been in vain: the backend was chosen to break a deadlock. Follows a [`LockEnd`] of the same wait that says
    /// `CANCELLED`, if there was one.
    pub const DEADLOCK: u32 = 3;
}

record! {
    /// A wait is over. Of one that began unseen only the outcome is known: all else is 0.
    pub struct LockEnd[80] {
        pub header: Header,
        pub cluster: u32,
        pub pid: u32,
        pub lock: u64,
        pub started_ns: u64,
        pub tag: LockTag,
        pub mode: u32,
        /// One of [`outcome`].
        pub outcome: u32,
        /// Reserved, zero.
        pub reserved: u64,
    }
}
