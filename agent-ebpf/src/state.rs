//! Values of the maps that both halves touch.

use crate::{
    abi::{event_loop::Ledger, family, postgres::LockTag, record},
    spec::HITS_COUNT,
};

/// Bits of [`ThreadState::flags`].
pub mod flag {
    /// The thread turns an event loop.
    pub const LOOP: u32 = 1 << 0;
    /// The thread has run thread-pool work.
    pub const POOL: u32 = 1 << 1;
    /// Inside `epoll_wait` or `epoll_pwait` on the loop's own descriptor.
    pub const IN_POLL: u32 = 1 << 2;
    /// That poll may block.
    pub const POLL_MAY_BLOCK: u32 = 1 << 3;
    /// The last poll neither blocked nor found anything: libuv may poll again in the same turn.
    pub const POLL_WAS_EMPTY: u32 = 1 << 4;
    /// A phase probe other than that of the poll itself was hit since the last poll.
    pub const PHASES: u32 = 1 << 5;
    /// Switched out.
    pub const OFF_CPU: u32 = 1 << 6;
    /// Began a turn: the ledger base is valid.
    pub const IN_TURN: u32 = 1 << 7;
    /// The stack budget was used up at the switch-out.
    pub const STACK_OVER_BUDGET: u32 = 1 << 8;
    /// The poll's phase probe was hit: the turn's time on CPU is split by phase.
    pub const SPLIT: u32 = 1 << 9;
    /// One of V8's own threads, at work for the garbage collector until it next waits for something.
    pub const GC_JOB: u32 = 1 << 10;
    /// The loop was seen to poll by `epoll_wait`, or by `epoll_pwait`: a libuv uses one of them.
    pub const POLLS_BY_WAIT: u32 = 1 << 11;
    pub const POLLS_BY_PWAIT: u32 = 1 << 12;
}

record! {
    /// What the kernel half keeps of a thread of a target: keyed by tid, written by the thread itself, read by user space
    /// once a window. `ledger` and the open stretch since `mark_ns` add up to the time since `first_ns`.
    pub struct ThreadState[600] {
        pub tgid: u32,
        pub tid: u32,
        /// Bits of [`flag`].
        pub flags: u32,
        /// One of [`crate::abi::event_loop::phase`].
        pub phase: u32,
        /// First seen.
        pub first_ns: u64,
        /// Up to here the ledger is charged.
        pub mark_ns: u64,
        /// When the thread was switched out, as far as it is.
        pub out_ns: u64,
        /// Woken since, or 0.
        pub woken_ns: u64,
        /// One of [`crate::abi::sched::reason`].
        pub out_reason: u32,
        /// The loop's epoll descriptor, or -1.
        pub poll_fd: i32,
        pub user_stack: u64,
        pub kernel_stack: u64,
        /// Stack captures: tokens left, and when they were last filled up.
        pub stack_tokens: u64,
        pub stack_filled_ns: u64,
        pub loop_addr: u64,
        pub turn_started_ns: u64,
        pub polled_ns: u64,
        /// Entry into the poll that the thread is in, if it may block: counts for the ledger's `poll_ns` when it returns.
        pub poll_entered_ns: u64,
        /// Return of the last poll.
        pub poll_returned_ns: u64,
        pub gc_started_ns: u64,
        pub gc_step_started_ns: u64,
        pub gc_heap: u64,
        pub gc_space: u32,
        pub gc_reason: u32,
        pub gc_collectors: u32,
        /// Whether polls were watched when the thread last polled: see the map `POLLS`.
        pub polls_epoch: u32,
        /// The `struct uv__work` that the thread runs, or 0.
        pub work: u64,
        /// [`Switches::epoch`] when the state was last brought up to date.
        pub switches_epoch: u32,
        pub reserved: u32,
        pub turns: u64,
        pub ledger: Ledger,
        /// The ledger when the turn began.
        pub turn_base: Ledger,
        /// The ledger when the last, empty poll returned: where the turn ends if it was one of its own.
        pub poll_base: Ledger,
    }
}

/// A CPU wakes the reader of stacks no more often: to wake costs more than a stack. The reader looks again after so long.
pub const STACK_WAKEUP_NS: u64 = 5_000_000;

