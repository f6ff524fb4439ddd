//! What is attached where: one row a probe. The attach plan, `doctor`, the agent's own metrics and the table in the
//! README all derive from these rows.

/// Which part of a Node process exports or hides the function; each may be a library file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    Libuv,
    V8,
    Node,
    Postgres,
    /// The C library, or what else has `malloc`.
    Libc,
}

/// Probes that are attached and detached together, over one link a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Always on, also beside samples alone: that there is a garbage collection, a full one or another, and the heap limit.
    Gc,
    /// Which other one it is, steps between pauses, and what V8's own threads do for it: for the ledger and for who reads of pauses.
    GcKinds,
    /// The thread pool, whose items hit four of them each.
    Pool,
    /// The agent's own measurement of what a hit costs; never in a target.
    Calibration,
    /// The boundaries of event-loop phases: some hits a turn, so they are sampled in time where turns are fast.
    Phases,
    /// Waits for locks in PostgreSQL: hit only where a backend waits.
    Postgres,
    /// No uprobes: the tracepoints at the polls of event loops, which turns are told apart by.
    Polls,
    /// No uprobes: the scheduler's tracepoints, by which time is accounted for.
    Switches,
    /// No uprobes: the scheduler's tracepoint by which PostgreSQL's waits are followed, while there is a cluster.
    Waits,
    /// The end of each HTTP request: one hit a request, so sampled in time where they are many.
    Requests,
    /// What makes global handles: up to some hits a request, so on suspicion, for seconds.
    Makers,
    /// What frees global handles: for as long as those that were seen to be made are watched.
    Takers,
    /// What makes blocks of handle scopes: some hits a request, likewise on suspicion.
    Scopes,
    /// No uprobes: the tracepoint at page faults of user space, which are some thousand a second on a busy host. Likewise on suspicion.
    Faults,
    /// What takes areas of a JavaScript heap: some hundred hits a second, likewise on suspicion.
    Allocators,
    /// What hands out native memory: up to some thousand hits a second, so where it is asked for, and on suspicion.
    Allocations,
    /// What takes it back: for as long as what was handed out is watched.
    Frees,
}

/// What is missing where a probe cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    Phases,
    ThreadPool,
    Gc,
    HeapLimit,
    PostgresLocks,
    Requests,
    Handles,
    NativeLeaks,
}

/// Where in the machine code the probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The function's entry, or the first instruction of its straight-line prologue that the kernel emulates, provided
    /// that the argument registers named in [`Probe::args`] still hold the arguments there.
    Entry,
    /// In `caller`: the first emulated instruction after its direct call of `callee`, before any other branch target or
    /// call: the moment at which `callee` has returned, at the price of an entry probe.
    AfterCall { caller: &'static str, callee: &'static str },
    /// When the function has returned: the kernel puts its own return address on the stack meanwhile. Where nothing else carries the fact.
    Return,
}

/// Argument registers of the System V ABI, as bits.
pub mod arg {
    pub const NONE: u8 = 0;
    pub const RDI: u8 = 1;
    pub const RSI: u8 = 2;
    pub const RDX: u8 = 4;
    pub const RCX: u8 = 8;
}

/// Ids of uprobes: the attach cookie, so that one program tells its attach points apart.
pub mod id {
    pub const RUN_TIMERS: u64 = 1;
    pub const TIMERS_DONE: u64 = 2;
    pub const RUN_IDLE: u64 = 3;
    pub const RUN_PREPARE: u64 = 4;
    pub const IO_POLL: u64 = 5;
    pub const RUN_CHECK: u64 = 6;
    pub const CHECK_DONE: u64 = 7;

