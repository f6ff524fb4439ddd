//! What is dear is watched for a part of the time, whatever a target does, and what is cheap all the time.

use std::{fs, thread, time::Duration};

use crate::{
    harness::{Trace, VERSION, Workload, bench, close, read, say, slowness, trace},
    records::{Records, assert_closed, list, number, sum, text},
};

const SECONDS: f64 = 12.0;

/// Hits a second: several times what the budget allows of each, as a look or two more or less are much in so short a time, and a small
/// part of what there are without it (seven phases a turn, four probes an item). A slow machine has fewer, and each is dearer there.
const POOL_HITS_MAX: f64 = 60_000.0;
const PHASE_HITS_MAX: f64 = 150_000.0;
const POLL_HITS_MAX: f64 = 200_000.0;

const POOL: [&str; 12] = [
    "work_submit",
    "queue_work",
    "fs_work",
    "getaddrinfo_work",
    "getnameinfo_work",
    "random_work",
    "node_work",
    "async_send",
    "fs_done",
    "getaddrinfo_done",
    "getnameinfo_done",
    "queue_done",
];
const POLLS: [&str; 4] = ["enter_epoll_wait", "exit_epoll_wait", "enter_epoll_pwait", "exit_epoll_pwait"];
const PHASES: [&str; 7] =
    ["run_timers", "timers_done", "run_idle", "run_prepare", "io_poll", "run_check", "check_done"];

/// Hits a second of some probes, after the first second, in which it is found out what they cost.
pub fn hits_a_second(records: &Records, probes: &[&str]) -> f64 {
    let later: Vec<_> = records.of_type("agent").skip(1).collect();
    let hits = |record: &&serde_json::Value| -> f64 {
        let named = list(record, "probes").iter().filter(|probe| probes.contains(&text(probe, "probe")));
        named.map(|probe| number(probe, "hits")).sum()
    };
    let seconds: f64 = later.iter().map(|record| number(record, "duration_ns") / 1e9).sum();
    later.iter().map(hits).sum::<f64>() / seconds
}

/// How much of the time was seen of something.
fn seen(records: &Records, key: &str) -> f64 {
    let sum = |key: &str| records.of_type("window").map(|window| number(window, key)).sum::<f64>();
    sum(key) / sum("duration_ns")
}

#[test]
fn a_pool_that_never_rests_is_watched_now_and_then() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "hot_pool.js", &[]);
    let records = trace(&bench, &mut workload, SECONDS, &[]);
    let truths = workload.truths();
    let log = list(&truths, "log");
    let (first, last) = (&log[0], &log[log.len() - 1]);
    let of = |entry: &serde_json::Value, at: usize| entry[at].as_f64().unwrap();
    let items = (of(last, 1) - of(first, 1)) / (of(last, 0) - of(first, 0)) * 1e9;
    let (hits, share) = (hits_a_second(&records, &POOL), seen(&records, "pool_seen_ns"));
    say(&format!(
        "measured hot pool: {items:.0} items a second, pool probes hit {hits:.0} times, {share:.3} of the time seen"
    ));
    let most = POOL_HITS_MAX / f64::from(slowness());
    assert!(items * 4.0 > 3.0 * most, "no load that would be dear: {items} items a second");
    assert!(hits < most, "{hits} hits a second");
    assert!((0.001..0.5).contains(&share), "{share} of the time seen");
    // Such a pool gets less done while it is watched, which is why it is not for long.
    let pools = records.of_type("window").filter_map(|window| window.get("thread_pool"));
    let counted: f64 = pools.flat_map(|pool| list(pool, "work")).map(|work| number(work, "count")).sum();
    let seconds = share * records.of_type("window").map(|window| number(window, "duration_ns") / 1e9).sum::<f64>();
    close("hot pool: items a second while seen", items / 2.0, counted / seconds, 0.49 * items);
}