/// And for so long after a full collection only: what a stack's frames point at moves in the next one, which may be near. Of a process
/// that collects less often, one stack in twenty at most waits through a collection, and of that one only what is new to the reader is lost.
pub const STACK_URGENT_NS: u64 = 1_000_000_000;

/// Words of a filter that tells most processes from targets at the price of one load: bit `tgid % TARGET_BITS` is set for each target.
pub const TARGET_WORDS: u32 = 1024;
pub const TARGET_BITS: u32 = TARGET_WORDS * 64;

/// Times that [`Switches`] keeps.
pub const SWITCHES_KEPT: usize = 8;

record! {
    /// What user space says of switches, of stacks at them and of samples.
    pub struct Switches[104] {
        /// Even while switches are watched and odd while they are not; each change adds one.
        pub epoch: u32,
        /// 1 once nothing is recorded any more of whatever process.
        pub quiet: u32,
        /// In so many nanoseconds a thread earns a stack.
        pub stack_token_ns: u64,
        /// So many times the price of another stack one costs of a thread that was preempted.
        pub preempted_tokens: u64,
        /// And that of a thread that turns no loop and runs no item of the thread pool, as far as is seen: it waits for work.
        pub other_tokens: u64,
        /// One tick of a CPU's clock in so many is a sample; 0 counts as 1.
        pub sample_step: u32,
        pub reserved: u32,
        /// When they were last watched, by `epoch / 2` of the time before.
        pub until_ns: [u64; SWITCHES_KEPT],
    }
}

impl Switches {
    /// A thread may take 4000 stacks a second, which cost about one percent of a core where they are 20 frames deep.
    pub const STACK_TOKEN_NS: u64 = 250_000;

    /// 250 a second, where all stays count.
    pub const PREEMPTED_TOKENS: u64 = 16;
    /// 60 a second, where only long ones do: most that are preempted are back soon, and their stacks are for nothing.
    pub const PREEMPTED_TOKENS_LONG: u64 = 64;
    /// 15 a second: it is the same one again and again.
    pub const OTHER_TOKENS_LONG: u64 = 256;

    /// Up to when a state that was brought up to date in `epoch` can be relied on, where that is over; 0 where nobody knows any more,
    /// or where nothing was watched then.
    #[inline(always)]
    #[must_use]
    pub fn until(&self, epoch: u32) -> u64 {
        let is_kept = self.epoch.wrapping_sub(epoch) < 2 * SWITCHES_KEPT as u32;
        if epoch & 1 == 0 && is_kept { self.until_ns[(epoch >> 1) as usize & (SWITCHES_KEPT - 1)] } else { 0 }
    }
}

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
    /// A PostgreSQL cluster whose backends are traced, keyed by the tgid of its postmaster, the parent of each of them.
    pub struct Cluster[24] {
        /// Offsets in `PGPROC`: of the process id, and of the lock that is waited for; 0 is not known.
        pub proc_pid: u32,
        pub proc_wait_lock: u32,
        /// Address of the server's variable `my_wait_event_info`, the same in all of its processes; 0 is not known.
        pub wait_pointer: u64,
        /// Address of the server's variable `MyProc`; 0 where its waits for locks are told by uprobes.
        pub my_proc: u64,
    }
}

/// Classes of wait events, the high byte of `wait_event_info`, in which nothing keeps a backend from its work: it waits for some
/// (`Activity`), for its client, or for a time to pass (`Timeout`). They are left out.
#[inline(always)]
#[must_use]
pub const fn is_idle_wait(event: u32) -> bool {
    matches!(event >> 24, 0x05 | 0x06 | 0x09)
}

/// The class of wait events for heavyweight locks, the high byte of `wait_event_info`.
pub const WAIT_CLASS_LOCK: u32 = 0x03;

record! {
    /// A wait for a heavyweight lock that a backend is in, by what it says of itself whenever it leaves the CPU.
    pub struct PgLockWait[56] {
        /// When it left the CPU for it; 0 where it waits for none, [`PgLockWait::BEFORE`] where it did before it was followed.
        pub since_ns: u64,
        /// When it last came back from it; 0 where it has not.
        pub back_ns: u64,
        /// Address of the `LOCK`, and when the wait began by the server's own clock: both are other ones in its next wait.
        pub lock: u64,
        pub server_start: u64,
        pub tag: LockTag,
        /// The mode that is wanted, 1 to 8.
        pub mode: u32,
        /// As PostgreSQL knows it.
        pub pid: u32,
    }
}

