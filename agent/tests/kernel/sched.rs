//! Time off CPU and run-queue latency, thread by thread, against bpftrace on the same run.

use std::{collections::BTreeMap, thread, time::Duration};

use crate::{
    event_loop::check_utilization,
    harness::{VERSION, Workload, bench, close, patience, slowness, trace, within},
    peer::{SchedPeer, Stay},
    records::{Histogram, Records, Span, assert_closed, get, list, sum, text},
};

/// No thread that does anything stays off CPU longer than this in the mixed workload.
const LONGEST_STAY: Duration = Duration::from_millis(300);

/// A thread's time off CPU and its part in the run queue, within a span.
fn off_cpu(stays: &[Stay], tid: u32, span: Span) -> (f64, f64) {
    stays.iter().filter(|stay| stay.tid == tid).fold((0.0, 0.0), |(off, runnable), stay| {
        (off + span.overlap(stay.out, stay.back), runnable + span.overlap(stay.runnable_from(), stay.back))
    })
}

fn check_threads(records: &Records, stays: &[Stay]) {
    let span = records.span();
    let mut compared = 0;
    for (tid, windows) in records.threads() {
        let role = text(windows[0], "role");
        let wall = sum(&windows, "wall_ns");
        let seen = Span { start: span.end - wall, end: span.end };
        let (off, runnable) = off_cpu(stays, tid, seen);
        // One of V8's threads that slept since before the peer began: the peer knows nothing of that stay.
        let known = stays.iter().any(|stay| stay.tid == tid && stay.out <= seen.start);
        if !known && role == "other" {
            continue;
        }
        let agent: f64 =
            ["idle_ns", "blocked_ns", "runnable_ns", "stopped_ns"].iter().map(|key| sum(&windows, key)).sum();
        let claim = format!("thread {tid} ({role})");
        close(&format!("{claim}: off CPU (ms)"), off / 1e6, agent / 1e6, within(off / 1e6, 0.05, 0.0));
        let agent_runnable = sum(&windows, "runnable_ns");
        // Of a few milliseconds, the two clocks read a microsecond apart at each of a thousand switches are a lot.
        close(
            &format!("{claim}: runnable (ms)"),
            runnable / 1e6,
            agent_runnable / 1e6,
            within(runnable / 1e6, 0.05, 3.0),
        );
        assert_closed(&claim, &windows);
        compared += 1;
    }
    assert!(compared >= 6, "only {compared} threads compared: main, worker and four of the pool at least");
}

fn check_run_queue(records: &Records, stays: &[Stay]) {
    let span = records.span();
    let roles: BTreeMap<u32, &str> =
        records.threads().into_iter().map(|(tid, windows)| (tid, text(windows[windows.len() - 1], "role"))).collect();
    for (class, members) in [("event_loop", ["main", "worker"].as_slice()), ("thread_pool", &["thread_pool"])] {
        let latencies: Vec<f64> = stays
            .iter()
            .filter(|stay| roles.get(&stay.tid).is_some_and(|role| members.contains(role)))
            .filter(|stay| !stay.is_cut && span.holds(stay.back) && (stay.is_preempted() || stay.woken != 0.0))
            .map(|stay| stay.back - stay.runnable_from())
            .collect();
        let entries = records.of_type("window").flat_map(|window| list(window, "run_queue"));
        let agent =
            Histogram::merged(entries.filter(|entry| text(entry, "class") == class).map(|entry| get(entry, "latency")));
        let count = latencies.len() as f64;
        close(&format!("run queue of {class}: times"), count, agent.count, within(count, 0.05, 5.0));
        if count == 0.0 && class == "thread_pool" && slowness() > 1 {
            // Beside the peer, which prints each switch, the pool of an emulated machine may get no CPU at all.
            continue;
        }
        let mean = latencies.iter().sum::<f64>() / count / 1e3;
        close(
            &format!("run queue of {class}: mean (us)"),
            mean,
            agent.sum / agent.count / 1e3,
            within(mean, 0.05, 2.0),
        );
    }
}

#[test]
fn time_off_cpu_and_in_the_run_queue_is_what_bpftrace_sees_of_every_thread() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "mixed.js", &[]);
    let Some(peer) = SchedPeer::start(workload.pid()) else { return };
    let seconds = patience(Duration::from_secs(4)).as_secs_f64();
    let records = trace(&bench, &mut workload, seconds, &["--off-cpu-threshold", "0"]);
    // The stays that the end of the trace cut must end before the peer does.
    thread::sleep(patience(LONGEST_STAY));
    let stays = peer.stays();
    check_threads(&records, &stays);
    check_run_queue(&records, &stays);
    check_utilization("mixed", &records, &workload.truths());
}