#[test]
fn a_loop_that_turns_as_often_as_it_can_is_watched_now_and_then() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "hot_loop.js", &[]);
    let records = trace(&bench, &mut workload, SECONDS, &[]);
    let windows = records.loop_windows("main");
    let turned = number(&workload.truths(), "turns_a_second");
    let share = seen(&records, "turns_seen_ns");
    let turns = sum(&windows, "turns") / (SECONDS * share);
    let (polls, hits) = (hits_a_second(&records, &POLLS), hits_a_second(&records, &PHASES));
    say(&format!("measured hot loop: polls hit {polls:.0} a second, phases {hits:.0}, {share:.3} of the time seen"));
    let [polls_most, phases_most] = [POLL_HITS_MAX, PHASE_HITS_MAX].map(|most| most / f64::from(slowness()));
    assert!(turned * 2.0 > 1.5 * polls_most, "no load that would be dear: {turned} turns a second");
    assert!(polls < polls_most && hits < phases_most, "{polls} polls, {hits} phases a second");
    assert!((0.001..0.5).contains(&share), "{share} of the time seen");
    // It turns more slowly while it is watched, which is why it is not for long.
    close("hot loop: turns a second while seen", turned / 2.0, turns, 0.49 * turned);
    // What there is without turns: it hardly waited, and nothing is wrong with it.
    close("hot loop: idle (%)", 0.0, sum(&windows, "idle_ns") / sum(&windows, "wall_ns") * 100.0, 10.0);
    assert_eq!(records.of_type("warning").filter(|warning| text(warning, "code") == "loop_stuck").count(), 0);
    assert_eq!(records.of_type("slow_turn").count(), 0);
    assert_closed("hot loop", &windows);
}

#[test]
fn what_is_cheap_is_watched_all_the_time_and_so_is_what_may_cost_anything() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "mixed.js", &[]);
    let records = trace(&bench, &mut workload, 3.0, &[]);
    close("pool_seen_ns of the time, little to do", 1.0, seen(&records, "pool_seen_ns"), 0.02);
    let mut workload = Workload::start(VERSION, "hot_pool.js", &[]);
    let records = trace(&bench, &mut workload, 2.0, &["--max-overhead", "100%"]);
    close("pool_seen_ns of the time, much to do", 1.0, seen(&records, "pool_seen_ns"), 0.02);
}

/// Interrupts by which the kernel wakes who reads rings, among others.
fn wakes() -> f64 {
    let text = read("/proc/interrupts");
    let row = text.lines().find_map(|line| line.trim_start().strip_prefix("IWI:")).expect("IRQ work is counted");
    row.split_whitespace().map_while(|count| count.parse::<f64>().ok()).sum()
}

#[test]
fn who_is_awake_already_is_not_woken_again_at_each_record() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "hot_loop.js", &[]);
    let before = wakes();
    let records = trace(&bench, &mut workload, 4.0, &["--max-overhead", "100%"]);
    let wakes = wakes() - before;
    let seconds = records.span().length() / 1e9;
    let windows = records.loop_windows("main");
    let turns = sum(&windows, "turns") / seconds;
    say(&format!("measured hot loop: {turns:.0} turns a second, woken {:.0} times a second", wakes / seconds));
    assert!(turns * f64::from(slowness()) > 100_000.0, "no load: {turns} turns a second");
    // Once a millisecond where rings fill, on each CPU that the loop and the sampler run on; it was eighteen.
    assert!(wakes < 2_500.0 * seconds, "{wakes} wakes in {seconds} s");
}

/// Hits a second of the scheduler's programs: as with the others, several times what the budget allows.
const SWITCH_HITS_MAX: f64 = 400_000.0;
const SWITCHING_SECONDS: f64 = 6.0;
const SWITCHING: [&str; 3] = ["sched_switch", "sched_wakeup", "sched_wakeup_new"];

