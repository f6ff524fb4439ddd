//! Findings: made where the fault is, in a minute at most, and not made in its healthy twin. Truths are the target's own:
//! `v8.getHeapStatistics()`, `process.memoryUsage()`, `process.getActiveResourcesInfo()`, and what the load generator counted.

mod innocent;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    harness::{
        Bench, Process, VERSIONS, agent_command, bench, close, fresh, node, overhead, say, script, skip, slowness,
        within,
    },
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

/// Seconds to look at what grows with each request: as many requests as else, where these are fewer a second.
fn long(seconds: u32) -> u32 {
    seconds * slowness()
}

/// A server of one of the stories, under load.
struct Story {
    name: String,
    server: Process,
    load: Process,
}

/// What is run, and requests a second.
struct Plot {
    version: &'static str,
    script: &'static str,
    args: &'static [&'static str],
    rate: u32,
}

const fn handles(version: &'static str, args: &'static [&'static str], rate: u32) -> Plot {
    Plot { version, script: "story-handles.js", args, rate }
}

const fn express(version: &'static str, args: &'static [&'static str], rate: u32) -> Plot {
    Plot { version, script: "story-express.js", args, rate }
}

impl Story {
    fn start(plot: &Plot) -> Self {
        let Plot { version, script, args, rate } = *plot;
        let mut command = Command::new(node(version));
        // The smaller the heap may be, the more often it is collected: as in a container, and in a test of seconds.
        if args.contains(&"js") {
            command.arg("--max-old-space-size=256");
        }
        let mut server = Process::spawn(command.arg(workload(script)).args(args));
        let port = server.wait_out("READY");
        let path = if script == "story-express.js" { "/hello" } else { "/" };
        // As many as else in all, see `long`: a load that is too much is not a steady one.
        let rate = if script == "story-handles.js" { rate / slowness() } else { rate };
        let rate = rate.to_string();
        let mut load = Process::spawn(Command::new(node(version)).arg(workload("story-load.js")).args([
            port.as_str(),
            &rate,
            path,
        ]));
        load.wait_out("READY");
        Self { name: format!("{version} {}", args.join(" ")), server, load }
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

/// All of them at once; where the machine has not the CPU for that, one after the other.
fn in_turn<T>(all: &[T]) -> impl Iterator<Item = &[T]> {
    all.chunks(if slowness() > 1 { 1 } else { all.len() })
}

/// Starts them all; after a while they are as they will be.
fn start<'a>(plots: impl IntoIterator<Item = &'a Plot>) -> Vec<Story> {
    let stories = plots.into_iter().map(Story::start).collect();
    thread::sleep(Duration::from_secs(3));
    stories
}

/// What `agent diagnose` said of some processes, and all its records.
struct Diagnosis {
    code: Option<i32>,
    /// Where its records are.
    file: PathBuf,
    findings: Vec<Value>,
    records: Vec<Value>,
}

fn diagnose(bench: &Bench, stories: &[Story], seconds: u32, args: &[&str]) -> Diagnosis {
    let pids: Vec<u32> = stories.iter().map(|story| story.server.pid()).collect();
    diagnose_pids(bench, &pids, seconds, args)
}

fn diagnose_pids(bench: &Bench, pids: &[u32], seconds: u32, args: &[&str]) -> Diagnosis {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let whom: Vec<&str> = pids.iter().flat_map(|pid| ["--pid", pid.as_str()]).collect();
    diagnose_whom(bench, &whom, seconds, args)
}

/// Every process of the host.
fn diagnose_all(bench: &Bench, seconds: u32) -> Diagnosis {
    diagnose_whom(bench, &["--all"], seconds, &[])
}

fn diagnose_whom(bench: &Bench, whom: &[&str], seconds: u32, args: &[&str]) -> Diagnosis {
    let all = bench.dir.path().join(format!("{}.ndjson", fresh()));
    let (duration, overhead) = (format!("{seconds}s"), overhead());
    let mut command = vec!["diagnose", "--duration", &duration, "--max-overhead", &overhead];
    command.extend(["--format", "ndjson", "--ndjson"]);
    command.push(all.to_str().unwrap());
    command.extend_from_slice(whom);
    command.extend_from_slice(args);
    let mut process = Process::spawn(&mut agent_command(&command));
    let status = process.wait(Duration::from_secs(u64::from(seconds) + 60));
    let parse = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let lines: Vec<Value> = process.out.iter().map(|line| parse(line)).collect();
    let findings = lines.into_iter().filter(|line| text(line, "type") == "finding").collect();
    let records = std::fs::read_to_string(&all).unwrap().lines().map(parse).collect();
    Diagnosis { code: status.code(), file: all, findings, records }
}

fn is_of(record: &Value, pid: u32) -> bool {
    number(record, "pid") == f64::from(pid)
}

/// A finding's title, and its evidence.
fn told(finding: &Value) -> String {
    let evidence = list(finding, "evidence").iter().map(|line| text(line, "text"));
    std::iter::once(text(finding, "title")).chain(evidence).collect::<Vec<_>>().join("; ")
}

impl Diagnosis {
    fn findings(&self, pid: u32) -> Vec<&Value> {
        self.findings.iter().filter(|finding| is_of(finding, pid)).collect()
    }

    /// The finding of this code, beside which there may be others that say the same in other words, but none of another code.
    #[track_caller]
    fn only(&self, story: &Story, code: &str) -> &Value {
        let found = self.findings(story.server.pid());
        let codes: Vec<&str> = found.iter().map(|finding| text(finding, "code")).collect();
        assert_eq!(codes, [code], "{}: requests cost {}", story.name, self.costs(story.server.pid()));
        assert_eq!(self.code, Some(FOUND));
        found[0]
    }

    #[track_caller]
    fn among(&self, story: &Story, code: &str) -> &Value {
        let found = self.findings(story.server.pid());
        let codes: Vec<&str> = found.iter().map(|finding| text(finding, "code")).collect();
        let named = found.iter().find(|finding| text(finding, "code") == code);
        named.unwrap_or_else(|| panic!("{}: {codes:?}, of {}", story.name, self.costs(story.server.pid())))
    }

    /// Of each window: requests, and microseconds on CPU each.
    fn costs(&self, pid: u32) -> String {
        let windows = self.records.iter().filter(|record| text(record, "type") == "window" && is_of(record, pid));
        let of_window = |window: &Value| {
            let sum = |figure: &dyn Fn(&Value) -> f64| list(window, "loops").iter().map(figure).sum::<f64>();
            let requests = sum(&|of_loop| number(of_loop, "requests"));
            let on_cpu_us = sum(&|of_loop| number(of_loop, "on_cpu_ns")) / 1e3;
            format!("{requests} × {:.0}", on_cpu_us / requests)
        };
        windows.map(of_window).collect::<Vec<_>>().join(", ")
    }

    #[track_caller]
    fn silence(&self, pid: u32, what: &str) {
        let found: Vec<String> = self.findings(pid).iter().map(|finding| told(finding)).collect();
        assert!(found.is_empty(), "{what}: {found:#?}");
    }

    /// The names on the stacks of the evidence.
    fn frames(&self, finding: &Value) -> Vec<String> {
        let ids: Vec<&Value> = list(finding, "evidence").iter().filter_map(|line| line.get("stack")).collect();
        let is_named = |record: &&Value| text(record, "type") == "stack" && ids.contains(&get(record, "id"));
        let stacks = self.records.iter().filter(is_named);
        stacks.flat_map(|stack| list(stack, "frames")).map(|frame| text(frame, "name").to_owned()).collect()
    }

    #[track_caller]
    fn names(&self, story: &Story, finding: &Value, function: &str) {
        let frames = self.frames(finding);
        assert!(frames.iter().any(|frame| frame == function), "{}: {function} is not in {frames:?}", story.name);
    }

    /// HTTP requests that were counted, and in how many seconds.
    fn requests(&self, pid: u32) -> (f64, f64) {
        let windows = self.records.iter().filter(|record| text(record, "type") == "window" && is_of(record, pid));
        windows.fold((0.0, 0.0), |(counted, seen), window| {
            let of_loops: f64 = list(window, "loops").iter().map(|of_loop| number(of_loop, "requests")).sum();
            (counted + of_loops, seen + number(window, "requests_seen_ns") / 1e9)
        })
    }

    /// The innermost frames of the stacks that were sampled most, for whoever wants to know what went wrong.
    fn sampled_most(&self, pid: u32) -> String {
        let of = |kind: &'static str| {
            self.records.iter().filter(move |record| text(record, "type") == kind && is_of(record, pid))
        };
        let names = |stack: &Value| -> String {
            let frames = list(stack, "frames").iter().take(12);
            frames.map(|frame| text(frame, "name")).collect::<Vec<_>>().join(" < ")
        };
        let stacks: HashMap<&str, String> = of("stack").map(|stack| (text(stack, "id"), names(stack))).collect();
        let mut samples = HashMap::<&str, f64>::new();
        for stack in of("profile").flat_map(|profile| list(profile, "stacks")) {
            let known = stack["user_stack"].as_str().and_then(|id| stacks.get(id));
            *samples.entry(known.map_or("?", String::as_str)).or_default() += number(stack, "samples");
        }
        let mut all: Vec<_> = samples.into_iter().collect();
        all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        all.iter().take(20).map(|(names, samples)| format!("\n{samples} {names}")).collect::<Vec<_>>().concat()
    }

    /// What each census counted of a constructor, and how sure that is; and for how much of the time requests were counted.
    fn say_censuses(&self, story: &Story, name: &str) {
        let pid = story.server.pid();
        let windows = self.records.iter().filter(|record| text(record, "type") == "window" && is_of(record, pid));
        let (seen, all) = windows.fold((0.0, 0.0), |(seen, all), window| {
            (seen + number(window, "requests_seen_ns"), all + number(window, "duration_ns"))
        });
        say(&format!("measured {}: requests counted for {:.3} of the time", story.name, seen / all));
        for record in self.records.iter().filter(|record| text(record, "type") == "memory" && is_of(record, pid)) {
            let Some(census) = record.get("census") else { continue };
            let is_of_name = |one: &&Value| name.starts_with(text(one, "name")) && one.get("place").is_some();
            let objects = list(census, "constructors").iter().find(is_of_name).map(|one| number(one, "objects"));
            say(&format!(
                "measured {}: census of {:.1} s before {}: {objects:?} of {name}, stray {:.4}, disturbed {}",
                story.name,
                number(census, "age_ns") / 1e9,
                text(record, "time"),
                number(census, "stray_share"),
                census.get("disturbed").is_some(),
            ));
        }
    }

    fn last_memory(&self, pid: u32) -> &Value {
        self.records.iter().rev().find(|record| text(record, "type") == "memory" && is_of(record, pid)).unwrap()
    }
}

fn texts(finding: &Value) -> String {
    list(finding, "evidence").iter().map(|line| text(line, "text")).collect::<Vec<_>>().join("\n")
}

/// The addon and the packages of the stories; `None`, said aloud, where they were not built.
fn workloads() -> Option<()> {
    let cache = root().join(".cache/workloads");
    if cache.join("story-handles.node").exists() && cache.join("node_modules/express5").exists() {
        return Some(());
    }
    skip("the workloads of the stories in .cache/workloads (cargo xtask setup)");
    None
}

#[test]
fn what_is_made_for_each_request_and_kept_is_found_and_its_maker_named() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    let plots = [
        handles(OLD, &["global"], 400),
        handles(NEW, &["global"], 400),
        handles(OLD, &["native"], 200),
        handles(NEW, &["native"], 200),
    ];
    for plots in in_turn(&plots) {
        let mut stories = start(plots);
        let before: Vec<Value> = stories.iter_mut().map(Story::truth).collect();
        let diagnosis = diagnose(&bench, &stories, long(20), &["--native-leaks"]);
        let after: Vec<Value> = stories.iter_mut().map(Story::truth).collect();
        for (story, (before, after)) in stories.iter().zip(before.iter().zip(&after)) {
            let (name, pid) = (&story.name, story.server.pid());
            let requests = number(after, "requests") - number(before, "requests");
            let span = (number(after, "at") - number(before, "at")) / 1e9;
            let (counted, seen) = diagnosis.requests(pid);
            let rate = requests / span;
            close(&format!("{name}: requests a second"), rate, counted / seen, within(rate, 0.02, 0.0));
            if name.contains("global") {
                is_of_global_handles(&diagnosis, story, before, after);
            } else {
                is_of_native_memory(&diagnosis, story, before, after);
            }
        }
        // The records alone tell the same again.
        let report = agent_command(&["report", diagnosis.file.to_str().unwrap()]).output().unwrap();
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        for (kind, title) in [("global", "Global handles are made and not released"), ("native", "Native memory grows")]
        {
            let is_told = stories.iter().any(|story| story.name.contains(kind));
            assert_eq!(report.contains(title), is_told, "{title}: {report}");
        }
        for story in stories {
            let name = story.name.clone();
            say(&format!("measured {name}: {} requests answered in all", story.answered()));
        }
    }
}

/// Global handles are found, as many as V8 itself has.
#[track_caller]
fn is_of_global_handles(diagnosis: &Diagnosis, story: &Story, before: &Value, after: &Value) {
    let name = &story.name;
    let requests = number(after, "requests") - number(before, "requests");
    let finding = diagnosis.only(story, "handles.global");
    let bytes = |truth: &Value| number(get(truth, "heap"), "used_global_handles_size");
    let each = (bytes(after) - bytes(before)) / 32.0 / requests;
    let growth = get(finding, "growth");
    close(&format!("{name}: handles a request"), each, number(growth, "per_request"), 0.15);
    assert!(number(growth, "r2") > 0.98, "{finding}");
    diagnosis.names(story, finding, "keep");
    diagnosis.names(story, finding, "handler");
    let last = &list(diagnosis.last_memory(story.server.pid()), "heaps")[0];
    // A second or two lie between the two looks, and 400 handles each.
    close(&format!("{name}: handles in all"), bytes(after) / 32.0, number(last, "global_handles"), 1200.0);
}

/// What the addon forgets is found, and malloc's caller named.
#[track_caller]
fn is_of_native_memory(diagnosis: &Diagnosis, story: &Story, before: &Value, after: &Value) {
    let name = &story.name;
    let requests = number(after, "requests") - number(before, "requests");
    let finding = diagnosis.only(story, "memory.native");
    let rss = |truth: &Value| number(get(truth, "memory"), "rss");
    let each = (rss(after) - rss(before)) / requests;
    say(&format!("measured {name}: {each:.0} B resident a request, of which 4096 and malloc's 16 are forgotten"));
    close(&format!("{name}: bytes a request"), 4112.0, number(get(finding, "growth"), "per_request"), 1000.0);
    diagnosis.names(story, finding, "forget");
    let leak = list(finding, "evidence").iter().find(|line| line["unit"] == "bytes a request");
    let leak = leak.unwrap_or_else(|| panic!("{name}: nothing of malloc in {}", texts(finding)));
    // One in four is sampled: some six hundred of them.
    close(&format!("{name}: bytes a request, by malloc"), 4112.0, number(leak, "value"), 620.0);
    let stack = diagnosis.records.iter().find(|it| text(it, "type") == "stack" && it["id"] == leak["stack"]);
    let frames: Vec<&str> = list(stack.unwrap(), "frames").iter().map(|frame| text(frame, "name")).collect();
    assert_eq!(&frames[..2], ["allocate", "forget"], "{name}: {frames:?}");
    assert!(frames.contains(&"handler"), "{name}: {frames:?}");
}

#[test]
fn handles_that_stay_in_a_scope_or_open_are_found() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    // Whose handles, and how many a request: both ends of the sockets are in the process.
    let plots = [
        (handles(OLD, &["scope"], 400), None),
        (handles(NEW, &["scope"], 400), None),
        (handles(OLD, &["watcher"], 200), Some(("fs_event", 1.0))),
        (handles(NEW, &["udp"], 200), Some(("udp", 1.0))),
        (handles(NEW, &["socket"], 50), Some(("tcp", 2.0))),
    ];
    for plots in in_turn(&plots) {
        let mut stories = start(plots.iter().map(|(plot, _)| plot));
        let diagnosis = diagnose(&bench, &stories, long(20), &[]);
        for (story, (_, of_libuv)) in stories.iter_mut().zip(plots) {
            let Some((kind, each)) = of_libuv else {
                let finding = diagnosis.only(story, "handles.scope");
                diagnosis.names(story, finding, "spin_unscoped");
                assert!(number(get(finding, "growth"), "r2") > 0.98, "{finding}");
                continue;
            };
            let finding = diagnosis.only(story, &format!("handles.libuv.{kind}"));
            let seen = number(get(finding, "growth"), "per_request");
            close(&format!("{}: handles a request", story.name), *each, seen, 0.15 * each);
            if *kind == "fs_event" {
                let open = number(get(&story.truth(), "resources"), "FSEventWrap");
                let last = &list(diagnosis.last_memory(story.server.pid()), "loops")[0];
                close("watchers in all", open, number(get(last, "handles"), kind), 600.0);
            }
        }
    }
}

