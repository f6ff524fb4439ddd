//! An eBPF tracing agent for production Node.js.

pub mod aggregate;
pub mod census;
pub mod cli;
pub mod commands;
pub mod config;
pub mod core;
pub mod counters;
pub mod decode;
pub mod diagnose;
pub mod export;
pub mod govern;
pub mod intake;
pub mod kubernetes;
pub mod limits;
pub mod postgres;
pub mod printable;
pub mod probe;
pub mod report;
pub mod symbolize;
pub mod target;
pub mod units;
