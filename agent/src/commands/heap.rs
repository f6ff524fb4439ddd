//! `agent heap`: who lives on a heap, and what grew between two looks at it.

use std::{
    fs::File,
    io::{BufRead, BufReader, IsTerminal as _, Read as _, Write as _},
    path::Path,
    time::Instant,
};

use agent_ebpf::spec::Component;

use super::driver::{nanoseconds, say, style};
use crate::{
    census::{self, Census, mark::Tally, roots::Region, shapes::Types},
    cli::{Format, HeapArgs, HeapCommand, HeapDiffArgs, HeapViewArgs, ProfileFormat, exit},
    export::text::{self, Style},
    limits::LINE_BYTES_MAX,
    report::heap::{self, Constructor, Heap, Line, Whole},
    symbolize::v8::{
        heap::Heap as V8Heap,
        layout::{Layout, NoLayout},
    },
    target::{
        malloc,
        memory::LiveMemory,
        node::{NodeError, NodeTarget},
        procfs::{self, ProcError},
        regions::{self, PageMap},
        v8::FunctionLayout,
    },
    units::{Pid, WallNs},
};

/// Times that a census is taken where too much was moved meanwhile.
const ATTEMPTS_MAX: u32 = 3;

/// A share of pointers to no object from which it is taken again.
const STRAY_SHARE_MAX: f64 = 0.01;

/// Stacks of threads are as large as this at most, by any usual limit.
const STACK_BYTES_MAX: u64 = 16 << 20;

/// What lies below the stack pointer and is still in use (System V ABI).
const RED_ZONE_BYTES: u64 = 128;

#[derive(Debug, thiserror::Error)]
enum HeapError {
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
    #[error("{0}")]
    Other(String),
}

impl HeapError {
    fn code(&self) -> u8 {
        match self {
            Self::Node(NodeError::Process(ProcError::Denied { .. }))
            | Self::Process(ProcError::Denied { .. })
            | Self::Denied(_) => exit::NOT_ALLOWED,
            Self::Node(_) | Self::Process(_) | Self::Layout(_) | Self::NoTypes(_) | Self::Ended(_) => exit::NO_TARGET,
            Self::NoPages(_) | Self::Other(_) => exit::FAILED,
        }
    }
}

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &HeapArgs) -> u8 {
    let done = match (&args.command, args.pid) {
        (Some(HeapCommand::Diff(args)), _) => diff(args).map_err(HeapError::Other),
        (None, Some(pid)) => count(args, Pid(pid)),
        // The command line is not taken without one of them.
        (None, None) => Ok(()),
    };
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

fn count(args: &HeapArgs, pid: Pid) -> Result<(), HeapError> {
    let target = NodeTarget::inspect(pid)?;
    let incarnation = procfs::incarnation(pid);
    let version = target.node.v8_version().ok_or(NoLayout::NoVersion)?;
    let file = target.node.holder(Component::V8).ok_or(NoLayout::NoVersion)?;
    let [major, minor, build, _] = version;
    let layout = Layout::of_file([major, minor, build], &file.elf)?;
    let types = Types::read(&file.elf, version).ok_or(HeapError::NoTypes(pid))?;
    let shared = FunctionLayout::read(&file.elf, version).ok_or(HeapError::NoTypes(pid))?.shared;
    let node_version = target.node.node_version().map(|version| version.to_string());
    let started = Instant::now();
    let time = now().to_string();
    let v8 = V8Heap::new(LiveMemory::of(pid), layout);
    let mut progress = Progress::new(args, started);
    let (mut best, mut attempts) = (None::<Census>, 0);
    while attempts < ATTEMPTS_MAX && (attempts == 0 || started.elapsed() < args.timeout) {
        attempts += 1;
        let pages = PageMap::of(pid);
        let subject = census::Subject {
            heap: &v8,
            types: types.clone(),
            shared,
            regions: regions_of(pid, &v8.memory)?,
            present: Box::new(move |at| pages.present(at)),
        };
        let census = census::take(&subject, &mut |tally| progress.go_on(tally));
        progress.clear();
        if procfs::incarnation(pid) != incarnation || !procfs::is_alive(pid) {
            return Err(HeapError::Ended(pid));
        }
        if best.as_ref().is_none_or(|best| census.stray_share() < best.stray_share()) {
            best = Some(census);
        }
        if best.as_ref().is_some_and(|best| best.stray_share() < STRAY_SHARE_MAX) {
            break;
        }
    }
    let census = best.ok_or(HeapError::NoPages(pid))?;
    if census.tally.read_bytes == 0 {
        return Err(if procfs::is_refused(pid) { HeapError::Denied(pid) } else { HeapError::Ended(pid) });
    }
    if census.pages == 0 || census.tally.objects == 0 {
        return Err(HeapError::NoPages(pid));
    }
    let whole = Whole {
        schema_version: heap::SCHEMA_VERSION,
        time,
        pid: pid.0,
        node_version,
        duration_ns: nanoseconds(started.elapsed()),
        heap_bytes: census.heap_bytes,
        read_bytes: census.tally.read_bytes,
        objects: census.by_constructor.values().map(|count| count.objects).sum(),
        object_bytes: census.by_constructor.values().map(|count| count.bytes).sum(),
        stray_share: census.stray_share(),
        attempts,
        complete: !census.tally.cut_short,
    };
    let constructors = census.by_constructor.into_iter().map(|(constructor, count)| Constructor {
        name: constructor.name,
        place: constructor.place,
        objects: count.objects,
        bytes: count.bytes,
    });
    let heap = Heap::new(whole, constructors.collect());
    write(&args.view, &heap.lines(), |style| text::heap(&heap, args.view.top, style)).map_err(HeapError::Other)
}

/// The process's private memory; of stacks, and of what the C library manages, only what is in use.
fn regions_of(pid: Pid, memory: &LiveMemory) -> Result<Vec<Region>, ProcError> {
    let pointers: Vec<u64> = procfs::threads(pid)?
        .into_iter()
        .filter_map(|thread| regions::stack_pointer(pid, thread.tid))
        .map(|at| at.0.saturating_sub(RED_ZONE_BYTES) / 8 * 8)
        .collect();
    let readable = regions::readable(pid)?.into_iter().map(|region| {
        let mut range = region.range;
        let used = pointers.iter().find(|at| range.contains(at)).filter(|_| {
            region.kind == regions::Kind::Stack || (region.anonymous && range.end - range.start <= STACK_BYTES_MAX)
        });
        if let Some(used) = used {
            range.start = *used;
        }
        let free = if region.anonymous && region.writable {
            malloc::free(memory, &range, region.kind == regions::Kind::Brk)
        } else {
            Vec::new()
        };
        Region { range, writable: region.writable, free }
    });
    Ok(readable.collect())
}

/// Tells how far it is, and when it is too late.
struct Progress {
    started: Instant,
    deadline: Instant,
    said: Instant,
    is_shown: bool,
    is_dirty: bool,
}

impl Progress {
    /// A line a second is enough.
    const EVERY_MS: u128 = 1000;

    fn new(args: &HeapArgs, started: Instant) -> Self {
        let is_shown = !args.quiet && std::io::stderr().is_terminal();
        Self { started, deadline: started + args.timeout, said: started, is_shown, is_dirty: false }
    }

    fn go_on(&mut self, tally: &Tally) -> bool {
        let now = Instant::now();
        if self.is_shown && now.duration_since(self.said).as_millis() >= Self::EVERY_MS {
            self.said = now;
            self.is_dirty = true;
            let seconds = now.duration_since(self.started).as_secs();
            let line =
                format!("\ragent: {} objects after {seconds} s, {} MiB read", tally.objects, tally.read_bytes >> 20);
            let _ = write!(std::io::stderr(), "{line}");
        }
        now < self.deadline
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_dirty) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn now() -> WallNs {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    WallNs(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0)))
}

