//! The output model: what a line of NDJSON says. `agent/schema/trace.schema.json` describes it to others.
//!
//! Times are RFC 3339 with nanoseconds, durations integer nanoseconds with the unit in the key, ids of stacks hexadecimal
//! strings (JSON numbers lose bits above 2^53). A reader must tolerate keys and types that it does not know.

mod account;
mod finding;
mod memory;
mod postgres;
mod stacks;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use account::{AgentCost, End, EndReason, FamilyAccount, ProbeHits, StreamAccount};
pub use finding::{Evidence, Finding, Growth, Severity};
pub use memory::{Heap, HeapCount, LoopHandles, Memory, Resident, Site, SiteKind};
pub use postgres::{
    Advice, BackendKind, BackendState, PgAwait, PgBackend, PgClient, PgClientLock, PgCluster, PgDeadlock, PgHolder,
    PgLink, PgLock, PgLockName, PgQueued, PgRoot, PgWaitEvent, PgWaiter, PgWaits, PgWaitsFor, PgWindow,
};
pub use stacks::{
    Frame, FrameKind, Measure, OffCpu, OffCpuStack, OffCpuTotals, Profile, ProfileStack, ProfileThread, Stack, StackId,
    Tier, Truncated,
};

use super::histogram_json;
use crate::aggregate::histogram::Histogram;
pub use crate::{
    aggregate::thread_pool::WorkKind,
    decode::{Class, GcType, HeapSeverity, OffReason, Space},
};

/// Rises when a key changes its meaning or goes away; new keys and new types do not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub schema_version: u32,
    /// When the recorded thing ended, RFC 3339.
    pub time: String,
    /// The process, in the initial pid namespace; 0 where the line is about the whole trace.
    pub pid: u32,
    #[serde(flatten)]
    pub body: Body,
}

/// The types of lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    /// A process is traced from here on.
    Target(Box<Target>),
    /// What happened in a window of time, a second as a rule.
    Window(Box<Window>),
    /// One turn of an event loop that took longer than the threshold.
    SlowTurn(Box<SlowTurn>),
    /// One garbage collection pause.
    GcPause(GcPause),
    /// V8 is at its heap limit.
    HeapLimit(HeapLimit),
    /// The frames of a stack that other lines name; it comes at most a window after its first use.
    Stack(Stack),
    /// Where a window's time off CPU went, by stack.
    OffCpu(OffCpu),
    /// What ran on the CPUs in a window, by stack.
    Profile(Profile),
    /// A PostgreSQL cluster is traced from here on.
    PgCluster(Box<PgCluster>),
    /// Lock waits of a cluster in a window.
    PgWindow(Box<PgWindow>),
    /// One lock that was waited for: who holds it, who waits, what would help.
    PgLock(Box<PgLock>),
    /// Which of a process's connections to PostgreSQL wait for locks.
    PgClient(Box<PgClient>),
    /// A deadlock that the server broke.
    PgDeadlock(Box<PgDeadlock>),
    /// What a process held at the end of a window: memory and handles.
    Memory(Box<Memory>),
    /// A fork, an exec, an exit.
    Process(Process),
    /// Something is wrong with the process, with evidence and what to do.
    Finding(Box<Finding>),
    /// Something is wrong with the trace, or poorer than it should be.
    Warning(Warning),
    /// What the agent itself cost in a window, and what it lost.
    Agent(Box<AgentCost>),
    /// The end of the trace.
    End(End),
}

/// Facts about a process and about how it is traced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub agent_version: String,
    /// When the process started, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_start_time: Option<String>,
    /// When tracing began.
    pub trace_start_time: String,
    pub exe: String,
    /// `argv[0]` and the script; nothing else, as arguments may hold secrets.
    pub command: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_pool_size: Option<u32>,
    pub config: TraceConfig,
    /// What does not work on this target.
    pub degraded: Vec<Degraded>,
    pub kernel_release: String,
    pub cpus: u32,
    /// Who it is: attributes by their names in OpenTelemetry's conventions for resources.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub resource: BTreeMap<String, String>,
}

