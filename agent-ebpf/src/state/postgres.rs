//! What is kept of PostgreSQL: clusters, server processes, and what these wait for.

use crate::abi::{postgres::LockTag, record};

record! {
    /// A PostgreSQL cluster whose backends are traced, keyed by the tgid of its postmaster, the parent of each of them.
    pub struct Cluster[24] {
        /// Offsets in `PGPROC`: of the process id, and of the lock that is waited for; 0 is not known.
        pub proc_pid: u32,
        pub proc_wait_lock: u32,
        /// Address of the server's variable `my_wait_event_info`, the same in all of its processes; 0 is not known.
        pub wait_pointer: u64,
        /// Address of the server's variable `MyProc`; 0 where its waits for locks are told by uprobes.
        pub my_proc: u64,
    }
}

/// Classes of wait events, the high byte of `wait_event_info`, in which nothing keeps a backend from its work: it waits for some
/// (`Activity`), for its client, or for a time to pass (`Timeout`). They are left out.
#[inline(always)]
#[must_use]
pub const fn is_idle_wait(event: u32) -> bool {
    matches!(event >> 24, 0x05 | 0x06 | 0x09)
}

/// The class of wait events for heavyweight locks, the high byte of `wait_event_info`.
pub const WAIT_CLASS_LOCK: u32 = 0x03;

record! {
    /// A wait for a heavyweight lock that a backend is in, by what it says of itself whenever it leaves the CPU.
    pub struct PgLockWait[56] {
        /// When it left the CPU for it; 0 where it waits for none, [`PgLockWait::BEFORE`] where it did before it was followed.
        pub since_ns: u64,
        /// When it last came back from it; 0 where it has not.
        pub back_ns: u64,
        /// Address of the `LOCK`, and when the wait began by the server's own clock: both are other ones in its next wait.
        pub lock: u64,
        pub server_start: u64,
        pub tag: LockTag,
        /// The mode that is wanted, 1 to 8.
        pub mode: u32,
        /// As PostgreSQL knows it.
        pub pid: u32,
    }
}

impl PgLockWait {
    pub const BEFORE: u64 = 1;
    pub const NONE: Self = Self {
        since_ns: 0,
        back_ns: 0,
        lock: 0,
        server_start: 0,
        tag: LockTag { field1: 0, field2: 0, field3: 0, field4: 0, kind: 0, method: 0 },
        mode: 0,
        pid: 0,
    };
}

record! {
    /// A server process whose waits are followed, keyed by its tid: they have one thread.
    pub struct PgBackend[104] {
        /// As [`Cluster::wait_pointer`] has it.
        pub wait_pointer: u64,
        /// Where that leads to, in the process's `PGPROC`, and where in there the lock is that it waits for: neither changes until it
        /// ends. 0 is not known yet.
        pub event_at: u64,
        pub lock_at: u64,
        /// When it was switched out while it waited for `event`.
        pub out_ns: u64,
        /// The postmaster.
        pub cluster: u32,
        /// `wait_event_info`: what it waits for off CPU; 0 where it is not seen to wait.
        pub event: u32,
        /// As PostgreSQL knows it; 0 is not known yet.
        pub pid: u32,
        pub reserved: u32,
        pub lock: PgLockWait,
    }
}

impl PgBackend {
    #[must_use]
    pub const fn new(cluster: u32, wait_pointer: u64) -> Self {
        Self {
            wait_pointer,
            event_at: 0,
            lock_at: 0,
            out_ns: 0,
            cluster,
            event: 0,
            pid: 0,
            reserved: 0,
            lock: PgLockWait::NONE,
        }
    }
}

record! {
    /// A wait for a lock that a backend is in, keyed by its tgid: see [`crate::abi::postgres`].
    pub struct LockWaitState[56] {
        pub started_ns: u64,
        pub lock: u64,
        pub tag: LockTag,
        pub cluster: u32,
        pub pid: u32,
        pub mode: u32,
        /// 1 once its end was sent.
        pub ended: u32,
        pub reserved: u64,
    }
}

record! {
    /// Key of the histograms of waits, which are kept in the kernel as there are too many to send each.
    pub struct PgWaitKey[12] {
        /// The postmaster.
        pub cluster: u32,
        /// `wait_event_info`.
        pub event: u32,
        /// [`crate::histogram::index`] of the wait in nanoseconds.
        pub bucket: u16,
        /// The low bits of [`PgWaitWindow::epoch`] when it ended.
        pub epoch: u16,
    }
}

record! {
    /// Waits of a bucket that ended in a window.
    pub struct PgWaitSum[16] {
        pub count: u64,
        /// Their time within the window.
        pub time_ns: u64,
    }
}

record! {
    /// The window that waits are counted in. Only user space writes it.
    pub struct PgWaitWindow[16] {
        pub began_ns: u64,
        /// One more with each window.
        pub epoch: u32,
        pub reserved: u32,
    }
}
