//! No wrong frame while the collector moves and frees what frames are read from.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::frames::{Frame, Stack, stacks};
use crate::{
    harness::{Bench, Trace, Workload, bench, say, versions},
    records::{Records, Span, get, list, text},
};

/// A minute where there is time, and what each run of the tests has time for.
const SECONDS_IN_FULL: &str = "60";
const SECONDS: &str = "4";

/// Frames that are named at least in the first seconds: 93 to 95 on an idle machine, 70 where eight others compete for each CPU, as
/// what is named later is more often moved before. After a minute the heap has grown, and most stacks are of collections, in which
/// whatever called them may have moved: how many have names then is not judged.
const KNOWN_PERCENT: f64 = 50.0;

/// Samples stand in the record of the second in which they were taken.
const WINDOW_NS: f64 = 1e9;
/// The clocks of two processes and the end of a window, which is not on the nanosecond.
const SLACK_NS: f64 = 50e6;

/// `f_S_L` of `gen-S.js`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Made {
    script: u64,
    /// Where it begins.
    at: u64,
}

impl Made {
    fn of_name(name: &str) -> Option<Self> {
        let (script, at) = name.strip_prefix("f_")?.split_once('_')?;
        Some(Self { script: script.parse().ok()?, at: at.parse().ok()? })
    }

    // As in the workload.
    fn first(self) -> u64 {
        2 + self.script % 7
    }

    fn step(self) -> u64 {
        3 + self.script % 5
    }

    fn last(self) -> u64 {
        self.first() + (2 + self.script % 6) * self.step()
    }

    fn exists(self) -> bool {
        self.at >= self.first() && self.at <= self.last() && (self.at - self.first()).is_multiple_of(self.step())
    }

    /// The one that calls it, if that is of its script.
    fn caller(self) -> Option<Self> {
        (self.at > self.first()).then(|| Self { script: self.script, at: self.at - self.step() })
    }
}

struct Checker<'a> {
    records: &'a Records,
    lives: BTreeMap<u64, Span>,
    functions: &'a Value,
    frames: usize,
    known: usize,
    wrong: Vec<String>,
}

impl Checker<'_> {
    /// Checks one stack of a window that ended then.
    fn stack(&mut self, stack: &Stack, window_end: f64) {
        // An address in no mapping any more is of some function, too: of which is not known.
        let on_stack = stack.frames.iter().take_while(|frame| frame.kind != "async");
        let frames: Vec<&Frame> = on_stack.filter(|frame| frame.is_js()).collect();
        for (index, frame) in frames.iter().enumerate() {
            self.frames += 1;
            if frame.is_unknown() {
                continue;
            }
            self.known += 1;
            // Of code that is said not to be known, what was inlined into it is not known either.
            let caller = frames.get(index + 1).copied().filter(|caller| caller.tier.is_some() && frame.tier.is_some());
            if let Some(because) = self.contradiction(frame, caller, window_end) {
                self.wrong.push(format!("{frame}: {because}; in {stack}"));
            }
        }
    }

    /// What of a frame cannot be.
    fn contradiction(&self, frame: &Frame, caller: Option<&Frame>, window_end: f64) -> Option<String> {
        let file = frame.file.as_deref().unwrap_or_default();
        let Some(made) = Made::of_name(&frame.name) else {
            if file.starts_with("gen-") {
                // The script itself, which makes its functions.
                let is_script = frame.name.is_empty() || frame.name.contains("anonymous");
                return (!is_script).then(|| "no function of that script".to_owned());
            }
            let lines = file.ends_with("/churn.js").then(|| self.functions.get(&frame.name)).flatten()?;
            let (first, last) = (lines[0].as_u64().unwrap(), lines[1].as_u64().unwrap());
            let inside = frame.line.is_none_or(|line| (first..=last).contains(&line));
            return (!inside).then(|| format!("it is on lines {first} to {last}"));
        };
        if !made.exists() {
            return Some("there is no such function".to_owned());
        }
        if !file.is_empty() && file != format!("gen-{}.js", made.script) {
            return Some("another script".to_owned());
        }
        let lines = [made.at, made.at + 1, made.at + 2];
        if frame.line.is_some_and(|line| !lines.contains(&line)) || (frame.start_line && frame.line != Some(made.at)) {
            return Some("another line".to_owned());
        }
        if let Some(caller) = caller
            && !called_by(&made, caller)
        {
            // One frame is missing, all that are there are right: a position in optimised code that names the caller of what was
            // inlined there.
            let skipped = caller.inlined && made.caller().is_some_and(|between| called_by(&between, caller));
            return (!skipped).then(|| "called by another".to_owned());
        }
        let life = self.lives.get(&made.script)?;
        let seen = Span { start: window_end - WINDOW_NS - SLACK_NS, end: window_end + SLACK_NS };
        (seen.overlap(life.start, life.end) <= 0.0).then(|| "not alive then".to_owned())
    }

    fn profiles(&mut self) {
        let stacks = stacks(self.records);
        for record in self.records.of_type("profile") {
            let end = self.records.monotonic(record, "time");
            for entry in list(record, "stacks").iter().filter(|entry| text(entry, "class") == "event_loop") {
                let stack = entry.get("user_stack").and_then(|id| stacks.get(id.as_str()?));
                if let Some(stack) = stack {
                    self.stack(stack, end);
                }
            }
        }
    }
}

/// Whether a frame is of what calls a function, as far as it says on which line.
fn called_by(made: &Made, caller: &Frame) -> bool {
    made.caller().map_or_else(
        || caller.name == "runs",
        |right| {
            let at = right.at + 1;
            Made::of_name(&caller.name) == Some(right)
                && (caller.start_line || caller.line.is_none_or(|line| line == at))
        },
    )
}

fn check(bench: &Bench, version: &str, seconds: &str) {
    let mut workload = Workload::start(version, "js/churn.js", &[seconds]);
    let trace = Trace::profile(bench, workload.pid(), &["--frequency", "999", "--max-overhead", "100%"]);
    workload.go();
    workload.0.wait_out_within("DONE", Duration::from_mins(2));
    let (records, truths) = (trace.interrupt(), workload.truths());
    let of_life = |life: &Value| {
        let at = |index: usize| life[index].as_f64().unwrap();
        (life[0].as_u64().unwrap(), Span { start: at(1), end: at(2) })
    };
    let mut checker = Checker {
        records: &records,
        lives: list(&truths, "lives").iter().map(of_life).collect(),
        functions: get(&truths, "functions"),
        frames: 0,
        known: 0,
        wrong: Vec::new(),
    };
    checker.profiles();
    let Checker { frames, known, wrong, .. } = checker;
    let known_share = known as f64 / (frames as f64).max(1.0) * 100.0;
    say(&format!(
        "measured JavaScript frames in a compacted heap, node {version}: {frames} frames, {known_share:.2} % known, {} wrong",
        wrong.len()
    ));
    assert!(
        wrong.is_empty(),
        "node {version}: {} of {frames}\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    let is_short = seconds == SECONDS;
    assert!(frames > 1_000 && (known_share > KNOWN_PERCENT || !is_short), "node {version}: {known} of {frames}");
}

#[test]
fn a_heap_that_is_compacted_all_the_time_makes_no_frame_wrong() {
    let Some(bench) = bench() else { return };
    let seconds = if std::env::var_os("AGENT_TEST_FULL").is_some() { SECONDS_IN_FULL } else { SECONDS };
    for version in versions() {
        check(&bench, version, seconds);
    }
}
