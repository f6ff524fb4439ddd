//! Looks at what processes hold: memory, V8's heaps, handles. From outside, by reading.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use agent_ebpf::{
    spec::Group,
    state::{AliveKey, Scrutiny, SiteKey, SiteState, ThreadState, site},
};
use zerocopy::FromBytes;

use super::{
    census::Queue,
    counting::HeapWatch,
    session::Session,
    suspicions::{Suspicions, Wanted},
};
use crate::{
    govern::Watch,
    limits::{ALIVE_READ_MAX, LOOPS_WATCHED_MAX, SITES_MAX},
    report::model::{Heap, LoopHandles, Memory, Resident, Site, SiteKind, StackId},
    target::{
        handles,
        heap::{self, GLOBAL_HANDLE_BYTES, HeapFigures, HeapReader},
        procfs,
    },
    units::{MonoNs, Pid, UserAddr},
};

/// Searches for the isolate of a loop before it is taken to have none.
const SEARCHES_MAX: u32 = 10;

/// All that are watched.
pub struct Lookout {
    processes: BTreeMap<Pid, Watched>,
    /// Glances and windows that were let pass, as looks are to be rarer.
    passed: (u32, u32),
    /// Windows until sites are read again; each of them is two system calls.
    sites_in: u32,
    /// Live objects are counted where a heap grows.
    counts_objects: bool,
    censuses: Queue,
    is_ending: bool,
}

struct Watched {
    heaps: Option<HeapReader>,
    /// By the thread that turns it.
    loops: BTreeMap<u32, Place>,
    /// Beginnings and ends of collections: full ones, and all.
    collections: Option<(u32, u32)>,
    /// It was looked for where handle scopes are.
    sought_scopes: bool,
    /// What the kernel half was told.
    scrutiny: Scrutiny,
    suspicions: Suspicions,
    objects: HeapWatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Glance {
    Between,
    AtEnd,
}

struct Place {
    event_loop: UserAddr,
    isolate: Option<UserAddr>,
    searches: u32,
    /// What was seen in this window.
    seen: Seen,
    /// What was last read. A loop that sleeps since then has nothing new to tell, and costs nothing more.
    scopes: LastRead<Option<u64>>,
    figures: LastRead<HeapFigures>,
    handles: LastRead<LoopHandles>,
}

/// What was read when the loop's thread had been off the CPU since some moment.
#[derive(Default)]
struct LastRead<T> {
    out_since: Option<MonoNs>,
    value: T,
}

impl<T: Clone> LastRead<T> {
    /// Reads it anew, unless the thread has been off the CPU since before it was last read.
    fn get(&mut self, out_since: Option<MonoNs>, read: impl FnOnce() -> T) -> T {
        if out_since.is_none() || out_since != self.out_since {
            *self = Self { out_since, value: read() };
        }
        self.value.clone()
    }
}

#[derive(Default)]
struct Seen {
    last: HeapFigures,
    used_min: Option<u64>,
    external_min: Option<u64>,
    global_handles_bytes_min: Option<u64>,
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
        least(&mut self.global_handles_bytes_min, figures.global_handles_bytes);
        least(&mut self.scope_handles_min, figures.scope_handles);
        if after_major {
            self.used_after_major = figures.used_bytes;
        }
        self.last = figures;
    }
}

const NO_SCRUTINY: Scrutiny = Scrutiny { scope_implementer: 0, scope_next: 0, pages_a_stack: 0, reserved: 0 };

/// One page of so many has its stack taken.
const PAGES_A_STACK: u32 = 8;

/// Sites are totals since the trace began: they are read once in so many windows, and in the last.
const SITES_WINDOWS: u32 = 4;

impl Lookout {
    #[must_use]
    pub fn new(counts_objects: bool) -> Self {
        Self {
            processes: BTreeMap::new(),
            passed: (0, 0),
            sites_in: SITES_WINDOWS,
            counts_objects,
            censuses: Queue::default(),
            is_ending: false,
        }
    }

    pub fn add(&mut self, pid: Pid, heaps: Option<HeapReader>) {
        let mut watched = Watched {
            heaps,
            loops: BTreeMap::new(),
            collections: None,
            sought_scopes: false,
            scrutiny: NO_SCRUTINY,
            suspicions: Suspicions::default(),
            objects: HeapWatch::default(),
        };
        if let Some(event_loop) = watched.heaps.as_mut().and_then(HeapReader::default_loop) {
            watched.learn(pid.0, event_loop);
        }
        self.processes.insert(pid, watched);
    }

    pub fn remove(&mut self, pid: Pid) {
        self.processes.remove(&pid);
    }

    /// Has live objects counted a last time, beside all else.
    pub fn count_objects_at_last(&mut self, session: &Session) {
        if !self.counts_objects {
            return;
        }
        // What is quick first: there may not be time for all.
        let mut queued: Vec<_> = self.processes.iter_mut().map(|(pid, watched)| (*pid, &mut watched.objects)).collect();
        queued.sort_by_key(|(_, objects)| objects.cost());
        for (pid, objects) in queued {
            objects.count_at_last(pid, session, &mut self.censuses);
        }
    }

