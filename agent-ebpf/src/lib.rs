//! What the kernel half and the user-space half agree on, and nothing else.
//!
//! Every type here is `#[repr(C)]`, has no implicit padding and accepts any bit pattern; the `user` feature proves
//! both with zerocopy derives, and each size is asserted beside its type. Codes that cross the boundary are
//! integers, never Rust enums: user space turns them into enums in `decode`, where an unknown code is counted.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod histogram;
pub mod spec;
pub mod state;
