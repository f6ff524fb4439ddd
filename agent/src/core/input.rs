//! What the core is told. A log of inputs replays to the same bytes of output.

use std::{collections::BTreeMap, sync::Arc};

use agent_ebpf::{
    abi::family,
    state::{FamilyCounters, PgWaitKey, PgWaitSum, RunQueueKey, SWITCHES_KEPT, counter},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    postgres::{OpenWait, PgPid, Reading, WaitEvent},
    report::model::{Degraded, EndReason, Frame, Memory, StackId, StreamAccount, TraceConfig, Truncated},
    units::{Clock, MonoNs, Pid, Tid, UserAddr, WallNs},
};

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The trace begins, though there may be nobody to trace yet.
    Begin { since: MonoNs, clock: Clock },
    /// The wall clock was set, or the machine has slept.
    ClockSet(Clock),
    /// A process is traced from here on.
    Target(Box<TargetFacts>),
    /// A PostgreSQL cluster is traced from here on.
    Cluster(Box<ClusterFacts>),
    /// Who waits for whom in a cluster, read from its memory; before each tick, and first of all.
    PgReading(Box<Reading>),
    /// The backends that serve a process's connections, one a connection; before each tick.
    PgClient { client: Pid, cluster: Pid, backends: Vec<PgPid> },
    /// Answer to [`super::Output::NeedAwaits`].
    Awaits { pid: Pid, at: MonoNs, awaits: Vec<Await> },
    /// What a cluster calls the events that its backends wait for; before the first tick that has them.
    PgWaitEvents { cluster: Pid, names: Vec<(WaitEvent, String)> },
    /// What a relation is called.
    PgRelation { cluster: Pid, database: u32, relation: u32, name: String },
    /// The driver can see the process no more.
    TargetGone { pid: Pid, now: MonoNs },
    /// Records of one family as its ring delivers them: each one after its length as a little-endian `u32`.
    Records { family: u32, bytes: Bytes },
    /// A window ends. The driver drains the rings first.
    Tick(Box<Tick>),
    /// What a process holds, as the driver has read it just before a tick.
    Memory { pid: Pid, now: MonoNs, memory: Box<Memory> },
    /// Answer to [`super::Output::NeedWorkClass`]; `None` if the vtable has no name.
    WorkClass { pid: Pid, vtable: UserAddr, class: Option<String> },
    /// Answer to [`super::Output::NeedSymbols`].
    /// `at` is when the names had been found; `None` where nobody looked.
    Symbolized { stack: StackId, frames: Vec<Arc<Frame>>, truncated: Option<Truncated>, at: Option<MonoNs> },
    /// The trace ends; the driver detached, drained and sent its last tick before.
    Stop { now: MonoNs, reason: EndReason },
}

/// Async calls that are suspended at one place, and who awaits them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Await {
    /// An id for the frames, by their content.
    pub stack: u64,
    pub count: u64,
    /// As [`crate::decode::UserFrame`] has them of a suspended function: object and offset in its bytecode.
    pub frames: Vec<(u64, u64)>,
    /// As [`crate::decode::UserFrames`] has them.
    pub major_gcs: u32,
    pub gcs: u32,
}

/// What the driver knows of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    pub pid: Pid,
    /// When tracing of it began.
    pub since: MonoNs,
    pub clock: Clock,
    pub start_time: Option<WallNs>,
    pub exe: String,
    /// `argv[0]` and the script.
    pub command: Vec<String>,
    pub node_version: Option<String>,
    pub thread_pool_size: Option<u32>,
    pub config: TraceConfig,
    pub degraded: Vec<Degraded>,
    pub kernel_release: String,
    pub cpus: u32,
    /// Attributes of OpenTelemetry's resources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resource: BTreeMap<String, String>,
}

/// What the driver knows of a PostgreSQL cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// The postmaster.
    pub pid: Pid,
    pub since: MonoNs,
    pub clock: Clock,
    pub start_time: Option<WallNs>,
    pub exe: String,
    pub server_version: Option<String>,
    /// Server processes beside the postmaster.
    pub processes: u32,
    pub degraded: Vec<Degraded>,
    /// Attributes of OpenTelemetry's resources.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resource: BTreeMap<String, String>,
}

