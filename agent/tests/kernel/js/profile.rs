//! Where the CPU's time goes, by function, against the program's own clock and V8's own profiler on the same run.
//!
//! V8's profiler is not the truth: in many runs one function has up to a tenth of the time more from it than by the clock.

use std::{collections::BTreeMap, process::Command};

use super::frames::{Frame, Stack, stacks};
use crate::{
    harness::{Bench, Trace, Workload, bench, close, node, say, script, versions},
    records::{Records, get, list, number, text},
};

/// Enough samples of a function that takes a tenth of the time to tell it from one that takes three percent more.
pub const SAMPLE_HZ: &str = "999";
/// Points of a hundred by which a share may be off.
pub const POINTS: f64 = 3.0;

/// Percent by job.
pub type Shares = BTreeMap<String, f64>;

pub fn shares(times: impl Iterator<Item = (String, f64)>) -> Shares {
    let mut shares = Shares::new();
    for (job, time) in times {
        *shares.entry(job).or_default() += time;
    }
    let all: f64 = shares.values().sum();
    for share in shares.values_mut() {
        *share *= 100.0 / all;
    }
    shares
}

/// The job that a function of the workload works for; the others only call the jobs.
fn job(function: &str) -> Option<&'static str> {
    Some(match function.rsplit(['.', ' ']).next().unwrap_or_default() {
        "floats" => "floats",
        "shapes" => "shapes",
        "fibonacci" => "fibonacci",
        "inlines" | "add" | "twice" => "inlines",
        "generates" | "counts" => "generates",
        "turn" | "length2" => "turn",
        "mixed" => "mixed",
        "text" => "text",
        "walks" | "walk" => "walks",
        _ => return None,
    })
}

/// V8's account: entries are [function, script, first line, samples]. What is not a function has no script.
fn of_v8(truths: &serde_json::Value) -> Shares {
    let entries = list(truths, "self").iter().filter(|entry| entry[1].as_str().unwrap().ends_with("/hot.js"));
    shares(entries.filter_map(|entry| Some((job(entry[0].as_str().unwrap())?.to_owned(), entry[3].as_f64().unwrap()))))
}

/// The program's own account.
pub fn by_clock(truths: &serde_json::Value) -> Shares {
    let spent = get(truths, "spent").as_object().unwrap();
    shares(spent.iter().map(|(job, ns)| (job.clone(), ns.as_f64().unwrap())))
}

/// Whose time a sample is: what V8 or the C library do for a function is its own time, as V8's profiler has it.
fn own(stack: &Stack) -> Option<String> {
    let frame = stack.js().next()?;
    let is_of_workload = frame.file.as_deref().is_some_and(|file| file.ends_with("/hot.js"));
    job(&frame.name).filter(|_| is_of_workload).map(str::to_owned)
}

/// Stacks of the main thread with their samples, and how many of these were taken in collections.
pub fn samples<'a>(
    records: &'a Records,
    stacks: &'a BTreeMap<String, Stack>,
) -> impl Iterator<Item = (&'a Stack, f64, f64)> {
    let entries = records.of_type("profile").flat_map(|record| list(record, "stacks"));
    entries.filter(|entry| text(entry, "class") == "event_loop").filter_map(|entry| {
        let stack = stacks.get(entry.get("user_stack")?.as_str()?)?;
        let in_gc = entry.get("gc_samples").and_then(serde_json::Value::as_f64).unwrap_or_default();
        Some((stack, number(entry, "samples"), in_gc))
    })
}

fn check(bench: &Bench, version: &str) {
    // The clock goes on while others have the CPU: they are not to have it.
    let mut command = Command::new("nice");
    let mut workload = Workload::with(command.args(["-n", "-20"]).arg(node(version)).arg(script("js/hot.js")));
    let trace = Trace::profile(bench, workload.pid(), &["--frequency", SAMPLE_HZ, "--max-overhead", "100%"]);
    workload.go();
    workload.0.wait_out_within("DONE", std::time::Duration::from_mins(1));
    let records = trace.interrupt();
    let stacks = stacks(&records);

    let taken: Vec<_> = samples(&records, &stacks).collect();
    let all: f64 = taken.iter().map(|(_, samples, _)| samples).sum();
    let whole: f64 = taken.iter().filter(|(stack, ..)| stack.truncated.is_none()).map(|(_, samples, _)| samples).sum();
    let claim = format!("node {version}: samples that reach the thread's start, of {all} (%)");
    close(&claim, 100.0, whole / all * 100.0, 1.0);

    let truths = workload.truths();
    let (clock, v8) = (by_clock(&truths), of_v8(&truths));
    let agent = shares(taken.iter().filter_map(|(stack, samples, in_gc)| Some((own(stack)?, samples - in_gc))));
    // Whose they are is not known; most are of functions that call themselves, whose stacks are new each time.
    let unnamed = |stack: &Stack| stack.js().next().is_some_and(Frame::is_unknown);
    let unknown: f64 =
        taken.iter().filter(|(stack, ..)| unnamed(stack)).map(|(_, samples, in_gc)| samples - in_gc).sum::<f64>() / all;
    let allowed = POINTS + unknown * 100.0;
    let share = |of: &Shares, job: &str| of.get(job).copied().unwrap_or_default();
    for (job, &truth) in &clock {
        close(&format!("node {version}, {job}: share of time (%)"), truth, share(&agent, job), allowed);
        let v8 = share(&v8, job);
        let claim = format!("node {version}, {job}: share of V8's samples (%)");
        if (v8 - truth).abs() <= POINTS {
            close(&claim, v8, share(&agent, job), POINTS + allowed);
        } else {
            say(&format!("{claim}: {v8:.1}, which is not {truth:.1}"));
        }
    }
}

#[test]
fn what_is_hot_by_the_clock_is_sampled_in_whole_stacks() {
    let Some(bench) = bench() else { return };
    for version in versions() {
        check(&bench, version);
    }
}
