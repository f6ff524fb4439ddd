//! How many events a second come through a ring buffer and are made figures of, and for how much CPU; beside bpftrace and the
//! kernel's own benchmark.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{BenchArgs, load_average, server::Running};
use crate::{
    run::{Error, cache, root, say},
    setup,
};

const INTRODUCTION: &str = "\
# How much a ring buffer takes

Written by `cargo xtask bench ring`. A process does nothing but turn its event loop, and each turn is an event. `agent trace`, told to
watch all of them (`--max-overhead 100%`), reads them from its ring, books each in its ledger and histograms, and writes a summary a
second. bpftrace, told to print a line of two numbers at each, reads them from its perf buffer and formats them, to a pipe. The kernel's
own benchmark (`rb-libbpf` of its selftests, whose consumer is in C) has a program that writes eight bytes at a time as fast as it can, and
counts them; what finds no room is lost. Ten seconds each; CPU is that of the reader alone, of the benchmark that of the thread that reads.
";

const HEAD: &str = "\
| reader | events/s | lost | CPU of the reader, of one core | events a second of CPU |
|---|---|---|---|---|
";

const SPAN: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(2);

/// What a reader has read and lost, and the CPU time that it took: so far, or a second.
#[derive(Clone, Copy, Default)]
struct Tally {
    read: f64,
    lost: f64,
    cpu_seconds: f64,
}

pub fn bench(args: &BenchArgs) -> Result<(), Error> {
    let kernels = setup::kernel_bench::build()?;
    let mut table = String::from(HEAD);
    let mut row = |name: &str, of: Tally| {
        let (lost, cpu) = (of.lost / (of.read + of.lost) * 100.0, of.cpu_seconds * 100.0);
        let each = of.read / of.cpu_seconds / 1e6;
        // Writing to a string does not fail.
        let _ = writeln!(table, "| {name} | {:.0} | {lost:.1} % | {cpu:.0} % | {each:.2} million |", of.read);
    };
    for (name, reader) in
        [("agent trace", agent as fn(u32) -> Result<_, Error>), ("bpftrace, printing a line", bpftrace)]
    {
        say(name);
        let node = turning(args)?;
        row(name, reader(node.0.id())?);
    }
    for (name, options) in [
        ("the kernel's benchmark, counting", [].as_slice()),
        ("the same, woken once for 500 events", &["--rb-sampled"]),
    ] {
        say(name);
        row(name, kernel(&kernels, options)?);
    }
    eprintln!("{table}");
    let path = root().join("agent/benches/RING.md");
    let text = format!(
        "{INTRODUCTION}\nNode.js {}. Load average of the machine at the end: {}.\n\n{table}",
        args.node,
        load_average()
    );
    fs::write(&path, text).map_err(|source| Error::io("agent/benches/RING.md", source))
}

/// The kernel's benchmark, by what it says at its end.
fn kernel(program: &Path, options: &[&str]) -> Result<Tally, Error> {
    let failed = |source| Error::io("the kernel's benchmark", source);
    let mut command = Command::new(program);
    command.args(["--affinity", "--consumers", "1", "--producers", "1", "--warmup", "2"]);
    command.args(["--duration", &(SETTLE + SPAN).as_secs().to_string()]).args(options).arg("rb-libbpf");
    let mut bench = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    std::thread::sleep(SETTLE * 2);
    let pid = bench.id();
    let (begin, before) = (Instant::now(), reading_seconds(pid));
    std::thread::sleep(SPAN);
    let cpu_seconds = (reading_seconds(pid) - before) / begin.elapsed().as_secs_f64();
    let mut said = String::new();
    if let Some(stdout) = &mut bench.stdout {
        stdout.read_to_string(&mut said).map_err(failed)?;
    }
    bench.wait().map_err(failed)?;
    // `Summary: hits 9.215 ± 0.223M/s (  9.215M/prod), drops 19.660 ± 1.137M/s, …`
    let millions = |what: &str| {
        let (_, rest) = said.split_once("Summary:")?.1.split_once(what)?;
        Some(rest.split_whitespace().next()?.parse::<f64>().ok()? * 1e6)
    };
    let (read, lost) = millions("hits").zip(millions("drops")).ok_or_else(|| Error::Missing {
        what: "what the kernel's benchmark measured".into(),
        so: format!("it said: {}", said.trim()),
    })?;
    Ok(Tally { read, lost, cpu_seconds })
}