#[test]
fn threads_that_do_nothing_but_switch_are_watched_now_and_then_and_the_rest_of_their_time_is_nobodys() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "hot_switch.js", &[]);
    // Less than the default: on a slow machine there may be too few switches for that.
    let records = trace(&bench, &mut workload, SWITCHING_SECONDS, &["--max-overhead", "0.1%"]);
    let truths = workload.truths();
    let log = list(&truths, "log");
    let (first, last) = (&log[0], &log[log.len() - 1]);
    let of = |entry: &serde_json::Value, at: usize| entry[at].as_f64().unwrap();
    let span = of(last, 0) - of(first, 0);
    let rounds = (of(last, 1) - of(first, 1)) / span * 1e9;
    let (hits, share) = (hits_a_second(&records, &SWITCHING), seen(&records, "switches_seen_ns"));
    say(&format!(
        "measured hot switches: {rounds:.0} hand-overs a second, programs hit {hits:.0} times, {share:.3} seen"
    ));
    assert!(hits < SWITCH_HITS_MAX / f64::from(slowness()), "{hits} hits a second");
    assert!((0.001..0.5).contains(&share), "{share} of the time seen");
    // What was not seen is said to be unaccounted; what was seen is.
    let (mut wall, mut unaccounted, mut on_cpu) = (0.0, 0.0, 0.0);
    for (tid, windows) in records.threads() {
        on_cpu += sum(&windows, "on_cpu_ns");
        if text(windows[0], "role") == "worker" || text(windows[0], "name").starts_with("WorkerThread") {
            continue;
        }
        let switches = sum(&windows, "switches");
        if switches > 1000.0 {
            say(&format!("measured hot switches: thread {tid} was seen to switch {switches:.0} times"));
            wall += sum(&windows, "wall_ns");
            unaccounted += sum(&windows, "unaccounted_ns");
        }
    }
    assert!(wall > 0.0, "no thread switches");
    close("hot switches: time accounted for (share)", share, 1.0 - unaccounted / wall, 0.05);
    // Nothing is made up: no more time on CPU than there was.
    let cpu = |entry: &serde_json::Value| (number(&entry[2], "user") + number(&entry[2], "system")) * 1e3;
    let truth = (cpu(last) - cpu(first)) / span * SWITCHING_SECONDS * 1e9;
    assert!(on_cpu < truth * share * 1.5, "{on_cpu} ns on CPU of {truth}, {share} of the time seen");
}

/// CPU time of all threads of a process, to the nanosecond.
fn on_cpu_ns(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of = |text: String| text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
    tasks.map(|task| of(read(task.path().join("schedstat")))).sum()
}

#[test]
fn samples_that_cost_too_much_are_rarer_and_count_for_those_left_out() {
    const HZ: f64 = 2_000.0;
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "burn.js", &[]);
    let (pid, rate) = (workload.pid(), HZ.to_string());
    // The process ends before the profile does: what it took by then is what there was.
    let args = ["--duration", "6s", "-F", &rate, "--max-overhead", "0.1%", "--format", "ndjson"];
    let mut trace = Trace::profile(&bench, pid, &args);
    let before = on_cpu_ns(pid);
    workload.go();
    thread::sleep(Duration::from_millis(4_800));
    let truth = on_cpu_ns(pid) - before;
    drop(workload);
    let records = trace.finish(Duration::from_secs(6));
    let profiles = || records.of_type("profile");
    let samples = |key: &'static str| {
        let of_stacks = profiles().flat_map(|profile| list(profile, "stacks")).map(|stack| number(stack, key));
        of_stacks.sum::<f64>() + profiles().map(|profile| number(profile, "other_samples")).sum::<f64>()
    };
    let counted = samples("samples");
    let period_ns = number(profiles().next().expect("a profile"), "period_ns");
    let families = list(records.one("end"), "families");
    let family = families.iter().find(|family| text(family, "family") == "sample").expect("the family");
    let taken = number(family, "emitted");
    let rarer: Vec<f64> =
        records.of_type("agent").map(|record| record["samples_rarer"].as_f64().unwrap_or(1.0)).collect();
    say(&format!("measured rarer samples: {taken:.0} taken, {counted:.0} counted, rarer by {rarer:?}"));
    assert!(rarer.iter().any(|times| *times >= 4.0), "{rarer:?}");
    assert!(taken < counted / 2.0, "{taken} samples taken, {counted} counted");
    close("time on CPU by rarer samples (s)", truth / 1e9, counted * period_ns / 1e9, 0.15 * truth / 1e9);
}
