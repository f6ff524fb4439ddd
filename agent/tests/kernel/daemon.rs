//! `agent daemon`: who comes and goes, a configuration that changes, and an end that leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    harness::{Bench, Process, VERSION, Workload, agent_command, bench, node, say, script},
    records::Records,
};

const LIMIT: Duration = Duration::from_secs(15);

/// A daemon with its file and its records.
struct Daemon {
    process: Process,
    config: PathBuf,
    ndjson: PathBuf,
}

/// Only what these tests start: what else runs on the machine is left alone.
fn config(ndjson: &Path, rules: &str) -> String {
    let ours = "[[process]]\ncommand = \"*tests/workloads/*\"\n[[process]]\ntrace = false\n";
    format!("[trace]\nwindow = \"1s\"\npostgres = false\n[output]\nndjson = ['{}']\n{rules}\n{ours}", ndjson.display())
}

impl Daemon {
    #[track_caller]
    fn start(bench: &Bench, name: &str) -> Self {
        let ndjson = bench.dir.path().join(format!("{name}.ndjson"));
        let path = bench.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config(&ndjson, "")).unwrap();
        let mut process = Process::spawn(&mut agent_command(&["daemon", "--config", path.to_str().unwrap()]));
        process.wait_err("agent: ready");
        Self { process, config: path, ndjson }
    }

    fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.ndjson).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many lines of a type there are of a process.
    fn count(&self, pid: u32, kind: &str) -> usize {
        self.lines().iter().filter(|line| line["type"] == kind && line["pid"] == pid).count()
    }

    #[track_caller]
    fn await_line(&self, pid: u32, kind: &str, least: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.count(pid, kind) < least {
            assert!(Instant::now() < deadline, "no {kind} of {pid}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
    }
}

#[test]
fn a_daemon_meets_who_comes_and_ends_cleanly() {
    let Some(bench) = bench() else { return };
    let before = Workload::start(VERSION, "mixed.js", &[]);
    let mut daemon = Daemon::start(&bench, "meets");
    let mut other = Daemon::start(&bench, "beside");
    daemon.await_line(before.pid(), "target", 1);
    let begin = Instant::now();
    let after = Workload::start(VERSION, "mixed.js", &[]);
    daemon.await_line(after.pid(), "target", 1);
    say(&format!("measured daemon: met a new process {:?} after its start", begin.elapsed()));
    daemon.await_line(after.pid(), "window", 2);
    other.await_line(after.pid(), "window", 1);
    // One that dies badly leaves nothing, and the other one does not notice.
    other.process.signal(Signal::KILL);
    other.process.wait(LIMIT);
    let pid = after.pid();
    drop(after);
    daemon.await_line(pid, "process", 1);
    // Nobody is there, then somebody is again.
    let first = before.pid();
    drop(before);
    daemon.await_line(first, "process", 1);
    let again = Workload::start(VERSION, "mixed.js", &[]);
    daemon.await_line(again.pid(), "window", 1);
    let begin = Instant::now();
    daemon.process.signal(Signal::TERM);
    let status = daemon.process.wait(LIMIT);
    say(&format!("measured daemon: ended {:?} after SIGTERM", begin.elapsed()));
    assert!(status.success(), "{status}: {}", daemon.process.err_text());
    assert!(begin.elapsed() < Duration::from_secs(5), "it says five seconds");
    crate::stream::assert_balanced(&Records::read(&daemon.ndjson));
}

#[test]
fn a_bad_configuration_is_refused_and_a_good_one_is_in_force() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let mut daemon = Daemon::start(&bench, "reload");
    daemon.await_line(workload.pid(), "window", 1);
    let good = fs::read_to_string(&daemon.config).unwrap();
    fs::write(&daemon.config, good.replacen("window", "windou", 1)).unwrap();
    daemon.process.signal(Signal::HUP);
    let told = daemon.process.wait_err("agent: refused");
    assert!(told.contains(":2: unknown field `windou`"), "{told}");
    let windows = daemon.count(workload.pid(), "window");
    daemon.await_line(workload.pid(), "window", windows + 2);
    // Without a signal: the file is looked at.
    let rule = "[[process]]\ncommand = \"*mixed.js*\"\ntrace = false";
    fs::write(&daemon.config, config(&daemon.ndjson, rule)).unwrap();
    daemon.process.wait_err(&format!("agent: {} is in force", daemon.config.display()));
    daemon.await_line(workload.pid(), "process", 1);
    thread::sleep(Duration::from_millis(1500));
    let windows = daemon.count(workload.pid(), "window");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(daemon.count(workload.pid(), "window"), windows, "it is traced still");
    fs::write(&daemon.config, &good).unwrap();
    daemon.process.signal(Signal::HUP);
    daemon.await_line(workload.pid(), "target", 2);
    daemon.await_line(workload.pid(), "window", windows + 1);
}

#[test]
fn thousands_of_short_lived_processes_cost_nothing_lasting() {
    let Some(bench) = bench() else { return };
    let daemon = Daemon::start(&bench, "storm");
    let storm = |seconds: u64| {
        let (start, mut begun) = (Instant::now(), 0u32);
        while start.elapsed() < Duration::from_secs(seconds) {
            assert!(Command::new("/bin/true").status().unwrap().success());
            begun += 1;
        }
        begun
    };
    storm(1);
    let (memory, descriptors) = (daemon.status("VmRSS"), daemon.descriptors());
    let begun = storm(7);
    // Of some, Node.js: those that live on are met, however many are around them.
    let workload = Workload::with(Command::new(node(VERSION)).arg(script("mixed.js")));
    storm(1);
    daemon.await_line(workload.pid(), "window", 1);
    let pid = workload.pid();
    drop(workload);
    daemon.await_line(pid, "process", 1);
    thread::sleep(Duration::from_millis(1200));
    let (memory_after, descriptors_after) = (daemon.status("VmRSS"), daemon.descriptors());
    say(&format!(
        "measured daemon: {begun} programs in 7 s; {memory} kB before, {memory_after} kB after; {descriptors} descriptors, then {descriptors_after}"
    ));
    // A process was traced meanwhile: the tables of its program and the two links of its file stay for the next one.
    assert!(memory_after < memory + 60_000, "{memory} kB grew to {memory_after} kB");
    assert!(descriptors_after <= descriptors + 12, "{descriptors} grew to {descriptors_after}");
    let mut daemon = daemon;
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    let records = Records::read(&daemon.ndjson);
    crate::stream::assert_balanced(&records);
}
