//! Stacks: the frames cross the ring once, then their id is enough.
//!
//! An id holds as long as the collector leaves code and function descriptions where they are: it is hashed with the
//! number of full collections so far, so that the same addresses with another meaning make another id.

use super::{Header, record};

/// Frames of a kernel stack at most: `kernel.perf_event_max_stack`'s default.
pub const KERNEL_FRAMES_MAX: usize = 127;

/// Frames of a user stack at most: Express with its middleware, a hundred deep, in several native frames each.
pub const USER_FRAMES_MAX: usize = 512;

record! {
    /// The head of a kernel stack; `depth` return addresses of 8 bytes follow, innermost first.
    pub struct KernelStack[40] {
        pub header: Header,
        /// A 64-bit hash over the frames. Never 0.
        pub id: u64,
        pub depth: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

/// Why a walk over frame pointers ended.
pub mod end {
    /// The frame pointer or the return address was null: nothing called this frame.
    pub const OUTERMOST: u32 = 0;
    /// More frames than [`super::USER_FRAMES_MAX`].
    pub const DEEP: u32 = 1;
    /// The next frame could not be read: no frame pointer, or its page is not resident.
    pub const UNREADABLE: u32 = 2;
    /// The next frame does not lie above this one: what was read is no frame pointer. So it is where libc started the thread.
    pub const NOT_ABOVE: u32 = 3;
}

/// `Header::flags` of a [`UserStack`].
pub mod user_flag {
    /// The thread was interrupted between any two instructions, not in a system call: [`super::Leaf`] holds its registers.
    pub const INTERRUPTED: u32 = 1;
}

record! {
    /// What the innermost frame needs beyond its frame pointer: where V8's interpreter keeps its place, and the words on the
    /// stack in which the return address is found before a frame is set up and after it is torn down. Zeroes unless interrupted.
    pub struct Leaf[64] {
        pub rsp: u64,
        pub rbp: u64,
        /// The interpreter's bytecode offset, while a bytecode handler runs.
        pub r9: u64,
        /// The interpreter's bytecode array, likewise.
        pub r12: u64,
        /// The words at `rsp` and above; zeroes where they could not be read.
        pub words: [u64; 4],
    }
}

record! {
    /// One frame, as frame pointers and V8's frame layout tell it.
    pub struct UserFrame[24] {
        /// The instruction that runs, of the innermost frame; of all others the return address.
        pub pc: u64,
        /// The tagged address of the `SharedFunctionInfo`, where the frame's function slot holds a `JSFunction`; an even number is
        /// V8's marker of a stub frame (twice the type); 0 is neither.
        pub object: u64,
        /// Where the frame holds a small integer in the place of the bytecode offset: that integer, untagged. Else 0. The
        /// offset counts from the tagged bytecode array, so a real one is never 0.
        pub bytecode_offset: u64,
    }
}

/// Functions that await one another, at most: beyond that they are not looked for.
pub const AWAITS_MAX: usize = 32;

/// Functions on one stack at most whose own names are taken along.
pub const NAMES_MAX: usize = 8;

record! {
    /// The name of a frame's function where that is a property of the function itself, as where it was computed: as much room as two frames.
    pub struct FunctionName[48] {
        /// The frame's number, from the innermost one.
        pub frame: u64,
        /// The first words of the name as V8 keeps strings: map, hash and length, and what is in the string. Young strings move all
        /// the time, so this is all that is believed of it, but where it leads to another string.
        pub words: [u64; 5],
    }
}

record! {
    /// The head of a user stack; `depth` [`UserFrame`]s follow, innermost first, then `awaits` more of functions that are not on
    /// the stack but await it, each the one before: theirs have no `pc`; and then `names` of [`FunctionName`].
    pub struct UserStack[120] {
        pub header: Header,
        /// A 64-bit hash over the process, the frames and what of [`Leaf`] is not zero. Never 0.
        pub id: u64,
        /// Beginnings and ends of full collections so far: what has changed since then may have been moved or freed. Odd within one.
        pub major_gcs: u32,
        /// The same of all collections.
        pub gcs: u32,
        pub depth: u32,
        /// One of [`end`].
        pub end: u32,
        pub leaf: Leaf,
        pub awaits: u32,
        pub names: u32,
    }
}
