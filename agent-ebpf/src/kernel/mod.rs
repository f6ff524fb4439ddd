//! Programs that run in the kernel.
//!
//! Every program begins with a filter (is this process a target?) and does nothing else for the rest of the machine.
//! The state of a thread is written by the thread itself, on whatever CPU it runs; the one exception is
//! `woken_ns`, which the waker sets.

pub mod awaits;
pub mod emit;
pub mod function;
pub mod globals;
pub mod maps;
pub mod probes;
pub mod sites;
pub mod stack;
pub mod tables;
pub mod thread;
pub mod turn;
pub mod unwind;
