//! The whole pure middle over a made-up trace: the report, the lines, and the recording that gives both again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod synthetic;

use agent::{
    core::Core,
    export::{
        ndjson,
        recording::{self, RecordingError},
        text::{Style, live_line, render},
    },
    report::{Body, Record, summary::Summary},
};
use proptest::prelude::*;
use synthetic::trace::{drive, inputs};

fn lines(records: &[Record]) -> Vec<u8> {
    let mut lines = Vec::new();
    for record in records {
        ndjson::write_record(&mut lines, record).unwrap();
    }
    lines
}

fn read_back(bytes: &[u8]) -> (Vec<Record>, ndjson::Tally) {
    let mut reader = ndjson::Reader::new(bytes);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    (records, reader.tally().clone())
}

#[test]
fn the_report_is_as_agreed() {
    let (_, records) = drive(inputs());
    insta::assert_snapshot!("report", render(&Summary::from_records(&records), Style::default()));
    let live: Vec<_> = records.iter().filter_map(|record| live_line(record, Style::default())).collect();
    insta::assert_snapshot!("live", live.join("\n"));
}

#[test]
fn the_report_about_locks_is_as_agreed() {
    let (log, records) = drive(synthetic::postgres::inputs());
    insta::assert_snapshot!("locks", render(&Summary::from_records(&records), Style::default()));
    let (back, _) = read_back(&lines(&records));
    assert_eq!(back, records);
    let mut file = Vec::new();
    let mut writer = recording::Writer::new(&mut file).unwrap();
    for input in &log {
        writer.write(input).unwrap();
    }
    let mut reader = recording::Reader::new(file.as_slice()).unwrap();
    let mut core = Core::new();
    let mut again = Vec::new();
    while let Some(input) = reader.next_input().unwrap() {
        again.extend(core.step(input).into_iter().filter_map(|output| match output {
            agent::core::Output::Record(record) => Some(*record),
            _ => None,
        }));
    }
    assert_eq!(again, records);
}

#[test]
fn a_narrow_report_fits_and_has_no_colour_codes() {
    let (_, records) = drive(inputs());
    let text = render(&Summary::from_records(&records), Style { width: 80, colour: false });
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    assert!(!text.contains('\x1b'));
    assert!(render(&Summary::from_records(&records), Style { width: 80, colour: true }).contains("\x1b[1m"));
}

#[test]
fn the_file_gives_the_same_report_as_the_live_trace() {
    let (_, records) = drive(inputs());
    let (back, tally) = read_back(&lines(&records));
    assert_eq!(back, records);
    assert_eq!(tally.complaint(), None);
    let render = |records: &[Record]| render(&Summary::from_records(records), Style::default());
    assert_eq!(render(&back), render(&records));
}

#[test]
fn a_recording_replays_to_the_same_bytes() {
    let (log, records) = drive(inputs());
    let mut file = Vec::new();
    let mut writer = recording::Writer::new(&mut file).unwrap();
    for input in &log {
        writer.write(input).unwrap();
    }
    let mut reader = recording::Reader::new(file.as_slice()).unwrap();
    let mut core = Core::new();
    let mut again = Vec::new();
    let mut inputs_again = Vec::new();
    while let Some(input) = reader.next_input().unwrap() {
        inputs_again.push(input.clone());
        for output in core.step(input) {
            if let agent::core::Output::Record(record) = output {
                again.push(*record);
            }
        }
    }
    assert_eq!(inputs_again, log);
    assert_eq!(String::from_utf8(lines(&again)), String::from_utf8(lines(&records)));
}

#[test]
fn a_file_from_the_future_is_read_as_far_as_it_is_understood() {
    let (_, records) = drive(inputs());
    let mut bytes = lines(&records);
    bytes.extend_from_slice(b"{\"schema_version\":1,\"type\":\"weather\",\"time\":\"x\",\"pid\":1}\n");
    bytes.extend_from_slice(b"{\"schema_version\":2,\"type\":\"end\"}\nnot json\n\n");
    bytes.extend_from_slice(b"{\"schema_version\":1,\"type\":\"end\",\"time\":\"x\"}\n");
    // Cut short, as by a full disk.
    bytes.extend_from_slice(b"{\"schema_version\":1,\"ty");
    let (back, tally) = read_back(&bytes);
    assert_eq!(back, records);
    assert_eq!((tally.unknown_types, tally.other_schemas, tally.bad_lines), (1, 1, 3));
    let first_bad = u64::try_from(records.len()).unwrap() + 3;
    assert_eq!(tally.bad[0].0, first_bad);
}

#[test]
fn unknown_keys_are_tolerated() {
    let (_, records) = drive(inputs());
    for record in &records {
        let mut value = serde_json::to_value(record).unwrap();
        value.as_object_mut().unwrap().insert("later".into(), serde_json::json!({"a": [1, 2]}));
        assert_eq!(&serde_json::from_value::<Record>(value).unwrap(), record);
    }
}

#[test]
fn every_window_closes_within_one_percent() {
    let (_, records) = drive(inputs());
    let mut loops = 0;
    for record in &records {
        if let Body::Window(window) = &record.body {
            for of_loop in &window.loops {
                loops += 1;
                assert!(of_loop.ledger.unaccounted_ns.unsigned_abs() * 100 <= of_loop.ledger.wall_ns, "{of_loop:?}");
            }
        }
    }
    assert_eq!(loops, 4);
}

#[test]
fn no_recording_is_said_so() {
    assert!(matches!(recording::Reader::new(&b"AGENT"[..]), Err(RecordingError::NotARecording)));
    assert!(matches!(recording::Reader::new(&b"ELF_ELF_\x01\0\0\0"[..]), Err(RecordingError::NotARecording)));
    assert!(matches!(recording::Reader::new(&b"AGENTREC\xff\0\0\0"[..]), Err(RecordingError::OtherVersion(255))));
}

fn recorded() -> Vec<u8> {
    let (log, _) = drive(inputs());
    let mut file = Vec::new();
    let mut writer = recording::Writer::new(&mut file).unwrap();
    for input in log.iter().take(12) {
        writer.write(input).unwrap();
    }
    file
}

proptest! {
    #[test]
    fn a_damaged_recording_ends_or_errs_and_never_panics(cut in 0usize..4000, at in 12usize..4000, byte in any::<u8>()) {
        let mut file = recorded();
        let len = file.len();
        if let Some(victim) = file.get_mut(at % len) {
            *victim = byte;
        }
        file.truncate(len.saturating_sub(cut).max(12));
        if let Ok(mut reader) = recording::Reader::new(file.as_slice()) {
            let mut core = Core::new();
            while let Ok(Some(input)) = reader.next_input() {
                core.step(input);
            }
        }
    }
}
