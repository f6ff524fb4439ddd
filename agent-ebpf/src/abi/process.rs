//! The life of processes and threads.

use super::{Header, record};

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

record! {
    /// A thread ended; the process did where `header.tid` was the last one (`flags` is 1).
    pub struct Exit[48] {
        pub header: Header,
        /// Wait status of the thread's group leader as `wait(2)` encodes it: signal in the low 7 bits, code in the next byte.
        pub status: u32,
        /// Reserved, zero.
        pub reserved: u32,
        pub comm: [u8; 16],
    }
}
