//! From addresses to names.
//!
//! Symbol tables of a Node.js binary hold 170 000 functions; they are kept as sorted addresses, and a name is read from the file when
//! it is asked for, so the whole costs three megabytes and no mapped file, once for all files that hold the same. Where a file has line
//! information, blazesym says which functions were inlined.

mod demangle;
mod jit;
mod kept;
mod kernel;
mod leaf;
mod lines;
mod module;
mod modules;
pub mod scripts;
pub mod source_map;
mod user;
pub mod v8;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    decode::{Frames, UserFrames},
    limits::{SYMBOL_SPACES_MAX, V8_LAYOUTS_MAX},
    report::model::{Frame, FrameKind, Truncated},
    target::{
        memory::LiveMemory,
        node::NodeTarget,
        procfs::{self, FileIdentity, Incarnation, Mapping},
        regions::{self, PageMap},
        v8::FunctionLayout,
    },
    units::{Pid, UserAddr},
};
use agent_ebpf::spec::Component;
use kept::{Kept, OwnNames};
use kernel::KernelSymbols;
use log::debug;
use modules::Modules;
use v8::{V8, layout::Layout, suspended::Suspended};

pub use demangle::readable;
pub use jit::PerfMap;
pub use kernel::{KernelAhead, parse as parse_kallsyms};
pub use leaf::not_set_up;
pub use lines::parse_debug_ranges;
pub use user::{GcClock, NoClock};

/// Reading `/proc/PID/maps` takes the target's mmap lock: not more often than this. Less than a window, as each window brings new
/// stacks at once.
const MAPS_PACE: Duration = Duration::from_millis(500);

/// But for so many times in a row, for addresses where no code is known to be: as a worker starts, V8 maps its builtins once more, and
/// over memory that it has just got. One comes back after a while.
const MAPS_AT_ONCE: u32 = 8;
const MAPS_AT_ONCE_PACE: Duration = Duration::from_secs(5);

/// Executable mappings that are searched for a vtable, from the address down: a file's data lie behind its code.
const CLASS_FILES_MAX: usize = 16;

/// A stack to be named.
#[derive(Clone, Debug)]
pub struct Unnamed {
    pub pid: Pid,
    pub frames: Frames,
}

/// The names of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Innermost first; functions that were inlined each have one of their own.
    pub frames: Vec<Arc<Frame>>,
    pub truncated: Option<Truncated>,
}

/// Names addresses; keeps what it has read.
pub struct Symbolizer {
    spaces: HashMap<Pid, Space>,
    /// Those that were found to have mapped files since somebody asked.
    grown: BTreeSet<Pid>,
    modules: Modules,
    kernel: Option<KernelSymbols>,
    kernel_ahead: Option<KernelAhead>,
    /// How the V8 of a file lays out its heap; `None` if that is not known.
    layouts: HashMap<FileIdentity, Option<Layout>>,
    clock: Box<dyn GcClock>,
    /// What stands between the functions on a stack and those that await them.
    awaits: Arc<Frame>,
}

/// What is mapped where in a process.
#[derive(Default)]
struct Space {
    mappings: Vec<Mapping>,
    read: Option<Instant>,
    /// Readings out of pace that have not come back, and when the last one did or was made.
    hurried: u32,
    hurried_at: Option<Instant>,
    incarnation: Option<Incarnation>,
    used: Option<Instant>,
    perf_map: PerfMap,
    v8: Runtime,
    /// The file that holds it.
    v8_inode: Option<u64>,
    kept: Kept,
    names: OwnNames,
}

/// The V8 of a process.
#[derive(Default)]
enum Runtime {
    #[default]
    NotLooked,
    None,
    V8(Box<V8<LiveMemory>>),
}

impl Runtime {
    fn get(&self) -> Option<&V8<LiveMemory>> {
        match self {
            Self::V8(v8) => Some(v8),
            Self::NotLooked | Self::None => None,
        }
    }
}

impl Space {
    fn holding(&self, addr: u64) -> Option<Mapping> {
        let next = self.mappings.partition_point(|mapping| mapping.start.0 <= addr);
        let mapping = self.mappings.get(next.checked_sub(1)?)?;
        (addr < mapping.end.0).then(|| mapping.clone())
    }

    /// Whether a file is mapped above an address: what a process maps later lies below the files that it began with.
    fn has_file_above(&self, addr: u64) -> bool {
        self.mappings.iter().rev().any(|mapping| mapping.is_file() && addr < mapping.start.0)
    }

