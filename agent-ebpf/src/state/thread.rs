//! What is kept of a thread.

use crate::abi::{event_loop::Ledger, record};

/// Bits of [`ThreadState::flags`].
pub mod flag {
    /// The thread turns an event loop.
    pub const LOOP: u32 = 1 << 0;
    /// The thread has run thread-pool work.
    pub const POOL: u32 = 1 << 1;
    /// Inside `epoll_wait` or `epoll_pwait` on the loop's own descriptor.
    pub const IN_POLL: u32 = 1 << 2;
    /// That poll may block.
    pub const POLL_MAY_BLOCK: u32 = 1 << 3;
    /// The last poll neither blocked nor found anything: libuv may poll again in the same turn.
    pub const POLL_WAS_EMPTY: u32 = 1 << 4;
    /// A phase probe other than that of the poll itself was hit since the last poll.
    pub const PHASES: u32 = 1 << 5;
    /// Switched out.
    pub const OFF_CPU: u32 = 1 << 6;
    /// Began a turn: the ledger base is valid.
    pub const IN_TURN: u32 = 1 << 7;
    /// The stack budget was used up at the switch-out.
    pub const STACK_OVER_BUDGET: u32 = 1 << 8;
    /// The poll's phase probe was hit: the turn's time on CPU is split by phase.
    pub const SPLIT: u32 = 1 << 9;
    /// One of V8's own threads, at work for the garbage collector until it next waits for something.
    pub const GC_JOB: u32 = 1 << 10;
    /// The loop was seen to poll by `epoll_wait`, or by `epoll_pwait`: a libuv uses one of them.
    pub const POLLS_BY_WAIT: u32 = 1 << 11;
    pub const POLLS_BY_PWAIT: u32 = 1 << 12;
}

record! {
    /// What the kernel half keeps of a thread of a target: keyed by tid, written by the thread itself, read by user space
    /// once a window. `ledger` and the open stretch since `mark_ns` add up to the time since `first_ns`.
    pub struct ThreadState[600] {
        pub tgid: u32,
        pub tid: u32,
        /// Bits of [`flag`].
        pub flags: u32,
        /// One of [`crate::abi::event_loop::phase`].
        pub phase: u32,
        /// First seen.
        pub first_ns: u64,
        /// Up to here the ledger is charged.
        pub mark_ns: u64,
        /// When the thread was switched out, as far as it is.
        pub out_ns: u64,
        /// Woken since, or 0.
        pub woken_ns: u64,
        /// One of [`crate::abi::sched::reason`].
        pub out_reason: u32,
        /// The loop's epoll descriptor, or -1.
        pub poll_fd: i32,
        pub user_stack: u64,
        pub kernel_stack: u64,
        /// Stack captures: tokens left, and when they were last filled up.
        pub stack_tokens: u64,
        pub stack_filled_ns: u64,
        pub loop_addr: u64,
        pub turn_started_ns: u64,
        pub polled_ns: u64,
        /// Entry into the poll that the thread is in, if it may block: counts for the ledger's `poll_ns` when it returns.
        pub poll_entered_ns: u64,
        /// Return of the last poll.
        pub poll_returned_ns: u64,
        pub gc_started_ns: u64,
        pub gc_step_started_ns: u64,
        pub gc_heap: u64,
        pub gc_space: u32,
        pub gc_reason: u32,
        pub gc_collectors: u32,
        /// Whether polls were watched when the thread last polled: see the map `POLLS`.
        pub polls_epoch: u32,
        /// The `struct uv__work` that the thread runs, or 0.
        pub work: u64,
        /// [`Switches::epoch`] when the state was last brought up to date.
        pub switches_epoch: u32,
        pub reserved: u32,
        pub turns: u64,
        pub ledger: Ledger,
        /// The ledger when the turn began.
        pub turn_base: Ledger,
        /// The ledger when the last, empty poll returned: where the turn ends if it was one of its own.
        pub poll_base: Ledger,
    }
}
