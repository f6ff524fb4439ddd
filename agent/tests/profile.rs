//! Profiles from records to files: goldens of each format, and what must hold for any profile.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss, reason = "tests")]

mod synthetic;

use std::{io::Read as _, sync::Arc};

use agent::{
    export::{
        flamegraph, folded, ndjson,
        pprof::{self, Profile},
        speedscope,
        text::{self, Style},
    },
    report::{
        Body, Record,
        flame::{
            Flame, Kind, Spaces, State, Sums, View,
            diff::{Diff, Scale},
        },
        model::{self, FrameKind, Measure, SCHEMA_VERSION, Space, Stack, StackId, Tier},
        summary::Summary,
    },
};
use proptest::prelude::*;
use prost::Message as _;
use synthetic::profile::{PERIOD_NS, PID, frame, js, records};

fn flame_of(records: &[Record], view: View) -> Flame {
    Flame::of(&Summary::from_records(records), view)
}

fn flame(measure: Measure) -> Flame {
    flame_of(&records(measure), View::default())
}

fn text_of(write: impl Fn(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// As a reader of the format sees it.
fn pprof_of(flame: &Flame) -> Profile {
    let mut packed = Vec::new();
    pprof::write(&mut packed, flame).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut bytes).unwrap();
    Profile::decode(bytes.as_slice()).unwrap()
}

fn folded_of(flame: &Flame) -> Vec<(String, u64)> {
    text_of(|out| folded::write(out, flame))
        .lines()
        .map(|line| line.rsplit_once(' ').map(|(stack, n)| (stack.to_owned(), n.parse().unwrap())).unwrap())
        .collect()
}

const MEASURES: [Measure; 3] = [Measure::OnCpu, Measure::OffCpu, Measure::Wall];

#[test]
fn the_report_is_as_agreed() {
    for (measure, name) in [(Measure::OnCpu, "on_cpu"), (Measure::OffCpu, "off_cpu"), (Measure::Wall, "wall")] {
        let summary = Summary::from_records(&records(measure));
        let flame = Flame::of(&summary, View { fold_recursion: true, ..View::default() });
        insta::assert_snapshot!(format!("text_{name}"), text::profile(&flame, &summary, Style::default()));
    }
}

#[test]
fn folded_stacks_are_as_agreed() {
    let folding = View { fold_recursion: true, ..View::default() };
    insta::assert_snapshot!("folded", text_of(|out| folded::write(out, &flame_of(&records(Measure::OnCpu), folding))));
    let wall = View { fold_recursion: true, by_thread: true, ..View::default() };
    insta::assert_snapshot!("folded_wall", text_of(|out| folded::write(out, &flame_of(&records(Measure::Wall), wall))));
}

#[test]
fn speedscope_is_as_agreed() {
    let view = View { fold_recursion: true, ..View::default() };
    let text = text_of(|out| speedscope::write(out, &flame_of(&records(Measure::OnCpu), view)));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    insta::assert_snapshot!("speedscope", serde_json::to_string_pretty(&value).unwrap());
}

#[test]
fn pprof_is_as_agreed() {
    let view = View { fold_recursion: true, ..View::default() };
    insta::assert_snapshot!("pprof", dump(&pprof_of(&flame_of(&records(Measure::OnCpu), view))));
}

/// A profile as `pprof -raw` prints it, more or less.
fn dump(profile: &Profile) -> String {
    let text = |at: i64| profile.string_table[usize::try_from(at).unwrap()].as_str();
    let mut lines: Vec<String> =
        profile.sample_type.iter().map(|kind| format!("{}/{}", text(kind.kind), text(kind.unit))).collect();
    for sample in &profile.sample {
        let labels: Vec<String> = sample
            .label
            .iter()
            .map(|label| {
                format!(
                    "{}={}",
                    text(label.key),
                    if label.text == 0 { label.num.to_string() } else { text(label.text).into() }
                )
            })
            .collect();
        lines.push(format!("{:?} {}", sample.value, labels.join(" ")));
        for id in &sample.location_id {
            let location = &profile.location[usize::try_from(*id).unwrap() - 1];
            let line = &location.line[0];
            let function = &profile.function[usize::try_from(line.function_id).unwrap() - 1];
            let mapping = &profile.mapping[usize::try_from(location.mapping_id).unwrap() - 1];
            lines.push(format!(
                "    {} {}:{} (begins at {}) in {}",
                text(function.name),
                text(function.filename),
                line.line,
                function.start_line,
                text(mapping.filename)
            ));
        }
    }
    lines.join("\n")
}

#[test]
fn a_flame_graph_has_every_kind_in_its_colour_and_its_legend() {
    let svg = text_of(|out| {
        flamegraph::write(out, &flame_of(&records(Measure::Wall), View { fold_recursion: true, ..View::default() }))
    });
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Wasm) {
        assert!(svg.contains(&format!(">{}</text>", kind.name())), "{kind:?} is not in the legend");
    }
    // Marks have done their work, and text of the target's is text.
    assert!(!svg.chars().any(|c| ('\u{e000}'..'\u{e100}').contains(&c)));
    assert!(svg.contains("route: &lt;svg&gt;\u{fffd}&amp;"), "names are escaped");
    assert!(svg.contains("next (index.js:294) × 12 to 97"), "recursion says how deep");
    assert!(svg.contains("<title>hashPassword (auth.js:40) ("));
    for colour in ["rgb(146,212,132)", "rgb(76,184,108)", "rgb(110,205,196)", "rgb(244,150,78)", "rgb(203,172,232)"] {
        assert!(svg.contains(colour), "{colour}");
    }
}