    pub const WORK_SUBMIT: u64 = 16;
    pub const QUEUE_WORK: u64 = 17;
    pub const FS_WORK: u64 = 18;
    pub const GETADDRINFO_WORK: u64 = 19;
    pub const GETNAMEINFO_WORK: u64 = 20;
    pub const RANDOM_WORK: u64 = 21;
    pub const NODE_WORK: u64 = 22;
    pub const ASYNC_SEND: u64 = 23;
    pub const FS_DONE: u64 = 24;
    pub const GETADDRINFO_DONE: u64 = 25;
    pub const GETNAMEINFO_DONE: u64 = 26;
    pub const RANDOM_DONE: u64 = 27;
    pub const QUEUE_DONE: u64 = 28;

    pub const MESSAGE_DONE: u64 = 29;
    pub const HANDLE_CREATE: u64 = 30;
    pub const HANDLE_DESTROY: u64 = 31;
    pub const HANDLE_RELEASE: u64 = 32;
    pub const SCOPE_EXTEND: u64 = 33;
    pub const HEAP_ALLOCATE: u64 = 34;

    pub const GC_START: u64 = 40;
    pub const GC_END: u64 = 41;
    pub const GC_SCAVENGE: u64 = 42;
    pub const GC_MARK_COMPACT: u64 = 43;
    pub const GC_MINOR_MARK_SWEEP: u64 = 44;
    pub const GC_STEP_START: u64 = 45;
    pub const GC_STEP_END: u64 = 46;
    pub const HEAP_LIMIT_NEAR: u64 = 47;
    pub const OUT_OF_MEMORY: u64 = 48;
    pub const GC_MARKING_JOB: u64 = 49;
    pub const GC_SCAVENGER_JOB: u64 = 50;
    pub const GC_SWEEPER_JOB: u64 = 51;
    pub const GC_EVACUATION_JOB: u64 = 52;
    pub const GC_POINTERS_JOB: u64 = 53;
    pub const COMPILE_JOB: u64 = 54;

    pub const MALLOC: u64 = 55;
    pub const CALLOC: u64 = 56;
    pub const REALLOC: u64 = 57;
    pub const ALIGNED_ALLOC: u64 = 58;
    pub const FREE: u64 = 59;
    pub const REALLOC_OLD: u64 = 60;

    /// PostgreSQL's, of a program of their own: from [`super::HITS_POSTGRES`] on.
    pub const LOCK_WAIT: u64 = 96;
    pub const LOCK_GRANTED: u64 = 97;
    pub const LOCK_GIVEN_UP: u64 = 98;
    pub const LOCK_DEADLOCK: u64 = 99;
}

/// One row: a uprobe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub id: u64,
    /// Name in plans, `doctor` and self-metrics.
    pub name: &'static str,
    pub component: Component,
    pub group: Group,
    pub feature: Feature,
    /// Without it, the feature is off; otherwise it is only poorer.
    pub required: bool,
    pub place: Place,
    /// Names of the function, as in the symbol table, over the versions, best first: the first one that is present and can
    /// be placed is probed.
    pub symbols: &'static [&'static str],
    /// Argument registers that the program reads: bits of [`arg`].
    pub args: u8,
}

