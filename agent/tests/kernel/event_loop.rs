//! Utilisation, delay and slow turns against what the target knows of its own loops.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    harness::{
        Bench, Process, Trace, VERSION, VERSIONS, Workload, bench, close, node, patience, request, say, script, trace,
        within,
    },
    records::{Histogram, Records, Span, assert_closed, get, list, number, sum, text},
};

/// Idle time up to a moment, from samples `[time, idle, active]` that lie on both sides of it.
#[track_caller]
fn idle_at(log: &[Value], at: f64) -> f64 {
    let sample = |i: usize| (log[i][0].as_f64().unwrap(), log[i][1].as_f64().unwrap());
    let after = log.partition_point(|sample| sample[0].as_f64().unwrap() < at);
    assert!(0 < after && after < log.len(), "no samples around {at}: {} of {}", after, log.len());
    let ((t0, idle0), (t1, idle1)) = (sample(after - 1), sample(after));
    idle0 + (idle1 - idle0) * (at - t0) / (t1 - t0)
}

/// Utilisation in percent over the time that the agent saw of each loop, against the target's log of it.
#[track_caller]
pub fn check_utilization(claim: &str, records: &Records, truths: &Value) {
    let span = records.span();
    for role in ["main", "worker"] {
        let windows = records.loop_windows(role);
        let wall = sum(&windows, "wall_ns");
        // A loop comes into sight at its first turn, not at once.
        assert!((span.length() - wall).abs() < 0.02 * span.length(), "{role}: {wall} of {span:?}");
        let seen = Span { start: span.end - wall, end: span.end };
        let log = list(truths, role);
        let truth = 1.0 - (idle_at(log, seen.end) - idle_at(log, seen.start)) / wall;
        let agent = 1.0 - sum(&windows, "poll_ns") / wall;
        // A thread that loses its CPU on its way out of the system call is still idle to libuv, which has not read its clock
        // yet, and not any more to the kernel: on a machine with too few CPUs the two drift apart.
        let starved = sum(&windows, "runnable_ns") / wall * 100.0;
        let allowed = (0.5 * starved).clamp(1.0, 3.0);
        close(&format!("{claim}, {role}: utilisation (%)"), truth * 100.0, agent * 100.0, allowed);
        for window in &windows {
            let stated = number(window, "nodejs.eventloop.utilization");
            let computed = 1.0 - number(window, "poll_ns") / number(window, "wall_ns");
            assert!((stated - computed).abs() < 1e-6, "{stated} is not {computed}");
        }
        assert_closed(&format!("{claim}, {role}"), &windows);
    }
}

fn utilization(bench: &Bench, version: &str, mode: &str) {
    let mut workload = Workload::start(version, "utilization.js", &[mode]);
    let records = trace(bench, &mut workload, 3.0, &["--phases", "always"]);
    // The log must reach past the trace's end.
    thread::sleep(Duration::from_millis(100));
    check_utilization(&format!("{version} {mode}"), &records, &workload.truths());
}

#[test]
fn utilization_is_what_perf_hooks_says_of_a_half_loaded_loop_on_every_version() {
    let Some(bench) = bench() else { return };
    for version in VERSIONS {
        utilization(&bench, version, "half");
    }
}

#[test]
fn utilization_is_what_perf_hooks_says_of_an_idle_and_of_a_saturated_loop() {
    let Some(bench) = bench() else { return };
    utilization(&bench, VERSION, "idle");
    utilization(&bench, VERSION, "saturated");
}

#[test]
fn a_loop_that_sleeps_has_been_idle_since_the_trace_began() {
    let Some(bench) = bench() else { return };
    for version in VERSIONS {
        let mut server = Process::spawn(Command::new(node(version)).arg(script("server.js")));
        let port = server.wait_out("READY").parse().unwrap();
        let mut trace = Trace::start(&bench, server.pid(), &["--duration", "1500ms"]);
        if version == VERSION {
            // It wakes once, late.
            thread::sleep(Duration::from_millis(1_200));
            assert!(request(port));
        }
        let records = trace.finish(Duration::from_secs(2));
        let windows = records.loop_windows("main");
        let (wall, idle) = (sum(&windows, "wall_ns"), sum(&windows, "poll_ns"));
        close(&format!("{version}, asleep: seen (ms)"), records.span().length() / 1e6, wall / 1e6, 1.0);
        assert!(idle > 0.95 * wall, "{version}: {idle} of {wall} in poll");
        assert_closed(&format!("{version}, asleep"), &windows);
    }
}

/// A loop that is held up: first it computes, then it waits for another program, in whose loop it polls.
const HELD_UP: &str = r"
const { execSync } = require('node:child_process');
const [COMPUTED_MS, WAITED_S] = process.argv.slice(1).map(Number);
setTimeout(() => {
    console.log('READY');
    const begin = Date.now();
    while (Date.now() - begin < COMPUTED_MS);
    execSync(`sleep ${WAITED_S}`);
    setInterval(() => {}, 5);
    console.log('BACK');
}, 50);
";

