//! What there is to be decoded.

pub use agent_ebpf::abi::stack::{FunctionName, Leaf, UserFrame};
use agent_ebpf::abi::{event_loop::Ledger, sched};
use agent_ebpf::state::flag;
use serde::{Deserialize, Serialize};

use super::{LockEnd, LockWait};
use crate::units::{MonoNs, Pid, Tid, UserAddr};

/// Something that happened in a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub pid: Pid,
    pub tid: Tid,
    /// When it ended.
    pub at: MonoNs,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Turn(Turn),
    Work(Work),
    GcPause(GcPause),
    GcStep {
        started: MonoNs,
    },
    HeapLimit(HeapSeverity),
    OffCpu(OffCpu),
    Stack(Stack),
    Sample(Sample),
    LockWait(Box<LockWait>),
    LockEnd(LockEnd),
    Fork {
        child_pid: Pid,
        child_tid: Tid,
    },
    Exec {
        name: String,
    },
    /// A process that is not traced runs a program: of use to who looks for more to trace.
    Stranger,
    Exit(Box<Exit>),
}

/// One turn of an event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Return of the poll before it.
    pub started: MonoNs,
    /// Entry into the poll that ended it.
    pub polled: MonoNs,
    pub ledger: Ledger,
}

/// One finished item of the thread pool or of `io_uring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Moments that were not seen are `None`.
    pub submitted: Option<MonoNs>,
    pub started: Option<MonoNs>,
    pub ended: Option<MonoNs>,
    pub task: Task,
    pub cancelled: bool,
    pub failed: bool,
}

/// What an item does, as far as its record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// File system work, by libuv's `uv_fs_type`.
    Fs(u32),
    GetAddrInfo,
    GetNameInfo,
    Random,
    /// `node::ThreadPoolWork` with this vtable.
    Node(UserAddr),
    /// A native addon's own work.
    Queued,
    Unknown,
    /// By `io_uring`'s opcode.
    IoUring(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcPause {
    pub started: MonoNs,
    pub gc_type: GcType,
    /// V8's `GarbageCollectionReason`.
    pub reason: u32,
}

/// `v8js.gc.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GcType {
    Minor,
    Major,
    /// A step of marking between pauses, not a pause.
    Incremental,
    #[default]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeapSeverity {
    /// The next failed allocation kills the process.
    Near,
    /// The process is about to abort.
    OutOfMemory,
    Unknown,
}

/// One stay off CPU, above the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffCpu {
    pub out: MonoNs,
    pub woken: Option<MonoNs>,
    pub user_stack: Option<u64>,
    pub kernel_stack: Option<u64>,
    pub reason: OffReason,
    pub class: Class,
    pub over_budget: bool,
}

/// Why a thread was off CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffReason {
    #[default]
    Blocked,
    Preempted,
    Stopped,
    Unknown,
}

impl OffReason {
    /// `None` for a code that is not known.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        match code {
            sched::reason::BLOCKED => Some(Self::Blocked),
            sched::reason::PREEMPTED => Some(Self::Preempted),
            sched::reason::STOPPED => Some(Self::Stopped),
            _ => None,
        }
    }
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    EventLoop,
    ThreadPool,
    #[default]
    Other,
}

impl Class {
    /// `None` for a code that is not known.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        match code {
            sched::class::EVENT_LOOP => Some(Self::EventLoop),
            sched::class::THREAD_POOL => Some(Self::ThreadPool),
            sched::class::OTHER => Some(Self::Other),
            _ => None,
        }
    }

    /// By the bits of [`agent_ebpf::state::flag`] of a thread's state.
    #[must_use]
    pub fn of_flags(flags: u32) -> Self {
        if flags & flag::LOOP != 0 {
            Self::EventLoop
        } else if flags & flag::POOL != 0 {
            Self::ThreadPool
        } else {
            Self::Other
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    pub id: u64,
    pub frames: Frames,
}

/// Addresses of a stack, innermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frames {
    Kernel(Box<[u64]>),
    User(Box<UserFrames>),
}

impl Frames {
    #[must_use]
    pub fn space(&self) -> Space {
        match self {
            Self::Kernel(_) => Space::Kernel,
            Self::User(_) => Space::User,
        }
    }
}

/// A user stack as the kernel half walked it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserFrames {
    pub frames: Vec<UserFrame>,
    /// Functions that are not on the stack but await it, each the one before.
    pub awaits: Vec<UserFrame>,
    /// Names that functions on the stack have as properties of their own.
    pub names: Vec<FunctionName>,
    /// Registers of the innermost frame, where it was interrupted.
    pub leaf: Option<Leaf>,
    pub end: WalkEnd,
    /// Beginnings and ends of full collections until then, and of all: odd is within one.
    pub major_gcs: u32,
    pub gcs: u32,
}

/// Why a walk over frame pointers ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WalkEnd {
    /// Nothing called this frame.
    #[default]
    Outermost,
    Deep,
    Unreadable,
    NotAbove,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub user_stack: Option<u64>,
    pub kernel_stack: Option<u64>,
    pub class: Class,
    pub in_gc: bool,
    /// Ticks that it stands for.
    pub weight: u32,
    /// Time on CPU that each of them stands for.
    pub period_ns: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    #[default]
    User,
    Kernel,
}

/// The end of a thread, with its last totals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// It was the process's last thread.
    pub process: bool,
    pub code: Option<u8>,
    pub signal: Option<u8>,
    pub core_dumped: bool,
    pub name: String,
    /// `None` if the thread was never seen.
    pub first: Option<MonoNs>,
    /// Bits of [`agent_ebpf::state::flag`].
    pub flags: u32,
    pub ledger: Ledger,
}
