//! Garbage collection, as the thread that is paused by it sees it.

use super::{Header, record};

/// Which collectors a pause went through: bits, as one call can fall back from one to another.
pub mod collector {
    pub const SCAVENGE: u32 = 1;
    pub const MARK_COMPACT: u32 = 2;
    pub const MINOR_MARK_SWEEP: u32 = 4;
}

/// What a [`HeapLimit`] record says.
pub mod limit {
    /// `Heap::InvokeNearHeapLimitCallback`: the next failed allocation kills the process.
    pub const NEAR: u32 = 1;
    /// `V8::FatalProcessOutOfMemory`: the process is about to abort.
    pub const OUT_OF_MEMORY: u32 = 2;
}

record! {
    /// One stop of the world, from `Heap::CollectGarbage` to the end of the observable pause.
    pub struct GcPause[56] {
        pub header: Header,
        pub started_ns: u64,
        /// Address of the `v8::internal::Heap`: one an isolate.
        pub heap: u64,
        /// `AllocationSpace`; its numbers move between V8 versions.
        pub space: u32,
        /// `GarbageCollectionReason`; its numbers do not move.
        pub reason: u32,
        /// Bits of [`collector`]; 0 where no collector's probe was hit.
        pub collectors: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}

record! {
    /// One step of incremental marking on the main thread.
    pub struct GcStep[32] {
        pub header: Header,
        pub started_ns: u64,
    }
}

record! {
    pub struct HeapLimit[40] {
        pub header: Header,
        pub heap: u64,
        /// One of [`limit`].
        pub limit: u32,
        /// Reserved, zero.
        pub reserved: u32,
    }
}