/// Thresholds, as they were in this trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceConfig {
    pub window_ns: u64,
    pub slow_turn_ns: u64,
    pub loop_off_cpu_min_ns: u64,
    pub other_off_cpu_min_ns: u64,
    /// Samples a second and CPU; 0 is none.
    #[serde(default)]
    pub sample_hz: u32,
    /// Period of the timer whose lateness `nodejs.eventloop.delay` states.
    pub delay_resolution_ns: u64,
    /// Of `agent profile`: what was measured. Such a trace has no lines about windows and turns.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub profile: Option<Measure>,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self {
            window_ns: 1_000_000_000,
            slow_turn_ns: 50_000_000,
            loop_off_cpu_min_ns: 100_000,
            other_off_cpu_min_ns: 1_000_000,
            sample_hz: 0,
            delay_resolution_ns: 10_000_000,
            profile: None,
        }
    }
}

/// A feature that is off or poorer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degraded {
    pub feature: String,
    pub reason: String,
}

/// One window of one process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub duration_ns: u64,
    /// Of which the phase probes were attached.
    pub phases_seen_ns: u64,
    /// Of which the ends of HTTP requests were watched.
    #[serde(default)]
    pub requests_seen_ns: u64,
    /// Of which the thread pool was watched: its items and its queue are those of that time. `None` in records of versions that
    /// watched it all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_seen_ns: Option<u64>,
    /// Of which polls were watched: turns, and what is said of them, are those of that time. `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_seen_ns: Option<u64>,
    /// Of which switches were watched: what threads did in the rest of the time is unaccounted, and stays off CPU and waits for a CPU
    /// are those of that time. `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switches_seen_ns: Option<u64>,
    /// Threads that turn an event loop: the main thread first.
    pub loops: Vec<LoopWindow>,
    /// All other threads.
    pub threads: Vec<ThreadWindow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_pool: Option<ThreadPool>,
    pub gc: Vec<Gc>,
    /// Wake-up (or preemption) to running, by class of thread.
    pub run_queue: Vec<RunQueue>,
}

impl Window {
    /// For how long each part was watched that is not always.
    #[must_use]
    pub fn watched_ns(&self) -> [(&'static str, u64); 5] {
        [
            ("switches", self.switches_seen_ns.unwrap_or(self.duration_ns)),
            ("turns", self.turns_seen_ns.unwrap_or(self.duration_ns)),
            ("phases", self.phases_seen_ns),
            ("requests", self.requests_seen_ns),
            ("thread_pool", self.pool_seen_ns.unwrap_or(self.duration_ns)),
        ]
    }
}

/// Where a thread's time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerPart {
    pub wall_ns: u64,
    pub idle_ns: u64,
    pub on_cpu_ns: u64,
    pub blocked_ns: u64,
    pub runnable_ns: u64,
    pub stopped_ns: u64,
    /// Wall time that no part accounts for; negative where the parts overlap.
    pub unaccounted_ns: i64,
    pub switches: u64,
}

/// One event-loop thread in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopWindow {
    pub tid: u32,
    pub name: String,
    pub role: Role,
    #[serde(flatten)]
    pub ledger: LedgerPart,
    /// `on_cpu_ns` by phase of the loop; `unsplit` is time when phase probes were not attached.
    pub on_cpu_by_phase_ns: Phases,
    /// Of which: garbage collection pauses, as wall time.
    pub gc_ns: u64,
    /// Of which: off CPU, in stays above the threshold.
    #[serde(default)]
    pub gc_off_cpu_ns: u64,
    /// Wall time in polls that were allowed to block.
    pub poll_ns: u64,
    pub events: u64,
    /// Synchronous file system requests: they ran on this thread.
    pub sync_fs: u64,
    /// HTTP requests served, as far as they were watched: see [`Window::requests_seen_ns`].
    #[serde(default)]
    pub requests: u64,
    pub turns: u64,
    pub slow_turns: u64,
    /// `1 - poll_ns / wall_ns`.
    #[serde(rename = "nodejs.eventloop.utilization")]
    pub utilization: f64,
    #[serde(rename = "nodejs.eventloop.time")]
    pub time: LoopTime,
    /// Lateness of a virtual timer, its period not included.
    #[serde(rename = "nodejs.eventloop.delay", with = "histogram_json")]
    pub delay: Histogram,
    /// From the return of one poll to the entry into the next.
    #[serde(with = "histogram_json")]
    pub turn_busy: Histogram,
}

