//! The core's own reasons to drop, skip or degrade, each with a name.

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident $text:literal,)*) => {
        /// Why the core gave something up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[$meta])* $name,)* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Name in reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// A record was cut short, or its length word pointed past the batch.
    RecordTruncated "record_truncated",
    /// A record's kind is not known, or not one of the ring that it came through.
    RecordUnknown "record_unknown",
    /// A code inside a record is not known.
    CodeUnknown "code_unknown",
    /// A record of a process that is no target (any more).
    TargetUnknown "target_unknown",
    /// More targets than [`crate::limits::TARGETS_MAX`].
    TargetsFull "targets_full",
    /// More threads than [`crate::limits::THREADS_MAX`].
    ThreadsFull "threads_full",
    /// A thread's state vanished without an exit record: its last stretch is not known.
    ThreadVanished "thread_vanished",
    /// More loop threads than [`crate::limits::LOOPS_MAX`].
    LoopsFull "loops_full",
    /// A stack's frames were not kept: more than [`crate::limits::STACKS_MAX`].
    StacksFull "stacks_full",
    /// A stack is named by a record, but its frames never came.
    StackMissing "stack_missing",
    /// A stay off CPU was summed into `(other)`.
    OffCpuGroupsFull "off_cpu_groups_full",
    /// A sample was counted without its stack: more than [`crate::limits::SAMPLE_STACKS_MAX`].
    SampleStacksFull "sample_stacks_full",
    /// A thread-pool item was left out of the sweep for queue depth.
    SweepFull "sweep_full",
    /// A thread-pool item was counted as `other`: too many kinds or classes.
    WorkGroupsFull "work_groups_full",
    /// A slow turn is counted but not reported by itself.
    SlowTurnOmitted "slow_turn_omitted",
    /// A pause is counted but not reported by itself.
    GcPauseOmitted "gc_pause_omitted",
    /// An event in a process's life is not reported by itself.
    LifeOmitted "life_omitted",
    /// A bucket of the run-queue histogram was not followed.
    RunQueueFull "run_queue_full",
    /// A wait for a lock was not followed: more than [`crate::limits::PG_PARTIES_MAX`] or [`crate::limits::PG_LOCKS_MAX`].
    LockWaitsFull "lock_waits_not_followed",
    /// A wait for a lock ended that was not seen to begin, nor found in the lock table.
    LockWaitUnseen "lock_wait_unseen",
    /// A wait for a lock was over without a record of its end.
    LockEndUnseen "lock_end_unseen",
    /// A lock changed while it was read from the server's memory, each time that it was tried.
    LockTorn "lock_torn",
    /// A bucket of waits was counted as `(other)`: more wait events than [`crate::limits::PG_WAIT_EVENTS_MAX`].
    WaitEventsFull "wait_events_full",
    /// A deadlock is counted but not reported by itself.
    DeadlockOmitted "deadlock_omitted",
    /// A record of a PostgreSQL cluster that is not traced.
    ClusterUnknown "cluster_unknown",
    /// Times in a record contradict each other; they were clamped.
    TimeInverted "time_inverted",
}

/// A tally for each [`Reason`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; Reason::ALL.len()]);

impl Counters {
    pub fn add(&mut self, reason: Reason) {
        self.add_n(reason, 1);
    }

    pub fn add_n(&mut self, reason: Reason, n: u64) {
        if let Some(tally) = self.0.get_mut(reason as usize) {
            *tally = tally.saturating_add(n);
        }
    }

    #[must_use]
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// Those that are not zero, by name.
    pub fn nonzero(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reason::ALL.iter().map(|&reason| (reason.name(), self.get(reason))).filter(|&(_, n)| n != 0)
    }
}
