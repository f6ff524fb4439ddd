//! Time that a target's threads spent off CPU.

use super::{Header, record};

/// Why a thread left the CPU.
pub mod reason {
    /// It waits for something: a lock, a disk, a timer, a socket.
    pub const BLOCKED: u32 = 1;
    /// It could have gone on, but another thread was put in its place.
    pub const PREEMPTED: u32 = 2;
    /// `SIGSTOP` or a tracer.
    pub const STOPPED: u32 = 3;
}

/// What is known of the thread, as bits of [`crate::state::ThreadState::flags`] at the switch.
pub mod class {
    pub const OTHER: u32 = 0;
    pub const EVENT_LOOP: u32 = 1;
    pub const THREAD_POOL: u32 = 2;
    pub const COUNT: usize = 3;
    pub const NAMES: [&str; COUNT] = ["other", "event_loop", "thread_pool"];
}

/// `Header::flags` of an [`OffCpu`] record.
pub mod flag {
    /// No stack was taken: the thread's stack budget was used up.
    pub const STACK_OVER_BUDGET: u32 = 1;
}

record! {
    /// One stay off CPU that was at least as long as the threshold; `header.time_ns` is when the thread ran again.
    pub struct OffCpu[64] {
        pub header: Header,
        /// Switched out.
        pub out_ns: u64,
        /// Woken, or 0: preempted threads need no wake-up, and one may be missed.
        pub woken_ns: u64,
        /// Ids of [`super::stack::Stack`] records; 0 is none.
        pub user_stack: u64,
        pub kernel_stack: u64,
        /// One of [`reason`].
        pub reason: u32,
        /// One of [`class`].
        pub class: u32,
    }
}
