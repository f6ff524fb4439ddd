//! Censuses of real heaps, against heap snapshots that the process then writes of itself.
//!
//! `cargo xtask setup` puts the binaries into `.cache`.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss, reason = "tests")]

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::Duration,
};

use agent::report::heap::Line;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const OFFICIAL: [&str; 5] = ["18.20.8", "20.20.2", "22.23.3", "24.21.0", "26.10.0"];

/// Names with fewer objects are not compared: a few more or less are many percent.
const COMPARED_FROM: u64 = 1000;

/// What is claimed.
const MARGIN: f64 = 0.1;

struct Node {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Node {
    /// An official build; without it the test is skipped aloud, and on CI fails.
    fn start(version: &str, args: &[&str]) -> Option<Self> {
        if env::var("AGENT_TEST_NODE").is_ok_and(|only| only != version) {
            return None;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = root.join(format!("../.cache/node/{version}/bin/node"));
        if !path.exists() {
            assert!(env::var_os("CI").is_none(), "{} is missing: run `cargo xtask setup`", path.display());
            eprintln!("SKIPPED: {} is missing: run `cargo xtask setup`", path.display());
            return None;
        }
        let script = root.join("tests/workloads/heap.js");
        let mut child = Command::new(path).arg(script).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut node = Self { child, out };
        assert_eq!(node.line(), "ready");
        // Until it waits for its timer.
        thread::sleep(Duration::from_millis(300));
        Some(node)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Objects and bytes by name, as V8 counts them.
    fn snapshot(&mut self) -> BTreeMap<String, (u64, u64)> {
        self.signal(Signal::USR2);
        let counts: Value = serde_json::from_str(&self.line()).unwrap();
        let of = |count: &Value| (count["objects"].as_u64().unwrap(), count["bytes"].as_u64().unwrap());
        counts.as_object().unwrap().iter().map(|(name, count)| (name.clone(), of(count))).collect()
    }

    /// Pages of memory that belongs to no file.
    fn pages(&self) -> usize {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let maps = fs::read_to_string(proc.join("maps")).unwrap();
        let pagemap = fs::File::open(proc.join("pagemap")).unwrap();
        let of_mapping = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            (fields.nth(3)? == "0").then_some(())?;
            let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap() / 4096);
            // Above it there is only the kernel's own.
            (end < 1 << 35).then_some(())?;
            let mut entries = vec![0; usize::try_from(end - start).unwrap() * 8];
            pagemap.read_exact_at(&mut entries, start * 8).ok()?;
            Some(entries.as_chunks::<8>().0.iter().filter(|entry| u64::from_le_bytes(**entry) >> 63 == 1).count())
        };
        maps.lines().filter_map(of_mapping).sum()
    }

