//! Stacks: the frames cross the ring once, then their id is enough.

use super::{Header, record};

/// Frames in a stack at most: `kernel.perf_event_max_stack`'s default.
pub const FRAMES_MAX: usize = 127;

pub mod space {
    pub const USER: u32 = 1;
    pub const KERNEL: u32 = 2;
}

record! {
    /// The head of a stack; `depth` frames of 8 bytes follow, innermost first. `header.flags` is a [`space`].
    pub struct Stack[40] {
        pub header: Header,
        /// A 64-bit hash over the frames and, in user space, the tgid. Never 0.
        pub id: u64,
        pub depth: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}
