//! Stacks through OpenSSL's assembly code, which has its own use for the register of the frame pointer: to JavaScript, and to the thread's
//! start.

use std::{collections::BTreeMap, process::Command, time::Duration};

use super::{
    frames::{Stack, stacks},
    profile::{POINTS, SAMPLE_HZ, Shares, by_clock, samples, shares},
};
use crate::harness::{Bench, Trace, Workload, bench, close, node, patience, say, script, versions};

/// The function of the workload that called for it.
fn job(stack: &Stack, jobs: &Shares) -> Option<String> {
    stack.js().map(|frame| &frame.name).find(|name| jobs.contains_key(*name)).cloned()
}

fn check(bench: &Bench, version: &str) {
    // The clock goes on while others have the CPU: they are not to have it.
    let mut command = Command::new("nice");
    let mut workload = Workload::with(command.args(["-n", "-20"]).arg(node(version)).arg(script("js/crypto.js")));
    let trace = Trace::profile(bench, workload.pid(), &["--frequency", SAMPLE_HZ, "--max-overhead", "100%"]);
    // Samples are taken before the tables are there.
    std::thread::sleep(patience(Duration::from_millis(300)));
    workload.go();
    workload.0.wait_out_within("DONE", Duration::from_mins(1));
    let records = trace.interrupt();
    let stacks = stacks(&records);
    let clock = shares(by_clock(&workload.truths()).into_iter());

    let (mut all, mut whole) = (0.0, 0.0);
    let mut cut = BTreeMap::<&str, f64>::new();
    let mut jobs = Vec::new();
    for (stack, samples, _) in samples(&records, &stacks) {
        all += samples;
        let innermost = stack.frames.first().map_or("", |frame| frame.name.as_str());
        if stack.truncated.is_none() {
            whole += samples;
        } else {
            *cut.entry(innermost).or_default() += samples;
        }
        jobs.extend(job(stack, &clock).map(|job| (job, samples)));
    }
    say(&format!("node {version}: cut {cut:?}"));
    let claim = format!("node {version}: samples in assembly code that reach the thread's start, of {all} (%)");
    close(&claim, 100.0, whole / all * 100.0, 1.0);
    let agent = shares(jobs.into_iter());
    for (job, truth) in &clock {
        let seen = agent.get(job).copied().unwrap_or_default();
        close(&format!("node {version}, {job}: share of time (%)"), *truth, seen, POINTS);
    }
}

#[test]
fn stacks_go_through_assembly_code_to_the_function_that_called_for_it() {
    let Some(bench) = bench() else { return };
    for version in versions() {
        check(&bench, version);
    }
}
