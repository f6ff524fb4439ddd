//! `agent diagnose`: a trace of which only what is wrong is wanted.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{
    subject,
    trace::{self, Purpose, style},
};
use crate::{
    cli::{DiagnoseArgs, Format, Phases, TraceArgs, exit},
    diagnose::Thresholds,
    export::{
        ndjson,
        text::{self, Style},
    },
    report::{
        Body, Record,
        model::{Finding, SCHEMA_VERSION, Severity},
        summary::Summary,
    },
    units::Pid,
};

/// Samples a second and CPU: enough for a trend over a minute.
const SAMPLE_HZ: u32 = 49;

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &DiagnoseArgs) -> u8 {
    let mut thresholds = Thresholds::default();
    for (name, value) in &args.threshold {
        if let Err(error) = thresholds.set(name, *value) {
            trace::say(&format!("agent: {error}"));
            return exit::USAGE;
        }
    }
    let pids = if args.all { subject::all() } else { args.pid.iter().map(|pid| Pid(*pid)).collect() };
    if pids.is_empty() {
        trace::say("agent: no Node.js process runs here, or none that may be looked at");
        return exit::NO_TARGET;
    }
    if !args.quiet {
        let names: Vec<String> = pids.iter().map(Pid::to_string).collect();
        let seconds = args.duration.as_secs();
        trace::say(&format!(
            "agent: looking at pid {} for {seconds} s; Ctrl-C ends it with what was found so far",
            names.join(", ")
        ));
    }
    trace::run_for(&trace_args(args), &Purpose { diagnose: Some(pids), thresholds })
}

fn trace_args(args: &DiagnoseArgs) -> TraceArgs {
    TraceArgs {
        pid: None,
        duration: Some(args.duration),
        format: Some(args.format),
        output: args.output.clone(),
        ndjson: args.ndjson.clone(),
        recording: None,
        slow_turn: std::time::Duration::from_millis(50),
        off_cpu_threshold: None,
        sample_hz: SAMPLE_HZ,
        phases: Phases::Auto,
        follow: false,
        window: args.window,
        ring_size: None,
        bounded_loops: false,
        quiet: true,
        run: Vec::new(),
    }
}

/// The exit code that says whether something is wrong.
#[must_use]
pub fn code(summary: &Summary) -> u8 {
    let is_wrong = summary.findings.iter().any(|(_, finding)| finding.severity >= Severity::Warning);
    if is_wrong { exit::FOUND } else { exit::OK }
}

/// Writes what was found.
pub fn write(path: &Path, format: Format, summary: &Summary) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write what was found: {error}");
    let to_stdout = path == Path::new("-");
    let bytes = match format {
        Format::Text => {
            let style = if to_stdout { style(true) } else { Style::default() };
            text::render_findings(summary, style).into_bytes()
        }
        Format::Ndjson => lines(summary).map_err(fail)?,
    };
    if to_stdout {
        let mut out = std::io::stdout().lock();
        return out.write_all(&bytes).and_then(|()| out.flush()).map_err(fail);
    }
    std::fs::write(PathBuf::from(path), bytes).map_err(fail)
}

/// The stacks that findings name, then the findings.
fn lines(summary: &Summary) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let time = summary.targets.values().map(|target| target.last_time.clone()).max().unwrap_or_default();
    let mut put = |pid: u32, body: Body| {
        ndjson::write_record(&mut out, &Record { schema_version: SCHEMA_VERSION, time: time.clone(), pid, body })
    };
    let mut named = BTreeSet::new();
    for (pid, finding) in &summary.findings {
        for stack in finding.evidence.iter().filter_map(|line| line.stack) {
            if named.insert(stack)
                && let Some(stack) = summary.stacks.get(&stack)
            {
                put(*pid, Body::Stack(stack.clone()))?;
            }
        }
        let finding: &Finding = finding;
        put(*pid, Body::Finding(Box::new(finding.clone())))?;
    }
    Ok(out)
}
