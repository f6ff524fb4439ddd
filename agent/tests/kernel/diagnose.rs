//! Findings: made where the fault is, in a minute at most, and not made in its healthy twin. Truths are the target's own:
//! `v8.getHeapStatistics()`, `process.memoryUsage()`, `process.getActiveResourcesInfo()`, and what the load generator counted.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    harness::{Bench, Process, VERSIONS, agent_command, bench, close, node, say, script, skip, within},
    records::{get, list, number, text},
};

const OLD: &str = "20.20.2";
const NEW: &str = "24.21.0";

/// `agent diagnose`: done, and something is wrong.
const FOUND: i32 = 5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn workload(name: &str) -> PathBuf {
    root().join("scripts/workloads").join(name)
}

/// A server of one of the stories, under load.
struct Story {
    server: Process,
    load: Process,
}

impl Story {
    fn start(version: &str, name: &str, args: &[&str], rate: u32) -> Self {
        let mut server = Process::spawn(Command::new(node(version)).arg(workload(name)).args(args));
        let port = server.wait_out("READY");
        let path = if name == "story-express.js" { "/hello" } else { "/" };
        let rate = rate.to_string();
        let mut load = Process::spawn(Command::new(node(version)).arg(workload("story-load.js")).args([
            port.as_str(),
            &rate,
            path,
        ]));
        load.wait_out("READY");
        Self { server, load }
    }

    fn truth(&mut self) -> Value {
        self.server.write("truth\n");
        serde_json::from_str(&self.server.wait_out("TRUTH")).unwrap()
    }

    /// Answered requests in all.
    fn answered(mut self) -> f64 {
        self.load.close_stdin();
        let line: Value = serde_json::from_str(&self.load.wait_out("ANSWERED")).unwrap();
        number(&line, "answered")
    }
}

/// What `agent diagnose` said of a process, and all its records.
struct Diagnosis {
    code: Option<i32>,
    findings: Vec<Value>,
    records: Vec<Value>,
}

fn diagnose(bench: &Bench, pid: u32, seconds: u32, args: &[&str]) -> Diagnosis {
    let all = bench.dir.path().join(format!("{pid}.ndjson"));
    let (pid, duration) = (pid.to_string(), format!("{seconds}s"));
    let mut command = vec!["diagnose", "--pid", &pid, "--duration", &duration, "--format", "ndjson", "--ndjson"];
    command.push(all.to_str().unwrap());
    command.extend_from_slice(args);
    let mut process = Process::spawn(&mut agent_command(&command));
    let status = process.wait(Duration::from_secs(u64::from(seconds) + 40));
    let parse = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let lines: Vec<Value> = process.out.iter().map(|line| parse(line)).collect();
    let findings = lines.into_iter().filter(|line| text(line, "type") == "finding").collect();
    let records = std::fs::read_to_string(&all).unwrap().lines().map(parse).collect();
    Diagnosis { code: status.code(), findings, records }
}

impl Diagnosis {
    #[track_caller]
    fn only(&self, code: &str) -> &Value {
        let codes: Vec<&str> = self.findings.iter().map(|finding| text(finding, "code")).collect();
        assert_eq!(codes, [code]);
        assert_eq!(self.code, Some(FOUND));
        &self.findings[0]
    }

    #[track_caller]
    fn silence(&self, what: &str) {
        let titles: Vec<&str> = self.findings.iter().map(|finding| text(finding, "title")).collect();
        assert!(titles.is_empty(), "{what}: {titles:?}");
        assert_eq!(self.code, Some(0), "{what}");
    }

    /// The names on the stack of the first evidence that has one.
    fn frames(&self, finding: &Value) -> Vec<String> {
        let stacks = list(finding, "evidence").iter().filter_map(|line| line.get("stack"));
        let Some(id) = stacks.into_iter().next() else { return Vec::new() };
        let stack = self.records.iter().find(|record| text(record, "type") == "stack" && record.get("id") == Some(id));
        stack
            .map(|stack| list(stack, "frames").iter().map(|frame| text(frame, "name").to_owned()).collect())
            .unwrap_or_default()
    }

    /// HTTP requests that were counted, and in how many seconds.
    fn requests(&self) -> (f64, f64) {
        let windows = self.records.iter().filter(|record| text(record, "type") == "window");
        windows.fold((0.0, 0.0), |(counted, seen), window| {
            let of_loops: f64 = list(window, "loops").iter().map(|of_loop| number(of_loop, "requests")).sum();
            (counted + of_loops, seen + number(window, "requests_seen_ns") / 1e9)
        })
    }

