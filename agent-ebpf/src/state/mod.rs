//! Values of the maps that both halves touch.

mod postgres;
mod sites;
mod switches;
mod tally;
mod thread;
mod unwind;

pub use postgres::*;
pub use sites::*;
pub use switches::*;
pub use tally::*;
pub use thread::*;
pub use unwind::*;

use crate::abi::record;

/// Words of a filter that tells most processes from targets at the price of one load: bit `tgid % TARGET_BITS` is set for each target.
pub const TARGET_WORDS: u32 = 1024;
pub const TARGET_BITS: u32 = TARGET_WORDS * 64;

/// Bits of [`Target::flags`].
pub mod target_flag {
    /// New child processes become targets too.
    pub const FOLLOW: u32 = 1;
    /// Each collection's begin and end is probed, so that their counts can be relied on.
    pub const COUNTS_GCS: u32 = 2;
}

record! {
    /// What must be known of a V8 to follow promises: who awaits the function that runs.
    pub struct AwaitLayout[24] {
        /// Where a `JSFunction` keeps its context; 0 where promises are not followed.
        pub function_context: u16,
        /// Where a `SharedFunctionInfo` keeps the number of its builtin.
        pub function_data: u16,
        /// Where a `PromiseReaction` keeps the next one; its handlers and what it settles follow.
        pub reaction_next: u16,
        pub reserved: u16,
        /// Instance types.
        pub async_function: u16,
        pub async_generator: u16,
        pub promise: u16,
        pub reaction: u16,
        pub capability: u16,
        pub generator_request: u16,
        pub reserved_too: u32,
    }
}

#[cfg(feature = "user")]
impl Default for AwaitLayout {
    fn default() -> Self {
        zerocopy::FromZeros::new_zeroed()
    }
}

record! {
    /// A traced process, keyed by tgid.
    pub struct Target[64] {
        /// Bits of [`target_flag`].
        pub flags: u32,
        /// From a `uv_work_t` back to the vtable word of the `node::ThreadPoolWork` that holds it; 0 is not known.
        pub vtable_back: u32,
        /// Where a `JSFunction` of this V8 keeps its `SharedFunctionInfo`, counted from its untagged address; 0 where there is no V8.
        pub function_shared: u32,
        /// The range of instance types that are functions, both ends included.
        pub function_type_first: u16,
        pub function_type_last: u16,
        /// Beginnings and ends of full collections so far, and of all: odd is within one. Counted here.
        pub major_gcs: u32,
        pub gcs: u32,
        /// When the last full one began or ended.
        pub major_gc_ns: u64,
        pub awaits: AwaitLayout,
        /// Offset in `v8::internal::GlobalHandles` of its pointer to the space of its nodes; 0 is not known.
        pub handle_space: u32,
        pub reserved: u32,
    }
}

record! {
    /// What is looked at in a process on suspicion, keyed by tgid. Of its own, as the kernel half writes to a target's entry.
    pub struct Scrutiny[16] {
        /// Offset in the isolate of the pointer to its `HandleScopeImplementer`; 0 is not known.
        pub scope_implementer: u32,
        /// Offset in the isolate of `HandleScopeData::next`.
        pub scope_next: u32,
        /// Of so many pages that are touched for the first time one has its stack taken, and stands for the others; 0 is none.
        pub pages_a_stack: u32,
        pub reserved: u32,
    }
}

record! {
    /// A bucket of the run-queue latency histogram, which is kept in the kernel: wake-ups are too many to send each.
    pub struct RunQueueKey[8] {
        pub tgid: u32,
        /// One of [`crate::abi::sched::class`].
        pub class: u16,
        /// [`crate::histogram::index`] of the latency in nanoseconds.
        pub bucket: u16,
    }
}

/// Octaves of all processes: a class of a busy one has some fifteen.
pub const RUN_QUEUE_OCTAVES_MAX: u32 = 8192;

