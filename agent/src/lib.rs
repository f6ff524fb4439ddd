//! An eBPF tracing agent for production Node.js.

pub mod cli;
pub mod govern;
pub mod intake;
pub mod probe;