    fn memory(&self) -> Vec<&Value> {
        self.records.iter().filter(|record| text(record, "type") == "memory").collect()
    }
}

/// The addon of the first story; `None`, said aloud, where it was not built.
fn addon() -> Option<()> {
    if root().join(".cache/workloads/story-handles.node").exists() {
        return Some(());
    }
    skip("the addon of the first story in .cache/workloads (cargo xtask setup)");
    None
}

const QUICK: u32 = 20;

/// Checks two versions at once: most of the time is spent looking.
fn both<T: Copy + Send>(cases: [T; 2], check: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            let check = &check;
            scope.spawn(move || check(case));
        }
    });
}

#[test]
fn a_global_handle_for_each_request_is_found_and_its_maker_named() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    both([OLD, NEW], |version| {
        let mut story = Story::start(version, "story-handles.js", &["global"], 400);
        let before = story.truth();
        let diagnosis = diagnose(&bench, story.server.pid(), QUICK, &[]);
        let after = story.truth();
        let finding = diagnosis.only("handles.global");
        let bytes = |truth: &Value| number(get(truth, "heap"), "used_global_handles_size");
        let requests = number(&after, "requests") - number(&before, "requests");
        let each = (bytes(&after) - bytes(&before)) / 32.0 / requests;
        let growth = get(finding, "growth");
        close(&format!("{version}: handles a request"), each, number(growth, "per_request"), 0.15);
        assert!(number(growth, "r2") > 0.98, "{finding}");
        let frames = diagnosis.frames(finding);
        assert!(frames.iter().any(|frame| frame == "keep"), "{version}: {frames:?}");
        assert!(frames.iter().any(|frame| frame == "handler"), "{version}: {frames:?}");
        let heap = diagnosis.memory();
        let last = heap.last().and_then(|memory| list(memory, "heaps").first()).unwrap();
        // A second at most lies between the two looks, and 400 handles.
        close(&format!("{version}: handles in all"), bytes(&after) / 32.0, number(last, "global_handles"), 1200.0);
        let (counted, seen) = diagnosis.requests();
        let span = (number(&after, "at") - number(&before, "at")) / 1e9;
        close(
            &format!("{version}: requests a second"),
            requests / span,
            counted / seen,
            within(requests / span, 0.01, 0.0),
        );
        let answered = story.answered();
        say(&format!("measured {version}: {answered} requests answered in all"));
    });
}

#[test]
fn handles_in_a_scope_that_stays_open_are_found() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    both([OLD, NEW], |version| {
        let story = Story::start(version, "story-handles.js", &["scope"], 400);
        let diagnosis = diagnose(&bench, story.server.pid(), QUICK, &[]);
        let finding = diagnosis.only("handles.scope");
        let frames = diagnosis.frames(finding);
        assert!(frames.iter().any(|frame| frame == "spin_unscoped"), "{version}: {frames:?}");
        assert!(number(get(finding, "growth"), "r2") > 0.98, "{finding}");
    });
}

#[test]
fn memory_that_an_addon_forgets_is_found() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    both([OLD, NEW], |version| {
        let mut story = Story::start(version, "story-handles.js", &["native"], 400);
        let before = story.truth();
        let diagnosis = diagnose(&bench, story.server.pid(), QUICK, &[]);
        let after = story.truth();
        let finding = diagnosis.only("memory.native");
        let rss = |truth: &Value| number(get(truth, "memory"), "rss");
        let requests = number(&after, "requests") - number(&before, "requests");
        let each = (rss(&after) - rss(&before)) / requests;
        say(&format!(
            "measured {version}: resident memory by {each:.0} B a request, of which 4096 and malloc's 16 are forgotten"
        ));
        close(&format!("{version}: bytes a request"), 4112.0, number(get(finding, "growth"), "per_request"), 800.0);
        let frames = diagnosis.frames(finding);
        assert!(frames.iter().any(|frame| frame == "forget"), "{version}: {frames:?}");
    });
}

#[test]
fn handles_of_libuv_that_are_never_closed_are_found() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    let cases = [(OLD, "watcher", "handles.libuv.fs_event", "FSEventWrap"), (NEW, "udp", "handles.libuv.udp", "")];
    both(cases, |(version, kind, code, resource)| {
        let mut story = Story::start(version, "story-handles.js", &[kind], 400);
        let diagnosis = diagnose(&bench, story.server.pid(), QUICK, &[]);
        let truth = story.truth();
        let finding = diagnosis.only(code);
        close(
            &format!("{version}: {kind} handles a request"),
            1.0,
            number(get(finding, "growth"), "per_request"),
            0.15,
        );
        if !resource.is_empty() {
            let open = number(get(&truth, "resources"), resource);
            let memory = diagnosis.memory();
            let last = memory.last().and_then(|memory| list(memory, "loops").first()).unwrap();
            let seen = number(get(last, "handles"), code.rsplit('.').next().unwrap());
            close(&format!("{version}: {kind} handles in all"), open, seen, 1200.0);
        }
    });
}

