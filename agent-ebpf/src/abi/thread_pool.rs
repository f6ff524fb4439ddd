//! Work items of libuv's thread pool, and file work that libuv gives to `io_uring` instead.

use super::{Header, record};

/// How the item was submitted.
pub mod source {
    /// Not seen: the item was submitted before the probes were attached.
    pub const UNKNOWN: u32 = 0;
    /// `uv__work_submit`: file system, DNS, random.
    pub const INTERNAL: u32 = 1;
    /// `uv_queue_work`: crypto, zlib, Node-API and native addons.
    pub const QUEUE_WORK: u32 = 2;
    /// An `io_uring` request: no queue, no pool thread.
    pub const IO_URING: u32 = 3;
}

/// Which libuv work function ran, where a probe on it says so.
pub mod function {
    pub const UNKNOWN: u32 = 0;
    pub const FS: u32 = 1;
    pub const GETADDRINFO: u32 = 2;
    pub const GETNAMEINFO: u32 = 3;
    pub const RANDOM: u32 = 4;
    /// `node::ThreadPoolWork`: crypto, zlib, Node-API; [`super::Work::vtable`] tells which.
    pub const NODE: u32 = 5;
    /// A native addon's own work, or one whose function has no probe.
    pub const QUEUE_WORK: u32 = 6;
}

record! {
    /// One finished item; `header.tid` is the loop thread that got it back, `header.time_ns` when. A time that was not
    /// seen is 0.
    pub struct Work[96] {
        pub header: Header,
        /// Address of the `struct uv__work` (of the request, for `io_uring`).
        pub work: u64,
        pub submitted_ns: u64,
        /// A pool thread took it up.
        pub started_ns: u64,
        /// The pool thread had finished it.
        pub ended_ns: u64,
        /// Address of the work callback given to `uv_queue_work` or `uv__work_submit`, or 0.
        pub callback: u64,
        /// First word of the `node::ThreadPoolWork` object: its vtable's address point, or 0.
        pub vtable: u64,
        /// Thread that ran it, or 0.
        pub pool_tid: u32,
        /// One of [`source`].
        pub source: u32,
        /// One of [`function`].
        pub function: u32,
        /// `uv_fs_type` for file work, the opcode for `io_uring`.
        pub op: u32,
        /// 0, or a negative errno (`UV_ECANCELED` for a cancelled one).
        pub status: i32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}
