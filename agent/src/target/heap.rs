//! V8's own figures about its heaps, from outside: its accessors are run over the process's memory (see [`super::emulate`]).

use std::collections::BTreeSet;

use agent_ebpf::spec::Component;

use super::{
    elf::{ElfFile, FileAddr},
    emulate::{Known, Machine, SCRATCH, UNKNOWN},
    handles,
    memory::{LiveMemory, Memory},
    node::NodeFiles,
};
use crate::units::{Pid, UserAddr};

const STATISTICS: &str = "_ZN2v87Isolate17GetHeapStatisticsEPNS_14HeapStatisticsE";
const HANDLES: &str = "_ZN2v88internal11HandleScope15NumberOfHandlesEPNS0_7IsolateE";
const DEFAULT_LOOP: &str = "uv_default_loop";

/// Offsets in `v8::HeapStatistics` (`include/v8-statistics.h`; in 9.4 `include/v8.h`), the same from Node.js 16 to 26.
mod offset {
    pub const TOTAL: u64 = 0;
    pub const PHYSICAL: u64 = 16;
    pub const USED: u64 = 32;
    pub const LIMIT: u64 = 40;
    pub const MALLOCED: u64 = 48;
    pub const EXTERNAL: u64 = 56;
    pub const NATIVE_CONTEXTS: u64 = 80;
    pub const DETACHED_CONTEXTS: u64 = 88;
    pub const USED_GLOBAL_HANDLES: u64 = 104;
    pub const END: u64 = 128;
}

/// Bytes of a `GlobalHandles::Node`, and of a traced one on older versions.
pub const GLOBAL_HANDLE_BYTES: u64 = 32;

/// What `v8.getHeapStatistics()` would say; what could not be found out is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapFigures {
    pub total_bytes: Option<u64>,
    pub physical_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
    pub limit_bytes: Option<u64>,
    pub malloced_bytes: Option<u64>,
    /// Array buffers and the like, as far as V8 knows of them.
    pub external_bytes: Option<u64>,
    pub native_contexts: Option<u64>,
    pub detached_contexts: Option<u64>,
    pub global_handles_bytes: Option<u64>,
    /// Handles in open handle scopes, of whatever thread runs the isolate.
    pub scope_handles: Option<u64>,
}

/// How a global handle holds its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    Strong,
    /// The collector may free it.
    Weak,
}

/// What the node of a global handle says: the state is in the low bits of its flags, at 11 (`GlobalHandles::Node`).
#[must_use]
pub fn hold(memory: &impl Memory, slot: UserAddr) -> Option<Hold> {
    let mut flags = [0];
    memory.read_at(UserAddr(slot.0.checked_add(11)?), &mut flags).ok()?;
    match flags[0] & 3 {
        1 => Some(Hold::Strong),
        2 => Some(Hold::Weak),
        _ => None,
    }
}

/// The way to a process's heaps.
#[derive(Debug)]
pub struct HeapReader {
    memory: LiveMemory,
    statistics: UserAddr,
    handles: Option<UserAddr>,
    default_loop: Option<UserAddr>,
    known: Known,
}

/// Words of an object that are looked through for the address of an isolate.
const OBJECT_WORDS: u64 = 64;
/// Words before a handle that is part of a `node::Environment`.
const ENVIRONMENT_WORDS: u64 = 512;
/// Handles of Node.js itself that are looked at.
const HANDLES_LOOKED_AT: usize = 16;
/// Candidates that are tried in one search.
const TRIES_MAX: usize = 1024;

impl HeapReader {
    /// `None` where the V8 has no such function.
    #[must_use]
    pub fn new(pid: Pid, node: &NodeFiles) -> Option<Self> {
        let v8 = node.holder(Component::V8)?;
        let live = |elf: &ElfFile, bias: u64, name: &str| -> Option<UserAddr> {
            let FileAddr(addr) = elf.lookup([name]).ok()?.get(name)?.symbol()?.addr;
            Some(UserAddr(addr.wrapping_add(bias)))
        };
        let uv = node.holder(Component::Libuv);
        Some(Self {
            memory: LiveMemory::of(pid),
            statistics: live(&v8.elf, v8.bias, STATISTICS)?,
            handles: live(&v8.elf, v8.bias, HANDLES),
            default_loop: uv.and_then(|file| live(&file.elf, file.bias, DEFAULT_LOOP)),
            known: Known::default(),
        })
    }

    #[must_use]
    pub fn memory(&self) -> &LiveMemory {
        &self.memory
    }

    /// The loop of the main thread.
    pub fn default_loop(&mut self) -> Option<UserAddr> {
        let function = self.default_loop?;
        let mut machine = Machine::new(&self.memory, &mut self.known);
        machine.call(function, [0; 2]).ok().filter(|at| *at != 0 && *at != UNKNOWN).map(UserAddr)
    }

