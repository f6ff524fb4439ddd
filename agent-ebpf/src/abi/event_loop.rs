//! Turns of libuv event loops.

use super::{Header, record};

/// What a loop thread does on CPU, in libuv's own order.
pub mod phase {
    /// Phase probes were not attached (or not yet seen) in this turn.
    pub const UNSPLIT: u32 = 0;
    pub const TIMERS: u32 = 1;
    pub const PENDING: u32 = 2;
    /// Idle and prepare handles.
    pub const PREPARE: u32 = 3;
    /// Poll callbacks, and the kernel's and libuv's own work around `epoll_pwait`.
    pub const POLL: u32 = 4;
    pub const CHECK: u32 = 5;
    pub const CLOSING: u32 = 6;
    pub const COUNT: usize = 7;
    pub const NAMES: [&str; COUNT] = ["unsplit", "timers", "pending", "prepare", "poll", "check", "closing"];
}

record! {
    /// Where a thread's time went, in nanoseconds; a running total in [`crate::state::ThreadState`], a difference
    /// in [`Turn`]. `idle + on_cpu + blocked + runnable + stopped` is the wall time; the rest are details of it.
    pub struct Ledger[136] {
        /// Off CPU with nothing to do, until something woke the thread: in a blocking poll, or on the thread pool's queue.
        pub idle_ns: u64,
        /// On CPU, by [`phase`].
        pub on_cpu_ns: [u64; 7],
        /// Off CPU with something to do, until something woke the thread.
        pub blocked_ns: u64,
        /// Woken or preempted, and waiting for a CPU.
        pub runnable_ns: u64,
        /// Stopped by a signal or a tracer.
        pub stopped_ns: u64,
        /// Of which: wall time inside polls that were allowed to block (what libuv calls idle time).
        pub poll_ns: u64,
        /// Of which: garbage collection; on a thread that is paused by it as wall time, on V8's own threads as time on CPU.
        pub gc_ns: u64,
        /// Times that the thread was switched out.
        pub switches: u64,
        /// Events that polls returned.
        pub events: u64,
        /// Synchronous file system requests: work that ran on the loop thread itself.
        pub sync_fs: u64,
        /// HTTP requests whose last byte was parsed, while that was watched.
        pub requests: u64,
    }
}

impl Ledger {
    pub const ZERO: Self = Self {
        idle_ns: 0,
        on_cpu_ns: [0; 7],
        blocked_ns: 0,
        runnable_ns: 0,
        stopped_ns: 0,
        poll_ns: 0,
        gc_ns: 0,
        switches: 0,
        events: 0,
        sync_fs: 0,
        requests: 0,
    };

    /// What was added since `base`.
    #[inline(always)]
    #[must_use]
    pub fn since(&self, base: &Self) -> Self {
        let mut on_cpu_ns = [0; 7];
        let mut i = 0;
        while i < on_cpu_ns.len() {
            on_cpu_ns[i] = self.on_cpu_ns[i].wrapping_sub(base.on_cpu_ns[i]);
            i += 1;
        }
        Self {
            idle_ns: self.idle_ns.wrapping_sub(base.idle_ns),
            on_cpu_ns,
            blocked_ns: self.blocked_ns.wrapping_sub(base.blocked_ns),
            runnable_ns: self.runnable_ns.wrapping_sub(base.runnable_ns),
            stopped_ns: self.stopped_ns.wrapping_sub(base.stopped_ns),
            poll_ns: self.poll_ns.wrapping_sub(base.poll_ns),
            gc_ns: self.gc_ns.wrapping_sub(base.gc_ns),
            switches: self.switches.wrapping_sub(base.switches),
            events: self.events.wrapping_sub(base.events),
            sync_fs: self.sync_fs.wrapping_sub(base.sync_fs),
            requests: self.requests.wrapping_sub(base.requests),
        }
    }
}

record! {
    /// One turn: from the return of one poll to the return of the next; `header.time_ns` is the latter.
    pub struct Turn[192] {
        pub header: Header,
        /// Address of the `uv_loop_t`, or 0 where no libuv probe has been seen on the thread.
        pub loop_addr: u64,
        /// Return of the poll that began the turn.
        pub started_ns: u64,
        /// Entry into the poll that ended it: between the two, callbacks ran.
        pub polled_ns: u64,
        /// Reserved, zero.
        pub reserved: u64,
        pub ledger: Ledger,
    }
}
