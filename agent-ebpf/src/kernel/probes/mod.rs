//! The programs, by what they are attached to.

mod epoll;
mod faults;
mod io_uring;
mod postgres;
mod process;
mod sampler;
pub mod sched;
mod uprobe;
mod waits;
