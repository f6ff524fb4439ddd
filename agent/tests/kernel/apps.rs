//! Applications from npm, served under load by unmodified Node.js: what they are made of was written by others.
//!
//! A frame's truth is V8's own coverage, which it keeps anyway and tells when all is over: the functions of each script with their
//! names and lines. A frame is right if a function of its name is on its line of its script. Where a source map leads to sources that
//! V8 never saw, a frame is right if its line is in the source and has code.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    harness::{Bench, Process, Trace, Workload, bench, close, node, read, say, script, skip},
    js::{
        frames::{Frame, Stack, stacks},
        truth::{bare, is_anonymous},
    },
    records::{Records, get, list, number},
};

const VERSIONS: [&str; 2] = ["20.20.2", "24.21.0"];
const SAMPLE_HZ: &str = "499";
/// For V8 to compile what is hot.
const WARM_UP: Duration = Duration::from_secs(1);
const SECONDS: u64 = 5;
const CONNECTIONS: &str = "8";

struct App {
    name: &'static str,
    /// What wrk asks it for.
    load: &'static str,
    /// Functions that must have been seen, with the end of their file's name.
    seen: &'static [(&'static str, &'static str)],
    /// A source map leads from its script to others.
    is_mapped: bool,
}

fn packages() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/apps").canonicalize().unwrap_or_default()
}

/// The packages of the applications; `None`, said aloud, where they were not installed.
pub fn installed() -> Option<()> {
    let is_there = packages().join("node_modules").is_dir();
    if !is_there {
        skip("packages in .cache/apps (cargo xtask setup test)");
    }
    is_there.then_some(())
}

/// Functions of a process by script: name, first and last line.
struct Functions(BTreeMap<String, Vec<(String, u64, u64)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Right,
    /// Right, but with the line on which the function begins.
    StartLine,
    /// Nothing is claimed.
    Unknown,
    /// Where V8 has no coverage: of scripts without a name, and of functions that ran too seldom.
    Untold,
    Wrong,
}

impl Functions {
    fn read(truths: &Value) -> Self {
        let of = |functions: &Value| {
            let functions = functions.as_array().unwrap().iter();
            functions
                .map(|one| (one[0].as_str().unwrap().to_owned(), one[1].as_u64().unwrap(), one[2].as_u64().unwrap()))
                .collect()
        };
        let scripts = get(truths, "scripts").as_object().unwrap();
        Self(scripts.iter().map(|(script, functions)| (script.clone(), of(functions))).collect())
    }

    fn judge(&self, frame: &Frame) -> Verdict {
        if frame.is_unknown() {
            return Verdict::Unknown;
        }
        let (Some(file), Some(line)) = (&frame.file, frame.line) else { return Verdict::Untold };
        let Some(functions) = self.0.get(file.trim_start_matches("file://")) else { return Verdict::Untold };
        let around: Vec<_> = functions.iter().filter(|(_, first, last)| (*first..=*last).contains(&line)).collect();
        let same = |name: &str| {
            if name.is_empty() {
                is_anonymous(frame) || frame.name.starts_with('~')
            } else {
                bare(name) == bare(&frame.name)
            }
        };
        match around.iter().any(|(name, ..)| same(name)) {
            true if frame.start_line => Verdict::StartLine,
            true => Verdict::Right,
            // A script is itself a function without a name, which is around all.
            false if functions.iter().any(|(name, ..)| same(name)) && !is_anonymous(frame) => Verdict::Wrong,
            false => Verdict::Untold,
        }
    }
}

/// Lines of sources on disk.
type Sources = RefCell<BTreeMap<String, Vec<String>>>;

/// Judges a frame that was led back to its source.
fn mapped(sources: &Sources, frame: &Frame) -> Verdict {
    if frame.is_unknown() {
        return Verdict::Unknown;
    }
    let (Some(file), Some(line)) = (&frame.file, frame.line) else { return Verdict::Untold };
    if !file.starts_with('/') {
        // Of Node.js itself: there is no map.
        return if file.starts_with("node:") { Verdict::Right } else { Verdict::Untold };
    }
    let mut sources = sources.borrow_mut();
    let lines = sources.entry(file.clone()).or_insert_with(|| read(file).lines().map(str::to_owned).collect());
    if lines.is_empty() {
        // Packages have maps that lead to sources that they do not have.
        return Verdict::Untold;
    }
    let text = usize::try_from(line).unwrap().checked_sub(1).and_then(|line| lines.get(line));
    match text.map(|text| text.trim()) {
        Some(text) if !text.is_empty() && !text.starts_with("//") => Verdict::Right,
        _ => Verdict::Wrong,
    }
}