/// CPU time of its thread that reads: the first one that it starts.
fn reading_seconds(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut tids: Vec<u32> = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    let reader = tids.get(1).copied().unwrap_or(pid);
    seconds_in(&format!("/proc/{pid}/task/{reader}/stat"))
}

fn start(command: &mut Command, name: &'static str) -> Result<Running, Error> {
    command.spawn().map(Running).map_err(|source| Error::io(name, source))
}

/// A process that turns its loop as often as it can.
fn turning(args: &BenchArgs) -> Result<Running, Error> {
    let mut command = Command::new(cache().join("node").join(&args.node).join("bin/node"));
    command.arg(root().join("agent/tests/workloads/hot_loop.js")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut node = start(&mut command, "node")?;
    std::thread::sleep(SETTLE);
    if let Some(stdin) = &mut node.0.stdin {
        stdin.write_all(b"go\n").map_err(|source| Error::io("node", source))?;
    }
    Ok(node)
}

fn agent(pid: u32) -> Result<Tally, Error> {
    let ndjson = root().join("target/bench-ring.ndjson");
    let _ = fs::remove_file(&ndjson);
    let mut command = Command::new(root().join("target/release/agent"));
    command.args(["trace", "--quiet", "--pid", &pid.to_string(), "--max-overhead", "100%", "--phases", "never"]);
    command.args(["--sample-hz", "0", "--output", "/dev/null", "--ndjson"]).arg(&ndjson);
    let agent = start(&mut command, "agent")?;
    std::thread::sleep(SETTLE * 2);
    let look = || {
        let (read, lost) = event_loop(&ndjson);
        Tally { read, lost, cpu_seconds: cpu_seconds(agent.0.id()) }
    };
    measured(look)
}

/// Records of the family that turns are of, by its last books: received, and dropped.
fn event_loop(ndjson: &PathBuf) -> (f64, f64) {
    let text = fs::read_to_string(ndjson).unwrap_or_default();
    let records = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let books = records.filter(|record| record.get("type").is_some_and(|kind| kind == "agent")).find_map(|record| {
        let families = record.get("families")?.as_array()?;
        let family = families.iter().find(|family| family.get("family").is_some_and(|name| name == "event_loop"))?;
        Some((family.get("received")?.as_f64()?, family.get("dropped")?.as_f64()?))
    });
    books.unwrap_or_default()
}

fn bpftrace(pid: u32) -> Result<Tally, Error> {
    let probes = "tracepoint:syscalls:sys_exit_epoll_wait,tracepoint:syscalls:sys_exit_epoll_pwait";
    let program = format!("{probes} /pid == {pid}/ {{ printf(\"%llu %d\\n\", nsecs, tid); }}");
    let mut command = Command::new("bpftrace");
    command.args(["-e", &program]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut bpftrace = start(&mut command, "bpftrace")?;
    let (read, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    if let Some(stdout) = bpftrace.0.stdout.take() {
        let read = Arc::clone(&read);
        std::thread::spawn(move || {
            for _line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                read.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    if let Some(stderr) = bpftrace.0.stderr.take() {
        let lost = Arc::clone(&lost);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let events = line.strip_prefix("Lost ").and_then(|rest| rest.split(' ').next()?.parse().ok());
                lost.fetch_add(events.unwrap_or(0), Ordering::Relaxed);
            }
        });
    }
    std::thread::sleep(SETTLE * 2);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let look = || Tally {
        read: read.load(Ordering::Relaxed) as f64,
        lost: lost.load(Ordering::Relaxed) as f64,
        cpu_seconds: cpu_seconds(bpftrace.0.id()),
    };
    measured(look)
}

/// How much is read, lost and taken a second.
fn measured(look: impl Fn() -> Tally) -> Result<Tally, Error> {
    let (begin, before) = (Instant::now(), look());
    std::thread::sleep(SPAN);
    let (seconds, after) = (begin.elapsed().as_secs_f64(), look());
    if after.read <= before.read {
        return Err(Error::io("a reader", std::io::Error::other("it read nothing")));
    }
    let rate = |of: fn(&Tally) -> f64| (of(&after) - of(&before)) / seconds;
    Ok(Tally {
        read: rate(|tally| tally.read),
        lost: rate(|tally| tally.lost),
        cpu_seconds: rate(|tally| tally.cpu_seconds),
    })
}

/// CPU time so far, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    seconds_in(&format!("/proc/{pid}/stat"))
}

fn seconds_in(stat: &str) -> f64 {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}