    /// Live objects are being counted somewhere.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.processes.values().any(|watched| watched.objects.is_counting())
    }

    /// The next look is the last.
    pub fn end(&mut self) {
        self.sites_in = 1;
        self.is_ending = true;
    }

    /// A look at the heaps alone, some times a window: at those that were collected meanwhile, as else they only grow.
    pub fn glance(&mut self, session: &Session) {
        if !is_due(&mut self.passed.0, session.looks_rarer()) {
            return;
        }
        for (pid, watched) in &mut self.processes {
            watched.glance(*pid, session, Glance::Between);
        }
    }

    /// Whether it is looked at what processes hold as this window ends.
    pub fn is_due(&mut self, session: &Session) -> bool {
        self.is_ending || is_due(&mut self.passed.1, session.looks_rarer())
    }

    /// Ends a window: what each process holds. `threads` are the kernel half's states.
    pub fn look(&mut self, session: &Session, threads: &[u8]) -> Vec<(Pid, Memory)> {
        let mut present = BTreeSet::new();
        for bytes in threads.chunks_exact(size_of::<ThreadState>()) {
            let Ok(state) = ThreadState::read_from_bytes(bytes) else { continue };
            if state.loop_addr != 0
                && let Some(watched) = self.processes.get_mut(&Pid(state.tgid))
            {
                present.insert(state.tid);
                watched.learn(state.tid, UserAddr(state.loop_addr));
            }
        }
        for (pid, watched) in &mut self.processes {
            watched.loops.retain(|tid, _| *tid == pid.0 || present.contains(tid));
        }
        for (pid, watched) in &mut self.processes {
            watched.glance(*pid, session, Glance::AtEnd);
        }
        self.sites_in = self.sites_in.saturating_sub(1);
        let mut sites = Vec::new();
        if self.sites_in == 0 {
            self.sites_in = SITES_WINDOWS;
            sites = session.sites();
        }
        let alive = if sites.is_empty() { Vec::new() } else { session.alive(ALIVE_READ_MAX) };
        let memories = self
            .processes
            .iter_mut()
            .filter_map(|(pid, watched)| Some((*pid, watched.look(*pid, session, &of(*pid, &sites), &alive)?)));
        let mut memories: Vec<(Pid, Memory)> = memories.collect();
        if self.counts_objects {
            self.count_objects(session, &mut memories);
        }
        memories
    }

    /// Has live objects counted where heaps grow, beside all else, and takes in what was counted meanwhile.
    fn count_objects(&mut self, session: &Session, memories: &mut [(Pid, Memory)]) {
        let looked = Instant::now();
        for (pid, memory) in memories {
            if let Some(watched) = self.processes.get_mut(pid) {
                if !self.is_ending {
                    watched.objects.step(*pid, memory, session, &mut self.censuses);
                }
                memory.census = watched.objects.counted(looked).map(Box::new);
            }
        }
    }

    /// Attaches and detaches what is only on suspicion, after a look.
    pub fn suspect(&mut self, session: &mut Session, memories: &[(Pid, Memory)]) {
        let mut all = Wanted::default();
        for (pid, memory) in memories {
            let Some(watched) = self.processes.get_mut(pid) else { continue };
            let wanted = watched.suspicions.step(memory);
            all.handles = all.handles.max(wanted.handles);
            all.scopes = all.scopes.max(wanted.scopes);
            all.heap = all.heap.max(wanted.heap);
            all.pages = all.pages.max(wanted.pages);
            let mut scrutiny = watched.scrutiny;
            scrutiny.pages_a_stack = if wanted.pages == Watch::Makers { PAGES_A_STACK } else { 0 };
            if let Some((implementer, next)) = watched.scope_offsets() {
                (scrutiny.scope_implementer, scrutiny.scope_next) = (implementer, next);
            }
            if scrutiny != watched.scrutiny {
                watched.scrutiny = scrutiny;
                session.set_scrutiny(*pid, scrutiny);
            }
        }
        session.demand(&[
            // First those who take: what is made shall not be missed when it goes.
            (Group::Takers, all.handles >= Watch::Takers),
            (Group::Makers, all.handles == Watch::Makers),
            (Group::Scopes, all.scopes == Watch::Makers),
            (Group::Allocators, all.heap == Watch::Makers),
            (Group::Faults, all.pages == Watch::Makers),
            // Only where it was asked for is there a file that has these.
            (Group::Frees, all.pages >= Watch::Takers),
            (Group::Allocations, all.pages == Watch::Makers),
        ]);
    }
}

/// Once in so many times.
fn is_due(passed: &mut u32, times: u32) -> bool {
    *passed += 1;
    let is_due = *passed >= times;
    if is_due {
        *passed = 0;
    }
    is_due
}

