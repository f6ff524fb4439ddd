//! What a process holds: its memory, split by who has it, and its handles.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StackId;
use crate::report::heap::Constructor;

/// A process's memory and handles at the end of a window, read from outside.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    pub resident: Resident,
    /// V8's heaps, one an isolate: the main thread's first.
    pub heaps: Vec<Heap>,
    /// Handles that event loops hold open.
    pub loops: Vec<LoopHandles>,
    /// Where what grows is made: totals since the trace began, as far as it was watched.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sites: Vec<Site>,
    /// For how long it was watched who allocates native memory.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub allocations_seen_ns: u64,
    /// Live objects, where a heap grew and they were counted in this window.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub census: Option<Box<HeapCount>>,
}

/// Live objects of a process by constructor, as `agent heap` counts them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HeapCount {
    /// From the middle of the count to the end of the window; negative where that came first, at the end of a trace.
    pub age_ns: i64,
    pub duration_ns: u64,
    /// Of all constructors, also of those that are not listed.
    pub objects: u64,
    pub object_bytes: u64,
    /// Pointers to what was no object any more, of all that were followed: from 0 to 1.
    pub stray_share: f64,
    /// All that can be reached was looked at.
    pub complete: bool,
    /// Objects were moved meanwhile: some may be missing, or counted twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disturbed: bool,
    /// Those with the most bytes.
    pub constructors: Vec<Constructor>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Memory {
    /// Puts one stack in another's place; sites that are then the same become one.
    pub fn rename_stacks(&mut self, name: impl Fn(u64) -> u64) {
        let mut sites = BTreeMap::<(SiteKind, StackId), Site>::new();
        for site in &self.sites {
            let &Site { kind, stack, made, gone, strong, weak } = site;
            let stack = StackId(name(stack.0));
            let sum = sites.entry((kind, stack)).or_insert(Site { kind, stack, ..Site::default() });
            sum.made += made;
            sum.gone += gone;
            sum.strong += strong;
            sum.weak += weak;
        }
        self.sites = sites.into_values().collect();
        self.sites.sort_by_key(|site| std::cmp::Reverse(site.made.saturating_sub(site.gone)));
    }
}

/// Resident memory as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resident {
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub shared_bytes: u64,
    pub swapped_bytes: u64,
}

/// A heap's figures as V8 keeps them; those that could not be read are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heap {
    pub tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// The least that was seen within the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes_min: Option<u64>,
    /// What the last full collection of the window left, if there was one; what was made until the next look is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes_after_major: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Array buffers and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_bytes_min: Option<u64>,
    /// V8's own memory outside of the heap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub malloced_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detached_contexts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_handles: Option<u64>,
    /// The least that were seen within the window: weak ones come and go with what is collected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_handles_min: Option<u64>,
    /// The least handles in open handle scopes that were seen within the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_handles_min: Option<u64>,
}

/// An event loop's open handles.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopHandles {
    pub tid: u32,
    /// By libuv's type: `tcp`, `timer`, `fs_event`.
    pub handles: BTreeMap<String, u64>,
    /// The list changed too fast or was too long: there may be more.
    pub partial: bool,
}

/// A place in the program that makes things which may stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub kind: SiteKind,
    pub stack: StackId,
    pub made: u64,
    pub gone: u64,
    /// Of what is left, as far as it was looked at: held strongly, so that no collection frees it.
    pub strong: u64,
    /// Likewise weakly: the collector may free it.
    pub weak: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    #[default]
    GlobalHandle,
    ScopeBlock,
    Page,
    HeapArea,
    /// Bytes of native memory, sampled.
    Allocation,
}