#[test]
fn objects_that_javascript_keeps_are_found() {
    let Some(bench) = bench() else { return };
    let story = Story::start(OLD, "story-handles.js", &["js"], 400);
    let diagnosis = diagnose(&bench, story.server.pid(), 40, &[]);
    let finding = diagnosis.only("memory.js_heap");
    assert!(number(get(finding, "growth"), "per_request") > 1000.0, "{finding}");
}

#[test]
fn what_is_given_back_is_no_finding() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    both([(OLD, ["global", "native"]), (NEW, ["scope", "js"])], |(version, kinds)| {
        for kind in kinds {
            let story = Story::start(version, "story-handles.js", &[kind, "--healthy"], 200);
            thread::sleep(Duration::from_secs(3));
            diagnose(&bench, story.server.pid(), QUICK, &[]).silence(&format!("{version} {kind}"));
        }
    });
}

#[test]
fn a_request_that_walks_a_growing_list_is_found() {
    let Some(bench) = bench() else { return };
    if !root().join(".cache/workloads/node_modules/express5").exists() {
        skip("Express in .cache/workloads (cargo xtask setup)");
        return;
    }
    both([(OLD, "express4"), (NEW, "express5")], |(version, express)| {
        let story = Story::start(version, "story-express.js", &[express, "static"], 40);
        let diagnosis = diagnose(&bench, story.server.pid(), QUICK, &[]);
        let found = diagnosis.findings.iter().find(|finding| text(finding, "code") == "requests.cost");
        let finding = found.unwrap_or_else(|| panic!("{version} {express}: {:?}", diagnosis.findings));
        let lines: Vec<&str> = list(finding, "evidence").iter().map(|line| text(line, "text")).collect();
        assert!(lines.iter().any(|line| line.contains("fs.stat on the thread pool")), "{version} {express}: {lines:?}");
    });
    let story = Story::start(NEW, "story-express.js", &["express5", "static", "--healthy"], 100);
    thread::sleep(Duration::from_secs(3));
    diagnose(&bench, story.server.pid(), QUICK, &[]).silence("Express, healthy");
}

#[test]
fn an_idle_server_is_no_finding() {
    let Some(bench) = bench() else { return };
    let mut server = Process::spawn(Command::new(node(NEW)).arg(script("server.js")));
    server.wait_out("READY");
    diagnose(&bench, server.pid(), 10, &["--threshold", "span_s=5"]).silence("an idle server");
}

#[test]
fn figures_of_the_heap_are_those_that_v8_gives_on_every_version() {
    let (Some(bench), Some(())) = (bench(), addon()) else { return };
    for version in VERSIONS {
        let mut server = Process::spawn(Command::new(node(version)).arg(workload("story-handles.js")).arg("global"));
        server.wait_out("READY");
        let diagnosis = diagnose(&bench, server.pid(), 2, &[]);
        server.write("truth\n");
        let truth: Value = serde_json::from_str(&server.wait_out("TRUTH")).unwrap();
        let truth = get(&truth, "heap");
        let memory = diagnosis.memory();
        let heap = memory.last().and_then(|memory| list(memory, "heaps").first()).unwrap();
        // An idle process; answering is what changes it.
        for (name, theirs, ours, allowed) in [
            ("limit", "heap_size_limit", "limit_bytes", 0.0),
            ("used", "used_heap_size", "used_bytes", 0.05),
            ("resident", "total_physical_size", "resident_bytes", 0.05),
            ("external", "external_memory", "external_bytes", 0.02),
            ("malloced", "malloced_memory", "malloced_bytes", 0.02),
        ] {
            let theirs = number(truth, theirs);
            close(&format!("{version}: {name}"), theirs, number(heap, ours), within(theirs, allowed, 0.0));
        }
        let handles = number(truth, "used_global_handles_size") / 32.0;
        close(&format!("{version}: global handles"), handles, number(heap, "global_handles"), 16.0);
        assert!(number(heap, "scope_handles_min") < 100.0, "{version}: {heap}");
    }
}
