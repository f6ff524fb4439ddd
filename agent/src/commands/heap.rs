//! `agent heap`: who lives on a heap, and what grew between two looks at it.

use std::{
    fs::File,
    io::{BufRead, BufReader, IsTerminal as _, Read as _, Write as _},
    path::Path,
    time::Instant,
};

use super::{
    census::{Counter, HeapError, Taken, constructors},
    driver::{say, style},
};
use crate::{
    census::mark::Tally,
    cli::{Format, HeapArgs, HeapCommand, HeapDiffArgs, HeapViewArgs, ProfileFormat, exit},
    export::text::{self, Style},
    limits::LINE_BYTES_MAX,
    report::heap::{self, Heap, Line, Whole},
    units::{Pid, WallNs, nanoseconds},
};

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Heap(#[from] HeapError),
    #[error("{0}")]
    Output(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Heap(error) => error.code(),
            Self::Output(_) => exit::FAILED,
        }
    }
}

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &HeapArgs) -> u8 {
    let done = match (&args.command, args.pid) {
        (Some(HeapCommand::Diff(args)), _) => diff(args).map_err(Failure::Output),
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

fn count(args: &HeapArgs, pid: Pid) -> Result<(), Failure> {
    let counter = Counter::of(pid)?;
    let started = Instant::now();
    let time = now().to_string();
    let mut progress = Progress::new(args, started);
    let taken = counter.count(args.timeout, &|| None, &mut |tally| progress.go_on(tally));
    progress.clear();
    let Taken { census, attempts, .. } = taken?;
    let whole = Whole {
        schema_version: heap::SCHEMA_VERSION,
        time,
        pid: pid.0,
        node_version: counter.node_version,
        duration_ns: nanoseconds(started.elapsed()),
        heap_bytes: census.heap_bytes,
        read_bytes: census.tally.read_bytes,
        objects: census.by_constructor.values().map(|count| count.objects).sum(),
        object_bytes: census.by_constructor.values().map(|count| count.bytes).sum(),
        stray_share: census.stray_share(),
        attempts,
        complete: !census.tally.cut_short,
    };
    let heap = Heap::new(whole, constructors(census));
    write(&args.view, &heap.lines(), |style| text::heap(&heap, args.view.top, style)).map_err(Failure::Output)
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
