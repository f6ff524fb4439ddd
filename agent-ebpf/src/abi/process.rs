//! The life of processes and threads.

use super::{Header, event_loop::Ledger, record};

record! {
    /// `header` is the parent. A new thread where `child_tgid == header.tgid`, else a new process.
    pub struct Fork[32] {
        pub header: Header,
        pub child_tgid: u32,
        pub child_tid: u32,
    }
}

record! {
    /// The process runs another program from now on; its probes and its memory are gone.
    pub struct Exec[40] {
        pub header: Header,
        /// `comm` after the exec, NUL-padded.
        pub comm: [u8; 16],
    }
}

/// `Header::flags` of an [`Exec`].
pub mod exec_flag {
    /// The process is no target: it may become one.
    pub const STRANGER: u32 = 1;
}

/// `Header::flags` of an [`Exit`].
pub mod exit_flag {
    /// No other thread is left: the process is gone. Threads that end at the same time may all say so.
    pub const PROCESS: u32 = 1;
}

record! {
    /// A thread ended.
    pub struct Exit[200] {
        pub header: Header,
        /// Wait status as `wait(2)` encodes it: signal in the low 7 bits, exit code in the next byte.
        pub status: u32,
        /// Reserved, zero.
        pub reserved: u32,
        pub comm: [u8; 16],
        /// The thread's last totals, as no snapshot of its state can be had any more: see [`crate::state::ThreadState`].
        pub first_ns: u64,
        /// Flags of the thread's state.
        pub state_flags: u64,
        pub ledger: Ledger,
    }
}