/// Stacks of the main thread with how often they were sampled.
fn sampled<'a>(records: &'a Records, stacks: &'a BTreeMap<String, Stack>, pid: u32) -> Vec<(&'a Stack, f64)> {
    let entries = records.of_type("profile").flat_map(|record| list(record, "stacks"));
    let of_loop = entries.filter(move |entry| number(entry, "tid") == f64::from(pid));
    let stack = |entry: &Value| stacks.get(entry.get("user_stack")?.as_str()?);
    of_loop.filter_map(|entry| Some((stack(entry)?, number(entry, "samples")))).collect()
}

fn check(app: &App, version: &str, samples: &[(&Stack, f64)], judge: &impl Fn(&Frame) -> Verdict) {
    let what = format!("{}, node {version}", app.name);
    let all: f64 = samples.iter().map(|(_, times)| times).sum();
    let whole: f64 = samples.iter().filter(|(stack, _)| stack.truncated.is_none()).map(|(_, times)| times).sum();
    let cut: BTreeSet<_> = samples.iter().filter_map(|(stack, _)| stack.truncated.clone()).collect();
    assert!(all > 300.0, "{what}: only {all} samples");
    close(
        &format!("{what}: samples that reach the thread's start, of {all} (%); cut: {cut:?}"),
        100.0,
        whole / all * 100.0,
        1.0,
    );

    let mut verdicts: BTreeMap<Verdict, f64> = BTreeMap::new();
    let mut complaints: BTreeMap<(Verdict, String), f64> = BTreeMap::new();
    for (stack, times) in samples {
        for frame in stack.js().filter(|frame| frame.kind == "js") {
            let verdict = judge(frame);
            *verdicts.entry(verdict).or_default() += times;
            if verdict != Verdict::Right {
                let (file, line) = (frame.file.as_deref().unwrap_or("?"), frame.line.unwrap_or(0));
                *complaints.entry((verdict, format!("{} {file}:{line}", frame.name))).or_default() += times;
            }
        }
    }
    let frames: f64 = verdicts.values().sum();
    let share = |verdict: Verdict| verdicts.get(&verdict).copied().unwrap_or_default() / frames * 100.0;
    let known = 100.0 - share(Verdict::Unknown);
    let right = share(Verdict::Right) / known * 100.0;
    let mut complaints: Vec<_> = complaints.into_iter().collect();
    complaints.sort_by(|((a, _), of_a), ((b, _), of_b)| b.cmp(a).then(of_b.total_cmp(of_a)));
    let complaints = complaints
        .iter()
        .take(30)
        .fold(String::new(), |all, ((verdict, text), times)| format!("{all}\n  {times} {verdict:?}: {text}"));
    say(&format!(
        "measured {what}: {frames} JavaScript frames: {known:.2} % known, {right:.2} % of these right, {verdicts:?}{complaints}"
    ));
    assert!(share(Verdict::Wrong) == 0.0, "{what}:{complaints}");
    // 99.6 to 100 were seen.
    assert!(right >= 99.0, "{what}: {right:.2} %{complaints}");
    // 99.8 to 100, and 98.5 where eight others compete for each CPU: what a collection may have moved has no name.
    assert!(known >= 95.0, "{what}: {known:.2} %{complaints}");

    let seen: BTreeSet<(&str, &str)> = samples
        .iter()
        .flat_map(|(stack, _)| stack.frames.iter())
        .filter_map(|frame| Some((bare(&frame.name), frame.file.as_deref()?)))
        .collect();
    for (name, file) in app.seen {
        let is_seen = seen.iter().any(|(seen, of)| seen == name && of.ends_with(file));
        assert!(is_seen, "{what}: no {name} of {file} among {seen:#?}");
    }
}

