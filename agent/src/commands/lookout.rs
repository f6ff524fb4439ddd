//! Looks at what processes hold: memory, V8's heaps, handles. From outside, by reading.

use std::collections::BTreeMap;

use agent_ebpf::state::{AliveKey, ScopeOffsets, SiteKey, SiteState, ThreadState, site};
use zerocopy::FromBytes;

use super::session::Session;
use crate::{
    govern::{Suspicion, Watch},
    limits::{ALIVE_READ_MAX, SITES_MAX},
    report::model::{Heap, LoopHandles, Memory, Resident, Site, SiteKind, StackId},
    target::{
        handles,
        heap::{self, GLOBAL_HANDLE_BYTES, HeapFigures, HeapReader},
        procfs,
    },
    units::{Pid, UserAddr},
};

/// Searches for the isolate of a loop before it is taken to have none.
const SEARCHES_MAX: u32 = 10;

/// All that are watched.
pub struct Lookout {
    processes: BTreeMap<Pid, Watched>,
    of_handles: Suspicion,
    of_scopes: Suspicion,
}

struct Watched {
    heaps: Option<HeapReader>,
    /// By the thread that turns it.
    loops: BTreeMap<u32, Place>,
    /// Beginnings and ends of full collections.
    majors: Option<u32>,
    /// The kernel half knows where handle scopes are.
    told_scopes: bool,
}

struct Place {
    event_loop: UserAddr,
    isolate: Option<UserAddr>,
    searches: u32,
    /// What was seen in this window.
    seen: Seen,
}

#[derive(Default)]
struct Seen {
    last: HeapFigures,
    used_min: Option<u64>,
    external_min: Option<u64>,
    scope_handles_min: Option<u64>,
    used_after_major: Option<u64>,
}

impl Seen {
    fn add(&mut self, figures: HeapFigures, after_major: bool) {
        let least = |kept: &mut Option<u64>, now: Option<u64>| {
            *kept = match (*kept, now) {
                (Some(kept), Some(now)) => Some(kept.min(now)),
                (kept, now) => kept.or(now),
            };
        };
        least(&mut self.used_min, figures.used_bytes);
        least(&mut self.external_min, figures.external_bytes);
        least(&mut self.scope_handles_min, figures.scope_handles);
        if after_major {
            self.used_after_major = figures.used_bytes;
        }
        self.last = figures;
    }
}

/// Blocks of handle scopes are made one for a thousand handles: it takes a while to see one.
const SCOPES_WINDOWS: u32 = 20;

impl Default for Lookout {
    fn default() -> Self {
        Self {
            processes: BTreeMap::new(),
            of_handles: Suspicion::default(),
            of_scopes: Suspicion::lasting(SCOPES_WINDOWS),
        }
    }
}

impl Lookout {
    pub fn add(&mut self, pid: Pid, heaps: Option<HeapReader>) {
        let mut watched = Watched { heaps, loops: BTreeMap::new(), majors: None, told_scopes: false };
        if let Some(event_loop) = watched.heaps.as_mut().and_then(HeapReader::default_loop) {
            watched.learn(pid.0, event_loop);
        }
        self.processes.insert(pid, watched);
    }

    pub fn remove(&mut self, pid: Pid) {
        self.processes.remove(&pid);
    }

    /// A look at the heaps alone, some times a window.
    pub fn glance(&mut self, session: &Session) {
        for (pid, watched) in &mut self.processes {
            let collections = session.collections_of(*pid);
            watched.glance(collections);
        }
    }

    /// Ends a window: what each process holds. `threads` are the kernel half's states.
    pub fn look(&mut self, session: &mut Session, threads: &[u8]) -> Vec<(Pid, Memory)> {
        for bytes in threads.chunks_exact(size_of::<ThreadState>()) {
            let Ok(state) = ThreadState::read_from_bytes(bytes) else { continue };
            if state.loop_addr != 0
                && let Some(watched) = self.processes.get_mut(&Pid(state.tgid))
            {
                watched.learn(state.tid, UserAddr(state.loop_addr));
            }
        }
        self.glance(session);
        self.tell_scopes(session);
        let sites = session.sites();
        let alive = if sites.is_empty() { Vec::new() } else { session.alive(ALIVE_READ_MAX) };
        let memories = self
            .processes
            .iter_mut()
            .filter_map(|(pid, watched)| Some((*pid, watched.look(*pid, &of(*pid, &sites), &alive)?)));
        memories.collect()
    }

    /// What to do about the probes on makers of handles after a look, and about those on handle scopes.
    pub fn suspect(&mut self, memories: &[(Pid, Memory)]) -> (Watch, Watch) {
        let sum = |figure: fn(&Heap) -> Option<u64>| {
            let counts: Vec<u64> = memories.iter().flat_map(|(_, memory)| &memory.heaps).filter_map(figure).collect();
            (!counts.is_empty()).then(|| counts.iter().sum())
        };
        let handles = self.of_handles.step(sum(|heap| heap.global_handles));
        (handles, self.of_scopes.step(sum(|heap| heap.scope_handles_min)))
    }