#[test]
fn a_profile_of_nothing_says_so() {
    let empty = flame_of(&[], View::default());
    assert!(text_of(|out| flamegraph::write(out, &empty)).contains("Nothing ran"));
    assert!(text_of(|out| folded::write(out, &empty)).is_empty());
    assert_eq!(pprof_of(&empty).sample.len(), 0);
    assert!(text_of(|out| speedscope::write(out, &empty)).contains("\"profiles\":[]"));
    assert!(text::profile(&empty, &Summary::default(), Style::default()).contains("not one sample"));
}

/// All that was measured, by another way: from the records.
fn measured_ns(records: &[Record]) -> (u64, u64) {
    let (mut samples, mut stays) = (0, 0);
    for record in records {
        match &record.body {
            Body::Profile(profile) => {
                samples += profile.stacks.iter().map(|stack| stack.samples).sum::<u64>() + profile.other_samples;
            }
            Body::OffCpu(off_cpu) => {
                stays += off_cpu.stacks.iter().map(|stack| stack.totals.total_ns).sum::<u64>();
                stays += off_cpu.other.map_or(0, |other| other.total_ns);
            }
            _ => {}
        }
    }
    (samples * PERIOD_NS, stays)
}

#[test]
fn nothing_that_was_measured_is_lost() {
    for measure in MEASURES {
        let records = records(measure);
        let (samples_ns, stays_ns) = measured_ns(&records);
        for fold_recursion in [false, true] {
            for by_thread in [false, true] {
                let flame = flame_of(&records, View { fold_recursion, by_thread, ..View::default() });
                let noted: u64 = flame
                    .stacks
                    .iter()
                    .filter(|stack| {
                        stack.state == State::Idle || flame.labels(stack).any(|(_, label)| label.contains("too short"))
                    })
                    .map(|stack| stack.weight_ns)
                    .sum();
                let idle = if measure == Measure::OnCpu { 0 } else { flame.idle_left_out_ns };
                let ledger_idle = match measure {
                    Measure::OnCpu => 0,
                    Measure::OffCpu => 2 * 800_000_000,
                    Measure::Wall => 2 * 600_000_000,
                };
                assert_eq!(flame.weight_ns() - noted + idle - ledger_idle, samples_ns + stays_ns, "{measure:?}");
                agree(&flame);
            }
        }
    }
}