    /// Whether there is a file among them that was not there before.
    fn read_mappings(&mut self, pid: Pid) -> bool {
        self.read = Some(Instant::now());
        // A process that has gone keeps the maps that are known of it.
        let Ok(mut mappings) = procfs::executable_mappings(pid) else { return false };
        mappings.sort_by_key(|mapping| mapping.start);
        if mappings == self.mappings {
            return false;
        }
        let has_grown = mappings.iter().any(|mapping| mapping.is_file() && !self.mappings.contains(mapping));
        self.kept.clear();
        self.mappings = mappings;
        has_grown
    }
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new(Box::new(NoClock))
    }
}

impl Symbolizer {
    /// `clock` tells of collections, after which a heap is another.
    #[must_use]
    pub fn new(clock: Box<dyn GcClock>) -> Self {
        Self {
            spaces: HashMap::new(),
            grown: BTreeSet::new(),
            modules: Modules::default(),
            kernel: None,
            kernel_ahead: None,
            layouts: HashMap::new(),
            clock,
            awaits: Arc::new(Frame { name: "async".to_owned(), kind: FrameKind::Async, ..Frame::default() }),
        }
    }

    /// The kernel's symbols are being read already.
    pub fn expect_kernel(&mut self, ahead: KernelAhead) {
        self.kernel_ahead = Some(ahead);
    }

    /// Names stacks, each innermost first. Those of a process cost less together.
    pub fn symbolize(&mut self, stacks: &[Unnamed]) -> Vec<Named> {
        let mut named = vec![Named::default(); stacks.len()];
        let mut users: BTreeMap<Pid, (Vec<&UserFrames>, Vec<&mut Named>)> = BTreeMap::new();
        for (Unnamed { pid, frames }, named) in stacks.iter().zip(&mut named) {
            match frames {
                Frames::User(stack) => {
                    let (of_process, places) = users.entry(*pid).or_default();
                    of_process.push(stack);
                    places.push(named);
                }
                Frames::Kernel(addrs) => {
                    named.frames = self.symbolize_kernel(addrs).into_iter().map(Arc::new).collect();
                }
            }
        }
        for (pid, (stacks, places)) in users {
            for (place, named) in places.into_iter().zip(self.symbolize_user(pid, &stacks)) {
                *place = named;
            }
        }
        named
    }

    /// Names a kernel stack, innermost first, from the scheduler's own entry on: what lies above is the tracing of it.
    pub fn symbolize_kernel(&mut self, addrs: &[u64]) -> Vec<Frame> {
        let ahead = &mut self.kernel_ahead;
        let read = || ahead.take().map_or_else(KernelSymbols::read, KernelAhead::take);
        let symbols = self.kernel.get_or_insert_with(read);
        let frames: Vec<Frame> = addrs.iter().map(|addr| symbols.frame(addr.saturating_sub(1))).collect();
        match frames.iter().position(|frame| frame.name == "__schedule") {
            Some(at) => frames.into_iter().skip(at).collect(),
            None => frames,
        }
    }

    /// The class of a `node::ThreadPoolWork`, by its vtable: that lies in data, of whichever file.
    pub fn work_class(&mut self, pid: Pid, vtable: UserAddr) -> Option<String> {
        self.enter(pid);
        // Any look-up reads the maps, if they have not been read yet.
        let _ = self.mapping(pid, vtable.0);
        let mappings = &self.spaces.get(&pid)?.mappings;
        let below = mappings.iter().rev().filter(|mapping| mapping.is_file() && mapping.start <= vtable);
        let below: Vec<Mapping> = below.take(CLASS_FILES_MAX).cloned().collect();
        below.iter().find_map(|mapping| {
            let (module, _) = self.modules.get(pid, mapping)?;
            module.class_of_vptr(mapping, vtable)
        })
    }

    /// Async functions that a process has suspended, without names yet.
    pub fn suspended_calls(&mut self, pid: Pid) -> SuspendedCalls {
        self.enter(pid);
        let before = self.clock.of(pid);
        let Some(layout) = function_layout(pid) else { return SuspendedCalls::default() };
        let Ok(regions) = regions::readable(pid) else { return SuspendedCalls::default() };
        let pages = PageMap::of(pid);
        let Some(v8) = self.v8(pid) else { return SuspendedCalls::default() };
        v8.heap.forget();
        let suspended = v8.heap.suspended(&layout, &regions, &|at| pages.present(at));
        debug!("pid={pid} suspended={} read_bytes={}", suspended.calls.len(), suspended.read_bytes);
        SuspendedCalls { suspended, collections: before.unwrap_or_default() }
    }

    /// Forgets what was mapped by another process of this id, or by what this one ran before an `execve`.
    fn enter(&mut self, pid: Pid) {
        if self.spaces.len() >= SYMBOL_SPACES_MAX && !self.spaces.contains_key(&pid) {
            let oldest = self.spaces.iter().min_by_key(|(_, space)| space.used).map(|(pid, _)| *pid);
            oldest.and_then(|oldest| self.spaces.remove(&oldest));
        }
        let space = self.spaces.entry(pid).or_default();
        if space.used.is_some_and(|used| used.elapsed() < MAPS_PACE) {
            return;
        }
        // A process that has gone keeps what is known of it.
        if let Some(incarnation) = procfs::incarnation(pid)
            && space.incarnation != Some(incarnation)
        {
            *space = Space { incarnation: Some(incarnation), ..Space::default() };
        }
        space.used = Some(Instant::now());
    }

