//! Things that are made, and where.

use crate::abi::record;

/// Bytes of native memory that an allocation which is watched stands for: larger ones are all watched, of smaller ones as many as come
/// to one in so many bytes.
pub const ALLOCATION_STEP: u64 = 16 << 10;

/// What a site makes.
pub mod site {
    /// `v8::internal::GlobalHandles::Create`.
    pub const GLOBAL_HANDLE: u32 = 0;
    /// A block of a handle scope: `v8::internal::HandleScope::Extend`.
    pub const SCOPE_BLOCK: u32 = 1;
    /// A page that was touched for the first time.
    pub const PAGE: u32 = 2;
    /// Some tens of kilobytes of a JavaScript heap: `v8::internal::Runtime_AllocateInYoungGeneration`, where generated code goes when
    /// its own area is used up.
    pub const HEAP_AREA: u32 = 3;
    /// Bytes of the C library's allocator: one in so many is sampled, see [`crate::state::ALLOCATION_STEP`].
    pub const ALLOCATION: u32 = 4;
    pub const COUNT: u32 = 5;
}

record! {
    /// Key of a thing that was made and is not gone yet: a global handle by its slot.
    pub struct AliveKey[16] {
        pub at: u64,
        pub tgid: u32,
        /// One of [`crate::state::site`].
        pub kind: u32,
    }
}

record! {
    /// Key of a place in the program that makes things: the id of a [`crate::abi::stack::UserStack`].
    pub struct SiteKey[16] {
        pub stack: u64,
        pub tgid: u32,
        /// One of [`site`].
        pub kind: u32,
    }
}

record! {
    /// What a site made, and what of it is gone, since the trace began; as far as it was watched.
    pub struct SiteState[16] {
        pub made: u64,
        pub gone: u64,
    }
}