    fn census(&self, file: &Path) -> Output {
        let pid = self.child.id().to_string();
        agent(&["heap", "--pid", &pid, "-o", file.to_str().unwrap()])
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn agent(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agent")).args(args).output().unwrap()
}

fn lines(file: &Path) -> Vec<Line> {
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn counts(file: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut counts = BTreeMap::new();
    for line in lines(file) {
        if let Line::HeapConstructor(of) = line {
            let count: &mut (u64, u64) = counts.entry(of.name).or_default();
            *count = (count.0 + of.objects, count.1 + of.bytes);
        }
    }
    counts
}

fn directory() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let (before, after) = (directory.path().join("before.ndjson"), directory.path().join("after.ndjson"));
    (directory, before, after)
}

#[track_caller]
fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn counts_are_those_of_a_heap_snapshot() {
    for version in OFFICIAL {
        let Some(mut node) = Node::start(version, &[]) else { continue };
        let (_directory, file, _) = directory();
        assert_done(&node.census(&file));
        let (counted, truth) = (counts(&file), node.snapshot());
        let mut worst: (f64, &str) = (0.0, "");
        for (name, (objects, bytes)) in truth.iter().filter(|(_, (objects, _))| *objects >= COMPARED_FROM) {
            let (seen, seen_bytes) = counted.get(name).copied().unwrap_or_default();
            let off = seen as f64 / *objects as f64 - 1.0;
            let off_bytes = seen_bytes as f64 / *bytes as f64 - 1.0;
            eprintln!("measured {version} {name}: {seen} of {objects} ({:+.1} %)", off * 100.0);
            assert!(off.abs() < MARGIN, "{version} {name}: {seen} objects, in truth {objects}");
            assert!(off_bytes.abs() < MARGIN, "{version} {name}: {seen_bytes} bytes, in truth {bytes}");
            if off.abs() > worst.0 {
                worst = (off.abs(), name);
            }
        }
        eprintln!("measured {version}: at most {:.1} % off ({})", worst.0 * 100.0, worst.1);
        for name in ["Order", "Customer", "Base", "Derived", "Registry", "Legacy", "Map", "Set", "Promise", "Date"] {
            assert!(truth[name].0 >= COMPARED_FROM, "{version}: the snapshot has no {name}");
        }
        for (name, (objects, _)) in counted.iter().filter(|(name, _)| !name.starts_with('(')) {
            let is_known = *objects < COMPARED_FROM || truth.contains_key(name);
            assert!(is_known, "{version}: {objects} objects of {name}, of which there are none");
        }
        assert!(counted["(closure)"].0 >= 3000, "{version}: functions are missing");
        let own = lines(&file).into_iter().find_map(|line| match line {
            Line::HeapConstructor(of) if of.name == "Order" => of.place,
            _ => None,
        });
        assert!(own.unwrap().ends_with("heap.js:5"), "{version}: a class says where it is");
    }
}

#[test]
fn a_difference_names_what_grew() {
    for version in ["20.20.2", "24.21.0"] {
        let Some(mut node) = Node::start(version, &[]) else { continue };
        let (_directory, before, after) = directory();
        assert_done(&node.census(&before));
        node.signal(Signal::HUP);
        assert_eq!(node.line(), "grown");
        thread::sleep(Duration::from_millis(300));
        assert_done(&node.census(&after));
        let (before, after) = (before.to_str().unwrap(), after.to_str().unwrap());
        let output = agent(&["heap", "diff", before, after, "--json"]);
        assert_done(&output);
        let grown: Vec<Line> =
            String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let leaked = grown.iter().find_map(|line| match line {
            Line::HeapGrowth(growth) if growth.name == "Leaked" => Some(growth.clone()),
            _ => None,
        });
        let leaked = leaked.unwrap();
        assert!((6900..=7100).contains(&leaked.objects()), "{version}: {leaked:?}");
        let text = agent(&["heap", "diff", before, after]);
        assert_done(&text);
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.lines().take(8).any(|line| line.contains("+7 0") && line.contains("Leaked")), "{text}");
        let reversed = agent(&["heap", "diff", after, before]);
        assert!(String::from_utf8_lossy(&reversed.stdout).contains("-7 0"));
        let refused = agent(&["heap", "diff", "/dev/null", after]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is no census"));
    }
}

#[test]
fn a_process_that_allocates_all_the_time_is_counted() {
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &["busy"]) else { continue };
        let (_directory, file, _) = directory();
        assert_done(&node.census(&file));
        let counted = counts(&file);
        // Those that do not change: the others are being made and dropped.
        for (name, objects) in [("Customer", 10_000_u64), ("Legacy", 15_000), ("Derived", 6_000), ("Registry", 3_000)] {
            let off = counted[name].0 as f64 / objects as f64 - 1.0;
            eprintln!("measured {version} busy {name}: {:+.1} %", off * 100.0);
            assert!(off.abs() < MARGIN, "{version} {name}: {} of {objects}", counted[name].0);
        }
    }
}

/// Whoever reads memory that was never touched makes it: a page each, or two megabytes of zeros where huge pages are the rule.
#[test]
fn a_census_touches_nothing_that_the_process_has_not_touched() {
    /// Of V8's own pages, all is read.
    const PAGES_MAX: usize = 512;
    for version in OFFICIAL {
        let Some(node) = Node::start(version, &[]) else { continue };
        let (_directory, file, _) = directory();
        let before = node.pages();
        assert_done(&node.census(&file));
        let after = node.pages();
        eprintln!("measured {version}: {before} pages before a census, {after} after it");
        assert!(after < before + PAGES_MAX, "{version}: {before} pages before a census, {after} after it");
    }
}

#[test]
fn a_process_that_ends_meanwhile_is_an_error_and_no_crash() {
    let Some(mut node) = Node::start("24.21.0", &["busy"]) else { return };
    let pid = node.child.id().to_string();
    let agent = Command::new(env!("CARGO_BIN_EXE_agent"))
        .args(["heap", "--pid", &pid])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(60));
    node.child.kill().unwrap();
    node.child.wait().unwrap();
    let output = agent.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let gone = self::agent(&["heap", "--pid", &pid]);
    assert_eq!(gone.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no process"));
}
