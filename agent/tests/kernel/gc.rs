//! Pauses against the `gc` entries of a `PerformanceObserver` in the target.

use serde_json::Value;

use crate::{
    harness::{Bench, VERSIONS, Workload, bench, close, trace, within},
    records::{Histogram, Records, get, list, number, sum, text},
};

/// `perf_hooks.constants.NODE_PERFORMANCE_GC_*`.
const MINOR: f64 = 1.0;
const MAJOR: f64 = 4.0;

/// Ends and lengths of the target's entries of a kind, within the trace.
fn truth_of(records: &Records, truths: &Value, kind: f64) -> Vec<f64> {
    let span = records.span();
    list(truths, "gc")
        .iter()
        .map(|entry| [0, 1, 2].map(|i| entry[i].as_f64().unwrap()))
        .filter(|&[_, end, of_kind]| of_kind == kind && span.holds(end))
        .map(|[start, end, _]| end - start)
        .collect()
}

fn pauses<'a>(records: &'a Records, kind: &'a str) -> Vec<&'a Value> {
    records
        .of_type("window")
        .flat_map(|window| list(window, "gc"))
        .filter(|gc| text(gc, "v8js.gc.type") == kind)
        .collect()
}

/// The lengths of the agent's pauses of a type, in order.
fn one_by_one(records: &Records, kind: &str) -> Vec<f64> {
    let pauses = records.of_type("gc_pause").filter(|pause| text(pause, "v8js.gc.type") == kind);
    pauses.map(|pause| number(pause, "duration_ns")).collect()
}

/// Totals of two accounts of the same pauses, without the twentieth in which they differ most: Node.js ends a pause a little
/// later than V8, and a thread that loses its CPU just there makes that long.
fn in_step(truth: &[f64], agent: &[f64]) -> (f64, f64) {
    let mut pairs: Vec<(f64, f64)> = truth.iter().copied().zip(agent.iter().copied()).collect();
    pairs.sort_by(|a, b| (a.0 - a.1).abs().total_cmp(&(b.0 - b.1).abs()));
    pairs.truncate(pairs.len() - pairs.len().div_ceil(20));
    pairs.into_iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
}

/// Traces a run of `gc.js` and holds the two accounts of it side by side.
pub fn check(bench: &Bench, name: &str, mut workload: Workload) {
    let records = trace(bench, &mut workload, 3.0, &[]);
    let truths = workload.truths();
    let mut all = 0.0;
    for (kind, pause) in [(MINOR, "minor"), (MAJOR, "major")] {
        let truth = truth_of(&records, &truths, kind);
        let agent = Histogram::merged(pauses(&records, pause).iter().map(|gc| get(gc, "v8js.gc.duration")));
        assert!(truth.len() > 2, "{name}: {} {pause} pauses prove nothing", truth.len());
        close(&format!("{name}: {pause} pauses"), truth.len() as f64, agent.count, 0.0);
        let one_by_one = one_by_one(&records, pause);
        let (truth, seen) = in_step(&truth, &one_by_one);
        close(&format!("{name}: {pause} pauses (ms)"), truth / 1e6, seen / 1e6, within(truth / 1e6, 0.05, 0.0));
        let one_by_one: f64 = one_by_one.iter().sum();
        all += one_by_one;
        assert!((one_by_one - agent.sum).abs() < 1e3, "{name}: one by one {one_by_one}, in all {}", agent.sum);
    }
    assert!(pauses(&records, "unknown").is_empty(), "{name}: pauses of an unknown kind");
    let in_ledger = sum(&records.loop_windows("main"), "gc_ns");
    assert!((in_ledger - all).abs() < 1e3, "{name}: {in_ledger} in the ledger, {all} one by one");
    let forced: u64 = pauses(&records, "major")
        .iter()
        .filter_map(|gc| get(gc, "reasons").as_object())
        .flatten()
        .filter(|(reason, _)| reason.contains("test"))
        .filter_map(|(_, count)| count.as_u64())
        .sum();
    assert!(forced >= 2, "{name}: the forced collections are not told apart");
}

#[test]
fn pauses_are_those_that_perf_hooks_saw_on_every_version() {
    let Some(bench) = bench() else { return };
    for version in VERSIONS {
        check(&bench, version, Workload::start(version, "gc.js", &[]));
    }
}