/// Every format adds up to the same.
fn agree(flame: &Flame) {
    let (count, weight) = (flame.count(), flame.weight_ns());
    let folded: u64 = folded_of(flame).iter().map(|(_, n)| n).sum();
    assert_eq!(folded, if flame.measure == Measure::OnCpu { count } else { weight / 1_000 });

    let pprof = pprof_of(flame);
    let sum = |at: usize| pprof.sample.iter().map(|sample| sample.value[at].unsigned_abs()).sum::<u64>();
    assert_eq!((sum(0), sum(1)), (count, weight));
    assert!(pprof.sample.iter().all(|sample| !sample.location_id.is_empty()));
    assert_eq!(pprof.string_table[0], "");

    let speedscope: serde_json::Value = serde_json::from_str(&text_of(|out| speedscope::write(out, flame))).unwrap();
    assert_eq!(check_speedscope(&speedscope), weight);

    if weight != 0 {
        let svg = text_of(|out| flamegraph::write(out, flame));
        let total: u64 = between(&svg, "total_samples=\"", "\"").parse().unwrap();
        assert_eq!(total, weight);
    }
    let sums = Sums::of(flame);
    let idle = sums.states.get(&State::Idle).copied().unwrap_or(0);
    assert_eq!(sums.functions.iter().map(|sum| sum.self_ns).sum::<u64>() + idle, weight);
    assert_eq!(sums.kinds.values().sum::<u64>() + idle, weight);
    assert!(sums.functions.iter().all(|sum| sum.self_ns <= sum.total_ns && sum.total_ns <= weight));
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    text.split_once(begin).unwrap().1.split_once(end).unwrap().0
}

/// What speedscope's own schema and its importer ask for; the weights' sum.
fn check_speedscope(file: &serde_json::Value) -> u64 {
    assert_eq!(file["$schema"], "https://www.speedscope.app/file-format-schema.json");
    let frames = file["shared"]["frames"].as_array().unwrap();
    assert!(frames.iter().all(|frame| frame["name"].is_string()));
    let allowed = ["name", "file", "line", "col"];
    assert!(frames.iter().all(|frame| frame.as_object().unwrap().keys().all(|key| allowed.contains(&key.as_str()))));
    let mut sum = 0;
    for profile in file["profiles"].as_array().unwrap() {
        assert_eq!((&profile["type"], &profile["unit"]), (&"sampled".into(), &"nanoseconds".into()));
        let (samples, weights) = (profile["samples"].as_array().unwrap(), profile["weights"].as_array().unwrap());
        assert_eq!(samples.len(), weights.len());
        let indices = samples.iter().flat_map(|stack| stack.as_array().unwrap());
        assert!(indices.into_iter().all(|index| index.as_u64().unwrap() < frames.len() as u64));
        let weight: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
        assert_eq!(profile["endValue"].as_u64().unwrap() - profile["startValue"].as_u64().unwrap(), weight);
        sum += weight;
    }
    sum
}

#[test]
fn a_file_of_records_gives_the_same_profile() {
    for measure in MEASURES {
        let records = records(measure);
        let mut lines = Vec::new();
        for record in &records {
            ndjson::write_record(&mut lines, record).unwrap();
        }
        let mut reader = ndjson::Reader::new(lines.as_slice());
        let mut back = Vec::new();
        while let Some(record) = reader.next_record().unwrap() {
            back.push(record);
        }
        assert_eq!(reader.tally().complaint(), None);
        assert_eq!(flame_of(&back, View::default()), flame(measure));
    }
}

#[test]
fn halves_of_stacks_can_be_left_out() {
    let has = |spaces, kind: Kind| {
        let flame = flame_of(&records(Measure::Wall), View { spaces, ..View::default() });
        assert_eq!(flame.weight_ns(), self::flame(Measure::Wall).weight_ns());
        flame.functions.iter().any(|function| function.kind == kind)
    };
    assert!(has(Spaces::Both, Kind::Kernel) && has(Spaces::Both, Kind::Optimized));
    assert!(!has(Spaces::User, Kind::Kernel) && has(Spaces::User, Kind::Optimized));
    assert!(has(Spaces::Kernel, Kind::Kernel) && !has(Spaces::Kernel, Kind::Optimized));
}

