//! What profiles cost: beside none, beside `perf record`, and beside V8's own profiler in the same process.

use std::{
    fmt::Write as _,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Awake, BenchArgs, HEAD, Measured as _, WARM_UP, load_average, row, run,
    server::{Case, Server},
    structure::{Stats, run_times},
    tool::{Tool, ndjson},
};
use crate::{
    run::{Error, ask, cache, line_of, root, say},
    toolchain::host_cargo,
};

const INTRODUCTION: &str = "\
# What profiles cost

Written by `cargo xtask bench profile`, in the way of [RESULTS.md](RESULTS.md): ratios of neighbouring halves, with a tool attached and
without, in one server process under steady load; *null* compares neighbours without any. Samples are 99 a second and CPU for each
tool. V8's profiler is switched on and off inside the server; its own thread is part of the CPU a request. `perf record` has kernel
and user stacks by frame pointers of the software clock, and no names for JavaScript. The empty program does nothing 99 times a second on
each CPU: what is left is the timer's interrupt. Off CPU, the server has one connection: each
request is a switch or two.
";

/// Runs the cases and writes the table.
pub fn bench(args: &BenchArgs, awake: &Awake) -> Result<(), Error> {
    let mut table = String::from(HEAD);
    let (mut loads, mut switches) = (Vec::new(), Vec::new());
    for (case, tools) in [
        (Case::Http50, [Tool::Profile, Tool::EmptySampler, Tool::Perf, Tool::Inspector].as_slice()),
        (Case::Http1, &[Tool::OffCpu]),
    ] {
        let mut server = Server::start(case, &args.node)?;
        std::thread::sleep(WARM_UP);
        for &tool in tools {
            say(&format!("{}, {}: {} pairs of {} ms", case.name(), tool.name(), args.pairs, args.half));
            let figures = run(&mut server, tool, args.pairs, args)?;
            row(&mut table, case.name(), tool, &figures);
        }
        switches.push(format!("{:.0}", switches_a_second(server.pid())?));
        loads.push(load_average());
        eprintln!("{table}");
    }
    let walk = walk(&args.node)?;
    let (naming, fifty) = (naming(&args.node)?, fifty(&args.node)?);
    let text = format!(
        "{INTRODUCTION}\nNode.js {}, halves of {} ms. {}. Load average of the machine after each case: {}; switches of the server's threads \
         in a second of it, with nothing attached: {}.\n\n{table}\n{walk}\n{naming}\n{fifty}",
        args.node,
        args.half,
        awake.word(),
        loads.join(", "),
        switches.join(", "),
    );
    let path = root().join("agent/benches/PROFILE.md");
    fs::write(&path, text).map_err(|source| Error::io("agent/benches/PROFILE.md", source))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

/// How often threads of a process stop running in a second, by themselves or not.
fn switches_a_second(pid: u32) -> Result<f64, Error> {
    let begin = (Instant::now(), switches(pid)?);
    std::thread::sleep(SPAN);
    let count = switches(pid)?.saturating_sub(begin.1);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    Ok(count / begin.0.elapsed().as_secs_f64())
}

fn switches(pid: u32) -> Result<u64, Error> {
    let threads = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&threads).map_err(|source| Error::io(&threads, source))?;
    // A thread may end while it is looked at.
    let texts = entries.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let of = |text: String| -> u64 {
        let lines = text.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        lines.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    };
    Ok(texts.map(of).sum())
}

/// Node.js running a script of its own; ends when dropped.
pub struct Node(Child);

impl Node {
    pub fn start(version: &str, script: &str) -> Result<Self, Error> {
        let node = cache().join("node").join(version).join("bin/node");
        let mut command = Command::new(node);
        command.args(["-e", script]).stdin(Stdio::null()).stdout(Stdio::null());
        command.spawn().map(Self).map_err(|source| Error::io("node", source))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Spins at the end of a recursion, so that each sample has as many frames.
fn deep(depth: u32) -> String {
    format!(
        "function dive(n) {{ if (n > 0) return dive(n - 1) + 1; const end = Date.now() + 50; while (Date.now() < end); return 0; }} \
         setInterval(dive, 51, {depth})"
    )
}

/// How long samples are counted.
const SPAN: Duration = Duration::from_secs(4);

/// What a frame costs in the kernel: samples of shallow and of deep stacks, by the kernel's count of the program's run time.
fn walk(version: &str) -> Result<String, Error> {
    let mut text = String::from(
        "Of the sampler, by the kernel's own count of its run time (`kernel.bpf_stats_enabled`): a sample's cost, by the depth of the \
         stack. The agent's CPU is that of decoding and writing them.\n\n\
         | recursion | samples/s | frames/s walked | ns a sample | ns a frame | agent's CPU | agent's CPU a frame |\n|---|---|---|---|---|---|---|\n",
    );
    for depth in [4, 100, 400] {
        let node = Node::start(version, &deep(depth))?;
        std::thread::sleep(Duration::from_secs(1));
        let _stats = Stats::count()?;
        let attached = Tool::Profile.attach(node.0.id())?;
        std::thread::sleep(Duration::from_secs(1));
        let (begin, cpu, frames) = (run_times(attached.pid())?, attached.cpu_seconds(), frames_walked());
        std::thread::sleep(SPAN);
        let (end, cpu, frames) = (run_times(attached.pid())?, attached.cpu_seconds() - cpu, frames_walked() - frames);
        attached.detach();
        let of = |times: &std::collections::BTreeMap<String, (f64, f64)>| {
            let sampler = times.iter().filter(|(name, _)| name.starts_with("sample"));
            sampler.fold((0.0, 0.0), |sum, (_, (ns, runs))| (sum.0 + ns, sum.1 + runs))
        };
        let ((ns0, runs0), (ns1, runs1)) = (of(&begin), of(&end));
        let (ns, runs, seconds) = (ns1 - ns0, runs1 - runs0, SPAN.as_secs_f64());
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {depth} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} % | {:.2} µs |",
            runs / seconds,
            frames / seconds,
            ns / runs,
            ns / frames,
            cpu / seconds * 100.0,
            cpu / frames * 1e6,
        );
    }
    Ok(text)
}

