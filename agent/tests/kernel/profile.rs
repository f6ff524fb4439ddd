//! `agent profile` on live processes, in every format, each read by a reader of that format's own.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use flate2::read::GzDecoder;
use prost::Message as _;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Bench, Process, VERSION, Workload, agent_command, bench, close, say};

/// Runs `agent profile`, lets the workloads go once it has attached, and gives what it wrote to the file.
#[track_caller]
fn profile(bench: &Bench, file: &str, args: &[&str], workloads: &mut [&mut Workload]) -> PathBuf {
    let path = bench.dir.path().join(file);
    let mut all = vec!["profile", "-o", path.to_str().unwrap()];
    all.extend_from_slice(args);
    let mut process = Process::spawn(&mut agent_command(&all));
    process.wait_err("agent: profiling");
    for workload in workloads {
        workload.go();
    }
    let status = process.wait(Duration::from_mins(1));
    assert!(status.success(), "{all:?}: {status}\n{}", process.err_text());
    path
}

/// The same from the records of an earlier one.
#[track_caller]
fn report(bench: &Bench, records: &str, file: &str, args: &[&str]) -> PathBuf {
    let (from, path) = (bench.dir.path().join(records), bench.dir.path().join(file));
    let mut all = vec!["report", from.to_str().unwrap(), "-o", path.to_str().unwrap()];
    all.extend_from_slice(args);
    let mut process = Process::spawn(&mut agent_command(&all));
    let status = process.wait(Duration::from_mins(1));
    assert!(status.success(), "{all:?}: {status}\n{}", process.err_text());
    path
}

fn folded(path: &PathBuf) -> Vec<(String, u64)> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.rsplit_once(' ').map(|(stack, n)| (stack.to_owned(), n.parse().unwrap())).unwrap())
        .collect()
}

fn sum(stacks: &[(String, u64)], holds: impl Fn(&str) -> bool) -> u64 {
    stacks.iter().filter(|(stack, _)| holds(stack)).map(|(_, n)| n).sum()
}

#[test]
fn one_profile_in_every_format_adds_up_to_the_same() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "burn.js", &[]);
    let pid = workload.pid().to_string();
    profile(&bench, "a.ndjson", &["--pid", &pid, "--duration", "3s", "-F", "199"], &mut [&mut workload]);

    let stacks = folded(&report(&bench, "a.ndjson", "a.folded", &[]));
    let total = sum(&stacks, |_| true);
    assert!(total > 30, "{total} samples");
    // Native work for JavaScript on the main thread, and the same work in the pool.
    let main = sum(&stacks, |stack| stack.contains(";main thread;"));
    let pool = sum(&stacks, |stack| stack.contains(";thread pool;"));
    let native = sum(&stacks, |stack| stack.contains(";main thread;") && stack.contains("pbkdf2"));
    say(&format!("measured profile: {total} samples, main {main}, pool {pool}"));
    close("share of the main thread in native code", 0.5, native as f64 / main as f64, 0.15);
    assert!(pool > 1, "{pool} samples in the thread pool");

    let packed = fs::File::open(report(&bench, "a.ndjson", "a.pb.gz", &[])).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut GzDecoder::new(packed), &mut bytes).unwrap();
    let pprof = agent::export::pprof::Profile::decode(bytes.as_slice()).unwrap();
    assert_eq!(pprof.sample.iter().map(|sample| sample.value[0]).sum::<i64>(), i64::try_from(total).unwrap());
    assert_eq!(pprof.period, 1_000_000_000 / 199);
    assert!(pprof.duration_nanos > 2_500_000_000 && pprof.time_nanos > 1_600_000_000_000_000_000);

    let text = fs::read_to_string(report(&bench, "a.ndjson", "a.speedscope.json", &[])).unwrap();
    let speedscope: Value = serde_json::from_str(&text).unwrap();
    let weights = speedscope["profiles"][0]["weights"].as_array().unwrap();
    assert_eq!(weights.iter().map(|weight| weight.as_u64().unwrap()).sum::<u64>(), total * (1_000_000_000 / 199));

    let svg = fs::read_to_string(report(&bench, "a.ndjson", "a.svg", &["--fold-recursion"])).unwrap();
    assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains(&format!("burn.js ({pid})")) && svg.contains(">native</text>"));
    let text = fs::read_to_string(report(&bench, "a.ndjson", "a.out", &["--format", "text"])).unwrap();
    assert!(text.contains("Functions by their own time"), "{text}");
}