#[test]
fn those_who_await_come_before_what_they_await() {
    let flame = flame(Measure::OnCpu);
    let stack =
        flame.stacks.iter().find(|stack| flame.labels(stack).any(|(_, label)| label.starts_with("parse"))).unwrap();
    let labels: Vec<String> = flame.labels(stack).map(|(_, label)| label).collect();
    assert_eq!(
        labels[2..],
        ["route; <svg>\u{fffd}&\" (app.js:8)", "readBody (body.js:29)", "(awaits)", "parse (body.js:6)"]
    );
}

#[test]
fn a_folded_stack_says_how_deep_it_was() {
    let flame = flame_of(&records(Measure::OnCpu), View { fold_recursion: true, ..View::default() });
    let deepest = flame.stacks.iter().map(|stack| stack.steps.len()).max().unwrap();
    assert!(deepest < 20, "{deepest} frames are left of 300");
    let line = folded_of(&flame).into_iter().find(|(line, _)| line.contains("list (app.js:19)")).unwrap();
    assert!(line.0.contains("next (index.js:294) × 12 to 97_[j];layer (index.js:434) × 12 to 97_[j];"), "{}", line.0);
    assert_eq!(line.1, 2 * (9 + 4), "both depths are one line");
}

#[test]
fn two_profiles_of_the_same_do_not_differ() {
    for scale in [Scale::Share, Scale::Time, Scale::Requests { before: 10.0, after: 10.0 }] {
        for measure in MEASURES {
            let flame = flame(measure);
            let diff = Diff::of(&flame, &flame, scale);
            assert!(diff.functions.iter().all(|change| change.own.change() == 0.0 && change.total.change() == 0.0));
            assert!(diff.stacks.iter().all(|stack| stack.own.direction() == 0.0));
            assert!(text::profile_diff(&diff, Style::default()).contains("none"));
            let svg = text_of(|out| flamegraph::write_diff(out, &diff));
            let boxes = svg.split_once("<svg id=\"frames\"").unwrap().1;
            let coloured = boxes.matches("fill=\"rgb(").count() - boxes.matches("fill=\"rgb(240,240,240)").count();
            assert_eq!(coloured, 1, "only the box below all others");
        }
    }
}

#[test]
fn one_process_is_compared_with_one_whatever_they_are_called() {
    let one = |script: &str| {
        let mut records = records(Measure::OnCpu);
        records.retain(|record| record.pid == PID);
        if let Body::Target(target) = &mut records[0].body {
            target.command[1] = script.into();
        }
        flame_of(&records, View { without_pids: true, ..View::default() })
    };
    let diff = Diff::of(&one("/srv/blue.js"), &one("/srv/green.js"), Scale::Share);
    assert!(diff.stacks.iter().all(|stack| stack.path[0].name == "node green.js" && stack.own.change() == 0.0));
}

/// A profile with one more function, and much more time in another.
fn slower() -> Vec<Record> {
    let mut slower = records(Measure::OnCpu);
    let frames = vec![
        Arc::new(js("validate", "/srv/auth.js", 70, Tier::Interpreted)),
        Arc::new(frame("uv_run", FrameKind::Native)),
    ];
    let added = Stack { id: StackId(55), space: Space::User, frames, truncated: None };
    slower
        .insert(2, Record { schema_version: SCHEMA_VERSION, time: String::new(), pid: PID, body: Body::Stack(added) });
    for record in &mut slower {
        if let Body::Profile(profile) = &mut record.body
            && record.pid == PID
        {
            let mut new = profile.stacks[0].clone();
            (new.user_stack, new.samples) = (Some(StackId(55)), 60);
            profile.stacks.retain(|stack| stack.user_stack != Some(StackId(4)));
            profile.stacks.push(new);
        }
    }
    slower
}