/// How fast frames are named, and how soon.
fn naming(version: &str) -> Result<String, Error> {
    say("names");
    let mut bench = host_cargo(&["bench", "--quiet", "--package", "agent", "--bench", "naming"]);
    bench.args(["--", version]);
    let rows = ask(&mut bench).ok_or_else(|| Error::Missing { what: "naming".into(), so: line_of(&bench) })?;
    let node = Node::start(version, &deep(100))?;
    std::thread::sleep(Duration::from_secs(1));
    let attached = Tool::Profile.attach(node.pid())?;
    std::thread::sleep(SPAN);
    attached.detach();
    let (half, most) = waits();
    Ok(format!(
        "User stacks of a process, named once by what knows nothing of it yet, symbol tables included, and then twenty times over, so \
         many at once.\n\n\
         | Node.js | stacks | frames | frames/s, cold | warm, 64 at once | 8 at once | one by one |\n|---|---|---|---|---|---|---|\n{rows}\n\n\
         From a sample to its names, of stacks of a hundred frames and from the agent's start on: {half:.1} ms (p50), {most:.1} ms (p99).\n"
    ))
}

/// From when a stack was taken until it had its names, in milliseconds, by the agent's records of itself: half of them, and 99 %.
fn waits() -> (f64, f64) {
    let text = fs::read_to_string(ndjson()).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut waits = std::collections::BTreeMap::<u32, u64>::new();
    for record in records {
        let buckets = record
            .pointer("/naming/buckets")
            .and_then(|buckets| serde_json::from_value::<Vec<(u32, u64)>>(buckets.clone()).ok());
        for (bucket, count) in buckets.into_iter().flatten() {
            *waits.entry(bucket).or_default() += count;
        }
    }
    let all: u64 = waits.values().sum();
    let quantile = |percent: u64| {
        let mut left = (all * percent).div_ceil(100);
        let at = waits.iter().find(|(_, count)| {
            left = left.saturating_sub(**count);
            left == 0
        });
        // The upper end of bucket i is 2^((i + 1) / 64) ns.
        at.map_or(0.0, |(bucket, _)| (f64::from(bucket + 1) / 64.0).exp2() / 1e6)
    };
    (quantile(50), quantile(99))
}

/// Frames that the kernel half has walked, by the agent's last record of itself.
fn frames_walked() -> f64 {
    let text = fs::read_to_string(ndjson()).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let walked = records.filter(|record| record.get("type").and_then(Value::as_str) == Some("agent"));
    walked.filter_map(|record| find(&record, "frames_walked")).sum()
}

/// A number by its key, wherever in a record it is.
fn find(value: &Value, key: &str) -> Option<f64> {
    match value {
        Value::Object(map) => map.get(key).and_then(Value::as_f64).or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

/// Processes of the last case.
const PROCESSES: usize = 50;

/// Memory and CPU of one agent that profiles fifty processes.
fn fifty(version: &str) -> Result<String, Error> {
    say("fifty processes");
    let work =
        "setInterval(() => { let sum = 0; for (let i = 0; i < 20000; i++) sum += JSON.stringify({ i }).length; }, 100)";
    let nodes = (0..PROCESSES).map(|_| Node::start(version, work)).collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(Duration::from_secs(3));
    let pids: Vec<u32> = nodes.iter().map(Node::pid).collect();
    let begin = Instant::now();
    let attached = Tool::Profile.attach_all(&pids)?;
    let attach = begin.elapsed();
    std::thread::sleep(SPAN * 3);
    let (cpu, memory) = (attached.cpu_seconds(), attached.peak_mb());
    attached.detach();
    Ok(format!(
        "Fifty Node.js processes at once, profiled for {} s: {memory:.0} MB of memory at most; attached within {:.1} s; {cpu:.1} s of CPU in all.\n",
        (SPAN * 3).as_secs(),
        attach.as_secs_f64(),
    ))
}
