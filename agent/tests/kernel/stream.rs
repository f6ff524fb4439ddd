//! The stream of records: replayed to the same bytes, summed up the same again, and its books closed under overflow.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    harness::{Trace, VERSION, Workload, agent_command, bench, close, say},
    records::{Records, get, list, number, text},
};

/// Runs `agent` to its end and returns what it printed.
#[track_caller]
fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_recording_replays_to_the_byte_identical_records_and_report() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let recording = bench.dir.path().join("trace.rec");
    let recording = recording.to_str().unwrap();
    let mut trace =
        Trace::start(&bench, workload.pid(), &["--duration", "3s", "--slow-turn", "3ms", "--recording", recording]);
    let records = trace.finish(Duration::from_secs(3));
    let live = fs::read(&trace.ndjson).unwrap();
    assert!(records.of_type("slow_turn").next().is_some() && records.of_type("stack").next().is_some());

    let replayed = output(&mut agent_command(&["report", recording, "--format", "ndjson"]));
    if replayed != live {
        let (replayed, live) = (String::from_utf8_lossy(&replayed), String::from_utf8_lossy(&live));
        let first = live.lines().zip(replayed.lines()).find(|(a, b)| a != b);
        panic!("{} lines, replayed {}; first difference: {first:#?}", live.lines().count(), replayed.lines().count());
    }
    say(&format!("measured replay: {} bytes, {} records, identical", live.len(), records.lines.len()));

    let report = trace.process.out.join("\n");
    for source in [recording, trace.ndjson.to_str().unwrap()] {
        let again = String::from_utf8(output(&mut agent_command(&["report", source]))).unwrap();
        assert_eq!(again.trim_end(), report.trim_end(), "the report of {source} is not the one that the trace printed");
    }
}

/// `emitted = received + dropped` in each family, as the trace's last line states it; returns the records dropped.
#[track_caller]
pub fn assert_balanced(records: &Records) -> f64 {
    let end = records.one("end");
    assert_eq!(get(end, "balanced"), &Value::Bool(true), "{end}");
    let mut dropped = 0.0;
    for family in list(end, "families") {
        let count = |key| number(family, key);
        close(
            &format!("family {}: received + dropped", text(family, "family")),
            count("emitted"),
            count("received") + count("dropped"),
            0.0,
        );
        dropped += count("dropped");
    }
    dropped
}

#[test]
fn what_a_full_ring_drops_is_counted_to_the_last_record() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let args = ["--duration", "3s", "--ring-size", "4096", "--off-cpu-threshold", "0"];
    let mut trace = Trace::start(&bench, workload.pid(), &args);
    let records = trace.finish(Duration::from_secs(3));
    let dropped = assert_balanced(&records);
    assert!(dropped > 0.0, "no overflow was forced");
    let report = trace.process.out.join("\n");
    assert!(report.contains("dropped"), "the report does not say that records were dropped:\n{report}");
}

#[test]
fn nothing_is_dropped_at_the_default_size() {
    let Some(bench) = bench() else { return };
    let workload = Workload::start(VERSION, "mixed.js", &[]);
    let mut trace = Trace::start(&bench, workload.pid(), &["--duration", "2s"]);
    let records = trace.finish(Duration::from_secs(2));
    close("records dropped", 0.0, assert_balanced(&records), 0.0);
}
