//! The maps that user space reads and writes, with the aya types kept inside.

mod postgres;
mod snapshot;

pub use postgres::Waits;
pub use snapshot::Snapshot;

use std::{mem::size_of, os::fd::AsFd};

use agent_ebpf::{
    abi::thread_pool::source,
    state::{
        AliveKey, Cluster, MainLoop, PgBackend, PgWaitKey, PgWaitSum, PgWaitWindow, RunQueueOctave, RunQueueOctaveKey,
        SWITCHES_KEPT, Scrutiny, SiteKey, SiteState, Switches, TARGET_BITS, TARGET_WORDS, Tally, Target, ThreadState,
        WorkKey, WorkState, flag, site, target_flag,
    },
};
use aya::maps::{Array, HashMap, IterableMap, Map, MapData, MapError, PerCpuArray};
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
    #[error("memory of map {name}: {source}")]
    Memory { name: &'static str, source: std::io::Error },
}

type Raw<const N: usize> = [u8; N];
const TARGET: usize = size_of::<Target>();
const CLUSTER: usize = size_of::<Cluster>();
const PG_BACKEND: usize = size_of::<PgBackend>();
const PG_WAIT_KEY: usize = size_of::<PgWaitKey>();
const PG_WAIT_SUM: usize = size_of::<PgWaitSum>();
const PG_WAIT_WINDOW: usize = size_of::<PgWaitWindow>();
const THREAD: usize = size_of::<ThreadState>();
const MAIN_LOOP: usize = size_of::<MainLoop>();
const OCTAVE_KEY: usize = size_of::<RunQueueOctaveKey>();
const OCTAVE: usize = size_of::<RunQueueOctave>();
const TALLY: usize = size_of::<Tally>();
const WORK_KEY: usize = size_of::<WorkKey>();
const WORK: usize = size_of::<WorkState>();
const SCRUTINY: usize = size_of::<Scrutiny>();
const SITE_KEY: usize = size_of::<SiteKey>();
const SITE: usize = size_of::<SiteState>();
const ALIVE_KEY: usize = size_of::<AliveKey>();
const SWITCHES: usize = size_of::<Switches>();

/// From `linux/bpf.h`: fail where the key is there.
const BPF_NOEXIST: u64 = 1;

