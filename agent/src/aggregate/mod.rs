//! Pure figures over decoded events: no I/O, no clock; time comes in as data.

pub mod delay;
pub mod gc;
pub mod histogram;
pub mod ledger;
pub mod off_cpu;
pub mod pg_locks;
pub mod pg_waits;
pub mod process;
pub mod profile;
pub mod run_queue;
pub mod thread_pool;
pub mod turns;
mod work_kind;