impl PgLockWait {
    pub const BEFORE: u64 = 1;
    pub const NONE: Self = Self {
        since_ns: 0,
        back_ns: 0,
        lock: 0,
        server_start: 0,
        tag: LockTag { field1: 0, field2: 0, field3: 0, field4: 0, kind: 0, method: 0 },
        mode: 0,
        pid: 0,
    };
}

record! {
    /// A server process whose waits are followed, keyed by its tid: they have one thread.
    pub struct PgBackend[104] {
        /// As [`Cluster::wait_pointer`] has it.
        pub wait_pointer: u64,
        /// Where that leads to, in the process's `PGPROC`, and where in there the lock is that it waits for: neither changes until it
        /// ends. 0 is not known yet.
        pub event_at: u64,
        pub lock_at: u64,
        /// When it was switched out while it waited for `event`.
        pub out_ns: u64,
        /// The postmaster.
        pub cluster: u32,
        /// `wait_event_info`: what it waits for off CPU; 0 where it is not seen to wait.
        pub event: u32,
        /// As PostgreSQL knows it; 0 is not known yet.
        pub pid: u32,
        pub reserved: u32,
        pub lock: PgLockWait,
    }
}

impl PgBackend {
    #[must_use]
    pub const fn new(cluster: u32, wait_pointer: u64) -> Self {
        Self {
            wait_pointer,
            event_at: 0,
            lock_at: 0,
            out_ns: 0,
            cluster,
            event: 0,
            pid: 0,
            reserved: 0,
            lock: PgLockWait::NONE,
        }
    }
}

record! {
    /// Key of the histograms of waits, which are kept in the kernel as there are too many to send each.
    pub struct PgWaitKey[12] {
        /// The postmaster.
        pub cluster: u32,
        /// `wait_event_info`.
        pub event: u32,
        /// [`crate::histogram::index`] of the wait in nanoseconds.
        pub bucket: u16,
        /// The low bits of [`PgWaitWindow::epoch`] when it ended.
        pub epoch: u16,
    }
}

record! {
    /// Waits of a bucket that ended in a window.
    pub struct PgWaitSum[16] {
        pub count: u64,
        /// Their time within the window.
        pub time_ns: u64,
    }
}