#[test]
fn what_grew_is_red_and_first() {
    let view = View { without_pids: true, fold_recursion: true, ..View::default() };
    let (before, after) = (flame_of(&records(Measure::OnCpu), view), flame_of(&slower(), view));
    for (name, scale) in [
        ("share", Scale::Share),
        ("time", Scale::Time),
        ("requests", Scale::Requests { before: 1_000.0, after: 2_000.0 }),
    ] {
        let diff = Diff::of(&before, &after, scale);
        assert_eq!(diff.functions[0].function.label(), "validate (auth.js)", "{name}");
        insta::assert_snapshot!(format!("diff_{name}"), text::profile_diff(&diff, Style::default()));
        let svg = text_of(|out| flamegraph::write_diff(out, &diff));
        let colour = |function: &str| {
            between(svg.split_once(&format!("<title>{function} ")).unwrap().1, "fill=\"", "\"").to_owned()
        };
        assert_eq!(colour("validate (auth.js)"), "rgb(255,115,115)");
        assert_eq!(colour("scale (math.mjs)"), "rgb(115,115,255)", "what is gone is seen, too");
    }
    let diff = Diff::of(&before, &after, Scale::Share);
    assert!((diff.total.before - 100.0).abs() < 1e-6 && (diff.total.after - 100.0).abs() < 1e-6);
}

/// Samples of made-up stacks of few functions, so that there is recursion.
fn any_records() -> impl Strategy<Value = Vec<Record>> {
    let stack = (prop::collection::vec(0usize..5, 0..40), 1u64..50, 0u64..3);
    prop::collection::vec(stack, 1..12).prop_map(|stacks| {
        let names = ["next", "handle", "layer", "a;b", "\u{e003}x 12"];
        let mut records = vec![records(Measure::OnCpu).swap_remove(0)];
        let mut profile =
            model::Profile { period_ns: PERIOD_NS, duration_ns: 1_000_000_000, ..model::Profile::default() };
        for (id, (functions, samples, gc_samples)) in (1..).zip(stacks) {
            let frames = functions.iter().map(|at| Arc::new(js(names[*at], "/a.js", 3, Tier::Baseline))).collect();
            let body = Body::Stack(Stack { id: StackId(id), space: Space::User, frames, truncated: None });
            records.push(Record { schema_version: SCHEMA_VERSION, time: String::new(), pid: PID, body });
            profile.stacks.push(model::ProfileStack {
                tid: PID,
                user_stack: Some(StackId(id)),
                samples,
                gc_samples: gc_samples.min(samples),
                ..model::ProfileStack::default()
            });
        }
        records.push(Record {
            schema_version: SCHEMA_VERSION,
            time: String::new(),
            pid: PID,
            body: Body::Profile(profile),
        });
        records
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_are_preserved_by_every_exporter_and_by_folding(records in any_records()) {
        let plain = flame_of(&records, View::default());
        let folded = flame_of(&records, View { fold_recursion: true, ..View::default() });
        prop_assert_eq!(plain.weight_ns(), measured_ns(&records).0);
        prop_assert_eq!((plain.weight_ns(), plain.count()), (folded.weight_ns(), folded.count()));
        agree(&plain);
        agree(&folded);
        // Where stacks share a frame, they agree on how deep it is.
        let lines: std::collections::BTreeSet<String> = folded.stacks.iter().map(|stack| format!("{:?}", stack.steps)).collect();
        prop_assert_eq!(lines.len(), folded.stacks.len());
    }

    #[test]
    fn a_profile_does_not_differ_from_itself(records in any_records(), factor in 1u64..5) {
        let flame = flame_of(&records, View::default());
        let mut longer = flame.clone();
        for stack in &mut longer.stacks {
            stack.weight_ns *= factor;
            stack.count *= factor;
        }
        let diff = Diff::of(&flame, &longer, Scale::Share);
        prop_assert!(diff.functions.iter().all(|change| change.own.change().abs() < 1e-9 && !change.own.is_significant()));
    }
}
