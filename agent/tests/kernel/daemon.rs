//! `agent daemon`: who comes and goes, a configuration that changes, and an end that leaves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    event_loop::check_utilization,
    harness::{Bench, Process, VERSION, Workload, agent_command, bench, node, patience, read, say, script},
    records::Records,
};

/// `node` that can be replaced by another program.
const EXEC_VERSION: &str = "24.21.0";

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
        Self::with(bench, name, &[])
    }

    #[track_caller]
    fn with(bench: &Bench, name: &str, args: &[&str]) -> Self {
        Self::configured(bench, name, "", args)
    }

    #[track_caller]
    fn configured(bench: &Bench, name: &str, rules: &str, args: &[&str]) -> Self {
        let ndjson = bench.dir.path().join(format!("{name}.ndjson"));
        let path = bench.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config(&ndjson, rules)).unwrap();
        let mut process = Process::spawn(agent_command(&["daemon", "--config", path.to_str().unwrap()]).args(args));
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
        let deadline = Instant::now() + patience(LIMIT);
        while self.count(pid, kind) < least {
            assert!(Instant::now() < deadline, "no {kind} of {pid}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a process is told to have ended, or to be looked at no more.
    #[track_caller]
    fn await_end(&self, pid: u32) {
        let is_end = |record: &Value| {
            record["pid"] == pid
                && record["type"] == "process"
                && (record["event"] == "exit" || record["event"] == "gone")
        };
        let deadline = Instant::now() + LIMIT;
        while !self.lines().iter().any(is_end) {
            assert!(Instant::now() < deadline, "no end of {pid}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Those that it keeps: the least of some looks, as it opens files of `/proc` for moments all the time.
    fn descriptors(&self) -> usize {
        let look = || {
            thread::sleep(Duration::from_millis(20));
            fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
        };
        (0..20).map(|_| look()).min().unwrap()
    }

    /// Of how many processes there is a line of a type.
    fn told(&self, kind: &str, pids: &BTreeSet<u64>) -> usize {
        let lines = self.lines();
        let of = |line: &Value| (line["type"] == kind).then(|| line["pid"].as_u64()).flatten();
        lines.iter().filter_map(of).filter(|pid| pids.contains(pid)).collect::<BTreeSet<_>>().len()
    }

    #[track_caller]
    fn await_all(&self, kind: &str, pids: &BTreeSet<u64>) {
        let deadline = Instant::now() + patience(LIMIT);
        while self.told(kind, pids) < pids.len() {
            assert!(Instant::now() < deadline, "{kind} of {} of {} processes", self.told(kind, pids), pids.len());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Entries of its hash maps in the kernel, by name, but for those that push out what is old.
    fn entries(&self) -> BTreeMap<String, usize> {
        let bpftool = |args: &[&str]| -> Value {
            let output = Command::new("bpftool").arg("-j").args(args).output().unwrap();
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let info = fs::read_dir(format!("/proc/{}/fdinfo", self.process.pid())).unwrap().flatten();
        let id = |text: String| text.lines().find_map(|line| Some(line.strip_prefix("map_id:")?.trim().to_owned()));
        let ids: BTreeSet<String> = info.filter_map(|entry| id(read(entry.path()))).collect();
        let mut entries = BTreeMap::new();
        for id in ids {
            let map = bpftool(&["map", "show", "id", &id]);
            if map["type"] == "hash" {
                let dump = bpftool(&["map", "dump", "id", &id]);
                entries.insert(map["name"].as_str().unwrap().to_owned(), dump.as_array().unwrap().len());
            }
        }
        entries
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
    daemon.await_end(pid);
    // Nobody is there, then somebody is again.
    let first = before.pid();
    drop(before);
    daemon.await_end(first);
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

/// Begins and ends so many programs a second, for as long as it lives.
struct Storm {
    stop: AtomicBool,
    begun: AtomicU32,
}

impl Storm {
    const A_SECOND: u32 = 500;

    fn rage(&self) {
        const STEP: Duration = Duration::from_millis(20);
        let begin = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let due = (begin.elapsed().as_secs_f64() * f64::from(Self::A_SECOND)) as u32;
            while self.begun.load(Ordering::Relaxed) < due {
                assert!(Command::new("/bin/true").stdin(Stdio::null()).status().unwrap().success());
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(STEP);
        }
    }
}

#[test]
fn a_burst_of_processes_is_met_whole_and_leaves_nothing() {
    let Some(bench) = bench() else { return };
    let many = std::env::var("AGENT_TEST_BURST").map_or(30, |many| many.parse().unwrap());
    let mut daemon = Daemon::start(&bench, "burst");
    let empty = daemon.entries();
    let storm = Storm { stop: AtomicBool::new(false), begun: AtomicU32::new(0) };
    let mut left = Vec::new();
    let mut memory = 0;
    let since = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| storm.rage());
        for _generation in 0..2 {
            let command = || Process::spawn(Command::new(node(VERSION)).arg(script("burst.js")));
            let all: Vec<Process> = (0..many).map(|_| command()).collect();
            let pids: BTreeSet<u64> = all.iter().map(|process| u64::from(process.pid())).collect();
            daemon.await_all("target", &pids);
            daemon.await_all("window", &pids);
            memory = memory.max(daemon.status("VmRSS"));
            drop(all);
            daemon.await_all("process", &pids);
            // The last window of all is closed.
            thread::sleep(Duration::from_millis(1500));
            left.push((daemon.descriptors(), daemon.entries()));
        }
        storm.stop.store(true, Ordering::Relaxed);
    });
    let begun = storm.begun.load(Ordering::Relaxed);
    say(&format!(
        "measured daemon: twice {many} processes and {begun} short ones in {:.1?}; {memory} kB at most, {} and {} descriptors left",
        since.elapsed(),
        left[0].0,
        left[1].0
    ));
    for (_, entries) in &left {
        assert_eq!(*entries, empty, "entries of maps that are left");
    }
    // A library stays open in which a stack was seen; that may be for the first time.
    assert!(left[1].0 <= left[0].0 + 6, "descriptors: {} after the first, {} after the second", left[0].0, left[1].0);
    assert!(memory < 150_000, "{memory} kB");
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    crate::stream::assert_balanced(&Records::read(&daemon.ndjson));
}

/// To a collector that takes all, with a place for what it does not.
fn spooled(bench: &Bench, collector: &TcpListener, spool: &str) -> String {
    let (to, spool) = (collector.local_addr().unwrap(), bench.dir.path().join(spool));
    format!(
        "[[stream]]\ntype = \"ndjson\"\nto = \"tcp://{to}\"\nspool = {{ directory = \"{}\", max_bytes = 16777216 }}\n",
        spool.display()
    )
}

/// Takes what comes, from whoever.
fn swallow(collector: TcpListener) {
    thread::spawn(move || {
        for mut stream in collector.incoming().flatten() {
            thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
        }
    });
}

#[test]
fn an_update_disturbs_neither_the_old_daemon_nor_the_new_one() {
    let Some(bench) = bench() else { return };
    let mut workload = Workload::start(VERSION, "utilization.js", &["half"]);
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let (of_both, of_new) = (spooled(&bench, &collector, "spool"), spooled(&bench, &collector, "spool-new"));
    swallow(collector);
    let mut old = Daemon::configured(&bench, "old", &of_both, &[]);
    old.await_line(workload.pid(), "window", 1);
    workload.go();
    // As much as the old one has: its file, its spool.
    let refused = |config: &str, name: &str, words: &str| {
        let path = bench.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        let mut agent = Process::spawn(&mut agent_command(&["daemon", "--config", path.to_str().unwrap()]));
        assert_eq!(agent.wait(LIMIT).code(), Some(1), "{}", agent.err_text());
        assert!(agent.err_text().contains(words), "{}", agent.err_text());
    };
    refused(&read(&old.config), "same-file", "is written by another agent: give each a file of its own");
    let elsewhere = bench.dir.path().join("elsewhere.ndjson");
    refused(&config(&elsewhere, &of_both), "same-spool", "is used by another agent: give each a directory of its own");
    // Another program file, as a new version is, with places of its own; each attaches its own probes to the same file.
    let program = bench.dir.path().join("agent-new");
    fs::copy(env!("CARGO_BIN_EXE_agent"), &program).unwrap();
    let path = bench.dir.path().join("new.toml");
    let ndjson = bench.dir.path().join("new.ndjson");
    fs::write(&path, config(&ndjson, &of_new)).unwrap();
    let mut process = Process::spawn(Command::new(&program).args(["daemon", "--config"]).arg(&path));
    process.wait_err("agent: ready");
    let mut new = Daemon { process, config: path, ndjson };
    new.await_line(workload.pid(), "window", 2);
    old.process.signal(Signal::TERM);
    assert!(old.process.wait(LIMIT).success(), "{}", old.process.err_text());
    let windows = new.count(workload.pid(), "window");
    new.await_line(workload.pid(), "window", windows + 2);
    new.process.signal(Signal::TERM);
    assert!(new.process.wait(LIMIT).success(), "{}", new.process.err_text());
    let truths = workload.truths();
    for (name, daemon) in [("old", &old), ("new", &new)] {
        let records = Records::read(&daemon.ndjson);
        crate::stream::assert_balanced(&records);
        check_utilization(&format!("{name} daemon of two"), &records, &truths);
    }
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
    daemon.await_end(workload.pid());
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
fn who_came_while_announcements_were_lost_is_found_at_once() {
    let Some(bench) = bench() else { return };
    // A page of a ring: room for some seventy announcements.
    let mut daemon = Daemon::with(&bench, "lost", &["--ring-size", "4096"]);
    daemon.process.signal(Signal::STOP);
    for _ in 0..200 {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    daemon.process.signal(Signal::CONT);
    let begin = Instant::now();
    // The next look through all of /proc that is due anyway is a minute away.
    daemon.await_line(workload.pid(), "target", 1);
    say(&format!("measured daemon: found a process whose announcement was lost {:?} later", begin.elapsed()));
    daemon.await_line(workload.pid(), "window", 1);
    daemon.process.signal(Signal::TERM);
    assert!(daemon.process.wait(LIMIT).success());
    let records = Records::read(&daemon.ndjson);
    let last = records.of_type("agent").last().unwrap();
    let families = last["families"].as_array().unwrap();
    let process = families.iter().find(|family| family["family"] == "process").unwrap();
    assert!(process["dropped"].as_u64().unwrap() > 50, "{process}");
}

#[test]
fn a_process_that_becomes_another_program_is_asked_about_again() {
    let Some(bench) = bench() else { return };
    let daemon = Daemon::start(&bench, "becomes");
    let binary = node(EXEC_VERSION);
    // From here on no rule wants it.
    let elsewhere = bench.dir.path().join("other.js");
    fs::copy(script("life.js"), &elsewhere).unwrap();
    fs::copy(script("truth.js"), bench.dir.path().join("truth.js")).unwrap();
    let next = [binary.to_str().unwrap(), elsewhere.to_str().unwrap(), "exit", "0"];
    let mut workload = Workload::start(EXEC_VERSION, "life.js", &[&["exec"], &next[..]].concat());
    daemon.await_line(workload.pid(), "window", 1);
    workload.go();
    workload.0.wait_out("READY");
    thread::sleep(Duration::from_secs(2));
    let windows = daemon.count(workload.pid(), "window");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.count(workload.pid(), "window"), windows, "it is traced still");
    assert_eq!(daemon.count(workload.pid(), "target"), 1);
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
    daemon.await_end(pid);
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