macro_rules! probes {
    ($(#[$meta:meta])* $table:ident: $($id:ident $name:literal $component:ident $group:ident $feature:ident $required:literal $place:expr, $args:expr, [$($symbol:literal),* $(,)?];)*) => {
        $(#[$meta])*
        pub static $table: &[Probe] = &[$(Probe {
            id: id::$id,
            name: $name,
            component: Component::$component,
            group: Group::$group,
            feature: Feature::$feature,
            required: $required,
            place: $place,
            symbols: &[$($symbol),*],
            args: $args,
        }),*];
    };
}

use Place::{AfterCall, Entry, Return};

probes! {
    /// Every uprobe in Node.js.
    PROBES:
    RUN_TIMERS "run_timers" Libuv Phases Phases true Entry, arg::RDI, ["uv__run_timers"];
    TIMERS_DONE "timers_done" Libuv Phases Phases false AfterCall { caller: "uv_run", callee: "uv__run_timers" }, arg::NONE, [];
    RUN_IDLE "run_idle" Libuv Phases Phases true Entry, arg::RDI, ["uv__run_idle"];
    RUN_PREPARE "run_prepare" Libuv Phases Phases false Entry, arg::RDI, ["uv__run_prepare"];
    IO_POLL "io_poll" Libuv Phases Phases true Entry, arg::RDI, ["uv__io_poll"];
    RUN_CHECK "run_check" Libuv Phases Phases true Entry, arg::RDI, ["uv__run_check"];
    CHECK_DONE "check_done" Libuv Phases Phases false AfterCall { caller: "uv_run", callee: "uv__run_check" }, arg::NONE, [];

    WORK_SUBMIT "work_submit" Libuv Pool ThreadPool true Entry, arg::RDI | arg::RSI | arg::RDX | arg::RCX, ["uv__work_submit"];
    QUEUE_WORK "queue_work" Libuv Pool ThreadPool true Entry, arg::RDI | arg::RSI | arg::RDX, ["uv_queue_work"];
    FS_WORK "fs_work" Libuv Pool ThreadPool true Entry, arg::RDI, ["uv__fs_work"];
    GETADDRINFO_WORK "getaddrinfo_work" Libuv Pool ThreadPool false Entry, arg::RDI, ["uv__getaddrinfo_work"];
    GETNAMEINFO_WORK "getnameinfo_work" Libuv Pool ThreadPool false Entry, arg::RDI, ["uv__getnameinfo_work"];
    RANDOM_WORK "random_work" Libuv Pool ThreadPool false Entry, arg::RDI, ["uv__random_work"];
    // The lambda in ThreadPoolWork::ScheduleWork that the pool thread runs: (uv_work_t*).
    NODE_WORK "node_work" Node Pool ThreadPool false Entry, arg::RDI, [
        "_ZZN4node14ThreadPoolWork12ScheduleWorkEvENUlP9uv_work_sE_4_FUNES2_",
        "_ZZN4node14ThreadPoolWork12ScheduleWorkEvENUlP9uv_work_sE_8__invokeES2_",
    ];
    ASYNC_SEND "async_send" Libuv Pool ThreadPool true Entry, arg::RDI, ["uv_async_send"];
    FS_DONE "fs_done" Libuv Pool ThreadPool true Entry, arg::RDI | arg::RSI, ["uv__fs_done"];
    GETADDRINFO_DONE "getaddrinfo_done" Libuv Pool ThreadPool false Entry, arg::RDI | arg::RSI, ["uv__getaddrinfo_done"];
    GETNAMEINFO_DONE "getnameinfo_done" Libuv Pool ThreadPool false Entry, arg::RDI | arg::RSI, ["uv__getnameinfo_done"];
    RANDOM_DONE "random_done" Libuv Pool ThreadPool false Entry, arg::RDI | arg::RSI, ["uv__random_done"];
    QUEUE_DONE "queue_done" Libuv Pool ThreadPool true Entry, arg::RDI | arg::RSI, ["uv__queue_done"];

    // Called once a message, for servers and clients: (llhttp_t*).
    MESSAGE_DONE "message_done" Node Requests Requests true Entry, arg::RDI, ["llhttp__after_message_complete"];

    // Both overloads pass through it: (this, object).
    HANDLE_CREATE "handle_create" V8 Makers Handles true Entry, arg::RDI, [
        "_ZN2v88internal13GlobalHandles6CreateENS0_6ObjectE",
        "_ZN2v88internal13GlobalHandles6CreateENS0_6TaggedINS0_6ObjectEEE",
    ];
    HANDLE_DESTROY "handle_destroy" V8 Takers Handles true Entry, arg::RDI, ["_ZN2v88internal13GlobalHandles7DestroyEPm"];
    // What the collector frees by itself, after a weak callback: (this, node).
    HANDLE_RELEASE "handle_release" V8 Takers Handles false Entry, arg::RDI, [
        "_ZN2v88internal13GlobalHandles9NodeSpaceINS1_4NodeEE7ReleaseEPS3_",
    ];
    SCOPE_EXTEND "scope_extend" V8 Scopes Handles false Entry, arg::RDI, ["_ZN2v88internal11HandleScope6ExtendEPNS0_7IsolateE"];

    // Once an allocation area of up to some hundred kilobytes: (argc, args, isolate).
    HEAP_ALLOCATE "heap_allocate" V8 Allocators Handles false Entry, 0, [
        "_ZN2v88internal33Runtime_AllocateInYoungGenerationEiPmPNS0_7IsolateE",
    ];

    GC_START "gc_start" V8 Gc Gc true Entry, arg::RDI | arg::RSI | arg::RDX, [
        "_ZN2v88internal4Heap14CollectGarbageENS0_15AllocationSpaceENS0_23GarbageCollectionReasonENS_15GCCallbackFlagsE",
        "_ZN2v88internal4Heap14CollectGarbageENS0_15AllocationSpaceENS0_23GarbageCollectionReasonENS_15GCCallbackFlagsENS0_21PerformHeapLimitCheckENS0_34PerformIneffectiveMarkCompactCheckE",
    ];
    GC_END "gc_end" V8 Gc Gc true Entry, arg::NONE, [
        "_ZN2v88internal8GCTracer4StopENS0_16GarbageCollectorE",
        "_ZN2v88internal8GCTracer19StopObservablePauseEv",
        "_ZN2v88internal8GCTracer19StopObservablePauseENS0_16GarbageCollectorENS_4base9TimeTicksE",
    ];
    GC_SCAVENGE "gc_scavenge" V8 GcKinds Gc false Entry, arg::NONE, ["_ZN2v88internal4Heap8ScavengeEv"];
    GC_MARK_COMPACT "gc_mark_compact" V8 Gc Gc false Entry, arg::NONE, ["_ZN2v88internal4Heap11MarkCompactEv"];
    GC_MINOR_MARK_SWEEP "gc_minor_mark_sweep" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal4Heap14MinorMarkSweepEv",
        "_ZN2v88internal4Heap16MinorMarkCompactEv",
    ];
    GC_STEP_START "gc_step_start" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal18IncrementalMarking4StepEdNS1_16CompletionActionENS0_10StepOriginE",
        "_ZN2v88internal18IncrementalMarking4StepEdNS0_10StepOriginE",
        "_ZN2v88internal18IncrementalMarking4StepENS_4base9TimeDeltaEmNS0_10StepOriginE",
    ];
    // Called once at the end of each step, with what it did.
    GC_STEP_END "gc_step_end" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal8GCTracer25AddIncrementalMarkingStepEdm",
        "_ZN2v88internal8GCTracer25AddIncrementalMarkingStepENS_4base9TimeDeltaEm",
    ];
    // What V8's own threads do for the collector while JavaScript runs or waits; what follows without a pause in between, up to a
    // compilation, counts to it.
    GC_MARKING_JOB "gc_marking_job" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal17ConcurrentMarking12JobTaskMajor3RunEPNS_11JobDelegateE",
        "_ZN2v88internal17ConcurrentMarking7JobTask3RunEPNS_11JobDelegateE",
    ];
    GC_SCAVENGER_JOB "gc_scavenger_job" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal16ScavengerJobTask3RunEPNS_11JobDelegateE",
        "_ZN2v88internal18ScavengerCollector7JobTask3RunEPNS_11JobDelegateE",
    ];
    GC_SWEEPER_JOB "gc_sweeper_job" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal7Sweeper15MajorSweeperJob3RunEPNS_11JobDelegateE",
        "_ZN2v88internal7Sweeper10SweeperJob3RunEPNS_11JobDelegateE",
    ];
    GC_EVACUATION_JOB "gc_evacuation_job" V8 GcKinds Gc false Entry, arg::NONE, ["_ZN2v88internal17PageEvacuationJob3RunEPNS_11JobDelegateE"];
    GC_POINTERS_JOB "gc_pointers_job" V8 GcKinds Gc false Entry, arg::NONE, ["_ZN2v88internal19PointersUpdatingJob3RunEPNS_11JobDelegateE"];
    COMPILE_JOB "compile_job" V8 GcKinds Gc false Entry, arg::NONE, [
        "_ZN2v88internal23OptimizedCompilationJob10ExecuteJobEPNS0_16RuntimeCallStatsEPNS0_12LocalIsolateE",
    ];
    HEAP_LIMIT_NEAR "heap_limit_near" V8 Gc HeapLimit false Entry, arg::RDI, ["_ZN2v88internal4Heap27InvokeNearHeapLimitCallbackEv"];
    OUT_OF_MEMORY "out_of_memory" V8 Gc HeapLimit false Entry, arg::NONE, [
        "_ZN2v88internal2V823FatalProcessOutOfMemoryEPNS0_7IsolateEPKcb",
        "_ZN2v88internal2V823FatalProcessOutOfMemoryEPNS0_7IsolateEPKcRKNS_10OOMDetailsE",
    ];
}

