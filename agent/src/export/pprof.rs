//! pprof's `profile.proto`, gzipped: what `go tool pprof`, Pyroscope, Parca and Google's profiler read.
//!
//! Messages are written out here by hand, field by field: the format is frozen, small, and needs no generator. Processes, threads and
//! states are labels, as the format has a place for them, and not frames.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use flate2::{Compression, write::GzEncoder};
use prost::Message;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::report::flame::{Flame, FlameStack, Function as Called, Kind, Measure, Step};

/// `perftools.profiles.Profile`.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// The first is empty; everything that is text is an index into it.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub period: i64,
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    pub kind: i64,
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// Innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Label {
    #[prost(int64, tag = "1")]
    pub key: i64,
    #[prost(int64, tag = "2")]
    pub text: i64,
    #[prost(int64, tag = "3")]
    pub num: i64,
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

#[derive(Clone, PartialEq, Message)]
#[expect(clippy::struct_excessive_bools, reason = "the format's own")]
pub struct Mapping {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "5")]
    pub filename: i64,
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    #[prost(int64, tag = "2")]
    pub line: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "2")]
    pub name: i64,
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    #[prost(int64, tag = "4")]
    pub filename: i64,
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}

/// Writes the whole profile.
pub fn write(out: &mut impl Write, flame: &Flame) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&profile(flame).encode_to_vec())?;
    gzip.finish().map(drop)
}

/// The message.
#[must_use]
pub fn profile(flame: &Flame) -> Profile {
    let mut builder = Builder::default();
    builder.text("");
    let (count, time) = match flame.measure {
        Measure::OnCpu => ("samples", "cpu"),
        Measure::OffCpu => ("stays", "off_cpu"),
        Measure::Wall => ("events", "wall"),
    };
    let sample_type = vec![builder.value_type(count, "count"), builder.value_type(time, "nanoseconds")];
    for stack in &flame.stacks {
        builder.stack(flame, stack);
    }
    let period_type = (flame.period_ns != 0).then(|| builder.value_type("cpu", "nanoseconds"));
    let comment = builder.text(&comment(flame));
    let default_sample_type = builder.text(time);
    Profile {
        sample_type,
        sample: builder.samples,
        mapping: builder.mappings,
        location: builder.locations,
        function: builder.functions,
        string_table: builder.strings,
        time_nanos: nanoseconds(&flame.started),
        duration_nanos: signed(flame.duration_ns),
        period_type,
        period: signed(flame.period_ns),
        comment: vec![comment],
        default_sample_type,
    }
}

fn comment(flame: &Flame) -> String {
    let subjects = flame.subjects.iter().map(|subject| format!("{} ({})", subject.command, subject.pid));
    format!("agent {}: {}", env!("CARGO_PKG_VERSION"), subjects.collect::<Vec<_>>().join(", "))
}

