//! `agent diagnose`: a trace of which only what is wrong is wanted.

use std::{collections::BTreeSet, io::Write as _, path::Path, time::Duration};

use agent_ebpf::spec::{Group, Part};

use super::{
    allocator,
    clusters::Search,
    discover::Discovery,
    driver::{self, DriverError, Finished, Mission, Whom, say, style},
    postgres::Watch,
    session::{PhasesWanted, SwitchesWanted, TypesAhead},
    sinks::Destinations,
    streams, subject,
};
use crate::{
    cli::{DiagnoseArgs, Format, exit},
    diagnose::{Diagnosis, Thresholds},
    export::{
        bunyan, flamegraph, ndjson,
        text::{self, Style},
    },
    probe::attach::Settings,
    report::{
        Body, Record,
        flame::{
            Flame, Measure, View,
            diff::{Diff, Scale},
        },
        model::{Finding, SCHEMA_VERSION, Severity, TraceConfig},
        summary::Summary,
    },
    target::postgres::{Server, StatementText},
    units::{Pid, nanoseconds},
};

/// Samples a second and CPU: enough for a trend over a minute.
const SAMPLE_HZ: u32 = 49;

/// No rule looks at stays off CPU: none has its stack taken.
const OFF_CPU_MIN: Duration = Duration::MAX;

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &DiagnoseArgs) -> u8 {
    let mut thresholds = Thresholds::default();
    for (name, value) in &args.threshold {
        if let Err(error) = thresholds.set(name, *value) {
            say(&format!("agent: {error}"));
            return exit::USAGE;
        }
    }
    match diagnose(args, thresholds) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

fn diagnose(args: &DiagnoseArgs, thresholds: Thresholds) -> Result<u8, DriverError> {
    let types = TypesAhead::read();
    // A mistake in the command line is told before anybody is looked for.
    let streams = streams::of_args(&args.streams, None)?;
    let (servers, node): (Vec<Pid>, Vec<Pid>) =
        args.pid.iter().map(|pid| Pid(*pid)).partition(|pid| Server::is_one(*pid));
    let examine = if args.native_leaks { allocator::examine } else { subject::examine };
    let mut discovery = args.all.then(Discovery::default);
    let subjects = match &mut discovery {
        Some(discovery) => discovery.newcomers(),
        None => node.iter().map(|pid| examine(*pid)).collect::<Result<_, _>>()?,
    };
    let watch = |pid: &Pid| Watch::begin(*pid, subject::clock(), StatementText::Fingerprint);
    let clusters: Vec<Watch> = servers.iter().map(watch).collect::<Result<_, _>>()?;
    // Who waits for a database looks at the process that serves its user: what serves that one is looked at, too.
    let search = if args.all { Search::default() } else { Search::of_clients(node) };
    let pids = subjects.iter().map(|subject| subject.pid).chain(clusters.iter().map(Watch::pid));
    let names: Vec<String> = pids.map(|pid| pid.to_string()).collect();
    if !args.quiet && !names.is_empty() {
        let seconds = args.duration.as_secs();
        say(&format!(
            "agent: looking at pid {} for {seconds} s; Ctrl-C ends it with what was found so far",
            names.join(", ")
        ));
    }
    let destinations = Destinations {
        ndjson: args.ndjson.clone().into_iter().collect(),
        listen: args.listen.listen,
        streams,
        ..Destinations::default()
    };
    let mut mission = mission(args, thresholds);
    if subjects.is_empty() && discovery.is_none() {
        // A database alone: what tells of event loops would cost it something, and say nothing.
        mission.settings = Settings { parts: &[], sample_hz: 0, ..mission.settings };
        mission = Mission { groups: &[], ..mission };
    }
    let whom = Whom {
        subjects,
        launched: None,
        follow: false,
        examine,
        discovery,
        clusters,
        resident: None,
        search: Some(search),
    };
    let Finished { mut code, summary, diagnosis } = driver::drive(mission, whom, types, &destinations)?;
    if code == exit::OK {
        code = self::code(&summary);
    }
    if let Err(error) = write(&args.output, args.format, &summary) {
        say(&format!("agent: {error}"));
        code = exit::FAILED;
    }
    if let (Some(path), Some(diagnosis)) = (&args.flame_diff, &diagnosis)
        && let Err(error) = write_flame_diff(path, diagnosis)
    {
        say(&format!("agent: {error}"));
        code = exit::FAILED;
    }
    Ok(code)
}

/// What a request costs in the last third of the time, against the first, as a differential flame graph.
fn write_flame_diff(path: &Path, diagnosis: &Diagnosis) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let view = View { measure: Some(Measure::OnCpu), fold_recursion: true, ..View::default() };
    let [(before, served_before), (after, served_after)] = diagnosis.history().thirds();
    let (before, after) = (Flame::of(&before, view), Flame::of(&after, view));
    let scale = if served_before > 0.0 && served_after > 0.0 {
        Scale::Requests { before: served_before, after: served_after }
    } else {
        Scale::Time
    };
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).map_err(fail)?);
    flamegraph::write_diff(&mut out, &Diff::of(&before, &after, scale)).and_then(|()| out.flush()).map_err(fail)
}

