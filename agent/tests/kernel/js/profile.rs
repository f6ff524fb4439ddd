//! Where the CPU's time goes, by function, against V8's own profiler on the same run.

use std::collections::{BTreeMap, BTreeSet};

use super::frames::{Stack, stacks};
use crate::{
    harness::{Bench, Trace, Workload, bench, close, say, versions},
    records::{Records, list, number, text},
};

/// Enough samples of a function that takes a tenth of the time to tell it from one that takes three percent more.
const SAMPLE_HZ: &str = "999";
/// Functions of the workload that V8 must have seen.
const FUNCTIONS: usize = 10;

/// Percent by function.
type Shares = BTreeMap<String, f64>;

/// The percentages of what is JavaScript of one script.
fn shares(times: impl Iterator<Item = (String, f64)>) -> Shares {
    let mut shares = Shares::new();
    for (function, time) in times {
        *shares.entry(function).or_default() += time;
    }
    let all: f64 = shares.values().sum();
    for share in shares.values_mut() {
        *share *= 100.0 / all;
    }
    shares
}

/// Small functions of the workload that are inlined into another: V8's profiler has their time as that one's where their code was
/// compiled before it began. They are judged as one.
fn outer(function: &str) -> &str {
    match function {
        "add" | "twice" => "inlines",
        "length2" | "get length2" => "turn",
        other => other,
    }
}

/// V8's account: entries are [function, script, first line, samples]. What is not a function has no script.
fn of_v8(truths: &serde_json::Value) -> Shares {
    let entries = list(truths, "self").iter().filter(|entry| entry[1].as_str().unwrap().ends_with("/hot.js"));
    shares(entries.map(|entry| (outer(entry[0].as_str().unwrap()).to_owned(), entry[3].as_f64().unwrap())))
}

/// Whose time a sample is: what V8 or the C library do for a function is its own time, as V8's profiler has it.
fn own(stack: &Stack) -> Option<String> {
    let frame = stack.js().next()?;
    let Some(file) = frame.file.as_deref() else { return Some("(unknown)".to_owned()) };
    file.ends_with("/hot.js").then(|| outer(frame.name.rsplit('.').next().unwrap_or_default()).to_owned())
}

/// Samples of the main thread outside of collections, with their stacks.
fn samples<'a>(records: &'a Records, stacks: &'a BTreeMap<String, Stack>) -> impl Iterator<Item = (&'a Stack, f64)> {
    let entries = records.of_type("profile").flat_map(|record| list(record, "stacks"));
    entries.filter(|entry| text(entry, "class") == "event_loop").filter_map(|entry| {
        let stack = stacks.get(entry.get("user_stack")?.as_str()?)?;
        let in_gc = entry.get("gc_samples").and_then(serde_json::Value::as_f64).unwrap_or_default();
        Some((stack, number(entry, "samples") - in_gc))
    })
}

fn check(bench: &Bench, version: &str) {
    let mut workload = Workload::start(version, "js/hot.js", &[]);
    let trace = Trace::profile(bench, workload.pid(), &["--frequency", SAMPLE_HZ]);
    workload.go();
    workload.0.wait_out_within("DONE", std::time::Duration::from_mins(1));
    let records = trace.interrupt();
    let stacks = stacks(&records);

    let all: f64 = samples(&records, &stacks).map(|(_, samples)| samples).sum();
    let whole: f64 =
        samples(&records, &stacks).filter(|(stack, _)| stack.truncated.is_none()).map(|(_, samples)| samples).sum();
    let claim = format!("node {version}: samples that reach the thread's start, of {all} (%)");
    close(&claim, 100.0, whole / all * 100.0, 1.0);

    let truth = of_v8(&workload.truths());
    let agent = shares(samples(&records, &stacks).filter_map(|(stack, samples)| Some((own(stack)?, samples))));
    say(&format!("node {version}, V8: {truth:.1?}, agent: {agent:.1?}"));
    assert!(truth.len() >= FUNCTIONS, "{truth:?}");
    let unseen: Vec<_> = truth.iter().filter(|&(name, share)| *share >= 1.0 && !agent.contains_key(name)).collect();
    assert!(unseen.is_empty(), "node {version}: {unseen:?} are not among {agent:?}");
    let names: BTreeSet<&String> = truth.keys().chain(agent.keys()).collect();
    let share = |of: &BTreeMap<String, f64>, name: &str| of.get(name).copied().unwrap_or_default();
    let apart: f64 = names.iter().map(|name| (share(&truth, name) - share(&agent, name)).abs()).sum::<f64>() / 2.0;
    // Not held to a bound: V8's profiler goes by the clock on the wall and samples where its signal finds the thread, and in some
    // runs gives one function a tenth of the time that it gives to those around it in others.
    say(&format!("measured node {version}: time that the two give to different functions: {apart:.1} %"));
}

#[test]
fn what_is_hot_to_v8_s_profiler_is_sampled_in_whole_stacks() {
    let Some(bench) = bench() else { return };
    for version in versions() {
        check(&bench, version);
    }
}
