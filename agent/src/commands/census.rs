//! Counting the objects of a live process.

use std::{
    cmp::Reverse,
    convert::Infallible,
    ops::Range,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use agent_ebpf::spec::Component;

use super::cost::Apart;
use crate::{
    census::{self, Census, mark::Tally, pages::PAGE_BYTES, roots::Region, shapes::Types},
    cli::exit,
    limits::CENSUS_KEPT_MAX,
    report::{heap::Constructor, model::HeapCount},
    symbolize::v8::{
        heap::Heap as V8Heap,
        layout::{Layout, NoLayout},
    },
    target::{
        malloc::{self, Allocated},
        memory::LiveMemory,
        node::{NodeError, NodeTarget},
        procfs::{self, Incarnation, ProcError, SystemCall},
        regions::{self, PageMap},
        v8::FunctionLayout,
    },
    units::{Pid, nanoseconds},
};

/// Times that a census is taken where too much was moved meanwhile.
const ATTEMPTS_MAX: u32 = 5;

/// After so many beginnings and ends of collections during one, the next would meet as many.
const MOVES_MAX: u32 = 4;

/// A share of pointers to no object from which it is taken again.
const STRAY_SHARE_MAX: f64 = 0.01;

/// Stacks of threads are as large as this at most, by any usual limit.
const STACK_BYTES_MAX: u64 = 16 << 20;

/// What lies below the stack pointer and is still in use (System V ABI).
const RED_ZONE_BYTES: u64 = 128;

#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Process(#[from] ProcError),
    #[error(transparent)]
    Layout(#[from] NoLayout),
    #[error("the heap of process {0} cannot be counted: its file names no types of V8 (stripped of v8dbg_* symbols?)")]
    NoTypes(Pid),
    #[error("may not read the memory of process {0}: run as root, or with CAP_SYS_PTRACE")]
    Denied(Pid),
    #[error(
        "no page of a V8 heap in process {0}: it has just started, or its V8 keeps pages in a way that is not known"
    )]
    NoPages(Pid),
    #[error("process {0} ended while it was read")]
    Ended(Pid),
    #[error("no time was left to count the heap of process {0}")]
    NoTime(Pid),
}

impl HeapError {
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Node(NodeError::Process(ProcError::Denied { .. }))
            | Self::Process(ProcError::Denied { .. })
            | Self::Denied(_) => exit::NOT_ALLOWED,
            Self::Node(_) | Self::Process(_) | Self::Layout(_) | Self::NoTypes(_) | Self::Ended(_) => exit::NO_TARGET,
            Self::NoPages(_) | Self::NoTime(_) => exit::FAILED,
        }
    }
}

/// What counting a process's objects takes to know; it is read once.
pub struct Counter {
    pid: Pid,
    incarnation: Option<Incarnation>,
    v8: V8Heap<LiveMemory>,
    types: Types,
    shared: u32,
    pub node_version: Option<String>,
}

impl Counter {
    pub fn of(pid: Pid) -> Result<Self, HeapError> {
        let target = NodeTarget::inspect(pid)?;
        let incarnation = procfs::incarnation(pid);
        let version = target.node.v8_version().ok_or(NoLayout::NoVersion)?;
        let file = target.node.holder(Component::V8).ok_or(NoLayout::NoVersion)?;
        let [major, minor, build, _] = version;
        let layout = Layout::of_file([major, minor, build], &file.elf)?;
        let types = Types::read(&file.elf, version).ok_or(HeapError::NoTypes(pid))?;
        let shared = FunctionLayout::read(&file.elf, version).ok_or(HeapError::NoTypes(pid))?.shared;
        let node_version = target.node.node_version().map(|version| version.to_string());
        Ok(Self { pid, incarnation, v8: V8Heap::new(LiveMemory::of(pid), layout), types, shared, node_version })
    }

    /// The best of some censuses; `go_on` is asked now and then.
    ///
    /// One during which the collector ran is taken again, too, where `collections` tells: of what is linked in a chain, a timer's list for
    /// one, a single object that was moved hides all behind it.
    pub fn count(
        &self,
        time: Duration,
        collections: &Collections,
        go_on: &mut dyn FnMut(&Tally) -> bool,
    ) -> Result<Taken, HeapError> {
        let (pid, started) = (self.pid, Instant::now());
        let (mut best, mut attempts) = (None::<Taken>, 0);
        while attempts < ATTEMPTS_MAX && (attempts == 0 || started.elapsed() < time) {
            attempts += 1;
            let (mut seen, before) = (Seen::begin(), collections());
            let pages = PageMap::of(pid);
            let subject = census::Subject {
                heap: &self.v8,
                types: self.types.clone(),
                shared: self.shared,
                regions: regions_of(pid, &self.v8.memory)?,
                present: Box::new(move |at| pages.present(at)),
            };
            let census = census::take(&subject, &mut |tally| {
                seen.note(tally.objects);
                go_on(tally)
            });
            seen.note(census.tally.objects);
            if procfs::incarnation(pid) != self.incarnation || !procfs::is_alive(pid) {
                return Err(HeapError::Ended(pid));
            }
            let after = collections();
            let (disturbed, moves) = (after != before, after.unwrap_or(0).wrapping_sub(before.unwrap_or(0)));
            let taken = Taken { census, disturbed, at: seen.middle(), took: seen.begun.elapsed(), attempts };
            if best.as_ref().is_none_or(|best| taken.rank() < best.rank()) {
                best = Some(taken);
            }
            let is_good =
                best.as_ref().is_some_and(|best| !best.disturbed && best.census.stray_share() < STRAY_SHARE_MAX);
            if is_good || moves > MOVES_MAX {
                break;
            }
        }
        let taken = Taken { attempts, ..best.ok_or(HeapError::NoPages(pid))? };
        let census = &taken.census;
        if census.tally.read_bytes == 0 {
            return Err(if procfs::is_refused(pid) { HeapError::Denied(pid) } else { HeapError::Ended(pid) });
        }
        if census.pages == 0 || census.tally.objects == 0 {
            return Err(HeapError::NoPages(pid));
        }
        Ok(taken)
    }
}

