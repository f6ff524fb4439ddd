//! Garbage collection: pauses by thread and type, and why V8 made them.

use std::collections::BTreeMap;

use super::histogram::Histogram;
use crate::{decode::GcType, units::Tid};

/// Pauses of one type on one thread in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcFigures {
    pub duration: Histogram,
    pub reasons: BTreeMap<&'static str, u64>,
}

/// By thread and type.
pub type Gc = BTreeMap<(Tid, GcType), GcFigures>;

/// Names of V8's `GarbageCollectionReason`, whose numbers V8 promises to keep.
const REASONS: [&str; 28] = [
    "unknown",
    "allocation failure",
    "allocation limit",
    "context disposal",
    "counted contexts",
    "debugger",
    "deserializer",
    "external memory pressure",
    "finalize marking via stack guard",
    "finalize marking via task",
    "full hashtable",
    "heap profiler",
    "task",
    "last resort",
    "low memory notification",
    "make heap iterable",
    "memory pressure",
    "memory reducer",
    "runtime",
    "sampling profiler",
    "snapshot creator",
    "testing",
    "external finalize",
    "global allocation limit",
    "measure memory",
    "background allocation failure",
    "finalize concurrent minor mark-sweep",
    "CppHeap allocation failure",
];

#[must_use]
pub fn reason_name(reason: u32) -> &'static str {
    REASONS.get(reason as usize).copied().unwrap_or("unknown")
}

/// Adds a pause, or a step where `reason` is `None`.
pub fn add(gc: &mut Gc, tid: Tid, gc_type: GcType, duration_ns: u64, reason: Option<u32>) {
    let figures = gc.entry((tid, gc_type)).or_default();
    figures.duration.record(duration_ns);
    if let Some(reason) = reason {
        *figures.reasons.entry(reason_name(reason)).or_default() += 1;
    }
}
