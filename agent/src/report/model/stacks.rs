//! Stacks, and the time off CPU that they explain.

use serde::{Deserialize, Serialize};

use super::{Class, OffReason, Space};

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
    /// Innermost first.
    pub frames: Vec<Frame>,
}

/// One frame, or one of the functions that were inlined into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub name: String,
    pub kind: FrameKind,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub module: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub inlined: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameKind {
    Kernel,
    Native,
    Js,
    Builtin,
    #[default]
    Unknown,
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