#[test]
fn objects_that_javascript_keeps_are_found_and_who_makes_them_named() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    let plots = [
        (handles(OLD, &["js"], 300), Kept::Something),
        (handles(NEW, &["js"], 300), Kept::Something),
        (handles(NEW, &["session"], 300), Kept::One("Session (")),
        (handles(OLD, &["timer"], 300), Kept::One("Timeout (node:")),
        (handles(OLD, &["global", "--healthy"], 200), Kept::Nothing),
        (handles(NEW, &["session", "--healthy"], 200), Kept::Nothing),
    ];
    for plots in in_turn(&plots) {
        let stories = start(plots.iter().map(|(plot, _)| plot));
        // As somebody does who does not know which of them it is: the clients are Node.js, too.
        let diagnosis = diagnose_all(&bench, long(30));
        for (story, (_, kept)) in stories.iter().zip(plots) {
            match kept {
                Kept::Something => {
                    let finding = diagnosis.only(story, "memory.js_heap");
                    assert!(number(get(finding, "growth"), "per_request") > 1000.0, "{finding}");
                    diagnosis.names(story, finding, "handler");
                }
                // A request or two are counted in a window, and the object in the next one.
                Kept::One(name) => {
                    diagnosis.say_censuses(story, name);
                    let finding = diagnosis.only(story, "memory.js_heap");
                    let mut lines = list(finding, "evidence").iter().map(|line| text(line, "text"));
                    let each = lines.find(|line| line.starts_with(name)).and_then(|line| {
                        line.split(", ").find_map(|part| part.strip_suffix(" a request")?.parse().ok())
                    });
                    let claim = format!("{}: objects of {name} a request", story.name);
                    close(&claim, 1.0, each.unwrap_or(f64::NAN), 0.1);
                }
                Kept::Nothing => diagnosis.silence(story.server.pid(), &story.name),
            }
        }
    }
}