record! {
    /// The window that waits are counted in. Only user space writes it.
    pub struct PgWaitWindow[16] {
        pub began_ns: u64,
        /// One more with each window.
        pub epoch: u32,
        pub reserved: u32,
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

record! {
    /// Key of a thing that was made and is not gone yet: a global handle by its slot.
    pub struct AliveKey[16] {
        pub at: u64,
        pub tgid: u32,
        /// One of [`crate::state::site`].
        pub kind: u32,
    }
}

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
    /// Key of a place in the program that makes things: the id of a [`crate::abi::stack::UserStack`].
    pub struct SiteKey[16] {
        pub stack: u64,
        pub tgid: u32,
        /// One of [`site`].
        pub kind: u32,
    }
}

record! {
    /// A wait for a lock that a backend is in, keyed by its tgid: see [`crate::abi::postgres`].
    pub struct LockWaitState[56] {
        pub started_ns: u64,
        pub lock: u64,
        pub tag: LockTag,
        pub cluster: u32,
        pub pid: u32,
        pub mode: u32,
        /// 1 once its end was sent.
        pub ended: u32,
        pub reserved: u64,
    }
}

record! {
    /// What a site made, and what of it is gone, since the trace began; as far as it was watched.
    pub struct SiteState[16] {
        pub made: u64,
        pub gone: u64,
    }
}

record! {
    /// Per family and CPU: what the kernel half tried to send and what the ring had no room for.
    pub struct FamilyCounters[16] {
        pub emitted: u64,
        pub dropped: u64,
    }
}

record! {
    /// All tallies of the kernel half, one value a CPU: user space reads them with a single call.
    pub struct Tally[1080] {
        pub families: [FamilyCounters; family::COUNT],
        /// By [`counter`].
        pub counters: [u64; counter::COUNT],
        /// By slot: see [`crate::spec::HITS_TRACEPOINTS`].
        pub hits: [u64; HITS_COUNT as usize],
    }
}

/// Mapped files of a process that code without frame pointers is unwound in by table.
pub const REGIONS_MAX: usize = 24;

/// Rows of all tables: libc has 12 000, PostgreSQL 60 000; 8 B each.
pub const UNWIND_ROWS_MAX: u32 = 1 << 18;

record! {
    /// A part of a process's address space whose code is unwound by rows of the table.
    pub struct Region[32] {
        pub start: u64,
        pub end: u64,
        /// What is taken from an address to compare it with [`UnwindRow::start`].
        pub base: u64,
        /// Its rows in the table, sorted by address.
        pub first_row: u32,
        pub rows: u32,
    }
}

record! {
    /// What is unwound by table in a process, keyed by tgid. All other code is expected to keep frame pointers.
    pub struct Regions[792] {
        /// No region lies outside these.
        pub low: u64,
        pub high: u64,
        pub count: u32,
        /// No other value that was ever in the map has the same, and 0 is none's: what was looked up in it may be kept.
        pub stamp: u32,
        pub regions: [Region; REGIONS_MAX],
    }
}

/// How the caller's frame is found: the low bits of [`UnwindRow::cfa`].
pub mod cfa {
    /// The canonical frame address is the stack pointer and so many words.
    pub const SP: u16 = 0;
    /// It is the frame pointer and so many words.
    pub const FP: u16 = 1;
    /// Nothing called this code.
    pub const OUTERMOST: u16 = 2;
    /// The code says it in a way that rows cannot, or not at all.
    pub const UNKNOWN: u16 = 3;
    pub const BITS: u32 = 2;
}

record! {
    /// From this address to the next row's, the caller's frame is found like this. The return address lies below the canonical
    /// frame address.
    pub struct UnwindRow[8] {
        pub start: u32,
        /// A [`cfa`] rule, and above it the words to add.
        pub cfa: u16,
        /// Words from the canonical frame address to where the caller's frame pointer is kept; 0: it is still in its register.
        pub fp: i16,
    }
}

/// Reasons for which the kernel half gave something up, and tallies of its own work: indices of [`Tally::counters`].
pub mod counter {
    /// A thread could not be tracked: the map was full.
    pub const THREADS_FULL: u32 = 0;
    /// A work item could not be tracked: the map was full.
    pub const WORKS_FULL: u32 = 1;
    /// A stack was not taken: the thread's budget was used up.
    pub const STACK_OVER_BUDGET: u32 = 2;
    /// The kernel could not walk a stack.
    pub const STACK_FAILED: u32 = 3;
    /// A run-queue latency was not counted: the map was full.
    pub const RUN_QUEUE_FULL: u32 = 4;
    /// A work item ended that was not seen to begin.
    pub const WORK_UNSEEN: u32 = 5;
    /// A thread ran that was not seen to be switched in.
    pub const SWITCH_IN_UNSEEN: u32 = 6;
    /// Stacks that were walked, and their frames: what walking costs.
    pub const STACKS_WALKED: u32 = 7;
    pub const FRAMES_WALKED: u32 = 8;
    /// A stack was not taken: another probe was taking one on the same CPU.
    pub const STACK_BUSY: u32 = 9;
    /// A thing or a site could not be tracked: the map was full, or its place was not known.
    pub const SITES_FULL: u32 = 10;
    /// A wait for a lock was not followed: the map was full.
    pub const LOCK_WAITS_FULL: u32 = 11;
    /// The waits of a server process were not followed: the map was full.
    pub const PG_BACKENDS_FULL: u32 = 12;
    /// A wait was not counted: the map was full.
    pub const PG_WAITS_FULL: u32 = 13;
    /// A wait was not counted: the process was not seen to be switched in, so that its end is not known.
    pub const PG_WAIT_END_UNSEEN: u32 = 14;
    pub const COUNT: usize = 15;
    pub const NAMES: [&str; COUNT] = [
        "threads_full",
        "works_full",
        "stack_over_budget",
        "stack_failed",
        "run_queue_full",
        "work_unseen",
        "switch_in_unseen",
        "stacks_walked",
        "frames_walked",
        "stack_busy",
        "sites_full",
        "lock_waits_full",
        "pg_backends_full",
        "pg_waits_full",
        "pg_wait_end_unseen",
    ];
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