/// `nodejs.eventloop.time` by `nodejs.eventloop.state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopTime {
    pub active_ns: u64,
    pub idle_ns: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    #[default]
    Main,
    Worker,
    ThreadPool,
    Other,
}

/// Nanoseconds by phase of the loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    pub unsplit: u64,
    pub timers: u64,
    pub pending: u64,
    pub prepare: u64,
    pub poll: u64,
    pub check: u64,
    pub closing: u64,
}

/// One other thread in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadWindow {
    pub tid: u32,
    pub name: String,
    pub role: Role,
    #[serde(flatten)]
    pub ledger: LedgerPart,
    /// On CPU for the garbage collector, beside JavaScript or in its pauses.
    #[serde(default)]
    pub gc_ns: u64,
}

/// libuv's thread pool in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThreadPool {
    /// Threads; 0 is not known.
    pub size: u32,
    /// Most items that waited for a thread at one time.
    pub queue_len_max: u64,
    /// Items waiting, integrated over time: divided by the window's length it is the mean queue length.
    pub queue_len_ns: u64,
    /// Threads at work, integrated over time.
    pub busy_ns: u64,
    /// All threads were at work.
    pub all_busy_ns: u64,
    pub work: Vec<Work>,
}

/// Finished items of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Work {
    pub kind: WorkKind,
    /// Operation or class, as far as it is known.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub operation: String,
    pub count: u64,
    pub cancelled: u64,
    pub failed: u64,
    /// Submitted until a thread took it up.
    #[serde(with = "histogram_json")]
    pub queue_wait: Histogram,
    #[serde(with = "histogram_json")]
    pub run: Histogram,
    /// Done until the loop took it back.
    #[serde(with = "histogram_json")]
    pub completion_delay: Histogram,
    #[serde(with = "histogram_json")]
    pub total: Histogram,
}

/// Garbage collection of one isolate's thread in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gc {
    pub tid: u32,
    #[serde(rename = "v8js.gc.type")]
    pub gc_type: GcType,
    #[serde(rename = "v8js.gc.duration", with = "histogram_json")]
    pub duration: Histogram,
    /// Pauses by V8's reason for them.
    pub reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunQueue {
    pub class: Class,
    #[serde(with = "histogram_json")]
    pub latency: Histogram,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowTurn {
    pub tid: u32,
    /// The turn had not ended when the trace did.
    pub open: bool,
    pub started: String,
    /// From the return of one poll to the entry into the next: nothing else ran on the loop.
    pub busy_ns: u64,
    #[serde(flatten)]
    pub ledger: LedgerPart,
    pub on_cpu_by_phase_ns: Phases,
    pub gc_ns: u64,
    pub sync_fs: u64,
    pub events: u64,
    /// Pauses within it, longest first.
    pub gc: Vec<GcPause>,
    /// Stays off CPU within it, longest first.
    pub off_cpu: Vec<OffCpuStay>,
    /// Where it was on CPU, as far as it was sampled, most samples first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub on_cpu: Vec<OnCpuStack>,
    /// Pauses and stays that are not listed.
    pub omitted: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPause {
    pub tid: u32,
    #[serde(rename = "v8js.gc.type")]
    pub gc_type: GcType,
    pub reason: String,
    pub duration_ns: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffCpuStay {
    pub reason: OffReason,
    pub duration_ns: u64,
    pub runnable_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_stack: Option<StackId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_stack: Option<StackId>,
}

/// Samples of one stack within a slow turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnCpuStack {
    pub samples: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_stack: Option<StackId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_stack: Option<StackId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapLimit {
    pub tid: u32,
    pub severity: HeapSeverity,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Process {
    /// The first turn of one of its loops was seen to end: what its probes tell is coming in.
    FirstTurn {
        tid: u32,
    },
    ThreadStart {
        tid: u32,
        parent_tid: u32,
    },
    ThreadEnd {
        tid: u32,
        name: String,
    },
    Fork {
        child_pid: u32,
    },
    Exec {
        name: String,
    },
    Exit {
        name: String,
        code: Option<u8>,
        signal: Option<u8>,
        core_dumped: bool,
    },
    /// The agent can see the process no more.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A word to filter by.
    pub code: String,
    pub message: String,
}