    /// The isolate whose JavaScript runs on a loop: found in what Node.js's own handles belong to.
    pub fn isolate_of(&mut self, event_loop: UserAddr) -> Option<UserAddr> {
        let handles = handles::first(&self.memory, event_loop, HANDLES_LOOKED_AT);
        let mut candidates = Vec::new();
        // The handle of the isolate's own task queue leads to `PerIsolatePlatformData`.
        for handle in handles.iter().filter(|handle| handle.kind == "async") {
            if let Ok(data) = self.memory.word_at(handle.at) {
                candidates.extend(self.words(data, OBJECT_WORDS));
            }
        }
        // The timer of an `Environment` is part of it; the isolate is among its first members.
        for handle in handles.iter().filter(|handle| handle.kind == "timer") {
            candidates.extend(self.words(handle.at.0.saturating_sub(ENVIRONMENT_WORDS * 8), ENVIRONMENT_WORDS));
        }
        let mut tried = BTreeSet::new();
        for candidate in candidates.into_iter().filter(|at| at.is_multiple_of(8) && *at > 0xffff) {
            if tried.len() >= TRIES_MAX {
                break;
            }
            if tried.insert(candidate) && self.read(UserAddr(candidate)).is_some_and(|figures| figures.is_plausible()) {
                return Some(UserAddr(candidate));
            }
        }
        None
    }

    fn words(&self, at: u64, words: u64) -> Vec<u64> {
        let mut bytes = vec![0; usize::try_from(words * 8).unwrap_or(0)];
        if self.memory.read_at(UserAddr(at), &mut bytes).is_err() {
            return Vec::new();
        }
        bytes.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_le_bytes)).collect()
    }

    /// Where an isolate keeps its handle scopes: offsets of the pointer to its `HandleScopeImplementer` and of `HandleScopeData::next`, told by
    /// what `NumberOfHandles` reads.
    pub fn scope_offsets(&mut self, isolate: UserAddr) -> Option<(u32, u32)> {
        /// `HandleScopeImplementer::blocks_`: as the kernel half has it.
        const BLOCKS_DATA: u64 = 8;
        const BLOCKS_SIZE: u64 = 24;
        const ISOLATE_BYTES_MAX: u64 = 1 << 20;
        let function = self.handles?;
        let mut machine = Machine::new(&self.memory, &mut self.known);
        let (_, loads) = machine.call_and_watch(function, [isolate.0, 0]).ok()?;
        let own = |at: u64| at.checked_sub(isolate.0).filter(|offset| *offset < ISOLATE_BYTES_MAX);
        let (at, implementer) = *loads.first()?;
        let implementer_at = own(at)?;
        let read = |offset: u64| loads.iter().find(|&&(at, _)| at == implementer.wrapping_add(offset));
        let (_, data) = *read(BLOCKS_DATA)?;
        let (_, size) = *read(BLOCKS_SIZE)?;
        // What is left after these: the end of the last block is in the array of blocks.
        let is_block = |at: u64| (data..data.saturating_add(size.saturating_mul(8))).contains(&at);
        let is_implementer = |at: u64| (implementer..implementer.saturating_add(64)).contains(&at);
        let mut rest = loads.iter().skip(1).filter(|&&(at, _)| !is_block(at) && !is_implementer(at));
        let next_at = own(rest.next()?.0)?;
        Some((u32::try_from(implementer_at).ok()?, u32::try_from(next_at).ok()?))
    }

    /// The figures of an isolate, as its own functions give them.
    pub fn read(&mut self, isolate: UserAddr) -> Option<HeapFigures> {
        let mut machine = Machine::new(&self.memory, &mut self.known);
        machine.read_ahead();
        for at in (SCRATCH..SCRATCH + offset::END).step_by(8) {
            machine.set_word(at, UNKNOWN).ok()?;
        }
        // What it filled in before it went astray is good.
        let ended = machine.call(self.statistics, [isolate.0, SCRATCH]);
        if let Err(fault) = ended {
            log::debug!("heap statistics of isolate {:#x}: {fault}", isolate.0);
        }
        let mut figure = |at: u64| machine.word(SCRATCH + at).ok().filter(|value| *value != UNKNOWN);
        let mut figures = HeapFigures {
            total_bytes: figure(offset::TOTAL),
            physical_bytes: figure(offset::PHYSICAL),
            used_bytes: figure(offset::USED),
            limit_bytes: figure(offset::LIMIT),
            malloced_bytes: figure(offset::MALLOCED),
            external_bytes: figure(offset::EXTERNAL),
            native_contexts: figure(offset::NATIVE_CONTEXTS),
            detached_contexts: figure(offset::DETACHED_CONTEXTS),
            global_handles_bytes: figure(offset::USED_GLOBAL_HANDLES),
            scope_handles: None,
        };
        machine.keep_pages();
        figures.scope_handles = self.scope_handles(isolate);
        Some(figures)
    }

    /// Handles in open handle scopes.
    pub fn scope_handles(&mut self, isolate: UserAddr) -> Option<u64> {
        let function = self.handles?;
        let mut machine = Machine::new(&self.memory, &mut self.known);
        let handles = machine.call(function, [isolate.0, 0]).ok()?;
        (handles != UNKNOWN).then_some(handles & 0xffff_ffff)
    }
}

impl HeapFigures {
    /// What only an isolate's figures are like.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        const MB: u64 = 1 << 20;
        let (Some(total), Some(used), Some(limit)) = (self.total_bytes, self.used_bytes, self.limit_bytes) else {
            return false;
        };
        let contexts = self.native_contexts.unwrap_or(1);
        (MB / 4..1 << 40).contains(&total)
            && used <= total.saturating_mul(2)
            && used >= MB / 4
            && (16 * MB..1 << 41).contains(&limit)
            && (1..100_000).contains(&contexts)
            && self.global_handles_bytes.is_some_and(|bytes| bytes < 1 << 40)
    }
}