/// What a server keeps of each request.
enum Kept {
    Something,
    /// An object whose constructor begins like this.
    One(&'static str),
    Nothing,
}

#[test]
fn what_is_given_back_is_no_finding() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    let plots = [
        handles(OLD, &["native", "--healthy"], 200),
        handles(NEW, &["js", "--healthy"], 200),
        handles(NEW, &["timer", "--healthy"], 200),
        handles(NEW, &["udp", "--healthy"], 200),
        handles(OLD, &["socket", "--healthy"], 100),
        express(NEW, &["express5", "static", "--healthy"], 50),
        express(OLD, &["express4", "middleware", "--healthy"], 50),
    ];
    for plots in in_turn(&plots) {
        let stories = start(plots);
        let diagnosis = diagnose(&bench, &stories, 25, &[]);
        for story in &stories {
            diagnosis.silence(story.server.pid(), &story.name);
        }
        assert_eq!(diagnosis.code, Some(0));
    }
}

#[test]
fn a_request_that_asks_for_the_same_file_again_and_again_is_found() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    let mut stories = start(&[express(OLD, &["express4", "static"], 20), express(NEW, &["express5", "static"], 20)]);
    let before: Vec<f64> = stories.iter_mut().map(|story| number(&story.truth(), "layers")).collect();
    let diagnosis = diagnose(&bench, &stories, 20, &[]);
    for (story, before) in stories.iter_mut().zip(before) {
        let gained = number(&story.truth(), "layers") - before;
        let finding = diagnosis.among(story, "requests.cost");
        let lines = texts(finding);
        assert!(lines.contains("fs.stat on the thread pool"), "{}: {lines}", story.name);
        // So many more layers, so many more requests to the pool: the ends of the trend lie within the observation.
        let line = list(finding, "evidence").iter().find(|line| text(line, "text").contains("fs.stat")).unwrap();
        // The truth is as of the agent's end, which is later the slower the machine is.
        let allowed = 12.0 * f64::from(slowness());
        close(&format!("{}: fs.stat a request at last", story.name), before + gained, number(line, "value"), allowed);
    }
}

