//! What the kernel half counts of itself.

use crate::{
    abi::{family, record},
    spec::HITS_COUNT,
};

record! {
    /// Per family and CPU: what the kernel half tried to send and what the ring had no room for.
    pub struct FamilyCounters[16] {
        pub emitted: u64,
        pub dropped: u64,
    }
}

record! {
    /// All tallies of the kernel half, one value a CPU: user space reads them with a single call.
    pub struct Tally[1088] {
        pub families: [FamilyCounters; family::COUNT],
        /// By [`counter`].
        pub counters: [u64; counter::COUNT],
        /// By slot: see [`crate::spec::HITS_TRACEPOINTS`].
        pub hits: [u64; HITS_COUNT as usize],
    }
}

/// Reasons for which the kernel half gave something up, and tallies of its own work: indices of [`Tally::counters`].
pub mod counter {
    /// A thread could not be tracked: the map was full.
    pub const THREADS_FULL: u32 = 0;
    /// A work item could not be tracked: the map was full.
    pub const WORKS_FULL: u32 = 1;
    /// A stack was not taken: the thread's budget was used up.
    pub const STACK_OVER_BUDGET: u32 = 2;
    /// The kernel could not walk a stack.
    pub const STACK_FAILED: u32 = 3;
    /// A run-queue latency was not counted: the map was full.
    pub const RUN_QUEUE_FULL: u32 = 4;
    /// A work item ended that was not seen to begin.
    pub const WORK_UNSEEN: u32 = 5;
    /// A thread ran that was not seen to be switched in.
    pub const SWITCH_IN_UNSEEN: u32 = 6;
    /// Stacks that were walked, and their frames: what walking costs.
    pub const STACKS_WALKED: u32 = 7;
    pub const FRAMES_WALKED: u32 = 8;
    /// A stack was not taken: another probe was taking one on the same CPU.
    pub const STACK_BUSY: u32 = 9;
    /// A thing or a site could not be tracked: the map was full, or its place was not known.
    pub const SITES_FULL: u32 = 10;
    /// A wait for a lock was not followed: the map was full.
    pub const LOCK_WAITS_FULL: u32 = 11;
    /// The waits of a server process were not followed: the map was full.
    pub const PG_BACKENDS_FULL: u32 = 12;
    /// A wait was not counted: the map was full.
    pub const PG_WAITS_FULL: u32 = 13;
    /// A wait was not counted: the process was not seen to be switched in, so that its end is not known.
    pub const PG_WAIT_END_UNSEEN: u32 = 14;
    /// Switches to or from a traced server process.
    pub const PG_SWITCHES: u32 = 15;
    pub const COUNT: usize = 16;
    pub const NAMES: [&str; COUNT] = [
        "threads_full",
        "works_full",
        "stack_over_budget",
        "stack_failed",
        "run_queue_full",
        "work_unseen",
        "switch_in_unseen",
        "stacks_walked",
        "frames_walked",
        "stack_busy",
        "sites_full",
        "lock_waits_full",
        "pg_backends_full",
        "pg_waits_full",
        "pg_wait_end_unseen",
        "pg_switches",
    ];
    /// Of these, what was done: all others are what was given up.
    pub const DONE: [&str; 3] =
        [NAMES[STACKS_WALKED as usize], NAMES[FRAMES_WALKED as usize], NAMES[PG_SWITCHES as usize]];
}