fn nanoseconds(rfc3339: &str) -> i64 {
    let at = OffsetDateTime::parse(rfc3339, &Rfc3339).map(OffsetDateTime::unix_timestamp_nanos);
    at.ok().and_then(|at| i64::try_from(at).ok()).unwrap_or(0)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The tables, as they fill.
#[derive(Default)]
struct Builder {
    strings: Vec<String>,
    known_strings: BTreeMap<String, i64>,
    mappings: Vec<Mapping>,
    known_mappings: BTreeMap<String, u64>,
    functions: Vec<Function>,
    known_functions: BTreeMap<(String, Option<String>, Option<u32>), u64>,
    locations: Vec<Location>,
    known_locations: BTreeMap<(Step, u64), u64>,
    samples: Vec<Sample>,
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(known) = self.known_strings.get(text) {
            return *known;
        }
        let index = next(self.strings.len());
        self.strings.push(text.to_owned());
        self.known_strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.text(kind), unit: self.text(unit) }
    }

    fn stack(&mut self, flame: &Flame, stack: &FlameStack) {
        let mut label = vec![
            Label { key: self.text("pid"), num: i64::from(stack.pid), ..Label::default() },
            Label { key: self.text("state"), text: self.text(stack.state.name()), ..Label::default() },
        ];
        if let Some(tid) = stack.tid {
            label.push(Label { key: self.text("tid"), num: i64::from(tid), ..Label::default() });
        }
        let mut location_id = Vec::with_capacity(stack.steps.len());
        for step in &stack.steps {
            let Some(function) = flame.function(step) else { continue };
            match function.kind {
                Kind::Process => label.push(self.label("process", &function.name)),
                Kind::Thread => label.push(self.label("thread", &function.name)),
                Kind::State => {}
                _ => location_id.push(self.location(function, *step)),
            }
        }
        // A stack of nothing but labels would be none.
        if location_id.is_empty() {
            let state = Called {
                kind: Kind::State,
                name: format!("[{}]", stack.state.name()),
                file: None,
                line: None,
                module: None,
            };
            let step =
                Step { function: u32::MAX, at: Some(stack.state as u32), times: crate::report::flame::Times::ONCE };
            location_id.push(self.location(&state, step));
        }
        location_id.reverse();
        self.samples.push(Sample { location_id, value: vec![signed(stack.count), signed(stack.weight_ns)], label });
    }

    fn label(&mut self, key: &str, text: &str) -> Label {
        Label { key: self.text(key), text: self.text(text), ..Label::default() }
    }

    fn location(&mut self, function: &Called, step: Step) -> u64 {
        let mapping_id = self.mapping(function);
        if let Some(known) = self.known_locations.get(&(step, mapping_id)) {
            return *known;
        }
        let function_id = self.function(function, &step.times.label());
        let id = next(self.locations.len() + 1).unsigned_abs();
        let line = i64::from(step.at.or(function.line).unwrap_or(0));
        self.locations.push(Location { id, mapping_id, line: vec![Line { function_id, line }] });
        self.known_locations.insert((step, mapping_id), id);
        id
    }

    fn function(&mut self, function: &Called, times: &str) -> u64 {
        let name = if function.name.is_empty() { "?" } else { &function.name }.to_owned() + times;
        let key = (name, function.file.clone(), function.line);
        if let Some(known) = self.known_functions.get(&key) {
            return *known;
        }
        let id = next(self.functions.len() + 1).unsigned_abs();
        let name = self.text(&key.0);
        let message = Function {
            id,
            name,
            system_name: name,
            filename: self.text(key.1.as_deref().unwrap_or("")),
            start_line: i64::from(key.2.unwrap_or(0)),
        };
        self.functions.push(message);
        self.known_functions.insert(key, id);
        id
    }

    /// Where code lies: a reader tells kinds of code apart by it.
    fn mapping(&mut self, function: &Called) -> u64 {
        let name = match function.kind {
            Kind::Kernel => "[kernel]",
            Kind::Js | Kind::Interpreted | Kind::Baseline | Kind::Optimized | Kind::Inlined => "[JavaScript]",
            Kind::Wasm => "[WebAssembly]",
            Kind::Builtin => "[V8 builtins]",
            Kind::Native | Kind::Unknown => function.module.as_deref().unwrap_or("[native]"),
            Kind::Process | Kind::Thread | Kind::State | Kind::Async | Kind::Note => "[agent]",
        };
        if let Some(known) = self.known_mappings.get(name) {
            return *known;
        }
        let id = next(self.mappings.len() + 1).unsigned_abs();
        let filename = self.text(name);
        // All that is to be known is known: a reader need not look for symbols.
        self.mappings.push(Mapping {
            id,
            filename,
            has_functions: true,
            has_filenames: true,
            has_line_numbers: true,
            has_inline_frames: true,
        });
        self.known_mappings.insert(name.to_owned(), id);
        id
    }
}

fn next(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}
