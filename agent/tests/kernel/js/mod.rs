//! Stacks of JavaScript against what V8 itself says of them, in processes that were started without a flag.

mod blocked;
mod churn;
mod crypto;
pub mod frames;
mod profile;
mod spots;
pub mod truth;