record! {
    /// Key of the map: an octave is an entry, as reading an entry costs two system calls.
    pub struct RunQueueOctaveKey[8] {
        pub tgid: u32,
        pub class: u16,
        /// The bucket by [`crate::histogram::PER_OCTAVE`].
        pub octave: u16,
    }
}

record! {
    /// How often each bucket of an octave was hit.
    pub struct RunQueueOctave[512] {
        pub counts: [u64; crate::histogram::PER_OCTAVE as usize],
    }
}

record! {
    /// Key of an item in flight.
    pub struct WorkKey[16] {
        /// Address of the `struct uv__work`, or of the request.
        pub work: u64,
        pub tgid: u32,
        pub reserved: u32,
    }
}

record! {
    /// An item in flight: see [`crate::abi::thread_pool::Work`].
    pub struct WorkState[64] {
        pub submitted_ns: u64,
        pub started_ns: u64,
        pub ended_ns: u64,
        pub callback: u64,
        pub vtable: u64,
        pub pool_tid: u32,
        pub source: u32,
        pub function: u32,
        pub op: u32,
        pub reserved: u64,
    }
}

record! {
    /// The loop that the main thread of a process turns, keyed by tgid: a trace may begin while the thread turns another, as
    /// `execSync` has it.
    pub struct MainLoop[16] {
        pub loop_addr: u64,
        /// Its epoll descriptor.
        pub poll_fd: i32,
        pub reserved: u32,
    }
}

/// Numbers that the loader sets before the program is verified: offsets from the running kernel's own types.
///
/// They are separate read-only globals in the object, so that the verifier sees constants.
pub mod global {
    pub const TASK_PID: &str = "TASK_PID";
    pub const TASK_TGID: &str = "TASK_TGID";
    pub const TASK_REAL_PARENT: &str = "TASK_REAL_PARENT";
    pub const TASK_STATE: &str = "TASK_STATE";
    pub const TASK_EXIT_CODE: &str = "TASK_EXIT_CODE";
    /// 1 where `sched_switch` passes the previous state as its fourth argument (5.18 and newer).
    pub const SWITCH_HAS_STATE: &str = "SWITCH_HAS_STATE";
    /// In a task, its time on CPU in all, and what that was when it last got the CPU; 0 where that cannot be had.
    pub const TASK_RAN: &str = "TASK_RAN";
    pub const TASK_RAN_BEFORE: &str = "TASK_RAN_BEFORE";
    pub const TASK_SIGNAL: &str = "TASK_SIGNAL";
    pub const SIGNAL_LIVE: &str = "SIGNAL_LIVE";
    pub const LOOP_OFF_CPU_MIN_NS: &str = "LOOP_OFF_CPU_MIN_NS";
    pub const OTHER_OFF_CPU_MIN_NS: &str = "OTHER_OFF_CPU_MIN_NS";
    /// Offsets in the `io_uring` tracepoints' records; 0 where the kernel has no such field.
    pub const URING_SUBMIT_DATA: &str = "URING_SUBMIT_DATA";
    pub const URING_SUBMIT_OPCODE: &str = "URING_SUBMIT_OPCODE";
    pub const URING_COMPLETE_DATA: &str = "URING_COMPLETE_DATA";
    pub const URING_COMPLETE_RESULT: &str = "URING_COMPLETE_RESULT";
    /// 1 where the running task's registers can be had: it has BTF.
    pub const HAS_TASK_REGS: &str = "HAS_TASK_REGS";
    /// 1 where the kernel has `bpf_loop` (5.17 and newer).
    pub const HAS_BPF_LOOP: &str = "HAS_BPF_LOOP";
    /// Time on CPU that a sample stands for.
    pub const SAMPLE_PERIOD_NS: &str = "SAMPLE_PERIOD_NS";
    /// 1 where polls are seen at switches only.
    pub const POLLS_AT_SWITCHES: &str = "POLLS_AT_SWITCHES";
    /// 1 where programs that are no target's are announced, too.
    pub const ANNOUNCE_EXECS: &str = "ANNOUNCE_EXECS";
}
