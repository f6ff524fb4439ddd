//! What the kernel half has summed up by now.

use agent_ebpf::{
    abi::family,
    histogram::PER_OCTAVE,
    spec::HITS_COUNT,
    state::{FamilyCounters, RunQueueKey, RunQueueOctave, RunQueueOctaveKey, Tally, counter},
};
use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::FromBytes;

use super::{Maps, MapsError, OCTAVE, OCTAVE_KEY, Raw};
use crate::units::MonoNs;

/// What a look at the kernel half's maps tells: running totals.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the threads were read.
    pub now: MonoNs,
    /// [`ThreadState`], one after the other, unordered.
    pub threads: Bytes,
    /// [`WorkKey`] and [`WorkState`] of items in flight, in turn.
    pub works: Bytes,
    /// Counts of run-queue latencies, without buckets that were never hit.
    pub run_queue: Vec<(RunQueueKey, u64)>,
    pub families: [FamilyCounters; family::COUNT],
    pub counters: [u64; counter::COUNT],
    /// Hits by slot: probe ids, then tracepoints.
    pub hits: Vec<u64>,
}

impl Snapshot {
    fn add(&mut self, tally: &Tally) {
        add_families(&mut self.families, tally);
        let counts = self.counters.iter_mut().zip(tally.counters);
        for (total, one) in counts.chain(self.hits.iter_mut().zip(tally.hits)) {
            *total += one;
        }
    }
}

impl Maps {
    /// Reads everything as of `now`, which must be no later than the call. An entry that vanishes meanwhile is left out.
    ///
    /// A thread's open stretch reaches up to `now` as far as its state was not charged since: a clock that was read after the
    /// states would count what happened in between, on a busy machine many milliseconds, to whatever the thread did before.
    pub fn snapshot(&self, now: MonoNs) -> Result<Snapshot, MapsError> {
        let threads = self.threads();
        let mut works = BytesMut::new();
        for (key, item) in self.works.iter().flatten() {
            works.put_slice(&key);
            works.put_slice(&item);
        }
        let run_queue = self.run_queue.iter().flatten().flat_map(|(key, octave)| buckets(key, &octave)).collect();
        let mut snapshot = Snapshot {
            now,
            threads,
            works: works.freeze(),
            run_queue,
            families: [FamilyCounters { emitted: 0, dropped: 0 }; family::COUNT],
            counters: [0; counter::COUNT],
            hits: vec![0; HITS_COUNT as usize],
        };
        for tally in self.tallies()? {
            snapshot.add(&tally);
        }
        Ok(snapshot)
    }

    /// The states of all threads, one after the other.
    #[must_use]
    pub fn threads(&self) -> Bytes {
        let mut threads = BytesMut::new();
        for (_, state) in self.threads.iter().flatten() {
            threads.put_slice(&state);
        }
        threads.freeze()
    }

    /// What the kernel half has counted of each family by now.
    pub fn families(&self) -> Result<[FamilyCounters; family::COUNT], MapsError> {
        let mut families = [FamilyCounters { emitted: 0, dropped: 0 }; family::COUNT];
        for tally in self.tallies()? {
            add_families(&mut families, &tally);
        }
        Ok(families)
    }

    /// All that the kernel half has counted by now, over all CPUs.
    pub fn tally(&self) -> Result<Tally, MapsError> {
        let mut sum = Tally {
            families: [FamilyCounters { emitted: 0, dropped: 0 }; family::COUNT],
            counters: [0; counter::COUNT],
            hits: [0; HITS_COUNT as usize],
        };
        for tally in self.tallies()? {
            add_families(&mut sum.families, &tally);
            let counts = sum.counters.iter_mut().zip(tally.counters);
            for (total, one) in counts.chain(sum.hits.iter_mut().zip(tally.hits)) {
                *total += one;
            }
        }
        Ok(sum)
    }

    /// One a CPU.
    fn tallies(&self) -> Result<Vec<Tally>, MapsError> {
        let per_cpu = self.tally.get(&0, 0).map_err(|source| MapsError::Access { name: "TALLY", source })?;
        Ok(per_cpu.iter().filter_map(|bytes| Tally::read_from_bytes(bytes).ok()).collect())
    }
}

fn add_families(totals: &mut [FamilyCounters; family::COUNT], tally: &Tally) {
    for (total, one) in totals.iter_mut().zip(tally.families) {
        total.emitted += one.emitted;
        total.dropped += one.dropped;
    }
}

/// The buckets of an octave of the run-queue histogram.
fn buckets(key: Raw<OCTAVE_KEY>, octave: &Raw<OCTAVE>) -> Vec<(RunQueueKey, u64)> {
    let (Ok(RunQueueOctaveKey { tgid, class, octave: above }), Ok(octave)) =
        (RunQueueOctaveKey::read_from_bytes(&key), RunQueueOctave::read_from_bytes(octave))
    else {
        return Vec::new();
    };
    let first = u32::from(above) * PER_OCTAVE;
    let bucket = |bucket: u32| RunQueueKey { tgid, class, bucket: u16::try_from(bucket).unwrap_or(u16::MAX) };
    let counts = (first..).zip(octave.counts).filter(|(_, count)| *count != 0);
    counts.map(|(at, count)| (bucket(at), count)).collect()
}
