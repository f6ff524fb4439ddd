//! Requests of profiles as OpenTelemetry's own definitions read them, beside the same run's records as our other profiles show them.

#![allow(dead_code, reason = "each test uses a part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use agent::report::{
    Record,
    flame::{Flame, Kind, Measure, State, View, note},
    summary::Summary,
};
use serde::Deserialize;

/// Reads requests, one JSON object a line with `protobuf` or `json`, or both, and writes what is in them. Fields that the definitions
/// do not know, indices that point nowhere, tables that do not begin with an empty item, items that are there twice and items that
/// nobody points at are errors.
const READ: &str = "
import json, sys
from google.protobuf import json_format
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import ExportProfilesServiceRequest as Request

def known(message):
    assert len(UnknownFieldSet(message)) == 0, message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                known(each)

def any_value(value):
    return getattr(value, value.WhichOneof('value'))

for line in sys.stdin:
    one = json.loads(line)
    requests = []
    if 'protobuf' in one:
        requests.append(Request.FromString(bytes(one['protobuf'])))
    if 'json' in one:
        requests.append(json_format.ParseDict(one['json'], Request(), ignore_unknown_fields=False))
    request = requests[0]
    assert all(other == request for other in requests), one
    known(request)
    d, used = request.dictionary, {}
    for field in d.DESCRIPTOR.fields:
        table = getattr(d, field.name)
        empty = '' if field.message_type is None else type(table[0])()
        assert table[0] == empty, field.name
        items = [item if field.message_type is None else item.SerializeToString(deterministic=True) for item in table]
        assert len(set(items)) == len(items), (field.name, 'an item twice')
        used[field.name] = {0}
    def at(table, index):
        assert 0 <= index < len(getattr(d, table)), (table, index)
        used[table].add(index)
        return getattr(d, table)[index]
    def text(index):
        return at('string_table', index)
    def attributes(indices):
        found = {}
        for index in indices:
            assert index > 0
            of = at('attribute_table', index)
            assert text(of.key_strindex) not in found and of.key_strindex > 0 and text(of.unit_strindex) == ''
            found[text(of.key_strindex)] = any_value(of.value)
        return found
    def frames(index):
        assert index > 0
        for place in at('stack_table', index).location_indices:
            assert place > 0
            location = at('location_table', place)
            mapping = text(at('mapping_table', location.mapping_index).filename_strindex)
            kind = attributes(location.attribute_indices).get('profile.frame.type')
            assert len(location.lines) > 0
            for line in location.lines:
                assert line.function_index > 0
                function = at('function_table', line.function_index)
                text(function.system_name_strindex)
                yield {'name': text(function.name_strindex), 'file': text(function.filename_strindex), 'line': line.line, 'kind': kind,
                       'module': mapping, 'inlined': line is not location.lines[-1]}
    def value_type(of):
        return [text(of.type_strindex), text(of.unit_strindex)]
    for of in request.resource_profiles:
        resource = {each.key: any_value(each.value) for each in of.resource.attributes}
        for profiles in of.scope_profiles:
            assert profiles.scope.name == 'agent'
            for profile in profiles.profiles:
                samples = []
                for sample in profile.samples:
                    at('link_table', sample.link_index)
                    (value,) = sample.values
                    samples.append({'value': value, 'attributes': attributes(sample.attribute_indices),
                                    'frames': list(frames(sample.stack_index))})
                identities = [(s.stack_index, tuple(sorted(s.attribute_indices))) for s in profile.samples]
                assert len(set(identities)) == len(identities), 'a sample twice'
                print(json.dumps({'resource': resource, 'of': value_type(profile.sample_type), 'period_of': value_type(profile.period_type),
                                  'period': profile.period, 'begin': profile.time_unix_nano, 'duration': profile.duration_nano,
                                  'samples': samples}))
    for table, indices in used.items():
        assert len(indices) == len(getattr(d, table)), (table, 'an item that nobody points at')
";

/// One profile of one process in one window.
#[derive(Debug, Deserialize)]
pub struct Profile {
    pub resource: BTreeMap<String, serde_json::Value>,
    pub of: [String; 2],
    pub period_of: [String; 2],
    pub period: i64,
    pub begin: u64,
    pub duration: u64,
    pub samples: Vec<Sample>,
}

#[derive(Debug, Deserialize)]
pub struct Sample {
    pub value: u64,
    pub attributes: BTreeMap<String, serde_json::Value>,
    /// Innermost first.
    pub frames: Vec<Frame>,
}

#[derive(Debug, Deserialize)]
pub struct Frame {
    pub name: String,
    pub file: String,
    pub line: i64,
    pub kind: Option<String>,
    pub module: String,
    pub inlined: bool,
}

#[must_use]
pub fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/python/bin/python")
}

/// One request, in one of the encodings or in both.
#[must_use]
pub fn line(protobuf: Option<&[u8]>, json: Option<&[u8]>) -> Vec<u8> {
    let mut line = serde_json::Map::new();
    line.extend(protobuf.map(|bytes| ("protobuf".to_owned(), bytes.to_vec().into())));
    line.extend(json.map(|bytes| ("json".to_owned(), serde_json::from_slice(bytes).unwrap())));
    let mut line = serde_json::Value::Object(line).to_string().into_bytes();
    line.push(b'\n');
    line
}

/// What OpenTelemetry's definitions find in requests.
#[track_caller]
#[must_use]
pub fn read(lines: &[u8]) -> Vec<Profile> {
    let directory = tempfile::tempdir().unwrap();
    let requests = directory.path().join("requests.ndjson");
    std::fs::write(&requests, lines).unwrap();
    let mut command = std::process::Command::new(python());
    let output = command.args(["-c", READ]).stdin(std::fs::File::open(&requests).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Names of frames, outermost first, and the sum of what was measured there.
pub type Sums = BTreeMap<Vec<String>, u64>;

/// All profiles of one type in one sum.
#[must_use]
pub fn sums(profiles: &[Profile], of: &str) -> Sums {
    let mut sums = Sums::new();
    for sample in profiles.iter().filter(|profile| profile.of[0] == of).flat_map(|profile| &profile.samples) {
        let names = sample.frames.iter().rev().map(|frame| frame.name.clone()).collect();
        *sums.entry(names).or_default() += sample.value;
    }
    sums
}

/// The same of records, as flame graphs show them: samples on CPU, nanoseconds off it; without what is only known from ledgers.
#[must_use]
pub fn sums_of_records(records: &[Record], measure: Measure) -> Sums {
    let view = View { measure: Some(measure), ..View::default() };
    let flame = Flame::of(&Summary::from_records(records), view);
    let mut sums = Sums::new();
    for stack in flame.stacks.iter().filter(|stack| stack.state != State::Idle) {
        let functions = stack.steps.iter().map(|step| flame.function(step).unwrap());
        let names: Vec<String> = functions
            .filter(|function| !matches!(function.kind, Kind::Process | Kind::Thread | Kind::State))
            .map(|function| function.name.clone())
            .collect();
        let value = if measure == Measure::OnCpu { stack.count } else { stack.weight_ns };
        if names != [note::TOO_SHORT] {
            *sums.entry(names).or_default() += value;
        }
    }
    sums
}