/// Serves an application under load, and profiles it.
fn run(bench: &Bench, app: &App, version: &str, command: &mut Command) {
    let mut workload = Workload::with(command);
    let port = workload.0.wait_out("PORT");
    let load = script(&format!("apps/{}", app.load));
    let seconds = format!("{}s", SECONDS + 2 * WARM_UP.as_secs());
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c", CONNECTIONS, "-d", &seconds, "-s"]).arg(load).arg(format!("http://127.0.0.1:{port}/"));
    let mut wrk = Process::spawn(&mut wrk);
    std::thread::sleep(WARM_UP);
    let duration = format!("{SECONDS}s");
    let mut trace = Trace::profile(
        bench,
        workload.pid(),
        &["--duration", &duration, "--frequency", SAMPLE_HZ, "--max-overhead", "100%"],
    );
    let records = trace.finish(Duration::from_secs(SECONDS));
    let status = wrk.wait(Duration::from_secs(30));
    let answers = wrk.out.join("\n");
    assert!(status.success() && answers.contains("Requests/sec") && !answers.contains("Non-2xx"), "{answers}");
    say(&format!(
        "{}, node {version}: {}",
        app.name,
        wrk.out.iter().find(|line| line.starts_with("Requests/sec")).unwrap()
    ));
    let pid = workload.pid();
    let functions = Functions::read(&workload.truths());
    let sources = RefCell::default();
    let stacks = stacks(&records);
    check(app, version, &sampled(&records, &stacks, pid), &|frame| {
        if app.is_mapped { mapped(&sources, frame) } else { functions.judge(frame) }
    });
}

/// Runs an application on each version.
fn each(app: &App, command: impl Fn(&Bench, &str) -> Command) {
    let (Some(bench), Some(())) = (bench(), installed()) else { return };
    for version in VERSIONS {
        run(&bench, app, version, &mut command(&bench, version));
    }
}

fn plain(version: &str, name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(node(version));
    command.arg(script(&format!("apps/{name}"))).arg(packages()).args(args);
    command
}

#[test]
fn express_4() {
    let app = App {
        name: "express 4",
        load: "api.lua",
        seen: &[
            ("checksToken", "/apps/express.js"),
            ("related", "/apps/express.js"),
            ("next", "/express4/lib/router/index.js"),
        ],
        is_mapped: false,
    };
    each(&app, |_, version| plain(version, "express.js", &["express4"]));
}

#[test]
fn express_5() {
    let app = App {
        name: "express 5",
        load: "api.lua",
        seen: &[("checksToken", "/apps/express.js"), ("related", "/apps/express.js"), ("next", "/router/index.js")],
        is_mapped: false,
    };
    each(&app, |_, version| plain(version, "express.js", &["express5"]));
}

#[test]
fn fastify() {
    let app = App {
        name: "fastify",
        load: "api.lua",
        seen: &[
            ("checksToken", "/apps/fastify.js"),
            ("near", "/apps/fastify.js"),
            ("onSendHook", "/fastify/lib/reply.js"),
        ],
        is_mapped: false,
    };
    each(&app, |_, version| plain(version, "fastify.js", &[]));
}

/// One file of all that a site needs, by esbuild.
fn bundle(bench: &Bench, version: &str, map: Option<&str>) -> Command {
    let site = bench.dir.path().join("server.js");
    let modules = packages().join("node_modules");
    let mut command = Command::new(modules.join("@esbuild/linux-x64/bin/esbuild"));
    command.arg(script("apps/site/server.tsx")).env("NODE_PATH", &modules).args(map);
    command.args(["--bundle", "--minify", "--platform=node", "--jsx=automatic", "--log-level=warning"]);
    command.arg("--define:process.env.NODE_ENV=\"production\"").arg(format!("--outfile={}", site.display()));
    let status = Process::spawn(&mut command).wait(Duration::from_secs(30));
    assert!(status.success(), "esbuild: {status}");
    let mut command = Command::new(node(version));
    command.arg(site);
    command
}

#[test]
fn a_bundle_of_a_site_without_its_map() {
    // Whatever their names became.
    let app = App { name: "bundle", load: "site.lua", seen: &[], is_mapped: false };
    each(&app, |bench, version| bundle(bench, version, None));
}

#[test]
fn a_bundle_of_a_site_with_its_map() {
    let app = App {
        name: "bundle with its map",
        load: "site.lua",
        seen: &[
            ("HomePage", "/apps/site/pages.tsx"),
            ("ItemCard", "/apps/site/pages.tsx"),
            ("cheapest", "/apps/site/catalog.ts"),
            ("renderElement", "/react-dom/cjs/react-dom-server-legacy.node.production.js"),
            ("next", "/router/index.js"),
        ],
        is_mapped: true,
    };
    each(&app, |bench, version| bundle(bench, version, Some("--sourcemap=linked")));
}
