//! Every line that the core can put out is what the JSON Schema says, and the schema says no less than the lines hold.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod synthetic;

use std::collections::BTreeSet;

use agent::report::{
    Body, Record,
    heap::{self, Constructor},
    model::{
        AgentCost, Evidence, Finding, Growth, Heap, HeapCount, LoopHandles, Measure, Memory, OnCpuStack, Process,
        Resident, SCHEMA_VERSION, Severity, Site, SiteKind, SlowTurn, StackId, StreamAccount, Warning,
    },
};
use serde_json::{Value, json};
use synthetic::{
    profile,
    trace::{drive, inputs},
};

const HEAP_SCHEMA: &str = include_str!("../schema/heap.schema.json");
const SCHEMA: &str = include_str!("../schema/trace.schema.json");

/// The schema, and with no room for keys that it does not list: a reader must tolerate them, but we must not forget them.
fn strict() -> Value {
    closed(SCHEMA)
}

fn closed(schema: &str) -> Value {
    let mut schema: Value = serde_json::from_str(schema).unwrap();
    close(&mut schema);
    schema
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("properties").is_some_and(Value::is_object) && map.contains_key("required") {
                map.insert("additionalProperties".into(), Value::Bool(false));
            }
            map.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn check(validator: &jsonschema::Validator, record: &Record) {
    let value = serde_json::to_value(record).unwrap();
    // Of the errors of `oneOf`, that of the line's own type is the one to read.
    let kind = value["type"].as_str().unwrap().to_owned();
    if !validator.is_valid(&value) {
        let mut own = strict();
        own.as_object_mut().unwrap().remove("oneOf");
        own["$ref"] = json!(format!("#/$defs/line_{kind}"));
        let own = jsonschema::validator_for(&own).unwrap();
        let errors: Vec<_> =
            own.iter_errors(&value).map(|error| format!("{} at {}", error, error.instance_path())).collect();
        panic!("{kind}: {errors:#?}");
    }
}

fn memory() -> Memory {
    let n = Some(1);
    let heap = Heap {
        tid: 7,
        resident_bytes: n,
        used_bytes: n,
        used_bytes_min: n,
        used_bytes_after_major: n,
        limit_bytes: n,
        external_bytes: n,
        external_bytes_min: n,
        malloced_bytes: n,
        detached_contexts: n,
        global_handles: n,
        global_handles_min: n,
        scope_handles_min: n,
    };
    Memory {
        resident: Resident::default(),
        heaps: vec![heap],
        loops: vec![LoopHandles { tid: 7, handles: [("tcp".to_owned(), 1)].into(), partial: false }],
        sites: vec![Site { kind: SiteKind::GlobalHandle, stack: StackId(1), made: 2, gone: 1, strong: 1, weak: 0 }],
        allocations_seen_ns: 1,
        census: Some(Box::new(HeapCount {
            age_ns: 1,
            duration_ns: 1,
            objects: 2,
            object_bytes: 3,
            stray_share: 0.5,
            complete: true,
            disturbed: true,
            constructors: vec![Constructor { name: "A".into(), place: Some("a.js:1".into()), objects: 1, bytes: 2 }],
        })),
    }
}

fn finding() -> Finding {
    Finding {
        code: "a.b".into(),
        severity: Severity::Critical,
        confidence: 0.9,
        title: "c".into(),
        since: "2026-01-01T00:00:00.000000000Z".into(),
        growth: Some(Growth { unit: "bytes".into(), slope: 1.0, per_second: 1.5, per_request: Some(0.5), r2: 1.0 }),
        evidence: vec![Evidence {
            text: "d".into(),
            value: Some(1.0),
            unit: Some("e".into()),
            stack: Some(StackId(1)),
        }],
        next: vec!["f".into()],
    }
}

fn stream() -> StreamAccount {
    StreamAccount {
        stream: "ndjson+tcp://h:1".into(),
        dropped: [("refused".into(), 1)].into(),
        ..StreamAccount::default()
    }
}

#[test]
fn lines_are_what_the_schema_says() {
    let validator = jsonschema::validator_for(&strict()).unwrap();
    let (_, mut records) = drive(inputs());
    let time = records[0].time.clone();
    let line = |body| Record { schema_version: SCHEMA_VERSION, time: time.clone(), pid: 7, body };
    let rare = [
        Body::Warning(Warning { code: "a".into(), message: "b".into() }),
        Body::Finding(Box::new(finding())),
        Body::Memory(Box::new(memory())),
        Body::Process(Process::Fork { child_pid: 8 }),
        Body::Process(Process::Exec { name: "sh".into() }),
        Body::Process(Process::Exit { name: "node".into(), code: None, signal: Some(9), core_dumped: true }),
        Body::Process(Process::ThreadEnd { tid: 8, name: "x".into() }),
        Body::Process(Process::Gone),
        Body::Agent(Box::new(AgentCost { streams: vec![stream()], ..AgentCost::default() })),
    ]
    .map(line);
    records.extend(rare);
    records.extend(drive(synthetic::postgres::inputs()).1);
    for measure in [Measure::OnCpu, Measure::OffCpu, Measure::Wall] {
        records.extend(profile::records(measure));
    }
    let on_cpu = vec![OnCpuStack { samples: 3, user_stack: Some(StackId(1)), kernel_stack: None }];
    records.push(line(Body::SlowTurn(Box::new(SlowTurn { started: time.clone(), on_cpu, ..SlowTurn::default() }))));
    for record in &records {
        check(&validator, record);
    }
    let types: BTreeSet<_> = records
        .iter()
        .map(|record| serde_json::to_value(record).unwrap()["type"].as_str().unwrap().to_owned())
        .collect();
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let listed: BTreeSet<_> = schema["$defs"]
        .as_object()
        .unwrap()
        .keys()
        .filter_map(|name| name.strip_prefix("line_").map(str::to_owned))
        .collect();
    assert_eq!(types, listed, "a type of line is untested, or not in the schema");
}

/// Lines of a real trace, where one is named in the environment.
#[test]
fn lines_of_a_real_trace_are_what_the_schema_says() {
    let Some(path) = std::env::var_os("AGENT_TRACE_NDJSON") else {
        eprintln!("skipped: AGENT_TRACE_NDJSON names no trace");
        return;
    };
    let validator = jsonschema::validator_for(&strict()).unwrap();
    let mut reader = agent::export::ndjson::Reader::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    while let Some(record) = reader.next_record().unwrap() {
        check(&validator, &record);
    }
    assert_eq!(reader.tally().complaint(), None);
    assert_ne!(reader.tally().records, 0);
}

#[test]
fn lines_of_a_census_are_what_their_schema_says() {
    let validator = jsonschema::validator_for(&closed(HEAP_SCHEMA)).unwrap();
    let whole = heap::Whole {
        schema_version: heap::SCHEMA_VERSION,
        time: "2026-01-01T00:00:00.000000000Z".into(),
        node_version: Some("24.0.0".into()),
        attempts: 1,
        ..heap::Whole::default()
    };
    let one = heap::Constructor { name: "A".into(), place: Some("a.js:1".into()), objects: 1, bytes: 8 };
    let before = heap::Heap::new(whole.clone(), Vec::new());
    let after = heap::Heap::new(whole, vec![one]);
    let growth = heap::diff(&before, &after).into_iter().map(heap::Line::HeapGrowth);
    let lines: Vec<_> = after.lines().into_iter().chain(growth).collect();
    assert_eq!(lines.len(), 3);
    for line in lines {
        let value = serde_json::to_value(&line).unwrap();
        assert!(validator.is_valid(&value), "{value}");
        let mut bad = value;
        bad["surplus"] = json!(1);
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    let validator = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
    let (_, records) = drive(inputs());
    let good = serde_json::to_value(records.last().unwrap()).unwrap();
    assert!(validator.is_valid(&good));
    for (key, value) in
        [("schema_version", json!(2)), ("time", json!("yesterday")), ("duration_ns", json!(-1)), ("type", json!("x"))]
    {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(!validator.is_valid(&bad), "{key}");
    }
    let mut more = good;
    more["later"] = json!(1);
    assert!(validator.is_valid(&more), "unknown keys must be tolerated");
}
