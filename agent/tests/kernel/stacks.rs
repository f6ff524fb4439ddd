//! How far stacks reach, whatever code they were taken in.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use crate::{
    apps::installed,
    harness::{VERSION, Workload, bench, close, patience, say, trace},
    records::{Records, list, number, text},
};

/// Stacks by id: the names of their frames, innermost first.
fn stacks(records: &Records) -> BTreeMap<String, Vec<String>> {
    let names = |stack: &Value| list(stack, "frames").iter().map(|frame| text(frame, "name").to_owned()).collect();
    records.of_type("stack").map(|stack| (text(stack, "id").to_owned(), names(stack))).collect()
}

/// Of the samples of the last windows, when the tables are there: how many, and how many whose stack's outermost frame is one that
/// `is_outermost`.
fn complete(records: &Records, is_outermost: impl Fn(&str) -> bool) -> (f64, f64) {
    const WINDOWS: usize = 4;
    let stacks = stacks(records);
    let (mut all, mut complete) = (0.0, 0.0);
    let before = records.of_type("profile").count().saturating_sub(WINDOWS);
    for place in records.of_type("profile").skip(before.max(1)).flat_map(|profile| list(profile, "stacks")) {
        let samples = number(place, "samples");
        let Some(frames) = place.get("user_stack").and_then(Value::as_str).and_then(|id| stacks.get(id)) else {
            say(&format!("no stack: {place}"));
            all += samples;
            continue;
        };
        all += samples;
        if frames.last().is_some_and(|name| is_outermost(name)) {
            complete += samples;
        } else {
            say(&format!("cut: {frames:?}"));
        }
    }
    (all, complete)
}

fn check(script: &str, args: &[&str], missing_percent: f64, is_outermost: impl Fn(&str) -> bool) {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, script, &[]);
    let mut all_args = vec!["--sample-hz", "499"];
    all_args.extend_from_slice(args);
    let records = trace(&bench, &mut workload, patience(Duration::from_secs(4)).as_secs_f64(), &all_args);
    let (all, complete) = complete(&records, is_outermost);
    assert!(all > 100.0, "only {all} samples");
    close(&format!("samples whose stack is complete, of {all}"), 100.0, complete / all * 100.0, missing_percent);
}

/// Where a thread begins: in libc's clone, of which a stripped libc tells the place only.
fn begins(name: &str) -> bool {
    name == "_start" || name.starts_with("clone") || name.starts_with("libc.so.6+")
}

#[test]
fn stacks_reach_down_to_where_the_thread_began() {
    check("mixed.js", &[], 1.0, begins);
}

/// As most are where a process is traced from its start.
#[test]
fn an_addon_that_is_loaded_while_it_is_watched_is_unwound_like_any_other() {
    if installed().is_some() {
        check("addon.js", &[], 1.0, begins);
    }
}

/// Where the verifier unrolls the walk there is no room for tables: what was in libc when it was sampled is cut, and in assembly code.
#[test]
fn without_the_kernels_loops_most_reach_down_to_libc() {
    check("js/hot.js", &["--bounded-loops"], 10.0, |name| name.starts_with("libc.so.6+") || name.starts_with("clone"));
}