// All of them are exported, as extensions may call them: stripped builds have them too.
probes! {
    /// Every uprobe in PostgreSQL.
    POSTGRES_PROBES:
    // (LOCALLOCK*, ..), with the lock's partition locked up to version 17: its lists stand still.
    LOCK_WAIT "lock_wait" Postgres Postgres PostgresLocks true Entry, arg::RDI, ["ProcSleep"];
    // Called by the waiter itself, when it finds that the lock is its own now.
    LOCK_GRANTED "lock_granted" Postgres Postgres PostgresLocks true Entry, arg::NONE, ["GrantAwaitedLock"];
    // Called by a waiter that is cancelled, or that would wait in vain.
    LOCK_GIVEN_UP "lock_given_up" Postgres Postgres PostgresLocks true Entry, arg::NONE, ["RemoveFromWaitQueue"];
    LOCK_DEADLOCK "lock_deadlock" Postgres Postgres PostgresLocks false Entry, arg::NONE, ["DeadLockReport"];
}

probes! {
    /// Every uprobe in the C library: in one process each, as all others run its code, too.
    LIBC_PROBES:
    MALLOC "malloc" Libc Allocations NativeLeaks true Return, arg::NONE, ["malloc"];
    CALLOC "calloc" Libc Allocations NativeLeaks false Return, arg::NONE, ["calloc"];
    REALLOC "realloc" Libc Allocations NativeLeaks false Return, arg::NONE, ["realloc"];
    ALIGNED_ALLOC "aligned_alloc" Libc Allocations NativeLeaks false Return, arg::NONE, ["aligned_alloc"];
    FREE "free" Libc Frees NativeLeaks true Entry, arg::RDI, ["free"];
    REALLOC_OLD "realloc_old" Libc Frees NativeLeaks true Entry, arg::RDI, ["realloc"];
}