/// The clock that the kernel half stamps records with.
#[must_use]
pub fn monotonic_ns() -> MonoNs {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    MonoNs(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// How many collections there were: [`Target::major_gcs`] and [`Target::gcs`].
pub struct Collections {
    targets: HashMap<MapData, u32, Raw<TARGET>>,
}

impl Collections {
    /// Full ones, and all, by their beginnings and ends; `None` of a process that is no target, or whose collector is not probed.
    #[must_use]
    pub fn of(&self, tgid: u32) -> Option<(u32, u32)> {
        let target = Target::read_from_bytes(&self.targets.get(&tgid, 0).ok()?).ok()?;
        (target.flags & target_flag::COUNTS_GCS != 0).then_some((target.major_gcs, target.gcs))
    }
}

/// Access to the maps; reading them costs a system call or two an entry.
pub struct Maps {
    targets: HashMap<aya::maps::MapData, u32, Raw<TARGET>>,
    clusters: HashMap<aya::maps::MapData, u32, Raw<CLUSTER>>,
    pg_backends: HashMap<MapData, u32, Raw<PG_BACKEND>>,
    pg_waits: HashMap<MapData, Raw<PG_WAIT_KEY>, Raw<PG_WAIT_SUM>>,
    pg_wait_window: Array<MapData, Raw<PG_WAIT_WINDOW>>,
    threads: HashMap<aya::maps::MapData, u32, Raw<THREAD>>,
    run_queue: HashMap<aya::maps::MapData, Raw<OCTAVE_KEY>, Raw<OCTAVE>>,
    works: HashMap<aya::maps::MapData, Raw<WORK_KEY>, Raw<WORK>>,
    tally: PerCpuArray<aya::maps::MapData, Raw<TALLY>>,
    main_loops: HashMap<aya::maps::MapData, u32, Raw<MAIN_LOOP>>,
    scrutiny: HashMap<MapData, u32, Raw<SCRUTINY>>,
    sites: HashMap<MapData, Raw<SITE_KEY>, Raw<SITE>>,
    alive: HashMap<MapData, Raw<ALIVE_KEY>, u64>,
    polls: Array<MapData, u32>,
    count_requests: Array<MapData, u32>,
    maybe_targets: Array<MapData, u64>,
    switches: Array<MapData, Raw<SWITCHES>>,
    /// What that map holds: only user space writes it.
    switches_now: Switches,
}

impl Maps {
    /// Takes the maps out of the loaded object.
    pub fn take(probes: &mut Probes) -> Result<Self, MapsError> {
        Ok(Self {
            targets: take(probes, "TARGETS")?,
            clusters: take(probes, "CLUSTERS")?,
            pg_backends: take(probes, "PG_BACKENDS")?,
            pg_waits: take(probes, "PG_WAITS")?,
            pg_wait_window: take(probes, "PG_WAIT_WINDOW")?,
            threads: take(probes, "THREADS")?,
            run_queue: take(probes, "RUN_QUEUE")?,
            works: take(probes, "WORKS")?,
            tally: take(probes, "TALLY")?,
            main_loops: take(probes, "MAIN_LOOPS")?,
            scrutiny: take(probes, "SCRUTINY")?,
            sites: take(probes, "SITES")?,
            alive: take(probes, "ALIVE")?,
            polls: take(probes, "POLLS")?,
            count_requests: take(probes, "COUNT_REQUESTS")?,
            maybe_targets: take(probes, "MAYBE_TARGETS")?,
            switches: take(probes, "SWITCHES")?,
            switches_now: Switches {
                epoch: 0,
                quiet: 0,
                stack_token_ns: Switches::STACK_TOKEN_NS,
                preempted_tokens: Switches::PREEMPTED_TOKENS,
                other_tokens: 1,
                sample_step: 1,
                reserved: 0,
                until_ns: [0; SWITCHES_KEPT],
            },
        })
    }

    /// A second way to the targets, for another thread.
    pub fn collections(&self) -> Result<Collections, MapsError> {
        let access = |source| MapsError::Access { name: "TARGETS", source };
        let fd = self.targets.map().fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| access(MapError::IoError(error)))?;
        let map = MapData::from_fd(fd).map_err(access)?;
        Ok(Collections { targets: HashMap::try_from(Map::HashMap(map)).map_err(access)? })
    }

    /// As [`Collections::of`].
    #[must_use]
    pub fn collections_of(&self, tgid: u32) -> Option<(u32, u32)> {
        let target = Target::read_from_bytes(&self.targets.get(&tgid, 0).ok()?).ok()?;
        Some((target.major_gcs, target.gcs))
    }

    /// Since when a thread has been switched out, if it is, and switches are watched.
    #[must_use]
    pub fn out_since(&self, tid: u32) -> Option<MonoNs> {
        let state = ThreadState::read_from_bytes(&self.threads.get(&tid, 0).ok()?).ok()?;
        let epoch = self.switches_now.epoch;
        let is_known = epoch.is_multiple_of(2) && state.switches_epoch == epoch;
        (is_known && state.flags & flag::OFF_CPU != 0).then_some(MonoNs(state.out_ns))
    }

    /// Makes a process a target: from now on its events are sent.
    pub fn add_target(&mut self, tgid: u32, target: Target) -> Result<(), MapsError> {
        let access = |source| MapsError::Access { name: "MAYBE_TARGETS", source };
        // Children that the kernel half follows may have any id.
        let (words, bits) = if target.flags & target_flag::FOLLOW == 0 {
            let bit = tgid % TARGET_BITS;
            (bit / 64..bit / 64 + 1, 1 << (bit % 64))
        } else {
            (0..TARGET_WORDS, u64::MAX)
        };
        for word in words {
            let known = self.maybe_targets.get(&word, 0).map_err(access)?;
            self.maybe_targets.set(word, &(known | bits), 0).map_err(access)?;
        }
        let mut value = [0; TARGET];
        value.copy_from_slice(target.as_bytes());
        self.targets.insert(&tgid, &value, 0).map_err(|source| MapsError::Access { name: "TARGETS", source })
    }

    /// Tells which loop the main thread of a process turns, which is to become a target.
    pub fn add_main_loop(&mut self, tgid: u32, main: MainLoop) -> Result<(), MapsError> {
        let mut value = [0; MAIN_LOOP];
        value.copy_from_slice(main.as_bytes());
        self.main_loops.insert(&tgid, &value, 0).map_err(|source| MapsError::Access { name: "MAIN_LOOPS", source })
    }

    /// Tells the kernel half what to look at in a process.
    pub fn set_scrutiny(&mut self, tgid: u32, scrutiny: Scrutiny) -> Result<(), MapsError> {
        let mut value = [0; SCRUTINY];
        value.copy_from_slice(scrutiny.as_bytes());
        self.scrutiny.insert(&tgid, &value, 0).map_err(|source| MapsError::Access { name: "SCRUTINY", source })
    }

    /// Adds the state of a thread that the kernel half has not seen; its own is the better one.
    pub fn add_thread(&mut self, mut state: ThreadState) {
        state.polls_epoch = self.polls_epoch();
        state.switches_epoch = self.switches_now.epoch;
        let mut value = [0; THREAD];
        value.copy_from_slice(state.as_bytes());
        let _ = self.threads.insert(&state.tid, &value, BPF_NOEXIST);
    }

    /// From now on, nothing is recorded; what the maps hold stays to be read.
    pub fn quiet(&mut self) {
        for tgid in self.targets.keys().flatten().collect::<Vec<_>>() {
            let _ = self.targets.remove(&tgid);
        }
        for tgid in self.clusters.keys().flatten().collect::<Vec<_>>() {
            let _ = self.clusters.remove(&tgid);
        }
        let _ = self.set_switches(Switches { quiet: 1, ..self.switches_now });
    }

    /// Forgets a target and all that the maps hold of it. Entries that are gone already are no error.
    pub fn remove_target(&mut self, tgid: u32) {
        let _ = self.targets.remove(&tgid);
        let _ = self.main_loops.remove(&tgid);
        let _ = self.scrutiny.remove(&tgid);
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
        let alive: Vec<_> = self.alive.keys().flatten().filter(|key| word(key, 8) == tgid).collect();
        for key in alive {
            let _ = self.alive.remove(&key);
        }
        let sites: Vec<_> = self.sites.keys().flatten().filter(|key| word(key, 8) == tgid).collect();
        for key in sites {
            let _ = self.sites.remove(&key);
        }
    }

    /// What was made where, since the trace began.
    #[must_use]
    pub fn sites(&self) -> Vec<(SiteKey, SiteState)> {
        let entry = |(key, state): (Raw<SITE_KEY>, Raw<SITE>)| {
            Some((SiteKey::read_from_bytes(&key).ok()?, SiteState::read_from_bytes(&state).ok()?))
        };
        self.sites.iter().flatten().filter_map(entry).collect()
    }

    /// Of what was made and is not gone, up to so many: where, and by which stack.
    #[must_use]
    pub fn alive(&self, most: usize) -> Vec<(AliveKey, u64)> {
        let entry = |(key, stack): (Raw<ALIVE_KEY>, u64)| Some((AliveKey::read_from_bytes(&key).ok()?, stack));
        self.alive.iter().flatten().filter_map(entry).take(most).collect()
    }

    /// From now on requests are counted, where their probe is attached, or are not.
    pub fn count_requests(&mut self, counts: bool) -> Result<(), MapsError> {
        let counts = u32::from(counts);
        self.count_requests.set(0, &counts, 0).map_err(|source| MapsError::Access { name: "COUNT_REQUESTS", source })
    }

    /// How often it has changed whether polls are watched.
    #[must_use]
    pub fn polls_epoch(&self) -> u32 {
        self.polls.get(&0, 0).unwrap_or(0)
    }

    /// Polls are watched from now on, or not any more.
    pub fn change_polls(&mut self) -> Result<(), MapsError> {
        let epoch = self.polls_epoch().wrapping_add(1);
        self.polls.set(0, &epoch, 0).map_err(|source| MapsError::Access { name: "POLLS", source })
    }

    /// What the kernel half goes by at switches.
    #[must_use]
    pub fn switches(&self) -> Switches {
        self.switches_now
    }

    /// Switches are watched from now on, or not any more.
    pub fn change_switches(&mut self) -> Result<(), MapsError> {
        let mut switches = self.switches_now;
        if let Some(until) = switches.until_ns.get_mut(switches.epoch as usize / 2 % SWITCHES_KEPT)
            && switches.epoch.is_multiple_of(2)
        {
            *until = monotonic_ns().0;
        }
        switches.epoch = switches.epoch.wrapping_add(1);
        self.set_switches(switches)
    }

    /// What a stack costs of a thread that was preempted, or that serves others.
    pub fn set_stack_prices(&mut self, preempted_tokens: u64, other_tokens: u64) -> Result<(), MapsError> {
        self.set_switches(Switches { preempted_tokens, other_tokens, ..self.switches_now })
    }

    /// A thread earns a stack in so many times the usual time.
    pub fn make_stacks_dearer(&mut self, times: u32) -> Result<(), MapsError> {
        let stack_token_ns = Switches::STACK_TOKEN_NS.saturating_mul(times.into());
        self.set_switches(Switches { stack_token_ns, ..self.switches_now })
    }

    /// One tick of the clock in so many is a sample.
    pub fn make_samples_rarer(&mut self, times: u32) -> Result<(), MapsError> {
        self.set_switches(Switches { sample_step: times, ..self.switches_now })
    }

    fn set_switches(&mut self, switches: Switches) -> Result<(), MapsError> {
        let mut value = [0; SWITCHES];
        value.copy_from_slice(switches.as_bytes());
        self.switches.set(0, &value, 0).map_err(|source| MapsError::Access { name: "SWITCHES", source })?;
        self.switches_now = switches;
        Ok(())
    }

    /// Forgets the items that are in flight in thread pools.
    pub fn forget_works(&mut self) {
        let is_pools =
            |item: &Raw<WORK>| WorkState::read_from_bytes(item).is_ok_and(|item| item.source != source::IO_URING);
        let works: Vec<_> =
            self.works.iter().flatten().filter(|(_, item)| is_pools(item)).map(|(key, _)| key).collect();
        for key in works {
            // It may have ended meanwhile.
            let _ = self.works.remove(&key);
        }
    }

    /// Forgets the global handles that were seen to be made, and where.
    pub fn forget_handles(&mut self) {
        let is_handle =
            |key: &Raw<ALIVE_KEY>| AliveKey::read_from_bytes(key).is_ok_and(|key| key.kind == site::GLOBAL_HANDLE);
        for key in self.alive.keys().flatten().filter(is_handle).collect::<Vec<_>>() {
            let _ = self.alive.remove(&key);
        }
        let is_site =
            |key: &Raw<SITE_KEY>| SiteKey::read_from_bytes(key).is_ok_and(|key| key.kind == site::GLOBAL_HANDLE);
        for key in self.sites.keys().flatten().filter(is_site).collect::<Vec<_>>() {
            let _ = self.sites.remove(&key);
        }
    }
}

fn take<T>(probes: &mut Probes, name: &'static str) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = probes.ebpf.take_map(name).ok_or(MapsError::Missing(name))?;
    T::try_from(map).map_err(|source| MapsError::Access { name, source })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}