fn diff(args: &HeapDiffArgs) -> Result<(), String> {
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let growth = heap::diff(&before, &after);
    let lines: Vec<Line> = growth.iter().cloned().map(Line::HeapGrowth).collect();
    write(&args.view, &lines, |style| text::heap_diff(&before, &after, &growth, args.view.top, style))
}

/// A census that was written before.
fn read(path: &Path) -> Result<Heap, String> {
    let name = path.display();
    let fail = |error: &dyn std::fmt::Display| format!("cannot read {name}: {error}");
    let mut from = BufReader::new(File::open(path).map_err(|error| fail(&error))?);
    let (mut whole, mut constructors) = (None, Vec::new());
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = (LINE_BYTES_MAX as u64).saturating_add(1);
        let bytes = from.by_ref().take(most).read_until(b'\n', &mut line).map_err(|error| fail(&error))?;
        if bytes == 0 {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(Line::HeapCensus(census)) => whole = Some(census),
            Ok(Line::HeapConstructor(constructor)) => constructors.push(constructor),
            // Lines of other kinds may come with later versions.
            Ok(Line::HeapGrowth(_)) | Err(_) => {}
        }
    }
    let whole = whole.ok_or_else(|| {
        format!("{name} is no census: write one with `agent heap --pid PID -o {name}` and an ending of .ndjson")
    })?;
    if whole.schema_version != heap::SCHEMA_VERSION {
        return Err(format!(
            "{name} is of schema {}, and this program knows {}",
            whole.schema_version,
            heap::SCHEMA_VERSION
        ));
    }
    Ok(Heap::new(whole, constructors))
}

fn write(args: &HeapViewArgs, lines: &[Line], text: impl Fn(Style) -> String) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write {}: {error}", args.output.display());
    let to_stdout = args.output == Path::new("-");
    let of_name = match ProfileFormat::of_name(&args.output) {
        Some(ProfileFormat::Ndjson) => Format::Ndjson,
        _ => Format::Text,
    };
    let asked = if args.json { Some(Format::Ndjson) } else { args.format };
    let bytes = match asked.unwrap_or(of_name) {
        Format::Text => text(if to_stdout { style(true) } else { Style::default() }).into_bytes(),
        Format::Bunyan => return Err("a census is no log: write it as text or ndjson".into()),
        Format::Ndjson => {
            let mut bytes = Vec::new();
            for line in lines {
                serde_json::to_writer(&mut bytes, line).map_err(|error| fail(error.into()))?;
                bytes.push(b'\n');
            }
            bytes
        }
    };
    if to_stdout {
        let mut out = std::io::stdout().lock();
        return out.write_all(&bytes).and_then(|()| out.flush()).map_err(fail);
    }
    std::fs::write(&args.output, bytes).map_err(fail)
}
