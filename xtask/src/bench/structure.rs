//! The structural bound: how often programs run, times what a run costs. It does not see what caches lose, but
//! neither does it see the noise.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{server::Case, tool::Tool};
use crate::run::Error;

pub const HEAD: &str = "\
\nProbe hits times their cost: traps by calibration in the same run, programs by the kernel's own count of their run time \
(`kernel.bpf_stats_enabled`) less what it says of as many runs of an empty program under the same load, which is the counting itself. \
Scheduler programs see every process of the machine, so a busy \
neighbour raises their part. What the kernel spends on reaching a tracepoint's program is not in the sum: as long as any system call \
has a tracepoint, every call of every process takes its slow way, by so much longer as the column *each system call* says (the fastest \
of some hundred runs of ten thousand `getpid`, with the agent and without). Probes that would be \
dear are attached for a part of the time only; *phases seen* is the share of those on phases in what was counted here.\n\n\
| case | phases seen | uprobe hits/s | traps | other program runs/s | an empty run | BPF programs | of that: stacks and scheduler | sum, of one core | each system call | agent's own CPU | its memory |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// How long programs are counted: most rests of the phase probes are shorter than this.
const SPAN: Duration = Duration::from_secs(12);

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Attaches the agent once more and counts.
pub fn row(case: Case, pid: u32) -> Result<String, Error> {
    let _stats = Stats::count()?;
    let empty_ns = empty_run_ns()?;
    let call_before = system_call_ns();
    let attached = Tool::Agent.attach(pid)?;
    std::thread::sleep(Duration::from_secs(2));
    let (begin, cpu) = (run_times(attached.pid())?, attached.cpu_seconds());
    std::thread::sleep(SPAN);
    let (end, cpu) = (run_times(attached.pid())?, attached.cpu_seconds() - cpu);
    let call = system_call_ns() - call_before;
    let memory = attached.peak_mb();
    let phases_seen = phases_seen();
    let hit_ns = attached.hit_ns();
    attached.detach();
    let spent = |names: &[&str]| -> f64 {
        let used = end.iter().filter(|(name, _)| names.is_empty() || names.contains(&name.as_str()));
        let net = used.map(|(name, (ns, runs))| {
            let (ns_before, runs_before) = begin.get(name).copied().unwrap_or_default();
            ns - ns_before - (runs - runs_before) * empty_ns
        });
        net.sum::<f64>() / 1e9 / SPAN.as_secs_f64()
    };
    let runs = |name: &str| {
        let count = |of: &BTreeMap<String, (f64, f64)>| of.get(name).map_or(0.0, |(_, runs)| *runs);
        (count(&end) - count(&begin)) / SPAN.as_secs_f64()
    };
    let is_uprobe = |name: &str| name.ends_with("_multi") || name.ends_with("_single");
    let uprobes = end.keys().filter(|name| is_uprobe(name)).map(|name| runs(name)).sum::<f64>();
    let traps = uprobes * hit_ns / 1e9;
    let others = end.keys().filter(|name| !is_uprobe(name)).map(|name| runs(name)).sum::<f64>();
    let programs = spent(&[]);
    Ok(format!(
        "| {} | {:.0} % | {uprobes:.0} | {:.2} % ({hit_ns:.0} ns each) | {others:.0} | {empty_ns:.0} ns | {:.2} % | {:.2} % | {:.2} % | {call:+.0} ns | {:.1} % | {memory:.0} MB |\n",
        case.name(),
        phases_seen * 100.0,
        traps * 100.0,
        programs * 100.0,
        spent(&["sched_switch", "sched_wakeup", "sched_wakeup_new"]) * 100.0,
        (traps + programs) * 100.0,
        cpu / SPAN.as_secs_f64() * 100.0,
    ))
}

/// What a system call takes that does next to nothing, when nothing else is on the CPU.
fn system_call_ns() -> f64 {
    const CALLS: u32 = 10_000;
    let run = || {
        let begin = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(std::process::id());
        }
        begin.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    (0..300).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// What the kernel counts for a run of a program that does nothing.
fn empty_run_ns() -> Result<f64, Error> {
    let attached = Tool::Empty.attach(0)?;
    let begin = run_times(attached.pid())?;
    std::thread::sleep(Duration::from_secs(3));
    let end = run_times(attached.pid())?;
    attached.detach();
    let total = |times: &BTreeMap<String, (f64, f64)>| {
        times.values().fold((0.0, 0.0), |(ns, runs), (more_ns, more_runs)| (ns + more_ns, runs + more_runs))
    };
    let ((ns_before, runs_before), (ns, runs)) = (total(&begin), total(&end));
    Ok((ns - ns_before) / (runs - runs_before))
}

/// Programs are counted while this lives.
pub struct Stats {
    before: String,
}

impl Stats {
    pub fn count() -> Result<Self, Error> {
        let fail = |source| Error::io(STATS, source);
        let before = fs::read_to_string(STATS).map_err(fail)?;
        fs::write(STATS, "1").map_err(fail)?;
        Ok(Self { before })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        // Nothing is left to do about it, and counting harms nobody.
        let _ = fs::write(STATS, &self.before);
    }
}

/// Share of the counted windows in which phase probes were attached.
fn phases_seen() -> f64 {
    let text = fs::read_to_string(super::tool::ndjson()).unwrap_or_default();
    let windows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let windows = windows.filter(|record| record.get("type").and_then(Value::as_str) == Some("window"));
    // The first two windows are not counted: the probes always begin attached.
    let (seen, whole) = windows.skip(2).fold((0.0, 0.0), |(seen, whole), window| {
        let number = |key: &str| window.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        (seen + number("phases_seen_ns"), whole + number("duration_ns"))
    });
    seen / whole
}

/// Nanoseconds and runs so far of the programs that a process holds, by name: others may be tracing this machine too.
pub fn run_times(pid: u32) -> Result<BTreeMap<String, (f64, f64)>, Error> {
    let own = program_ids(pid);
    let output =
        Command::new("bpftool").args(["-j", "prog", "show"]).output().map_err(|source| Error::io("bpftool", source))?;
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let mut times = BTreeMap::new();
    for program in listed.as_array().into_iter().flatten() {
        if !program.get("id").and_then(Value::as_u64).is_some_and(|id| own.contains(&id)) {
            continue;
        }
        let number = |key: &str| program.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        if let Some(name) = program.get("name").and_then(Value::as_str) {
            let entry: &mut (f64, f64) = times.entry(name.to_owned()).or_default();
            entry.0 += number("run_time_ns");
            entry.1 += number("run_cnt");
        }
    }
    Ok(times)
}

/// Programs behind the descriptors of a process: its own ones, and those of its links.
fn program_ids(pid: u32) -> BTreeSet<u64> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let texts = descriptors.filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok());
    texts
        .flat_map(|text| {
            let ids = text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
            ids.collect::<Vec<u64>>()
        })
        .collect()
}