#[test]
fn a_request_that_walks_a_list_that_grows_is_found_and_the_walk_named() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    let plots = [
        express(OLD, &["express4", "middleware"], 60),
        express(NEW, &["express5", "middleware"], 60),
        express(OLD, &["express5", "routes"], 20),
        express(NEW, &["express4", "routes"], 20),
    ];
    for plots in in_turn(&plots) {
        let stories = start(plots);
        let diagnosis = diagnose(&bench, &stories, 30, &[]);
        for story in &stories {
            let finding = diagnosis.among(story, "requests.cost");
            let lines = texts(finding);
            // Named by what it does: nothing here knows Express.
            let is_named = lines.contains("next (index.js:") || lines.contains("match (layer.js:");
            assert!(is_named, "{}: {lines}{}", story.name, diagnosis.sampled_most(story.server.pid()));
            if story.name.contains("middleware") {
                assert!(lines.contains(" × ") && lines.contains("readCookie"), "{}: {lines}", story.name);
            }
        }
    }
}

#[test]
fn an_idle_server_is_no_finding() {
    let Some(bench) = bench() else { return };
    let mut server = Process::spawn(Command::new(node(NEW)).arg(script("server.js")));
    server.wait_out("READY");
    let diagnosis = diagnose_pids(&bench, &[server.pid()], 10, &["--threshold", "span_s=5"]);
    diagnosis.silence(server.pid(), "an idle server");
    assert_eq!(diagnosis.code, Some(0));
}

#[test]
fn figures_of_the_heap_are_those_that_v8_gives_on_every_version() {
    let (Some(bench), Some(())) = (bench(), workloads()) else { return };
    for version in VERSIONS {
        let mut server = Process::spawn(Command::new(node(version)).arg(workload("story-handles.js")).arg("global"));
        server.wait_out("READY");
        let diagnosis = diagnose_pids(&bench, &[server.pid()], 2, &[]);
        server.write("truth\n");
        let truth: Value = serde_json::from_str(&server.wait_out("TRUTH")).unwrap();
        let truth = get(&truth, "heap");
        let heap = &list(diagnosis.last_memory(server.pid()), "heaps")[0];
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
