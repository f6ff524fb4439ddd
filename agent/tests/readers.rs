//! What others read of ours is read by their own programs: bunyan's log lines by `bunyan`, Prometheus' metrics by `promtool`,
//! OpenTelemetry's messages by its own definitions of them and by a collector. Also of a process whose name and arguments are chosen by
//! somebody who means harm.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod otlp_profiles;
mod synthetic;

use std::{
    ffi::OsStr,
    io::{Read as _, Seek as _, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use agent::{
    core::{Input, TargetFacts},
    export::{
        bunyan, otlp,
        prometheus::Registry,
        stream::{OtlpSignal, Signal, StreamConfig, Streams},
        text::{self, Style},
    },
    report::{
        Body, Record,
        flame::Measure,
        model::{Finding, Severity},
        summary::Summary,
    },
};
use serde_json::{Value, json};
use synthetic::trace::{drive, inputs};

/// Quotes, backslashes, line ends, escapes of terminals, a null, what is no letter, and more of it than anybody wants.
const HOSTILE: &str =
    "a\"b\\c\n\r\t\u{1b}]0;owned\u{7}\u{1b}[31m\u{0}\u{7f}{x=\"1\"} 1\n# TYPE evil counter\u{202e}\u{fffd}";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program that `cargo xtask setup test` installs.
fn is_there(program: &Path) -> bool {
    let found = program.is_file();
    if !found {
        // Past the test runner's capture.
        let _ = writeln!(std::io::stderr(), "SKIPPED readers: needs {}", program.display());
        assert!(std::env::var_os("CI").is_none(), "nothing is skipped on CI: {}", program.display());
    }
    found
}

fn pipe<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>, input: &[u8]) -> Output {
    // To a file: a program of Node.js that exits before a pipe is read to its end loses what was in it.
    let mut written = tempfile::tempfile().unwrap();
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(written.try_clone().unwrap()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    written.rewind().unwrap();
    written.read_to_end(&mut output.stdout).unwrap();
    output
}

fn hostile() -> String {
    HOSTILE.repeat(1 + 4096 / HOSTILE.len())
}

/// Records of all that a trace tells, of a process that lies about itself wherever it can.
fn records() -> Vec<Record> {
    let lies = |facts: TargetFacts| TargetFacts {
        exe: hostile(),
        command: vec![hostile(), hostile()],
        node_version: Some(hostile()),
        resource: [("service.name".to_owned(), hostile()), ("k8s.pod.name".to_owned(), hostile())].into(),
        ..facts
    };
    let inputs = inputs().into_iter().map(|input| match input {
        Input::Target(facts) => Input::Target(Box::new(lies(*facts))),
        other => other,
    });
    let mut records = drive(inputs.collect()).1;
    let last = records.last().unwrap().clone();
    let finding = Finding {
        code: "handles.global".into(),
        severity: Severity::Warning,
        confidence: 1.0,
        title: hostile(),
        since: last.time.clone(),
        growth: None,
        evidence: Vec::new(),
        next: Vec::new(),
    };
    records.push(Record { body: Body::Finding(Box::new(finding)), ..last });
    records
}

#[test]
fn bunyan_takes_every_line_for_one_of_its_own() {
    let bunyan_program = repository().join(".cache/apps/node_modules/bunyan/bin/bunyan");
    let node = repository().join(".cache/node/24.21.0/bin/node");
    if !is_there(&bunyan_program) || !is_there(&node) {
        return;
    }
    let mut log = Vec::new();
    for record in records() {
        bunyan::write_record(&mut log, &record).unwrap();
    }
    let lines = String::from_utf8(log.clone()).unwrap().lines().count();
    assert!(lines > 10, "{lines}");
    // With `--strict`, what is no line of bunyan's is left out.
    let read = |more: &[&str]| {
        let all = [&[bunyan_program.to_str().unwrap(), "--strict", "--no-color"], more].concat();
        let output = pipe(&node, all, &log);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let again: Vec<Value> = read(&["-o", "json-0"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(again.len(), lines);
    assert!(again.iter().all(|line| line["name"] == "agent" && line["v"] == 0));
    let short = read(&["-o", "short"]);
    assert!(short.contains("WARN agent:"), "{short}");
    assert!(!short.contains('\u{1b}') && !short.contains('\u{0}'), "an escape of a terminal's reached it");
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let promtool = repository().join(".cache/prometheus/usr/bin/promtool");
    if !is_there(&promtool) {
        return;
    }
    let mut registry = Registry::default();
    for record in records() {
        registry.record(&record);
    }
    let text = registry.text();
    assert!(text.lines().count() > 50, "{text}");
    let output = pipe(&promtool, ["check", "metrics"], text.as_bytes());
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    assert!(!text.lines().any(|line| line.starts_with("# TYPE evil")), "{text}");
}

#[test]
fn nothing_that_a_process_says_of_itself_reaches_the_terminal_as_more_than_text() {
    let mut summary = Summary::default();
    for record in records() {
        summary.add(&record);
    }
    let style = Style { width: 100, colour: false };
    for text in [text::render(&summary, style), text::render_findings(&summary, style)] {
        let control = text.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(control, None, "{text:?}");
        assert!(!text.contains('\u{202e}'), "text that runs from right to left");
        assert!(text.lines().all(|line| !line.starts_with("# TYPE evil")), "a line of its own");
    }
}

/// Both encodings of a message are the same to the definitions that OpenTelemetry publishes, which know every field in them.
const SAME_MESSAGE: &str = "
import base64, json, sys
from google.protobuf import json_format
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

def check(message):
    assert len(UnknownFieldSet(message)) == 0, message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                check(each)

kinds = {'metrics': ExportMetricsServiceRequest, 'logs': ExportLogsServiceRequest}
for line in sys.stdin:
    one = json.loads(line)
    binary = kinds[one['signal']].FromString(bytes(one['protobuf']))
    check(binary)
    assert binary == json_format.ParseDict(one['json'], kinds[one['signal']](), ignore_unknown_fields=False), one['json']
    print(one['signal'], sum(1 for _ in binary.ListFields()))
";

#[test]
fn messages_are_those_of_opentelemetry_and_the_same_in_both_encodings() {
    let python = repository().join(".cache/python/bin/python");
    if !is_there(&python) {
        return;
    }
    let shared = [("deployment.environment.name".to_owned(), hostile())].into();
    let mut encoder = otlp::Encoder::new(&[OtlpSignal::Metrics, OtlpSignal::Logs], shared);
    let mut lines = Vec::new();
    for item in records().iter().flat_map(|record| encoder.encode(record)) {
        let signal = match item.signal {
            Signal::Metrics => "metrics",
            Signal::Logs => "logs",
            Signal::Line | Signal::Profiles => continue,
        };
        let as_json: Value = serde_json::from_slice(&otlp::json(item.signal, &item.bytes).unwrap()).unwrap();
        let line = json!({ "signal": signal, "protobuf": item.bytes, "json": as_json });
        lines.extend_from_slice(line.to_string().as_bytes());
        lines.push(b'\n');
    }
    let output = pipe(&python, ["-c", SAME_MESSAGE], &lines);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(["metrics 1", "logs 1"].iter().all(|signal| said.lines().any(|line| line == *signal)), "{said}");
}

/// The requests that records make, each read in both encodings, which are the same.
#[track_caller]
fn profiles_of(records: &[Record]) -> Vec<otlp_profiles::Profile> {
    let mut encoder = otlp::Encoder::new(&[OtlpSignal::Profiles], [("a".to_owned(), hostile())].into());
    let mut items: Vec<_> = records.iter().flat_map(|record| encoder.encode(record)).collect();
    items.extend(encoder.finish());
    assert!(items.iter().all(|item| item.signal == Signal::Profiles));
    let lines = items
        .iter()
        .map(|item| otlp_profiles::line(Some(&item.bytes), Some(&otlp::json(item.signal, &item.bytes).unwrap())));
    otlp_profiles::read(&lines.collect::<Vec<_>>().concat())
}

#[test]
fn profiles_are_those_of_opentelemetry_and_hold_what_the_records_hold() {
    if !is_there(&otlp_profiles::python()) {
        return;
    }
    for measure in [Measure::OnCpu, Measure::OffCpu, Measure::Wall] {
        let records = synthetic::profile::records(measure);
        let profiles = profiles_of(&records);
        for (of, part, is_measured) in [
            ("samples", Measure::OnCpu, measure != Measure::OffCpu),
            ("off_cpu", Measure::OffCpu, measure != Measure::OnCpu),
        ] {
            let sums = otlp_profiles::sums(&profiles, of);
            assert_eq!(sums.is_empty(), !is_measured, "{measure:?} {of}");
            if is_measured {
                assert_eq!(sums, otlp_profiles::sums_of_records(&records, part), "{measure:?} {of}");
            }
        }
        for profile in &profiles {
            let name = profile.resource["service.name"].as_str().unwrap();
            assert!(["server", "worker"].contains(&name), "{name}");
            assert_eq!(profile.duration, 1_000_000_000);
            assert_eq!(profile.begin, 1_795_551_390_000_000_000);
            assert_eq!(profile.period_of, if profile.of[0] == "samples" { ["cpu", "nanoseconds"] } else { ["", ""] });
        }
    }
}

#[test]
fn frames_of_profiles_say_what_they_are_and_where() {
    if !is_there(&otlp_profiles::python()) {
        return;
    }
    let profiles = profiles_of(&synthetic::profile::records(Measure::OnCpu));
    let frames = || profiles.iter().flat_map(|profile| &profile.samples).flat_map(|sample| &sample.frames);
    let one = |name: &str| frames().find(|frame| frame.name == name).unwrap();
    let scale = one("scale");
    assert_eq!((scale.file.as_str(), scale.line, scale.inlined), ("file:///srv/math.mjs", 12, true), "{scale:?}");
    assert_eq!((one("render").inlined, one("render").kind.as_deref()), (false, Some("v8js")));
    let hash = one("sha256_block_data_order_avx2");
    assert_eq!((hash.kind.as_deref(), hash.module.as_str()), (Some("native"), "node"));
    assert_eq!(one("copy_user_generic").kind.as_deref(), Some("kernel"));
    assert_eq!(one("(awaits)").kind, None);
    let samples = || profiles.iter().flat_map(|profile| &profile.samples);
    let in_gc: u64 =
        samples().filter(|sample| sample.attributes.contains_key("agent.v8js.gc")).map(|of| of.value).sum();
    assert_eq!(in_gc, 6);
    let pool = samples().find(|sample| sample.attributes.get("thread.name") == Some(&"libuv-worker".into())).unwrap();
    assert_eq!((pool.frames[0].name.as_str(), &pool.attributes["thread.id"]), ("worker", &4125.into()));
}

/// A collector on this host, which tells all that it gets.
struct Collector {
    process: std::process::Child,
    address: String,
}

impl Collector {
    fn start(program: &Path, directory: &Path) -> Self {
        // Free now, and by all odds in a moment.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let grpc = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(directory.join("collector.log")).unwrap();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(["start", "--otlp-http-endpoint", &address, "--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")]);
        command.args(["--exporter", "blackhole", "--debug-log", "metrics", "--debug-log", "logs"]);
        command.args(["--debug-log-verbosity", "detailed"]);
        command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let patience = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < patience, "the collector does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, address }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collector() -> Option<PathBuf> {
    let program = std::fs::read_dir(repository().join(".cache/python/lib")).into_iter().flatten().flatten();
    let program =
        program.map(|python| python.path().join("site-packages/rotel/rotel-agent")).find(|path| path.exists());
    is_there(program.as_deref().unwrap_or_else(|| Path::new(".cache/python/.../rotel-agent"))).then_some(program?)
}

#[test]
fn a_collector_without_profiles_costs_nothing_but_them() {
    let Some(program) = collector() else { return };
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&program, directory.path());
    for format in ["otlp", "otlp-json"] {
        let signals = Some(vec![OtlpSignal::Metrics, OtlpSignal::Logs, OtlpSignal::Profiles]);
        let to = StreamConfig::parse(&format!("{format}+http://{}", collector.address)).unwrap();
        let mut streams = Streams::open(&[StreamConfig { signals, ..to }]).unwrap();
        let all = [records(), synthetic::profile::records(Measure::Wall)].concat();
        for record in &all {
            streams.record(record);
        }
        let account = streams.finish(Duration::from_secs(10)).remove(0);
        let left_out = account.dropped.get("unsupported").copied().unwrap_or(0);
        assert!(left_out > 0 && account.dropped() == left_out && account.retries == 0, "{format}: {account:?}");
        assert_eq!(account.delivered, account.emitted - left_out, "{format}: {account:?}");
        assert!(account.delivered > 10, "{format}: {account:?}");
    }
}

#[test]
fn a_collector_takes_metrics_and_logs_in_either_encoding() {
    let Some(program) = collector() else { return };
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&program, directory.path());
    for format in ["otlp", "otlp-json"] {
        let to = StreamConfig::parse(&format!("{format}+http://{}", collector.address)).unwrap();
        let mut streams = Streams::open(&[to]).unwrap();
        for record in records() {
            streams.record(&record);
        }
        let account = streams.finish(Duration::from_secs(10)).remove(0);
        assert!(account.emitted > 10 && account.delivered == account.emitted, "{format}: {account:?}");
        // What it has taken it tells in its own time.
        let patience = Instant::now() + Duration::from_secs(10);
        let log = directory.path().join("collector.log");
        let is_told =
            |said: &str| ["nodejs.eventloop.utilization", "ResourceLog"].iter().all(|part| said.contains(part));
        let mut said = String::new();
        while !is_told(&said) {
            assert!(Instant::now() < patience, "{format}: {said}");
            std::thread::sleep(Duration::from_millis(50));
            said.clear();
            std::fs::File::open(&log).unwrap().read_to_string(&mut said).unwrap();
        }
        std::fs::OpenOptions::new().write(true).truncate(true).open(&log).unwrap();
    }
}