/// How a program hangs on a tracepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Raw: cheap, needs no tracefs, but offsets in the kernel's structures (BTF).
    Raw,
    /// On the tracepoint's record: needs tracefs.
    Record,
    /// On the record, in place of a raw one where the kernel has no BTF.
    Substitute,
    /// On the clock of each CPU: a perf event, where sampling was asked for.
    Clock,
}

/// What a tracepoint is for: not every command needs all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The ledger of threads, and stays off CPU.
    Ledger,
    /// The polls of event loops, by which turns are told apart. While any of these is there, each system call of every process takes
    /// longer. Without them the ledger goes by what a thread is in when it is switched out.
    Polls,
    /// Forks, execs and exits.
    Life,
    /// File work over `io_uring`.
    IoUring,
    /// Samples of what is on CPU.
    Samples,
    /// Pages that are touched for the first time.
    Faults,
    /// What PostgreSQL's backends wait for: attached while a cluster is traced.
    Waits,
}

/// One row: a program of the object on a tracepoint.
#[derive(Clone, Copy, Debug)]
pub struct Tracepoint {
    pub program: &'static str,
    pub category: &'static str,
    pub event: &'static str,
    pub form: Form,
    pub part: Part,
    /// Nothing can be accounted for without it.
    pub required: bool,
}

