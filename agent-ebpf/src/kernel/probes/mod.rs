//! The programs, by what they are attached to.

mod epoll;
mod io_uring;
mod process;
pub mod sched;
mod uprobe;
