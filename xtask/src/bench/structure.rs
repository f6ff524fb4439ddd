//! The structural bound: how often programs run, times what a run costs. It does not see what caches lose, but
//! neither does it see the noise.

use std::{collections::BTreeMap, fs, process::Command, time::Duration};

use serde_json::Value;

use super::{server::Case, tool::Tool};
use crate::run::Error;

pub const HEAD: &str = "\
\nProbe hits times their cost: traps by calibration in the same run, programs by the kernel's own count of their run time \
(`kernel.bpf_stats_enabled`, which makes them look somewhat dearer). Scheduler programs see every process of the machine.\n\n\
| case | uprobe hits/s | traps | BPF programs | of that: stacks and scheduler | sum, of one core | agent's own CPU | its memory |\n|---|---|---|---|---|---|---|---|\n";

/// How long programs are counted.
const SPAN: Duration = Duration::from_secs(5);

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Attaches the agent once more and counts.
pub fn row(case: Case, pid: u32) -> Result<String, Error> {
    set_stats("1")?;
    let attached = Tool::Agent.attach(pid)?;
    std::thread::sleep(Duration::from_secs(2));
    let (begin, cpu) = (run_times()?, attached.cpu_seconds());
    std::thread::sleep(SPAN);
    let (end, cpu) = (run_times()?, attached.cpu_seconds() - cpu);
    let memory = attached.peak_mb();
    set_stats("0")?;
    let hit_ns = attached.hit_ns();
    attached.detach();
    let spent = |names: &[&str]| -> f64 {
        let used = end.iter().filter(|(name, _)| names.is_empty() || names.contains(&name.as_str()));
        used.map(|(name, (ns, _))| ns - begin.get(name).map_or(0.0, |(ns, _)| *ns)).sum::<f64>()
            / 1e9
            / SPAN.as_secs_f64()
    };
    let runs = |name: &str| {
        let count = |of: &BTreeMap<String, (f64, f64)>| of.get(name).map_or(0.0, |(_, runs)| *runs);
        (count(&end) - count(&begin)) / SPAN.as_secs_f64()
    };
    let uprobes = runs("probe_multi") + runs("probe_single");
    let traps = uprobes * hit_ns / 1e9;
    let programs = spent(&[]);
    Ok(format!(
        "| {} | {uprobes:.0} | {:.2} % ({hit_ns:.0} ns each) | {:.2} % | {:.2} % | {:.2} % | {:.1} % | {memory:.0} MB |\n",
        case.name(),
        traps * 100.0,
        programs * 100.0,
        spent(&["sched_switch", "sched_wakeup", "sched_wakeup_new"]) * 100.0,
        (traps + programs) * 100.0,
        cpu / SPAN.as_secs_f64() * 100.0,
    ))
}

fn set_stats(value: &str) -> Result<(), Error> {
    fs::write(STATS, value).map_err(|source| Error::io(STATS, source))
}

/// Nanoseconds and runs so far of the agent's programs, by name.
fn run_times() -> Result<BTreeMap<String, (f64, f64)>, Error> {
    let output =
        Command::new("bpftool").args(["-j", "prog", "show"]).output().map_err(|source| Error::io("bpftool", source))?;
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let mut times = BTreeMap::new();
    for program in listed.as_array().into_iter().flatten() {
        let number = |key: &str| program.get(key).and_then(Value::as_f64);
        if let (Some(name), Some(ns), Some(runs)) =
            (program.get("name").and_then(Value::as_str), number("run_time_ns"), number("run_cnt"))
        {
            let entry: &mut (f64, f64) = times.entry(name.to_owned()).or_default();
            entry.0 += ns;
            entry.1 += runs;
        }
    }
    Ok(times)
}