fn of(pid: Pid, sites: &[(SiteKey, SiteState)]) -> Vec<(SiteKey, SiteState)> {
    let mut own: Vec<_> = sites.iter().filter(|(key, _)| key.tgid == pid.0).copied().collect();
    own.sort_by_key(|(_, state)| std::cmp::Reverse(state.made.saturating_sub(state.gone)));
    // Bytes of one kind are more than things of another: each has a share of its own.
    let mut kept = [0_usize; site::COUNT as usize];
    own.retain(|(key, _)| {
        let Some(count) = kept.get_mut(key.kind as usize) else { return false };
        *count += 1;
        *count <= SITES_MAX / site::COUNT as usize
    });
    own
}

impl Watched {
    /// Where the isolates of the process keep their handle scopes, when that can first be told.
    fn scope_offsets(&mut self) -> Option<(u32, u32)> {
        let heaps = self.heaps.as_mut().filter(|_| !self.sought_scopes)?;
        let isolate = self.loops.values().find_map(|place| place.isolate)?;
        self.sought_scopes = true;
        heaps.scope_offsets(isolate)
    }

    fn learn(&mut self, tid: u32, event_loop: UserAddr) {
        let known = self.loops.get(&tid);
        // The main thread's is known first.
        let has_room = known.is_some() || self.loops.len() < LOOPS_WATCHED_MAX;
        if has_room && known.is_none_or(|place| place.event_loop != event_loop) {
            let place = Place {
                event_loop,
                isolate: None,
                searches: 0,
                seen: Seen::default(),
                scopes: LastRead::default(),
                figures: LastRead::default(),
                handles: LastRead::default(),
            };
            self.loops.insert(tid, place);
        }
    }

    fn glance(&mut self, pid: Pid, session: &Session, glance: Glance) {
        let collections = session.collections_of(pid);
        // Within a full one, sizes are of no use.
        let is_quiet = collections.is_none_or(|(majors, _)| majors.is_multiple_of(2));
        let before = self.collections;
        let after_major = is_quiet && before.zip(collections).is_some_and(|(before, now)| now.0 != before.0);
        let has_collected = is_quiet && before.zip(collections).is_some_and(|(before, now)| now != before);
        if is_quiet {
            self.collections = collections;
        }
        if glance == Glance::Between && !has_collected {
            self.glance_at_scopes(session);
            return;
        }
        let Some(heaps) = &mut self.heaps else { return };
        // A search reads much: one at a time.
        let mut has_searched = false;
        for (tid, place) in &mut self.loops {
            if place.isolate.is_none() && place.searches < SEARCHES_MAX && !has_searched {
                has_searched = true;
                place.searches += 1;
                place.isolate = heaps.isolate_of(place.event_loop);
            }
            let Some(isolate) = place.isolate else { continue };
            let read = || heaps.read(isolate).unwrap_or_default();
            let figures = place.figures.get(session.out_since(*tid), read);
            if figures.is_plausible() {
                place.seen.add(figures, after_major);
            } else {
                // The isolate of a worker that has ended.
                place.isolate = None;
            }
        }
    }

    /// Handles in scopes alone, which costs some reads.
    fn glance_at_scopes(&mut self, session: &Session) {
        let Some(heaps) = &mut self.heaps else { return };
        for (tid, place) in &mut self.loops {
            let Some(isolate) = place.isolate else { continue };
            if let Some(handles) = place.scopes.get(session.out_since(*tid), || heaps.scope_handles(isolate)) {
                place.seen.scope_handles_min =
                    Some(place.seen.scope_handles_min.map_or(handles, |min| min.min(handles)));
            }
        }
    }

    fn look(
        &mut self,
        pid: Pid,
        session: &Session,
        sites: &[(SiteKey, SiteState)],
        alive: &[(AliveKey, u64)],
    ) -> Option<Memory> {
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
                let event_loop = place.event_loop;
                let read = || {
                    let handles = handles::count(heaps.memory(), event_loop);
                    let by_type = handles.by_type.into_iter().map(|(kind, n)| (kind.to_owned(), n)).collect();
                    LoopHandles { tid: *tid, handles: by_type, partial: handles.partial }
                };
                let handles = place.handles.get(session.out_since(*tid), read);
                if !handles.handles.is_empty() {
                    memory.loops.push(handles);
                }
            }
        }
        memory.heaps.sort_by_key(|heap| (heap.tid != pid.0, heap.tid));
        memory.sites = self.sites(pid, sites, alive);
        if memory.sites.iter().any(|site| site.kind == SiteKind::Allocation) {
            memory.allocations_seen_ns = session.allocations_seen_ns();
        }
        Some(memory)
    }

    fn sites(&self, pid: Pid, sites: &[(SiteKey, SiteState)], alive: &[(AliveKey, u64)]) -> Vec<Site> {
        let mut held = BTreeMap::<u64, (u64, u64)>::new();
        if let Some(heaps) = &self.heaps {
            for (key, stack) in alive.iter().filter(|(key, _)| key.tgid == pid.0 && key.kind == site::GLOBAL_HANDLE) {
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
                site::HEAP_AREA => SiteKind::HeapArea,
                site::ALLOCATION => SiteKind::Allocation,
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
        global_handles_min: seen.global_handles_bytes_min.map(|bytes| bytes / GLOBAL_HANDLE_BYTES),
        scope_handles_min: seen.scope_handles_min,
    }
}
