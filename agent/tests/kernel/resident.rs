//! A daemon that tests start, and what can be seen of it from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::harness::{Bench, Process, agent_command, patience, read};

pub const LIMIT: Duration = Duration::from_secs(15);

/// A daemon with its file and its records.
pub struct Daemon {
    pub process: Process,
    pub config: PathBuf,
    pub ndjson: PathBuf,
}

/// Only what these tests start: what else runs on the machine is left alone.
pub fn config(ndjson: &Path, rules: &str) -> String {
    let ours = "[[process]]\ncommand = \"*tests/workloads/*\"\n[[process]]\ntrace = false\n";
    format!("[trace]\nwindow = \"1s\"\npostgres = false\n[output]\nndjson = ['{}']\n{rules}\n{ours}", ndjson.display())
}

impl Daemon {
    #[track_caller]
    pub fn start(bench: &Bench, name: &str) -> Self {
        Self::with(bench, name, &[])
    }

    #[track_caller]
    pub fn with(bench: &Bench, name: &str, args: &[&str]) -> Self {
        Self::configured(bench, name, "", args)
    }

    #[track_caller]
    pub fn configured(bench: &Bench, name: &str, rules: &str, args: &[&str]) -> Self {
        let ndjson = bench.dir.path().join(format!("{name}.ndjson"));
        let path = bench.dir.path().join(format!("{name}.toml"));
        fs::write(&path, config(&ndjson, rules)).unwrap();
        let mut process = Process::spawn(agent_command(&["daemon", "--config", path.to_str().unwrap()]).args(args));
        process.wait_err("agent: ready");
        Self { process, config: path, ndjson }
    }

    pub fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.ndjson).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// How many lines of a type there are of a process.
    pub fn count(&self, pid: u32, kind: &str) -> usize {
        self.lines().iter().filter(|line| line["type"] == kind && line["pid"] == pid).count()
    }

    #[track_caller]
    pub fn await_line(&self, pid: u32, kind: &str, least: usize) {
        let deadline = Instant::now() + patience(LIMIT);
        while self.count(pid, kind) < least {
            assert!(Instant::now() < deadline, "no {kind} of {pid}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a process is told to have ended, or to be looked at no more.
    #[track_caller]
    pub fn await_end(&self, pid: u32) {
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

    pub fn status(&self, key: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Those that it keeps: the least of some looks, as it opens files of `/proc` for moments all the time.
    pub fn descriptors(&self) -> usize {
        let look = || {
            thread::sleep(Duration::from_millis(20));
            fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
        };
        (0..20).map(|_| look()).min().unwrap()
    }

    /// Of how many processes there is a line of a type.
    pub fn told(&self, kind: &str, pids: &BTreeSet<u64>) -> usize {
        let lines = self.lines();
        let of = |line: &Value| (line["type"] == kind).then(|| line["pid"].as_u64()).flatten();
        lines.iter().filter_map(of).filter(|pid| pids.contains(pid)).collect::<BTreeSet<_>>().len()
    }

    #[track_caller]
    pub fn await_all(&self, kind: &str, pids: &BTreeSet<u64>) {
        let deadline = Instant::now() + patience(LIMIT);
        while self.told(kind, pids) < pids.len() {
            assert!(Instant::now() < deadline, "{kind} of {} of {} processes", self.told(kind, pids), pids.len());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Entries of its hash maps in the kernel, by name, but for those that push out what is old.
    pub fn entries(&self) -> BTreeMap<String, usize> {
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
