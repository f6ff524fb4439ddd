//! Stacks, and the time off CPU that they explain.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Class, LedgerPart, OffReason, Role, Space};

/// A hash over a stack's addresses; sixteen hexadecimal digits in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StackId(pub u64);

impl From<StackId> for String {
    fn from(id: StackId) -> Self {
        format!("{:016x}", id.0)
    }
}

impl TryFrom<String> for StackId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    pub id: StackId,
    pub space: Space,
    /// Innermost first. Below a frame of kind [`FrameKind::Async`] come the functions that await those above, which were not
    /// on the stack.
    pub frames: Vec<Arc<Frame>>,
    /// Why the outermost frame is not where the thread began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub truncated: Option<Truncated>,
}

/// Why a stack does not reach down to where its thread began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncated {
    /// It is deeper than the walk goes.
    TooDeep,
    /// Code without frame pointers, or a page that was not resident.
    NoFramePointer,
}

/// One frame, or one of the functions that were inlined into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    pub name: String,
    pub kind: FrameKind,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub module: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub inlined: bool,
    /// Of JavaScript: the script's name as V8 has it, a path, a `file:` or `node:` URL.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
    /// From 1, in UTF-16 code units.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<u32>,
    /// The line is where the function begins, as the one that runs is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub start_line: bool,
    /// Where the function begins, where that is known beside the line that runs: what tells functions of one name apart.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function_line: Option<u32>,
    /// Of JavaScript: what ran it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tier: Option<Tier>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    Kernel,
    Native,
    Js,
    /// A function of the language or a stub of V8's, compiled ahead of time.
    Builtin,
    Wasm,
    /// No frame: what follows awaits what came before.
    Async,
    #[default]
    Unknown,
}

/// Which of V8's ways runs a JavaScript function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Ignition.
    Interpreted,
    /// Sparkplug.
    Baseline,
    Maglev,
    Turbofan,
}

/// What `agent profile` measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Samples of what runs.
    #[default]
    OnCpu,
    /// Stays off CPU.
    OffCpu,
    /// Both, and idle apart.
    Wall,
}

/// What ran on the CPUs in a window, by stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Length of the window; 0 where another line states it.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub duration_ns: u64,
    /// Time on CPU that one sample stands for.
    pub period_ns: u64,
    /// Most samples first.
    pub stacks: Vec<ProfileStack>,
    /// Samples of stacks beyond the limit.
    #[serde(default)]
    pub other_samples: u64,
    /// Of `agent profile`: the threads that were seen, the main thread first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub threads: Vec<ProfileThread>,
}

/// A thread in a window of a profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileThread {
    pub tid: u32,
    pub name: String,
    pub role: Role,
    /// Where its time went; absent where switches were not followed.
    #[serde(flatten)]
    pub ledger: Option<LedgerPart>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileStack {
    pub tid: u32,
    pub class: Class,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_stack: Option<StackId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_stack: Option<StackId>,
    pub samples: u64,
    /// Of which: in garbage collection pauses.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub gc_samples: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Time off CPU in a window, above the threshold; the ledgers hold all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffCpu {
    /// By total time, longest first.
    pub stacks: Vec<OffCpuStack>,
    /// Groups beyond the limit, in one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub other: Option<OffCpuTotals>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffCpuStack {
    /// The thread, where they are told apart: in `agent profile`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tid: Option<u32>,
    pub class: Class,
    pub reason: OffReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_stack: Option<StackId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_stack: Option<StackId>,
    #[serde(flatten)]
    pub totals: OffCpuTotals,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffCpuTotals {
    pub count: u64,
    pub total_ns: u64,
    /// Of which: ready to run, waiting for a CPU.
    pub runnable_ns: u64,
    pub max_ns: u64,
    /// Stays without a stack, as the thread's budget for stacks was used up.
    pub over_budget: u64,
}
