//! What blocks the event loop is shown with the line of JavaScript that does.

use std::collections::BTreeMap;

use super::frames::{Stack, stacks};
use crate::{
    harness::{Bench, Trace, Workload, bench, close, node, script, versions},
    records::{Records, get, list, number, text},
};

/// The innermost frame of a script: what Node.js itself runs inside is its own matter.
fn blamed(stack: &Stack) -> Option<(&str, u64)> {
    let own = stack.js().find(|frame| frame.file.as_deref().is_some_and(|file| file.ends_with("/blocks.js")))?;
    Some((&own.name, own.line?))
}

/// Nanoseconds for which the main thread was blocked, by line.
fn by_line(records: &Records) -> BTreeMap<u64, f64> {
    let stacks = stacks(records);
    let mut times: BTreeMap<u64, f64> = BTreeMap::new();
    for entry in records.of_type("off_cpu").flat_map(|record| list(record, "stacks")) {
        let stack = entry.get("user_stack").and_then(|id| stacks.get(id.as_str().unwrap()));
        if text(entry, "class") == "event_loop"
            && text(entry, "reason") == "blocked"
            && let Some((_, line)) = stack.and_then(blamed)
        {
            *times.entry(line).or_default() += number(entry, "total_ns");
        }
    }
    times
}

fn check(bench: &Bench, version: &str) {
    let pipes = tempfile::tempdir_in(bench.dir.path()).unwrap();
    let mut command = std::process::Command::new(node(version));
    let mut workload = Workload::with(command.arg(script("js/blocks.js")).arg(pipes.path()));
    let trace = Trace::profile(bench, workload.pid(), &["--off-cpu", "--off-cpu-threshold", "1ms"]);
    workload.go();
    workload.0.wait_out("DONE");
    let records = trace.interrupt();
    let truths = workload.truths();
    let lines = by_line(&records);
    let spots = get(&truths, "spots").as_object().unwrap();
    assert_eq!(spots.len(), 4);
    for (spot, truth) in spots {
        let off = lines.get(&truth["line"].as_u64().unwrap()).copied().unwrap_or_default();
        let (wall, ran) = (number(truth, "ns"), number(truth, "ran"));
        // Who waits for a CPU after it has waited for something else is still off CPU for that.
        let truth = off.clamp(wall - ran, wall);
        let claim = format!("node {version}, {spot}: blocked (ms), {:.1} to {:.1}", (wall - ran) / 1e6, wall / 1e6);
        // Where many collections move functions, as those around a program's start do, some stacks have no names.
        let allowed = if spot == "runsAnother" { 0.25 } else { 0.1 };
        close(&claim, truth / 1e6, off / 1e6, truth / 1e6 * allowed);
    }
}

#[test]
fn a_blocking_call_is_named_by_its_line() {
    let Some(bench) = bench() else { return };
    for version in versions() {
        check(&bench, version);
    }
}