/// The maps of the kernel half, and what else changes, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    pub now: MonoNs,
    /// Of the time since the last tick, the phase probes were attached for.
    pub phases_seen_ns: u64,
    /// Likewise those on HTTP requests.
    pub requests_seen_ns: u64,
    /// And the thread pool.
    pub pool_seen_ns: u64,
    /// And polls, which turns are told apart by.
    pub turns_seen_ns: u64,
    /// And what PostgreSQL's backends wait for.
    pub waits_seen_ns: u64,
    /// And switches, by which time is accounted for.
    pub switches_seen_ns: u64,
    /// What the kernel half went by at switches: see [`agent_ebpf::state::Switches`].
    pub switches_epoch: u32,
    pub switches_until_ns: [u64; SWITCHES_KEPT],
    /// See [`agent_ebpf::state::ThreadState::polls_epoch`].
    pub polls_epoch: u32,
    /// [`agent_ebpf::state::ThreadState`], one after the other.
    pub threads: Bytes,
    /// Items in flight: [`agent_ebpf::state::WorkKey`] and [`agent_ebpf::state::WorkState`] in turn. Without them queue depth and
    /// busy time only know of items that ended in the window.
    pub works: Bytes,
    /// Counts since the trace began.
    pub run_queue: Vec<(RunQueueKey, u64)>,
    /// Waits of PostgreSQL's backends that ended since the last tick.
    pub pg_waits: Vec<(PgWaitKey, PgWaitSum)>,
    /// And those that go on.
    pub pg_open_waits: Vec<OpenWait>,
    /// Sums over the CPUs.
    pub families: [FamilyCounters; family::COUNT],
    /// Records that the intake took from each ring; read after `families`.
    pub received: [u64; family::COUNT],
    pub kernel_counters: [u64; counter::COUNT],
    pub thread_names: Vec<(Tid, String)>,
    pub self_cost: SelfCost,
}

impl Default for Tick {
    fn default() -> Self {
        Self {
            now: MonoNs::default(),
            phases_seen_ns: 0,
            requests_seen_ns: 0,
            pool_seen_ns: u64::MAX,
            turns_seen_ns: u64::MAX,
            waits_seen_ns: u64::MAX,
            switches_seen_ns: u64::MAX,
            switches_epoch: 0,
            switches_until_ns: [0; SWITCHES_KEPT],
            polls_epoch: 0,
            threads: Bytes::new(),
            works: Bytes::new(),
            run_queue: Vec::new(),
            pg_waits: Vec::new(),
            pg_open_waits: Vec::new(),
            families: [FamilyCounters { emitted: 0, dropped: 0 }; family::COUNT],
            received: [0; family::COUNT],
            kernel_counters: [0; counter::COUNT],
            thread_names: Vec::new(),
            self_cost: SelfCost::default(),
        }
    }
}

/// What the agent has cost since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfCost {
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub rss_bytes: u64,
    /// Slot of the kernel half's `HITS` map, and hits.
    pub hits: Vec<(u64, u64)>,
    /// Time in BPF programs, where the kernel counts it.
    pub bpf_run_ns: Option<u64>,
    /// Nanoseconds that a hit of a uprobe was measured to take from the thread that hits it.
    #[serde(default)]
    pub hit_cost_ns: Option<u64>,
    /// CPU time that probes might take from what runs here so far, to keep to the budget.
    #[serde(default)]
    pub budget_ns: u64,
    /// So many times rarer than usual stacks off CPU and samples are, looks at heaps, and the time that turns and the thread pool may
    /// take, to keep to the budget.
    pub stacks_rarer: u32,
    pub samples_rarer: u32,
    pub looks_rarer: u32,
    pub records_rarer: u32,
    /// The streams of records to collectors, since the trace began.
    #[serde(default)]
    pub streams: Vec<StreamAccount>,
}
