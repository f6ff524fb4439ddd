//! The maps that user space reads and writes, with the aya types kept inside.

use std::mem::size_of;

use agent_ebpf::{
    abi::family,
    spec::HITS_COUNT,
    state::{FamilyCounters, RunQueueKey, Target, ThreadState, WorkKey, WorkState, counter},
};
use aya::maps::{HashMap, Map, MapError, PerCpuArray};
use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::attach::Probes;
use crate::units::MonoNs;

#[derive(Debug, Error)]
pub enum MapsError {
    #[error("the BPF object has no map {0}")]
    Missing(&'static str),
    #[error("map {name}: {source}")]
    Access { name: &'static str, source: MapError },
}

type Raw<const N: usize> = [u8; N];
const TARGET: usize = size_of::<Target>();
const THREAD: usize = size_of::<ThreadState>();
const KEY: usize = size_of::<RunQueueKey>();
const FAMILY: usize = size_of::<FamilyCounters>();
const WORK_KEY: usize = size_of::<WorkKey>();
const WORK: usize = size_of::<WorkState>();

/// What a look at the kernel half's maps tells: running totals.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the threads were read.
    pub now: MonoNs,
    /// [`ThreadState`], one after the other, unordered.
    pub threads: Bytes,
    /// [`WorkKey`] and [`WorkState`] of items in flight, in turn.
    pub works: Bytes,
    /// Counts of run-queue latencies.
    pub run_queue: Vec<(RunQueueKey, u64)>,
    pub families: [FamilyCounters; family::COUNT],
    pub counters: [u64; counter::COUNT],
    /// Hits by slot: probe ids, then tracepoints.
    pub hits: Vec<u64>,
}

/// The clock that the kernel half stamps records with.
#[must_use]
pub fn monotonic_ns() -> MonoNs {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    MonoNs(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Access to the maps; reading them costs a system call or two an entry.
pub struct Maps {
    targets: HashMap<aya::maps::MapData, u32, Raw<TARGET>>,
    threads: HashMap<aya::maps::MapData, u32, Raw<THREAD>>,
    run_queue: HashMap<aya::maps::MapData, Raw<KEY>, u64>,
    works: HashMap<aya::maps::MapData, Raw<WORK_KEY>, Raw<WORK>>,
    families: PerCpuArray<aya::maps::MapData, Raw<FAMILY>>,
    counters: PerCpuArray<aya::maps::MapData, u64>,
    hits: PerCpuArray<aya::maps::MapData, u64>,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub fn take(probes: &mut Probes) -> Result<Self, MapsError> {
        Ok(Self {
            targets: take(probes, "TARGETS")?,
            threads: take(probes, "THREADS")?,
            run_queue: take(probes, "RUN_QUEUE")?,
            works: take(probes, "WORKS")?,
            families: take(probes, "FAMILIES")?,
            counters: take(probes, "COUNTERS")?,
            hits: take(probes, "HITS")?,
        })
    }

    /// Makes a process a target: from now on its events are sent.
    pub fn add_target(&mut self, tgid: u32, target: Target) -> Result<(), MapsError> {
        let mut value = [0; TARGET];
        value.copy_from_slice(target.as_bytes());
        self.targets.insert(&tgid, &value, 0).map_err(|source| MapsError::Access { name: "TARGETS", source })
    }

    /// From now on, nothing of this process is recorded; what the maps hold of it stays to be read.
    pub fn quiet_target(&mut self, tgid: u32) {
        let _ = self.targets.remove(&tgid);
    }

    /// Forgets a target and all that the maps hold of it. Entries that are gone already are no error.
    pub fn remove_target(&mut self, tgid: u32) {
        let _ = self.targets.remove(&tgid);
        let threads: Vec<u32> =
            self.threads.iter().flatten().filter(|(_, state)| word(state, 0) == tgid).map(|(tid, _)| tid).collect();
        for tid in threads {
            let _ = self.threads.remove(&tid);
        }
        let works: Vec<_> = self.works.keys().flatten().filter(|key| word(key, 8) == tgid).collect();
        for key in works {
            let _ = self.works.remove(&key);
        }
        let waits: Vec<_> = self.run_queue.keys().flatten().filter(|key| word(key, 0) == tgid).collect();
        for key in waits {
            let _ = self.run_queue.remove(&key);
        }
    }

    /// Reads everything as of `now`, which must be no later than the call. An entry that vanishes meanwhile is left out.
    ///
    /// A thread's open stretch reaches up to `now` as far as its state was not charged since: a clock that was read after the
    /// states would count what happened in between, on a busy machine many milliseconds, to whatever the thread did before.
    pub fn snapshot(&self, now: MonoNs) -> Result<Snapshot, MapsError> {
        let mut threads = BytesMut::new();
        for (_, state) in self.threads.iter().flatten() {
            threads.put_slice(&state);
        }
        let mut works = BytesMut::new();
        for (key, item) in self.works.iter().flatten() {
            works.put_slice(&key);
            works.put_slice(&item);
        }
        let run_queue = self
            .run_queue
            .iter()
            .flatten()
            .filter_map(|(key, count)| Some((RunQueueKey::read_from_bytes(&key).ok()?, count)))
            .collect();
        let mut families = [FamilyCounters { emitted: 0, dropped: 0 }; family::COUNT];
        for (index, total) in (0..).zip(&mut families) {
            let per_cpu =
                self.families.get(&index, 0).map_err(|source| MapsError::Access { name: "FAMILIES", source })?;
            for bytes in per_cpu.iter() {
                if let Ok(one) = FamilyCounters::read_from_bytes(bytes) {
                    total.emitted += one.emitted;
                    total.dropped += one.dropped;
                }
            }
        }
        let mut counters = [0; counter::COUNT];
        for (index, total) in (0..).zip(&mut counters) {
            *total = sum(&self.counters, index).map_err(|source| MapsError::Access { name: "COUNTERS", source })?;
        }
        let hits = (0..HITS_COUNT)
            .map(|slot| sum(&self.hits, slot))
            .collect::<Result<_, _>>()
            .map_err(|source| MapsError::Access { name: "HITS", source })?;
        Ok(Snapshot { now, threads: threads.freeze(), works: works.freeze(), run_queue, families, counters, hits })
    }
}

fn take<T>(probes: &mut Probes, name: &'static str) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = probes.ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|source| MapsError::Access { name, source })
}

fn sum(array: &PerCpuArray<aya::maps::MapData, u64>, index: u32) -> Result<u64, MapError> {
    Ok(array.get(&index, 0)?.iter().sum())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}