fn mission(args: &DiagnoseArgs, thresholds: Thresholds) -> Mission {
    let settings = Settings {
        loop_off_cpu_min: OFF_CPU_MIN,
        other_off_cpu_min: OFF_CPU_MIN,
        ring_bytes: None,
        // What a loop is in when it is switched out says how idle it is: no rule looks at turns.
        parts: &[Part::Ledger, Part::Life, Part::IoUring, Part::Samples, Part::Faults],
        sample_hz: SAMPLE_HZ,
        bounded_loops: false,
        lock_probes: false,
        announce_execs: false,
    };
    let config = TraceConfig {
        window_ns: nanoseconds(args.window),
        loop_off_cpu_min_ns: nanoseconds(settings.loop_off_cpu_min),
        other_off_cpu_min_ns: nanoseconds(settings.other_off_cpu_min),
        sample_hz: SAMPLE_HZ,
        ..TraceConfig::default()
    };
    Mission {
        settings,
        groups: &[Group::Gc, Group::GcKinds, Group::Pool, Group::Requests],
        // No rule looks at phases either.
        phases: PhasesWanted::Never,
        switches: SwitchesWanted::Auto,
        max_overhead: args.max_overhead,
        window: args.window,
        config,
        duration: Some(args.duration),
        quiet: true,
        source_maps: None,
        pg_connection: args.pg_connection.clone(),
        diagnosis: Some(Diagnosis::new(thresholds)),
        counts_objects: true,
        doing: "looking at",
        live: |_, _, _| None,
    }
}

/// The exit code that says whether something is wrong.
#[must_use]
fn code(summary: &Summary) -> u8 {
    let is_wrong = summary.findings.iter().any(|(_, finding)| finding.severity >= Severity::Warning);
    if is_wrong { exit::FOUND } else { exit::OK }
}

/// Writes what was found.
fn write(path: &Path, format: Format, summary: &Summary) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write what was found: {error}");
    let to_stdout = path == Path::new("-");
    let bytes = match format {
        Format::Text => {
            let style = if to_stdout { style(true) } else { Style::default() };
            text::render_findings(summary, style).into_bytes()
        }
        Format::Ndjson => lines(summary, ndjson::write_record).map_err(fail)?,
        Format::Bunyan => lines(summary, bunyan::write_record).map_err(fail)?,
    };
    if to_stdout {
        let mut out = std::io::stdout().lock();
        return out.write_all(&bytes).and_then(|()| out.flush()).map_err(fail);
    }
    std::fs::write(path, bytes).map_err(fail)
}

/// The stacks that findings name, then the findings.
fn lines(summary: &Summary, write: impl Fn(&mut Vec<u8>, &Record) -> std::io::Result<()>) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let time = summary.targets.values().map(|target| target.last_time.clone()).max().unwrap_or_default();
    let mut put = |pid: u32, body: Body| {
        write(&mut out, &Record { schema_version: SCHEMA_VERSION, time: time.clone(), pid, body })
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