macro_rules! tracepoints {
    ($($program:literal on $category:literal $event:literal $form:ident $part:ident $required:literal;)*) => {
        /// Every tracepoint.
        pub const TRACEPOINTS: &[Tracepoint] = &[$(Tracepoint {
            program: $program,
            category: $category,
            event: $event,
            form: Form::$form,
            part: Part::$part,
            required: $required,
        }),*];
    };
}

tracepoints! {
    "sched_switch" on "sched" "sched_switch" Raw Ledger true;
    "sched_wakeup" on "sched" "sched_wakeup" Raw Ledger true;
    "sched_wakeup_new" on "sched" "sched_wakeup_new" Raw Ledger true;
    "process_fork" on "sched" "sched_process_fork" Raw Life false;
    "process_exec" on "sched" "sched_process_exec" Raw Life false;
    "process_exit" on "sched" "sched_process_exit" Raw Life false;
    "enter_epoll_wait" on "syscalls" "sys_enter_epoll_wait" Record Polls false;
    "exit_epoll_wait" on "syscalls" "sys_exit_epoll_wait" Record Polls false;
    "enter_epoll_pwait" on "syscalls" "sys_enter_epoll_pwait" Record Polls true;
    "exit_epoll_pwait" on "syscalls" "sys_exit_epoll_pwait" Record Polls true;
    "io_uring_submit" on "io_uring" "io_uring_submit_req" Record IoUring false;
    "io_uring_complete" on "io_uring" "io_uring_complete" Record IoUring false;
    "sched_switch_record" on "sched" "sched_switch" Substitute Ledger true;
    "sched_wakeup_record" on "sched" "sched_wakeup" Substitute Ledger true;
    "sched_wakeup_record" on "sched" "sched_wakeup_new" Substitute Ledger true;
    "sample_cpu" on "perf" "cpu_clock" Clock Samples false;
    "page_fault" on "exceptions" "page_fault_user" Record Faults false;
    "postgres_switch" on "sched" "sched_switch" Raw Waits false;
    "postgres_fork" on "sched" "sched_process_fork" Raw Waits false;
    "postgres_exit" on "sched" "sched_process_exit" Raw Waits false;
}

/// Slots of the hit counters: uprobes by id, then tracepoints in the order of [`TRACEPOINTS`].
pub const HITS_TRACEPOINTS: u32 = 64;
/// The slot of a probe on a function of the agent itself, by which it is measured what a hit costs.
pub const HITS_CALIBRATION: u32 = 63;
/// From here on those of PostgreSQL, by id.
pub const HITS_POSTGRES: u32 = HITS_TRACEPOINTS + 32;
pub const HITS_COUNT: u32 = HITS_POSTGRES + 8;

/// The slot of a tracepoint's program.
///
/// # Panics
///
/// If no row has that program: the kernel half only calls it at compile time.
#[must_use]
pub const fn slot(program: &str) -> u32 {
    let mut row = 0;
    while row < TRACEPOINTS.len() {
        if same(TRACEPOINTS[row].program.as_bytes(), program.as_bytes()) {
            return HITS_TRACEPOINTS + row as u32;
        }
        row += 1;
    }
    panic!("no such program")
}

const fn same(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut at = 0;
    while at < left.len() {
        if left[at] != right[at] {
            return false;
        }
        at += 1;
    }
    true
}

const _: () = assert!(TRACEPOINTS.len() <= (HITS_POSTGRES - HITS_TRACEPOINTS) as usize);
