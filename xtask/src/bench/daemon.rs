//! What `agent daemon` costs as there are more processes, active and idle ones.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Awake, BenchArgs, load_average,
    profile::Node,
    tool::{Attached, Tool, ndjson},
};
use crate::run::{Error, root, say};

const INTRODUCTION: &str = "\
# What the daemon costs

Written by `cargo xtask bench daemon`. So many Node.js processes at once, of which the *active* ones do a tenth of a millisecond's work
each 40 ms, with an `fs.stat` on the thread pool each time, and the others sleep. *First record*, *all met*: from the start of the daemon
until the first turn, and a line of each process, are in its file. *Agent's CPU*, *events*: means of ten seconds, from fifteen seconds later
on. *CPU of the processes, ratio*: what all of them took in these ten seconds, to the mean of the ten seconds before the daemon came and
after it went; *null* is the ratio of those.
";

const HEAD: &str = "\
| processes | active | first record | all met | agent's CPU, of one core | memory at most | events/s | CPU of the processes, ratio | null |
|---|---|---|---|---|---|---|---|---|
";

/// Processes, and how many of them are active.
const CASES: [(usize, usize); 5] = [(1, 1), (10, 10), (50, 50), (200, 10), (200, 200)];

/// As long as a window of the daemon, whose records say how many events there were.
const SPAN: Duration = Duration::from_secs(10);

const SETTLE: Duration = Duration::from_secs(5);

/// Node.js compiles what runs often, and takes less from then on.
const WARM_UP: Duration = Duration::from_secs(15);

/// What all have on their command lines, by which the daemon knows them.
const MARK: &str = "agent-bench-daemon";

const ACTIVE: &str = "const fs = require('fs'); setInterval(() => { let sum = 0; for (let i = 0; i < 200; i++) \
                      sum += JSON.stringify({ i }).length; fs.stat('/', () => {}); }, 40) // agent-bench-daemon";
const IDLE: &str = "setInterval(() => {}, 60_000) // agent-bench-daemon";

/// Runs the cases and writes the table.
pub fn bench(args: &BenchArgs, awake: &Awake) -> Result<(), Error> {
    let mut table = String::from(HEAD);
    let (mut loads, mut shares) = (Vec::new(), Vec::new());
    for (all, active) in CASES {
        say(&format!("{all} processes, {active} of them active"));
        let row = row(args, all, active)?;
        table.push_str(&row.text);
        shares.push(row.share);
        loads.push(load_average());
        eprintln!("{table}");
        let text = format!(
            "{INTRODUCTION}\nNode.js {}. {}. Load average of the machine after each case: {}.\n\n{table}{}",
            args.node,
            awake.word(),
            loads.join(", "),
            growth(&shares)
        );
        fs::write(root().join("agent/benches/DAEMON.md"), text)
            .map_err(|source| Error::io("agent/benches/DAEMON.md", source))?;
    }
    Ok(())
}

/// What one process more costs, from the shares of all cases.
fn growth(shares: &[f64]) -> String {
    let &[_, ten, _, mostly_idle, busy] = shares else { return String::new() };
    let [_, few, _, many, _] = CASES;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let more = (many.0 - few.0) as f64;
    format!(
        "\nOne process more takes {:.3} % of a core where it sleeps, and {:.3} % where it is active.\n",
        (mostly_idle - ten) / more,
        (busy - ten) / more
    )
}

struct Row {
    text: String,
    /// The agent's CPU, as a percentage of one core.
    share: f64,
}

fn row(args: &BenchArgs, all: usize, active: usize) -> Result<Row, Error> {
    let nodes: Vec<Node> = (0..all)
        .map(|at| Node::start(&args.node, if at < active { ACTIVE } else { IDLE }))
        .collect::<Result<_, _>>()?;
    let pids: BTreeSet<u32> = nodes.iter().map(Node::pid).collect();
    std::thread::sleep(WARM_UP + Duration::from_millis(20) * u32::try_from(all).unwrap_or(0));
    let before = spent(&pids, SPAN);
    let daemon = Tool::Daemon.attach_all(&[])?;
    let first = daemon.first_record(Duration::from_secs(20)).unwrap_or_default();
    let met = met(&daemon, &pids)?;
    // Its first window is closed by then, after which heaps are looked for, once; and the next one by the end.
    std::thread::sleep(SPAN + SETTLE);
    let (cpu, events) = (daemon.cpu_seconds(), events());
    let during = spent(&pids, SPAN);
    let (cpu, events) = (daemon.cpu_seconds() - cpu, self::events() - events);
    let memory_mb = daemon.peak_mb();
    daemon.detach();
    let after = spent(&pids, SPAN);
    let share = cpu / SPAN.as_secs_f64() * 100.0;
    let text = format!(
        "| {all} | {active} | {} ms | {} ms | {share:.1} % | {memory_mb:.0} MB | {:.0} | {:.3} | {:.3} |\n",
        first.as_millis(),
        met.as_millis(),
        events / SPAN.as_secs_f64(),
        during / f64::midpoint(before, after),
        after / before,
    );
    Ok(Row { text, share })
}

/// CPU time that all of them take in a span, in seconds.
fn spent(pids: &BTreeSet<u32>, span: Duration) -> f64 {
    let now = || pids.iter().map(|pid| on_cpu_ns(*pid)).sum::<f64>();
    let begin = now();
    std::thread::sleep(span);
    (now() - begin) / 1e9
}

/// Of all threads, by the scheduler's count: to the nanosecond.
fn on_cpu_ns(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |path: PathBuf| fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok();
    tasks.filter_map(|task| of(task.path())).sum()
}

fn records() -> Vec<Value> {
    let text = fs::read_to_string(ndjson()).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits until each process has a line.
fn met(daemon: &Attached, pids: &BTreeSet<u32>) -> Result<Duration, Error> {
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let records = records();
        let seen: BTreeSet<u32> = records
            .iter()
            .filter(|record| record.get("type").is_some_and(|kind| kind == "target"))
            .filter_map(|record| u32::try_from(record.get("pid")?.as_u64()?).ok())
            .collect();
        if seen.is_superset(pids) {
            return Ok(daemon.age());
        }
        if Instant::now() > patience {
            let missing = pids.difference(&seen).count();
            return Err(Error::io(
                "agent daemon",
                std::io::Error::other(format!("{missing} processes were never met")),
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Records that the kernel half has sent so far: the last count of all.
fn events() -> f64 {
    let last = records().into_iter().rfind(|record| record.get("type").is_some_and(|kind| kind == "agent"));
    let families = last.as_ref().and_then(|record| record.get("families")?.as_array());
    families.into_iter().flatten().filter_map(|family| family.get("emitted")?.as_f64()).sum()
}

/// The configuration of the daemon: these processes and no others, all to one file.
pub fn config() -> String {
    format!(
        "[trace]\npostgres = false\n[output]\nndjson = ['{}']\n[[process]]\ncommand = \"*{MARK}*\"\n[[process]]\ntrace = false\n",
        ndjson().display()
    )
}
