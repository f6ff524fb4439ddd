//! Where the CPU's time goes, by function, against V8's own profiler on the same run.

use std::collections::BTreeMap;

use super::frames::{Stack, stacks};
use crate::{
    harness::{Bench, Trace, VERSIONS, Workload, bench, close, say},
    records::{Records, list, number, text},
};

/// Enough samples of a function that takes a tenth of the time to tell it from one that takes three percent more.
const SAMPLE_HZ: &str = "999";
const HOTTEST: usize = 10;
const ALLOWED_POINTS: f64 = 3.0;

/// Percent by function.
type Shares = BTreeMap<String, f64>;

/// The percentages of what is JavaScript of one script.
fn shares(times: impl Iterator<Item = (String, f64)>) -> Shares {
    let mut shares = Shares::new();
    for (function, time) in times {
        *shares.entry(function).or_default() += time;
    }
    let all: f64 = shares.values().sum();
    shares.values_mut().for_each(|share| *share *= 100.0 / all);
    shares
}

/// V8's account: entries are [function, script, first line, microseconds]. What is not a function has no script.
fn of_v8(truths: &serde_json::Value) -> Shares {
    let entries = list(truths, "self").iter().filter(|entry| entry[1].as_str().unwrap().ends_with("/hot.js"));
    shares(entries.map(|entry| (entry[0].as_str().unwrap().to_owned(), entry[3].as_f64().unwrap())))
}

/// Whose time a sample is: what V8 or the C library do for a function is its own time, as V8's profiler has it.
fn own(stack: &Stack) -> Option<String> {
    let frame = stack.js().next()?;
    let here = frame.file.as_deref().is_some_and(|file| file.ends_with("/hot.js"));
    here.then(|| frame.name.rsplit('.').next().unwrap_or_default().to_owned())
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
    workload.0.wait_out("DONE");
    let records = trace.interrupt();
    let stacks = stacks(&records);

    let all: f64 = samples(&records, &stacks).map(|(_, samples)| samples).sum();
    let whole: f64 =
        samples(&records, &stacks).filter(|(stack, _)| stack.truncated.is_none()).map(|(_, samples)| samples).sum();
    let claim = format!("node {version}: samples that reach the thread's start, of {all} (%)");
    close(&claim, 100.0, whole / all * 100.0, 1.0);

    let truth = of_v8(&workload.truths());
    let agent = shares(samples(&records, &stacks).filter_map(|(stack, samples)| Some((own(stack)?, samples))));
    say(&format!("node {version}: {agent:.1?}"));
    let mut hottest: Vec<_> = truth.iter().collect();
    hottest.sort_by(|a, b| b.1.total_cmp(a.1));
    assert!(hottest.len() >= HOTTEST, "{hottest:?}");
    for (function, &share) in hottest.into_iter().take(HOTTEST) {
        let found = agent.get(function).copied().unwrap_or_default();
        close(&format!("node {version}, {function}: self time (%)"), share, found, ALLOWED_POINTS);
    }
}

#[test]
fn the_hottest_functions_are_as_hot_as_v8_s_profiler_says() {
    let Some(bench) = bench() else { return };
    for version in
        std::env::var("ONLY").map_or(VERSIONS.to_vec(), |v| vec![VERSIONS.into_iter().find(|x| **x == v).unwrap()])
    {
        check(&bench, version);
    }
}
