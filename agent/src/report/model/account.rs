//! The agent's own cost and books.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{aggregate::histogram::Histogram, report::histogram_json};

/// The agent's own cost in a window, and its books and losses since the trace began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCost {
    pub duration_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub rss_bytes: u64,
    /// Time in BPF programs, where the kernel counts it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bpf_run_ns: Option<u64>,
    pub probes: Vec<ProbeHits>,
    /// CPU time that probes took from what runs here: how often what costs was passed, by its price, that of a uprobe measured here.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe_cost_ns: Option<u64>,
    /// What they might take, to keep to the budget.
    #[serde(default)]
    pub probe_budget_ns: u64,
    /// From when a user stack was taken until its frames had names.
    #[serde(with = "histogram_json", skip_serializing_if = "Histogram::is_empty", default)]
    pub naming: Histogram,
    /// So many times rarer than usual stacks off CPU were, to keep to the budget.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub stacks_rarer: u32,
    /// Likewise samples: each that is left counts for those that are not.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub samples_rarer: u32,
    /// Likewise looks at heaps and handles.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub looks_rarer: u32,
    /// Likewise the time that turns and the thread pool might take, as the agent itself took too much.
    #[serde(skip_serializing_if = "is_one", default = "one")]
    pub records_rarer: u32,
    pub families: Vec<FamilyAccount>,
    /// What the kernel half gave up, by reason.
    pub kernel_counters: BTreeMap<String, u64>,
    /// What user space gave up, by reason.
    pub counters: BTreeMap<String, u64>,
    /// The streams of records to collectors, since the trace began.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub streams: Vec<StreamAccount>,
}

impl AgentCost {
    /// How many times rarer than usual each detail was that can be cut down.
    #[must_use]
    pub fn rarer(&self) -> [(&'static str, u32); 4] {
        [
            ("stacks", self.stacks_rarer),
            ("samples", self.samples_rarer),
            ("looks", self.looks_rarer),
            ("records", self.records_rarer),
        ]
    }
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_one(times: &u32) -> bool {
    *times <= 1
}

/// The books of one stream: `emitted + recovered = delivered + spooled + queued + dropped` at every moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamAccount {
    /// Where it goes.
    pub stream: String,
    /// Records that were made for it.
    pub emitted: u64,
    /// Records of an earlier run that were found in the spool.
    pub recovered: u64,
    /// Records that the collector has: written to it or, over HTTP, acknowledged.
    pub delivered: u64,
    /// Records that wait on disk, and in memory.
    pub spooled: u64,
    pub queued: u64,
    /// Records that were given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Tries that failed and were, or will be, made again.
    pub retries: u64,
}

impl StreamAccount {
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.emitted + self.recovered == self.delivered + self.spooled + self.queued + self.dropped()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeHits {
    pub probe: String,
    pub hits: u64,
}

/// One family of records since the trace began: `emitted = received + dropped + pending`, and `pending` is 0 at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyAccount {
    pub family: String,
    pub emitted: u64,
    /// The ring was full.
    pub dropped: u64,
    pub received: u64,
    /// Of which: understood.
    pub decoded: u64,
    /// Emitted, and neither received nor dropped so far; not 0 at the end is a violation of the books.
    pub pending: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub reason: EndReason,
    pub duration_ns: u64,
    /// The books of each family, which are closed now.
    pub families: Vec<FamilyAccount>,
    /// `emitted = received + dropped` holds for each family.
    pub balanced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    #[default]
    Duration,
    Interrupted,
    TargetsGone,
    OutputClosed,
    Failed,
}
