//! Samples of what runs on the CPUs.

use super::{Header, record};

/// `Header::flags` of a [`Sample`].
pub mod flag {
    /// The thread was in a garbage collection pause.
    pub const IN_GC: u32 = 1;
}

record! {
    /// A thread of a target was on CPU when the clock of that CPU ticked.
    pub struct Sample[56] {
        pub header: Header,
        /// Ids of [`super::stack::UserStack`] and [`super::stack::KernelStack`] records; 0 is none.
        pub user_stack: u64,
        pub kernel_stack: u64,
        /// One of [`super::sched::class`].
        pub class: u32,
        /// Ticks of that clock that it stands for: itself, and those before it that were passed over.
        pub weight: u32,
        /// Time on CPU that each of them stands for.
        pub period_ns: u64,
    }
}