    /// Tells the kernel half where the isolates of a process keep their handle scopes, once that can be told.
    fn tell_scopes(&mut self, session: &mut Session) {
        for (pid, watched) in &mut self.processes {
            let Some(heaps) = watched.heaps.as_mut().filter(|_| !watched.told_scopes) else { continue };
            let Some(isolate) = watched.loops.values().find_map(|place| place.isolate) else { continue };
            watched.told_scopes = true;
            if let Some((implementer, next)) = heaps.scope_offsets(isolate) {
                session.set_scopes(*pid, ScopeOffsets { implementer, next });
            }
        }
    }
}

fn of(pid: Pid, sites: &[(SiteKey, SiteState)]) -> Vec<(SiteKey, SiteState)> {
    let mut own: Vec<_> = sites.iter().filter(|(key, _)| key.tgid == pid.0).copied().collect();
    own.sort_by_key(|(_, state)| std::cmp::Reverse(state.made.saturating_sub(state.gone)));
    own.truncate(SITES_MAX);
    own
}

impl Watched {
    fn learn(&mut self, tid: u32, event_loop: UserAddr) {
        let is_known = self.loops.get(&tid).is_some_and(|place| place.event_loop == event_loop);
        if !is_known {
            self.loops.insert(tid, Place { event_loop, isolate: None, searches: 0, seen: Seen::default() });
        }
    }

    fn glance(&mut self, collections: Option<(u32, u32)>) {
        let majors = collections.map(|(majors, _)| majors);
        // Within one, sizes are of no use.
        let is_quiet = majors.is_none_or(|majors| majors % 2 == 0);
        let after_major = is_quiet && self.majors.is_some_and(|before| majors.is_some_and(|now| now != before));
        if is_quiet {
            self.majors = majors;
        }
        let Some(heaps) = &mut self.heaps else { return };
        for place in self.loops.values_mut() {
            if place.isolate.is_none() && place.searches < SEARCHES_MAX {
                place.searches += 1;
                place.isolate = heaps.isolate_of(place.event_loop);
            }
            let Some(isolate) = place.isolate else { continue };
            match heaps.read(isolate).filter(HeapFigures::is_plausible) {
                Some(figures) => place.seen.add(figures, after_major),
                // The isolate of a worker that has ended.
                None => place.isolate = None,
            }
        }
    }

    fn look(&mut self, pid: Pid, sites: &[(SiteKey, SiteState)], alive: &[(AliveKey, u64)]) -> Option<Memory> {
        let resident = procfs::resident(pid)?;
        let mut memory = Memory {
            resident: Resident {
                anonymous_bytes: resident.anonymous_bytes,
                file_bytes: resident.file_bytes,
                shared_bytes: resident.shared_bytes,
                swapped_bytes: resident.swapped_bytes,
            },
            ..Memory::default()
        };
        for (tid, place) in &mut self.loops {
            let seen = std::mem::take(&mut place.seen);
            if place.isolate.is_some() {
                memory.heaps.push(heap_of(*tid, &seen));
            }
            if let Some(heaps) = &self.heaps {
                let handles = handles::count(heaps.memory(), place.event_loop);
                if handles.by_type.is_empty() {
                    continue;
                }
                let by_type = handles.by_type.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect();
                memory.loops.push(LoopHandles { tid: *tid, handles: by_type, partial: handles.partial });
            }
        }
        memory.heaps.sort_by_key(|heap| (heap.tid != pid.0, heap.tid));
        memory.sites = self.sites(pid, sites, alive);
        Some(memory)
    }

    fn sites(&self, pid: Pid, sites: &[(SiteKey, SiteState)], alive: &[(AliveKey, u64)]) -> Vec<Site> {
        let mut held = BTreeMap::<u64, (u64, u64)>::new();
        if let Some(heaps) = &self.heaps {
            for (key, stack) in alive.iter().filter(|(key, _)| key.tgid == pid.0) {
                match heap::hold(heaps.memory(), UserAddr(key.at)) {
                    Some(heap::Hold::Strong) => held.entry(*stack).or_default().0 += 1,
                    Some(heap::Hold::Weak) => held.entry(*stack).or_default().1 += 1,
                    None => {}
                }
            }
        }
        let site = |(key, state): &(SiteKey, SiteState)| {
            let kind = match key.kind {
                site::GLOBAL_HANDLE => SiteKind::GlobalHandle,
                site::SCOPE_BLOCK => SiteKind::ScopeBlock,
                site::PAGE => SiteKind::Page,
                _ => return None,
            };
            let (strong, weak) = held.get(&key.stack).copied().unwrap_or_default();
            Some(Site { kind, stack: StackId(key.stack), made: state.made, gone: state.gone, strong, weak })
        };
        sites.iter().filter_map(site).collect()
    }
}

fn heap_of(tid: u32, seen: &Seen) -> Heap {
    let last = seen.last;
    Heap {
        tid,
        resident_bytes: last.physical_bytes,
        used_bytes: last.used_bytes,
        used_bytes_min: seen.used_min,
        used_bytes_after_major: seen.used_after_major,
        limit_bytes: last.limit_bytes,
        external_bytes: last.external_bytes,
        external_bytes_min: seen.external_min,
        malloced_bytes: last.malloced_bytes,
        detached_contexts: last.detached_contexts,
        global_handles: last.global_handles_bytes.map(|bytes| bytes / GLOBAL_HANDLE_BYTES),
        scope_handles_min: seen.scope_handles_min,
    }
}
