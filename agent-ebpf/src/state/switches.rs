//! What user space says of switches, of stacks at them and of samples.

use crate::abi::record;

/// A CPU wakes the reader of stacks no more often: to wake costs more than a stack. The reader looks again after so long.
pub const STACK_WAKEUP_NS: u64 = 5_000_000;

/// And for a ring that fills no more often than this: who is awake already and has not come by yet comes no sooner for being woken at
/// every record. A million records of turns a second fill a tenth of their ring meanwhile.
pub const FULL_WAKEUP_NS: u64 = 1_000_000;

/// And for so long after a full collection only: what a stack's frames point at moves in the next one, which may be near. Of a process
/// that collects less often, one stack in twenty at most waits through a collection, and of that one only what is new to the reader is lost.
pub const STACK_URGENT_NS: u64 = 1_000_000_000;

/// Times that [`Switches`] keeps.
pub const SWITCHES_KEPT: usize = 8;

record! {
    /// What user space says of switches, of stacks at them and of samples.
    pub struct Switches[104] {
        /// Even while switches are watched and odd while they are not; each change adds one.
        pub epoch: u32,
        /// 1 once nothing is recorded any more of whatever process.
        pub quiet: u32,
        /// In so many nanoseconds a thread earns a stack.
        pub stack_token_ns: u64,
        /// So many times the price of another stack one costs of a thread that was preempted.
        pub preempted_tokens: u64,
        /// And that of a thread that turns no loop and runs no item of the thread pool, as far as is seen: it waits for work.
        pub other_tokens: u64,
        /// One tick of a CPU's clock in so many is a sample; 0 counts as 1.
        pub sample_step: u32,
        pub reserved: u32,
        /// When they were last watched, by `epoch / 2` of the time before.
        pub until_ns: [u64; SWITCHES_KEPT],
    }
}

impl Switches {
    /// A thread may take 4000 stacks a second, which cost about one percent of a core where they are 20 frames deep.
    pub const STACK_TOKEN_NS: u64 = 250_000;

    /// 250 a second, where all stays count.
    pub const PREEMPTED_TOKENS: u64 = 16;
    /// 60 a second, where only long ones do: most that are preempted are back soon, and their stacks are for nothing.
    pub const PREEMPTED_TOKENS_LONG: u64 = 64;
    /// 15 a second: it is the same one again and again.
    pub const OTHER_TOKENS_LONG: u64 = 256;

    /// Up to when a state that was brought up to date in `epoch` can be relied on, where that is over; 0 where nobody knows any more,
    /// or where nothing was watched then.
    #[inline(always)]
    #[must_use]
    pub fn until(&self, epoch: u32) -> u64 {
        let is_kept = self.epoch.wrapping_sub(epoch) < 2 * SWITCHES_KEPT as u32;
        if epoch & 1 == 0 && is_kept { self.until_ns[(epoch >> 1) as usize & (SWITCHES_KEPT - 1)] } else { 0 }
    }
}
