//! A workload whose every frame is known: it blocks at spots, and notes V8's own account of the stack at each.

use std::collections::BTreeSet;

use super::{
    frames::stacks,
    truth::{Tally, Truth, Verdict},
};
use crate::{
    harness::{Bench, Trace, Workload, bench, say, versions},
    records::{Records, list},
};

/// Of the frames that await and of which something is claimed: 96 to 98 were seen. The rest await what a callback of `then` settles,
/// to which nothing leads from below.
const ASYNC_PERCENT: f64 = 95.0;
/// Of all that await, those of which something is claimed: all, unless the collector was faster than the agent.
const ASYNC_KNOWN_PERCENT: f64 = 85.0;

/// Stacks that were taken in `Atomics.wait`, each once. Where the truth is taken, nothing else waits in it.
fn at_spots(records: &Records, truths: &[Truth]) -> Tally {
    let stacks = stacks(records);
    let off_cpu = records.of_type("off_cpu").flat_map(|record| list(record, "stacks"));
    let ids: BTreeSet<&str> = off_cpu.filter_map(|entry| entry.get("user_stack")?.as_str()).collect();
    let mut tally = Tally::default();
    for stack in ids.iter().filter_map(|&id| stacks.get(id)).filter(|stack| stack.has("AtomicsWait")) {
        assert_eq!(stack.truncated, None, "{} frames", stack.frames.len());
        tally.add(stack, truths);
    }
    tally
}

/// Functions of V8's own that await others, by name.
fn combinators(records: &Records) -> BTreeSet<String> {
    let stacks = stacks(records);
    let awaiting = stacks.values().flat_map(|stack| stack.frames.iter().skip_while(|frame| frame.kind != "async"));
    awaiting.filter(|frame| frame.kind == "builtin").map(|frame| frame.name.clone()).collect()
}

/// Names of functions that were on a stack.
fn names(records: &Records) -> BTreeSet<String> {
    stacks(records).values().flat_map(|stack| stack.js().map(|frame| frame.name.clone())).collect()
}

/// Traces `stacks.js` to its end.
fn run(bench: &Bench, version: &str) -> (Records, Vec<Truth>) {
    let mut workload = Workload::start(version, "js/stacks.js", &[]);
    let trace = Trace::profile(bench, workload.pid(), &["--off-cpu", "--off-cpu-threshold", "500us"]);
    workload.go();
    workload.0.wait_out("DONE");
    (trace.interrupt(), Truth::read_all(&workload.truths()))
}

fn check(bench: &Bench, version: &str) {
    let (records, truths) = run(bench, version);
    let tally = at_spots(&records, &truths);
    say(&format!("measured JavaScript stacks against V8's, node {version}: {tally}"));
    if tally.count(Verdict::WrongLine) > 0 {
        say(&format!("measured differences:{}", tally.complaints()));
    }
    let wrong = tally.count(Verdict::Wrong) + tally.count_async(Verdict::Wrong);
    assert_eq!(wrong, 0, "node {version}: {tally}{}", tally.complaints());
    assert!(tally.equal_share() >= 99.0, "node {version}: {tally}{}", tally.complaints());
    assert!(
        tally.async_share() >= ASYNC_PERCENT && tally.async_known_share() >= ASYNC_KNOWN_PERCENT,
        "node {version}: {tally}{}",
        tally.complaints()
    );
    let spots: BTreeSet<&String> = truths.iter().map(|truth| &truth.spot).collect();
    let unseen: Vec<_> = spots.into_iter().filter(|&spot| !tally.spots.contains(spot)).collect();
    let combinators = combinators(&records);
    assert!(
        combinators.iter().map(String::as_str).eq(["Promise.all", "Promise.allSettled", "Promise.any"]),
        "node {version}: {combinators:?}"
    );
    // Of a method in a literal, of one that a symbol names, of a static one in a class.
    let names = names(&records);
    for computed in ["computed", "[spot]", "madeUp"] {
        assert!(names.contains(computed), "node {version}: no {computed} in {names:?}");
    }
    // Where a frame is unknown, so may be which spot it was.
    assert!(unseen.len() <= 2, "node {version}: no stack at {unseen:?}");
}

#[test]
fn functions_scripts_and_lines_of_every_frame_are_those_of_error_stack() {
    let Some(bench) = bench() else { return };
    for version in versions() {
        check(&bench, version);
    }
}
