//! What of a process is watched more closely, as it seems to grow.

use crate::{
    diagnose,
    govern::{Suspicion, Watch},
    report::model::{Heap, Memory},
};

/// What of a process may grow without an end.
pub struct Suspicions {
    handles: Suspicion,
    scopes: Suspicion,
    pages: Suspicion,
    heap: Suspicion,
}

/// Blocks of handle scopes are made one for a thousand handles, and the others are sampled: it takes a while to see enough of them.
const LONG_WINDOWS: u32 = 20;

/// Bytes of native memory and of a heap that are counted as one.
const BYTES_COUNTED: u64 = 32 << 10;

impl Default for Suspicions {
    fn default() -> Self {
        Self {
            handles: Suspicion::default(),
            scopes: Suspicion::lasting(LONG_WINDOWS),
            pages: Suspicion::lasting(LONG_WINDOWS),
            heap: Suspicion::lasting(LONG_WINDOWS).at_once(),
        }
    }
}

/// What is to be watched.
#[derive(Clone, Copy, Default)]
pub struct Wanted {
    pub handles: Watch,
    pub scopes: Watch,
    pub pages: Watch,
    pub heap: Watch,
}

impl Suspicions {
    pub fn step(&mut self, memory: &Memory) -> Wanted {
        let sum = |figure: fn(&Heap) -> Option<u64>| {
            let counts: Vec<u64> = memory.heaps.iter().filter_map(figure).collect();
            (!counts.is_empty()).then(|| counts.iter().sum())
        };
        let counted = |bytes: Option<u64>| bytes.map(|bytes| bytes / BYTES_COUNTED);
        let native = diagnose::native_rest(memory);
        Wanted {
            handles: self.handles.step(sum(|heap| heap.global_handles_min)),
            scopes: self.scopes.step(sum(|heap| heap.scope_handles_min)),
            pages: self.pages.step(counted(native.map(|bytes| bytes.max(0).cast_unsigned()))),
            // Workers' collections come at other times.
            heap: self.heap.step(counted(memory.heaps.first().and_then(|heap| heap.used_bytes_after_major))),
        }
    }
}