/// Tells how many collections there were in the process; `None` where nobody counts them.
pub type Collections = dyn Fn() -> Option<u32>;

/// A census, and how it was come by.
pub struct Taken {
    pub census: Census,
    /// The collector ran meanwhile.
    disturbed: bool,
    at: Instant,
    took: Duration,
    pub attempts: u32,
}

/// When a census has come to its objects. Before that it looks for roots, and it gives way to others anywhere on the way: the middle of
/// its time is none of its objects'.
struct Seen {
    begun: Instant,
    objects: u64,
    /// For each object, the seconds from the beginning on.
    object_seconds: f64,
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
impl Seen {
    fn begin() -> Self {
        Self { begun: Instant::now(), objects: 0, object_seconds: 0.0 }
    }

    /// By now there are so many.
    fn note(&mut self, objects: u64) {
        let more = objects.saturating_sub(self.objects);
        self.object_seconds += more as f64 * self.begun.elapsed().as_secs_f64();
        self.objects = objects;
    }

    /// As a mean.
    fn middle(&self) -> Instant {
        let seconds = self.object_seconds / self.objects.max(1) as f64;
        self.begun + Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }
}

impl Taken {
    /// What is less is better: what was moved hides what is behind it, and hardly ever is anything counted twice.
    fn rank(&self) -> (bool, bool, bool, Reverse<u64>) {
        let Census { tally, .. } = &self.census;
        let is_stray = self.census.stray_share() >= STRAY_SHARE_MAX;
        (tally.cut_short, self.disturbed, is_stray, Reverse(tally.objects))
    }
}

/// Far behind what else runs.
const PRIORITY: i32 = 5;

/// Censuses are taken one after the other: of two at a time, both would take longer, and more would be moved meanwhile.
#[derive(Default)]
pub struct Queue {
    /// Where the last one's end is heard of.
    last: Option<mpsc::Receiver<Infallible>>,
}

/// A census that is to be taken, on a thread of its own that gives way to all others.
pub struct Counting {
    thread: JoinHandle<Result<Counted, HeapError>>,
}

/// What came of it.
pub struct Counted {
    pub counter: Counter,
    pub count: Result<HeapCount, HeapError>,
    /// When the objects were come to.
    pub at: Instant,
    /// CPU time, with all attempts.
    pub cost: Duration,
}

impl Queue {
    /// Adds a census, which takes that long at most, once the process is known; it begins by `latest`, or not at all.
    pub fn add(
        &mut self,
        pid: Pid,
        known: Option<Counter>,
        time: Duration,
        latest: Option<Instant>,
        collections: Box<dyn Fn() -> Option<u32> + Send>,
    ) -> std::io::Result<Counting> {
        let (turn, last) = mpsc::channel();
        let before = self.last.replace(last);
        let thread = std::thread::Builder::new().name("census".to_owned()).spawn(move || {
            // A priority is a thread's own on Linux, and it is no harm if this one has none.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), PRIORITY);
            let mut apart = Apart::default();
            // Nothing is ever sent: what is heard is that the turn of the one before was dropped, also by a panic.
            let _turn = turn;
            let _ = before.map(|before| before.recv());
            if latest.is_some_and(|latest| Instant::now() > latest) {
                return Err(HeapError::NoTime(pid));
            }
            let counter = known.map_or_else(|| Counter::of(pid), Ok);
            let (counter, known_at, started) = (counter?, apart.count(), Instant::now());
            let taken = counter.count(time, &*collections, &mut |_| {
                apart.count();
                started.elapsed() < time
            });
            let at = taken.as_ref().map_or(started, |taken| taken.at);
            let count = taken.map(summed_up);
            let cost = apart.count().saturating_sub(known_at);
            Ok(Counted { counter, count, at, cost })
        })?;
        Ok(Counting { thread })
    }
}

impl Counting {
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. `None` if it panicked.
    #[must_use]
    pub fn end(self) -> Option<Result<Counted, HeapError>> {
        self.thread.join().ok()
    }
}

/// The constructors with the most bytes, and the sum of all.
fn summed_up(taken: Taken) -> HeapCount {
    let Taken { census, disturbed, took, .. } = taken;
    let (stray_share, complete) = (census.stray_share(), !census.tally.cut_short);
    let mut constructors = constructors(census);
    let (objects, bytes) =
        constructors.iter().fold((0, 0), |(objects, bytes), one| (objects + one.objects, bytes + one.bytes));
    constructors.sort_by_key(|one| std::cmp::Reverse((one.bytes, one.objects)));
    constructors.truncate(CENSUS_KEPT_MAX);
    HeapCount {
        age_ns: 0,
        duration_ns: nanoseconds(took),
        objects,
        object_bytes: bytes,
        stray_share,
        complete,
        disturbed,
        constructors,
    }
}

#[must_use]
pub fn constructors(census: Census) -> Vec<Constructor> {
    let all = census.by_constructor.into_iter().map(|(constructor, count)| Constructor {
        name: constructor.name,
        place: constructor.place,
        objects: count.objects,
        bytes: count.bytes,
    });
    all.collect()
}

/// Where a thread that polls will be told what happened. libuv has room on the stack for 1024 events, of which few are ever written: the rest
/// is what calls before had there, down to objects long dead.
fn poll_events(call: SystemCall) -> Option<Range<u64>> {
    /// `struct epoll_event`, which is packed on x86-64.
    const EVENT_BYTES: u64 = if cfg!(target_arch = "x86_64") { 12 } else { 16 };
    let [_, events, count, ..] = call.arguments;
    let polls = call.number == libc::SYS_epoll_wait || call.number == libc::SYS_epoll_pwait;
    // The register holds an int, whatever its upper half says.
    let bytes = (count & u64::from(u32::MAX)).checked_mul(EVENT_BYTES)?;
    polls.then_some(events..events.checked_add(bytes)?)
}

/// V8's `FreeListCategory`, of which each page has some: a type and how many bytes are free; then its first free space, and its
/// neighbours.
fn is_free_list([numbers, top, before, after]: [u64; 4]) -> bool {
    const TYPES: u64 = 24;
    let (kind, bytes) = (numbers & u64::from(u32::MAX), numbers >> 32);
    let links = [before, after];
    kind < TYPES
        && bytes <= PAGE_BYTES
        && (top == 0 || top & 7 == 1)
        && links.iter().all(|link| link.is_multiple_of(16))
}

/// The process's private memory; of stacks, and of what the C library manages, only what is in use.
fn regions_of(pid: Pid, memory: &LiveMemory) -> Result<Vec<Region>, ProcError> {
    let threads = procfs::threads(pid)?;
    let pointers: Vec<u64> = threads
        .iter()
        .filter_map(|thread| regions::stack_pointer(pid, thread.tid))
        .map(|at| at.0.saturating_sub(RED_ZONE_BYTES) / 8 * 8)
        .collect();
    let polled: Vec<Range<u64>> =
        threads.iter().filter_map(|thread| poll_events(procfs::system_call(pid, thread.tid)?)).collect();
    let readable = regions::readable(pid)?.into_iter().map(|region| {
        let mut range = region.range;
        let used = pointers.iter().find(|at| range.contains(at)).filter(|_| {
            region.kind == regions::Kind::Stack || (region.anonymous && range.end - range.start <= STACK_BYTES_MAX)
        });
        if let Some(used) = used {
            range.start = *used;
        }
        let Allocated { mut free, blocks } = if region.anonymous && region.writable {
            malloc::look_at(memory, &range, region.kind == regions::Kind::Brk, is_free_list)
        } else {
            Allocated::default()
        };
        if free.is_empty() && used.is_some() {
            free.extend(polled.iter().find(|events| range.contains(&events.start)).cloned());
        }
        let blocks = blocks.into_iter().map(|block| block..block + malloc::BLOCK_BYTES).collect();
        Region { range, writable: region.writable, free, blocks }
    });
    Ok(readable.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_free_spaces_are_known_by_their_words() {
        assert!(is_free_list([0x13, 0, 0, 0]));
        assert!(is_free_list([0x5_0000_0003, 0x7f12_3459, 0, 0x2cf8_ec30]));
        assert!(!is_free_list([0x2cf8_ec30, 0, 0, 0]), "a link is no type");
        assert!(!is_free_list([3, 0, 0, 0x7f12_3459]), "an object is no neighbour");
    }

    #[test]
    fn room_for_events_is_no_memory_of_the_programs() {
        let call = |number, count| SystemCall { number, arguments: [13, 0x7ffd_0000, count, u64::MAX, 0, 8] };
        let events = poll_events(call(libc::SYS_epoll_pwait, 1024));
        assert!(events.is_some_and(|events| events.start == 0x7ffd_0000 && events.end >= 0x7ffd_0000 + 12 * 1024));
        assert_eq!(poll_events(call(libc::SYS_futex, 1024)), None);
    }
}