#[test]
fn a_child_that_is_waited_for_is_where_the_main_thread_blocks() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "burn.js", &[]);
    let pid = workload.pid().to_string();
    let stacks =
        folded(&profile(&bench, "off.folded", &["--pid", &pid, "--off-cpu", "--duration", "3s"], &mut [&mut workload]));
    // Each turn of some 125 ms waits 50 ms for its child.
    let blocked_us = sum(&stacks, |stack| stack.contains(";main thread;blocked;"));
    let stacks_us = sum(&stacks, |stack| stack.contains("SyncProcessRunner"));
    close("main thread blocked (s of 3)", 1.25, blocked_us as f64 / 1e6, 0.6);
    close("of which in the child's wait", 1.0, stacks_us as f64 / blocked_us as f64, 0.2);

    let mut workload = Workload::start(VERSION, "burn.js", &[]);
    let pid = workload.pid().to_string();
    let args = ["--pid", &pid, "--wall", "--duration", "3s", "-F", "199"];
    let records = crate::records::Records::read(&profile(&bench, "wall.ndjson", &args, &mut [&mut workload]));
    let threads = records.of_type("profile").flat_map(|record| crate::records::list(record, "threads"));
    let wall_ns: f64 = threads
        .filter(|thread| thread["tid"].as_u64() == Some(u64::from(workload.pid())))
        .map(|thread| crate::records::number(thread, "wall_ns"))
        .sum();
    let wall = folded(&report(&bench, "wall.ndjson", "wall.folded", &[]));
    let main_us = sum(&wall, |stack| stack.contains(";main thread;"));
    // Time on CPU is estimated from some 300 samples.
    close("wall time of the main thread (s)", wall_ns / 1e9, main_us as f64 / 1e6, 0.12 * wall_ns / 1e9);
}

#[test]
fn every_process_of_the_host_is_found_and_differs_from_itself_by_chance_only() {
    let Some(bench) = bench() else { return };
    let mut one = Workload::start(VERSION, "burn.js", &[]);
    let mut two = Workload::start("20.20.2", "burn.js", &[]);
    profile(&bench, "before.ndjson", &["--all", "--duration", "2s"], &mut [&mut one, &mut two]);
    let after = profile(&bench, "after.ndjson", &["--all", "--duration", "2s"], &mut []);
    let records = crate::records::Records::read(&after);
    let mut samples = BTreeMap::<u64, usize>::new();
    for record in records.of_type("profile") {
        *samples.entry(record["pid"].as_u64().unwrap()).or_default() += record["stacks"].as_array().unwrap().len();
    }
    for workload in [&one, &two] {
        assert!(samples.get(&u64::from(workload.pid())).is_some_and(|stacks| *stacks > 0), "{samples:?}");
    }
    let paths = ["before.ndjson", "after.ndjson", "diff.svg"].map(|file| bench.dir.path().join(file));
    let paths = paths.each_ref().map(|path| path.to_str().unwrap());
    let mut diff = Process::spawn(&mut agent_command(&["profile", "diff", paths[0], paths[1], "-o", paths[2]]));
    assert!(diff.wait(Duration::from_secs(30)).success(), "{}", diff.err_text());
    assert!(fs::read_to_string(paths[2]).unwrap().contains(">grew</text>"));
}

#[test]
fn a_process_that_is_no_node_has_its_native_stacks() {
    let Some(bench) = bench() else { return };
    let busy = Process::spawn(Command::new("sh").args(["-c", "while :; do :; done"]));
    let pid = busy.pid().to_string();
    let stacks = folded(&profile(&bench, "sh.txt", &["--pid", &pid, "--duration", "2s"], &mut []));
    assert!(sum(&stacks, |stack| stack.starts_with("sh;main thread;")) > 20, "{stacks:?}");
}

#[test]
fn ctrl_c_ends_a_profile_with_its_result() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "burn.js", &[]);
    let (pid, path) = (workload.pid().to_string(), bench.dir.path().join("cut.svg"));
    let mut process = Process::spawn(&mut agent_command(&["profile", "--pid", &pid, "-o", path.to_str().unwrap()]));
    process.wait_err("agent: profiling");
    workload.go();
    std::thread::sleep(Duration::from_millis(1_500));
    process.signal(Signal::INT);
    let status = process.wait(Duration::from_secs(30));
    assert_eq!(status.code(), Some(130), "{}", process.err_text());
    assert!(fs::read_to_string(path).unwrap().trim_end().ends_with("</svg>"));
}

#[test]
fn what_is_asked_wrongly_is_said_so() {
    let Some(bench) = bench() else { return };
    let path = bench.dir.path().join("x.json");
    let run = |args: &[&str]| {
        let mut process = Process::spawn(&mut agent_command(args));
        let status = process.wait(Duration::from_secs(30));
        (status.code(), process.err_text())
    };
    let (code, text) = run(&["profile", "--pid", "1", "-o", path.to_str().unwrap()]);
    assert!(code == Some(1) && text.contains("--format"), "{code:?} {text}");
    assert!(!path.exists(), "nothing is left behind");
    assert_eq!(run(&["profile", "--pid", "4194303"]).0, Some(3));
    assert_eq!(run(&["profile"]).0, Some(2));
}
