//! The file format of speedscope: one sampled profile a process, weights in nanoseconds.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde::Serialize;

use crate::report::flame::{Flame, FlameStack, Measure, Subject};

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    shared: Shared<'a>,
    profiles: Vec<Profile>,
    name: String,
    active_profile_index: u32,
    exporter: String,
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    samples: Vec<Vec<usize>>,
    weights: Vec<u64>,
}

/// Writes the whole file.
pub fn write(out: &mut impl Write, flame: &Flame) -> io::Result<()> {
    let mut frames = Vec::new();
    let mut numbers = BTreeMap::new();
    let mut number = |stack: &FlameStack| -> Vec<usize> {
        let numbered = stack.steps.iter().filter_map(|step| {
            let function = flame.function(step)?;
            let next = numbers.len();
            Some(*numbers.entry((step.function, step.times)).or_insert_with(|| {
                frames.push(Frame {
                    name: function.label() + &step.times.label(),
                    file: function.file.as_deref().or(function.module.as_deref()),
                    line: function.line,
                });
                next
            }))
        });
        numbered.collect()
    };
    let mut profiles = Vec::new();
    for subject in &flame.subjects {
        let mut stacks: Vec<&FlameStack> = flame.stacks.iter().filter(|stack| stack.pid == subject.pid).collect();
        stacks.sort_by(|a, b| a.steps.cmp(&b.steps));
        let weights: Vec<u64> = stacks.iter().map(|stack| stack.weight_ns).collect();
        profiles.push(Profile {
            kind: "sampled",
            name: name(subject, flame.measure),
            unit: "nanoseconds",
            start_value: 0,
            end_value: weights.iter().sum(),
            samples: stacks.into_iter().map(&mut number).collect(),
            weights,
        });
    }
    let busiest = profiles.iter().enumerate().max_by_key(|(_, profile)| profile.end_value).map_or(0, |(at, _)| at);
    let file = File {
        schema: SCHEMA,
        shared: Shared { frames },
        profiles,
        name: format!("{} {}", what(flame.measure), flame.started),
        active_profile_index: u32::try_from(busiest).unwrap_or(0),
        exporter: concat!("agent ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    serde_json::to_writer(&mut *out, &file)?;
    out.write_all(b"\n")
}

fn name(subject: &Subject, measure: Measure) -> String {
    format!("{} ({}): {}", subject.command, subject.pid, what(measure))
}

fn what(measure: Measure) -> &'static str {
    match measure {
        Measure::OnCpu => "on CPU",
        Measure::OffCpu => "off CPU",
        Measure::Wall => "wall time",
    }
}
