//! How code without frame pointers is unwound.

use crate::abi::record;

/// Mapped files of a process that code without frame pointers is unwound in by table.
pub const REGIONS_MAX: usize = 24;

/// Rows of all tables, 8 B each: what one image of Node.js maps has 80 000, PostgreSQL 60 000.
pub const UNWIND_ROWS_MAX: u32 = 1 << 20;

/// Rows of one of them: `postgres` has 81 000.
pub const UNWIND_FILE_ROWS_MAX: u32 = 1 << 17;

record! {
    /// A part of a process's address space whose code is unwound by rows of the table.
    pub struct Region[32] {
        pub start: u64,
        pub end: u64,
        /// What is taken from an address to compare it with [`UnwindRow::start`].
        pub base: u64,
        /// Its rows in the table, sorted by address.
        pub first_row: u32,
        pub rows: u32,
    }
}

record! {
    /// What is unwound by table in a process, keyed by tgid. All other code is expected to keep frame pointers.
    pub struct Regions[824] {
        /// In the file that keeps frame pointers, from the first function to the last one that does not: assembly code. Empty if there is
        /// none.
        pub exceptions: Region,
        /// No other region lies outside these.
        pub low: u64,
        pub high: u64,
        pub count: u32,
        /// No other value that was ever in the map has the same, and 0 is none's: what was looked up in it may be kept.
        pub stamp: u32,
        pub regions: [Region; REGIONS_MAX],
    }
}

/// How the caller's frame is found: the low bits of [`UnwindRow::cfa`].
pub mod cfa {
    /// The canonical frame address is the stack pointer and so many words.
    pub const SP: u16 = 0;
    /// It is the frame pointer and so many words.
    pub const FP: u16 = 1;
    /// Nothing called this code.
    pub const OUTERMOST: u16 = 2;
    /// The code says it in a way that rows cannot, or not at all.
    pub const UNKNOWN: u16 = 3;
    /// This code keeps frame pointers.
    pub const FRAME_POINTERS: u16 = 4;
    /// So many words above the stack pointer, or below it, is kept what that was once: the return address lies there.
    pub const SAVED_SP: u16 = 5;
    /// It is another register and some words: the low [`REGISTER_BITS`] say which, in the order of `struct pt_regs`, and the others how
    /// many. Of code that calls nothing but what was written together with it.
    pub const REGISTER: u16 = 6;
    pub const BITS: u32 = 3;
    pub const REGISTER_BITS: u32 = 4;
}

record! {
    /// From this address to the next row's, the caller's frame is found like this. The return address lies below the canonical
    /// frame address.
    pub struct UnwindRow[8] {
        pub start: u32,
        /// A [`cfa`] rule, and above it the words to add.
        pub cfa: u16,
        /// Words from the canonical frame address to where the caller's frame pointer is kept; 0: it is still in its register.
        pub fp: i16,
    }
}