    /// Processes that were found to have mapped files since the last call, or to have them at all.
    pub fn take_grown(&mut self) -> BTreeSet<Pid> {
        std::mem::take(&mut self.grown)
    }

    /// A process has gone, and no stack of it is asked about any more.
    pub fn forget(&mut self, pid: Pid) {
        self.spaces.remove(&pid);
    }

    /// The V8 of a process, if it has one whose heap is known.
    fn v8(&mut self, pid: Pid) -> Option<&mut V8<LiveMemory>> {
        let space = self.spaces.entry(pid).or_default();
        if matches!(space.v8, Runtime::NotLooked) {
            space.v8 = Runtime::None;
            if let Some((file, layout)) = layout_of(pid, &mut self.layouts) {
                space.v8 = Runtime::V8(Box::new(V8::new(LiveMemory::of(pid), layout)));
                space.v8_inode = Some(file.inode);
            }
        }
        match &mut space.v8 {
            Runtime::V8(v8) => Some(v8),
            Runtime::NotLooked | Runtime::None => None,
        }
    }

    /// The executable mapping that holds an address. Maps are read again when it is in none, but not all the time.
    fn mapping(&mut self, pid: Pid, addr: u64) -> Option<Mapping> {
        let space = self.spaces.entry(pid).or_default();
        if let Some(mapping) = space.holding(addr) {
            return Some(mapping);
        }
        if space.read.is_none_or(|read| read.elapsed() >= MAPS_PACE) && space.read_mappings(pid) {
            self.grown.insert(pid);
        }
        space.holding(addr)
    }

    /// The same, sooner than maps are read as a rule.
    fn mapping_at_once(&mut self, pid: Pid, addr: u64) -> Option<Mapping> {
        let space = self.spaces.entry(pid).or_default();
        if space.hurried_at.is_some_and(|at| at.elapsed() >= MAPS_AT_ONCE_PACE) {
            space.hurried = space.hurried.saturating_sub(1);
            space.hurried_at = Some(Instant::now());
        }
        if space.hurried >= MAPS_AT_ONCE {
            return None;
        }
        space.hurried += 1;
        space.hurried_at.get_or_insert_with(Instant::now);
        if space.read_mappings(pid) {
            self.grown.insert(pid);
        }
        space.holding(addr)
    }
}

/// What was found, and how many collections there had been before.
#[derive(Debug, Default)]
pub struct SuspendedCalls {
    pub suspended: Suspended,
    pub collections: (u32, u32),
}

fn function_layout(pid: Pid) -> Option<FunctionLayout> {
    let target = NodeTarget::inspect(pid).ok()?;
    FunctionLayout::read(&target.node.holder(Component::V8)?.elf, target.node.v8_version()?)
}

fn layout_of(pid: Pid, layouts: &mut HashMap<FileIdentity, Option<Layout>>) -> Option<(FileIdentity, Layout)> {
    let target = NodeTarget::inspect(pid).map_err(|error| debug!("no V8: {error}")).ok()?;
    let file = target.node.holder(Component::V8)?;
    if layouts.len() >= V8_LAYOUTS_MAX {
        layouts.clear();
    }
    let read = || {
        let [major, minor, build, _] = target.node.v8_version()?;
        Layout::of_file([major, minor, build], &file.elf).map_err(|error| debug!("no JavaScript names: {error}")).ok()
    };
    layouts.entry(file.identity).or_insert_with(read).clone().map(|layout| (file.identity, layout))
}

/// Code that is in no file: in anonymous memory, named (`[anon:v8]`, prctl(2) `PR_SET_VMA`) or not, or in a file that only memory
/// has. The kernel's own (`[vdso]`, `[uprobes]`) is not meant.
fn is_compiled_at_run_time(mapping: &Mapping) -> bool {
    let path = mapping.path.to_string_lossy();
    if mapping.is_file() {
        return path.starts_with("/memfd:") || path.starts_with("[anon_shmem:");
    }
    path.is_empty() || path == "[heap]" || path == "[stack]" || path.starts_with("[anon:")
}

fn file_name(mapping: &Mapping) -> Option<String> {
    mapping.path.file_name().map(|name| name.to_string_lossy().into_owned())
}

fn unknown(addr: u64) -> Frame {
    Frame { name: format!("{addr:#x}"), kind: FrameKind::Unknown, ..Frame::default() }
}
