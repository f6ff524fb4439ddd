//! From addresses to names.
//!
//! Symbol tables of a Node.js binary hold 170 000 functions; they are kept as sorted addresses, and a name is read from the file when
//! it is asked for, so the whole costs three megabytes and no mapped file. Where a file has line information, blazesym says
//! which functions were inlined.

mod demangle;
mod jit;
mod kernel;
mod lines;
mod module;
pub mod source_map;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    decode::{Frames, UserFrames},
    limits::{SYMBOL_FILES_MAX, SYMBOL_SPACES_MAX},
    report::model::{Frame, FrameKind, Truncated},
    target::procfs::{self, Incarnation, Mapping},
    units::{Pid, UserAddr},
};
use kernel::KernelSymbols;
use module::Module;

pub use demangle::readable;
pub use jit::PerfMap;
pub use kernel::parse as parse_kallsyms;
pub use lines::parse_debug_ranges;

/// Reading `/proc/PID/maps` takes the target's mmap lock: not more often than this. Less than a window, as each window brings new
/// stacks at once.
const MAPS_PACE: Duration = Duration::from_millis(500);

/// Executable mappings that are searched for a vtable, from the address down: a file's data lie behind its code.
const CLASS_FILES_MAX: usize = 16;

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
    /// By device and inode.
    modules: HashMap<(u64, u64), Option<Module>>,
    kernel: Option<KernelSymbols>,
    lines: blazesym::symbolize::Symbolizer,
}

/// What is mapped where in a process.
#[derive(Default)]
struct Space {
    mappings: Vec<Mapping>,
    read: Option<Instant>,
    incarnation: Option<Incarnation>,
    used: Option<Instant>,
    perf_map: PerfMap,
}

impl Default for Symbolizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Symbolizer {
    #[must_use]
    pub fn new() -> Self {
        Self { spaces: HashMap::new(), modules: HashMap::new(), kernel: None, lines: inlined_functions() }
    }

    /// Names a stack, innermost first.
    pub fn symbolize(&mut self, pid: Pid, stack: &Frames) -> Named {
        match stack {
            Frames::User(stack) => self.symbolize_user(pid, stack),
            Frames::Kernel(addrs) => {
                let frames = self.symbolize_kernel(addrs).into_iter().map(Arc::new).collect();
                Named { frames, truncated: None }
            }
        }
    }

    /// Names a user stack. Every address but the first is a return address: the call lies before it.
    pub fn symbolize_user(&mut self, pid: Pid, stack: &UserFrames) -> Named {
        self.enter(pid);
        let mut frames = Vec::with_capacity(stack.frames.len());
        for (depth, frame) in stack.frames.iter().enumerate() {
            self.user_frame(pid, frame.pc, frame.pc.saturating_sub(u64::from(depth > 0)), &mut frames);
        }
        Named { frames: frames.into_iter().map(Arc::new).collect(), truncated: None }
    }

    /// Names a kernel stack, innermost first, from the scheduler's own entry on: what lies above is the tracing of it.
    pub fn symbolize_kernel(&mut self, addrs: &[u64]) -> Vec<Frame> {
        let symbols = self.kernel.get_or_insert_with(KernelSymbols::read);
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
            let (module, _) = self.module_and_lines(pid, mapping)?;
            module.class_of_vptr(mapping, vtable)
        })
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

    fn user_frame(&mut self, pid: Pid, addr: u64, at: u64, frames: &mut Vec<Frame>) {
        let Some(mapping) = self.mapping(pid, at) else {
            frames.push(unknown(addr));
            return;
        };
        if is_compiled_at_run_time(&mapping) {
            let space = self.spaces.entry(pid).or_default();
            let unnamed = || Frame { name: "[js]".to_owned(), kind: FrameKind::Js, ..Frame::default() };
            frames.push(space.perf_map.frame(pid, at).unwrap_or_else(unnamed));
            return;
        }
        if !mapping.is_file() {
            let name = mapping.path.to_string_lossy().into_owned();
            frames.push(Frame { name, kind: FrameKind::Native, ..Frame::default() });
            return;
        }
        let offset = at.wrapping_sub(mapping.start.0).wrapping_add(mapping.offset);
        let begin = frames.len();
        if let Some((module, lines)) = self.module_and_lines(pid, &mapping) {
            module.frames(offset, lines, frames);
        }
        if frames.len() == begin {
            // A stripped library: the place in the file can be named later, by whoever has its symbols.
            let module = file_name(&mapping);
            let name = format!("{}+{offset:#x}", module.as_deref().unwrap_or("?"));
            frames.push(Frame { name, module, kind: FrameKind::Unknown, ..Frame::default() });
        }
    }

    /// The executable mapping that holds an address. Maps are read again when it is in none, but not all the time.
    fn mapping(&mut self, pid: Pid, addr: u64) -> Option<Mapping> {
        let space = self.spaces.entry(pid).or_default();
        let find = |space: &Space| {
            let next = space.mappings.partition_point(|mapping| mapping.start.0 <= addr);
            let mapping = space.mappings.get(next.checked_sub(1)?)?;
            (addr < mapping.end.0).then(|| mapping.clone())
        };
        if let Some(mapping) = find(space) {
            return Some(mapping);
        }
        if space.read.is_none_or(|read| read.elapsed() >= MAPS_PACE) {
            space.read = Some(Instant::now());
            // A process that has gone keeps the maps that are known of it.
            if let Ok(mut mappings) = procfs::executable_mappings(pid) {
                mappings.sort_by_key(|mapping| mapping.start);
                space.mappings = mappings;
            }
        }
        find(space)
    }

    fn module_and_lines(&mut self, pid: Pid, mapping: &Mapping) -> Option<(&Module, &blazesym::symbolize::Symbolizer)> {
        let identity = (mapping.device, mapping.inode);
        if !self.modules.contains_key(&identity) {
            if self.modules.len() >= SYMBOL_FILES_MAX {
                self.modules.clear();
                self.lines = inlined_functions();
            }
            let module = Module::open(pid, mapping);
            if module.is_none() && !procfs::is_alive(pid) {
                // Nobody can open what only it had; another process may have the same file.
                return None;
            }
            self.modules.insert(identity, module);
        }
        self.modules.get(&identity)?.as_ref().map(|module| (module, &self.lines))
    }
}

/// Names are made readable here, whichever table they come from.
fn inlined_functions() -> blazesym::symbolize::Symbolizer {
    blazesym::symbolize::Symbolizer::builder().enable_demangling(false).build()
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