#[test]
fn a_loop_that_is_held_up_as_a_trace_begins_is_not_idle_and_turns_afterwards() {
    let Some(bench) = bench() else { return };
    for version in VERSIONS {
        let computed: &[u32] = if version == VERSION { &[0, 700] } else { &[0] };
        for computed_ms in computed {
            let waited = patience(Duration::from_millis(1_500)).as_secs_f64();
            let args = [HELD_UP, &computed_ms.to_string(), &waited.to_string()];
            let mut held = Process::spawn(Command::new(node(version)).arg("-e").args(args));
            held.wait_out("READY");
            // In the first case, it sleeps by then.
            thread::sleep(Duration::from_millis(200));
            let trace = Trace::start(&bench, held.pid(), &[]);
            let begun = Instant::now();
            held.wait_out("BACK");
            let held_up = begun.elapsed().as_secs_f64() * 1e3;
            thread::sleep(Duration::from_secs(1));
            let records = trace.interrupt();
            let windows = records.loop_windows("main");
            let claim = format!("{version}, held up after {computed_ms} ms");
            let busy = (sum(&windows, "wall_ns") - sum(&windows, "poll_ns")) / 1e6;
            assert!(held_up > 500.0, "{claim}: too late to see it");
            close(&format!("{claim}: not idle (ms)"), held_up, busy, within(held_up, 0.1, 100.0));
            let turns = sum(&windows, "turns");
            assert!(turns > 100.0, "{claim}: {turns} turns of a timer of 5 ms in a second");
            assert_closed(&claim, &windows);
        }
    }
}

#[test]
fn delay_is_what_monitor_event_loop_delay_says_less_its_resolution() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "delay.js", &[]);
    // As long as the workload observes itself.
    let records = trace(&bench, &mut workload, 5.0, &[]);
    let truths = workload.truths();
    let monitor = get(&truths, "monitor");
    let delays = records.loop_windows("main").into_iter().map(|window| get(window, "nodejs.eventloop.delay"));
    let delay = Histogram::merged(delays);
    let truth = |key| (number(monitor, key) - number(monitor, "resolution")) / 1e6;
    // The two see the same loop through timers that are not in step. Where a busy machine makes two clusters of the median's
    // class, a few samples decide in which one the median lies.
    let median = delay.quantile(0.5) / 1e6;
    let between = median.clamp(truth("p45"), truth("p55"));
    close("delay p50 (ms), between p45 and p55", between, median, within(between, 0.05, 1.0));
    for (key, quantile) in [("p90", 0.9), ("p99", 0.99)] {
        let (truth, agent) = (truth(key), delay.quantile(quantile) / 1e6);
        close(&format!("delay {key} (ms)"), truth, agent, within(truth, 0.05, 1.0));
    }
}

#[test]
fn every_known_hold_up_is_a_slow_turn_of_its_length() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "delay.js", &[]);
    // A window names sixteen slow turns at most: half a second cannot hold more of these.
    let records = trace(&bench, &mut workload, 3.0, &["--slow-turn", "35ms", "--window", "500ms"]);
    let truths = workload.truths();
    let span = records.span();
    let slow: Vec<_> = records
        .of_type("slow_turn")
        .map(|turn| {
            let stretch = Span { start: records.monotonic(turn, "started"), end: records.monotonic(turn, "time") };
            (stretch, number(turn, "busy_ns"))
        })
        .collect();
    let mut excess = Vec::new();
    let mut held = 0;
    for hold_up in list(&truths, "holdUps") {
        let (from, to) = (hold_up[0].as_f64().unwrap(), hold_up[1].as_f64().unwrap());
        held += slow.iter().filter(|(turn, _)| turn.overlap(from, to) > 0.5 * turn.length()).count();
        if to - from < 38e6 || from < span.start + 50e6 || to > span.end - 50e6 {
            continue;
        }
        let found: Vec<_> = slow.iter().filter(|(turn, _)| turn.overlap(from, to) > 0.5 * (to - from)).collect();
        assert_eq!(found.len(), 1, "slow turns for the hold-up {from} to {to} in {span:?}: {found:?}");
        excess.push((found[0].1 - (to - from)) / 1e6);
    }
    excess.sort_by(f64::total_cmp);
    let (least, most) = (excess[0], excess[excess.len() - 1]);
    say(&format!("measured {} slow turns: {least:.3} to {most:.3} ms longer than the hold-up in them", excess.len()));
    assert!(least > -0.1, "a slow turn is {least} ms longer than what it holds");
    // The turn around it is longer, by far if the thread had to wait for a CPU just there.
    let allowed = 0.05 * 40.0;
    close("slow turn, less the hold-up in it, p90 (ms)", 0.0, excess[excess.len() * 9 / 10], allowed);
    // The edges of the trace may cut one each; on a busy machine, the short hold-ups are slow turns too.
    assert!(excess.len() > 10 && slow.len() - held <= 2, "{} of {} slow turns hold the loop up", held, slow.len());
}

/// libuv before 1.45 polls by one call, later ones by the other.
#[test]
fn polls_of_a_kind_that_no_traced_loop_does_are_not_probed_for_long() {
    let Some(bench) = bench() else { return };
    let mut old = Workload::start("18.20.8", "mixed.js", &[]);
    let mut new = Workload::start(VERSION, "mixed.js", &[]);
    for (traced, own, other) in [(&mut old, "epoll_wait", "epoll_pwait"), (&mut new, "epoll_pwait", "epoll_wait")] {
        let records = trace(&bench, traced, 3.0, &["--window", "500ms"]);
        let windows: Vec<_> = records.of_type("agent").collect();
        let hits = |window: &Value, call: &str| -> f64 {
            let named = |hit: &&Value| text(hit, "probe").strip_prefix("enter_") == Some(call);
            list(window, "probes").iter().filter(named).map(|hit| number(hit, "hits")).sum()
        };
        assert!(hits(windows[0], other) > 0.0, "{other} of the other process is seen at first");
        let last = windows[windows.len() - 2];
        assert!(hits(last, own) > 10.0 && hits(last, other) == 0.0, "{other} is still probed: {last}");
    }
}
