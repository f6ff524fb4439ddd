//! `agent trace`: from a pid to a report.

use std::{io::Write, path::Path, time::Duration};

use agent_ebpf::spec::{Group, Part};

use super::{
    driver::{self, DriverError, Mission, Whom, say, style},
    launch::Launched,
    postgres::Watch,
    session::{PhasesWanted, SwitchesWanted, TypesAhead},
    sinks::Destinations,
    streams, subject,
};
use crate::{
    cli::{Format, LockWaits, Phases, Statements, TraceArgs, exit},
    diagnose::Diagnosis,
    export::text::{self, Style},
    probe::attach::Settings,
    report::{model::TraceConfig, summary::Summary},
    target::postgres::{PostgresError, Server, StatementText},
    units::{Pid, nanoseconds},
};

/// Default thresholds of stays off CPU: event-loop threads, and all others.
pub const LOOP_OFF_CPU_MIN: Duration = Duration::from_micros(100);
pub const OTHER_OFF_CPU_MIN: Duration = Duration::from_millis(1);

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &TraceArgs) -> u8 {
    match trace(args) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

fn trace(args: &TraceArgs) -> Result<u8, DriverError> {
    let types = TypesAhead::read();
    // A mistake in the command line is told before anybody is looked for, or started.
    let destinations = destinations(args)?;
    if let Some(pid) = args.pid.map(Pid).filter(|pid| Server::is_one(*pid)) {
        return trace_postgres(args, pid, types, &destinations);
    }
    let launched = Launched::of_command(&args.run)?;
    let subject = match (&launched, args.pid) {
        (Some(launched), _) => launched.subject()?,
        (None, Some(pid)) => subject::examine(Pid(pid))?,
        (None, None) => return Err(DriverError::Output("nothing to trace: give --pid or a command".into())),
    };
    let whom = Whom {
        subjects: vec![subject],
        launched,
        follow: args.follow,
        examine: subject::examine,
        discovery: None,
        search: None,
        resident: None,
        clusters: args.postgres.map(|pid| watch(args, Pid(pid))).transpose()?.into_iter().collect(),
    };
    carry_out(mission(args), whom, types, &destinations)
}

/// A PostgreSQL cluster alone needs neither tracepoints nor samples.
fn trace_postgres(
    args: &TraceArgs,
    pid: Pid,
    types: TypesAhead,
    destinations: &Destinations,
) -> Result<u8, DriverError> {
    let whom = Whom {
        subjects: Vec::new(),
        launched: None,
        follow: false,
        examine: subject::examine,
        discovery: None,
        search: None,
        resident: None,
        clusters: vec![watch(args, pid)?],
    };
    let settings = Settings { parts: &[], sample_hz: 0, ..settings(args) };
    let mission = Mission { settings, groups: &[], phases: PhasesWanted::Never, ..mission(args) };
    carry_out(mission, whom, types, destinations)
}

fn watch(args: &TraceArgs, pid: Pid) -> Result<Watch, PostgresError> {
    let text = match args.pg_statements {
        Statements::None => StatementText::None,
        Statements::Fingerprint => StatementText::Fingerprint,
        Statements::Whole => StatementText::Whole,
    };
    Watch::begin(pid, subject::clock(), text)
}

fn carry_out(mission: Mission, whom: Whom, types: TypesAhead, destinations: &Destinations) -> Result<u8, DriverError> {
    let finished = driver::drive(mission, whom, types, destinations)?;
    match destinations.text.as_ref().map(|path| write_text(path, &finished.summary)) {
        None | Some(Ok(())) => Ok(finished.code),
        Some(Err(error)) => {
            say(&format!("agent: {error}"));
            Ok(exit::FAILED)
        }
    }
}

fn mission(args: &TraceArgs) -> Mission {
    let settings = settings(args);
    let config = TraceConfig {
        window_ns: nanoseconds(args.window),
        slow_turn_ns: nanoseconds(args.slow_turn),
        loop_off_cpu_min_ns: nanoseconds(settings.loop_off_cpu_min),
        other_off_cpu_min_ns: nanoseconds(settings.other_off_cpu_min),
        sample_hz: settings.sample_hz,
        ..TraceConfig::default()
    };
    Mission {
        settings,
        groups: &[Group::Gc, Group::GcKinds, Group::Pool],
        phases: phases(args.phases),
        switches: SwitchesWanted::Auto,
        max_overhead: args.max_overhead,
        window: args.window,
        config,
        duration: args.duration,
        quiet: args.quiet,
        source_maps: args.source_maps.clone(),
        pg_connection: args.pg_connection.clone(),
        diagnosis: Some(Diagnosis::default()),
        counts_objects: false,
        doing: "tracing",
        live: |record, _, style| text::live_line(record, style),
    }
}

fn settings(args: &TraceArgs) -> Settings {
    Settings {
        loop_off_cpu_min: args.off_cpu_threshold.unwrap_or(LOOP_OFF_CPU_MIN),
        other_off_cpu_min: args.off_cpu_threshold.unwrap_or(OTHER_OFF_CPU_MIN),
        ring_bytes: args.ring_size,
        parts: &[Part::Ledger, Part::Polls, Part::Life, Part::IoUring, Part::Samples],
        sample_hz: args.sample_hz,
        bounded_loops: args.bounded_loops,
        lock_probes: args.lock_waits == LockWaits::Probes,
        announce_execs: false,
    }
}

fn phases(phases: Phases) -> PhasesWanted {
    match phases {
        Phases::Auto => PhasesWanted::Auto,
        Phases::Always => PhasesWanted::Always,
        Phases::Never => PhasesWanted::Never,
    }
}

/// Where what goes: the format is what was asked for, else what the file's name says, else text.
fn destinations(args: &TraceArgs) -> Result<Destinations, DriverError> {
    let by_name =
        args.output.extension().is_some_and(|ending| ending == "ndjson" || ending == "jsonl" || ending == "json");
    let format = args.format.unwrap_or(if by_name { Format::Ndjson } else { Format::Text });
    let mut destinations = Destinations {
        ndjson: args.ndjson.clone().into_iter().collect(),
        recording: args.recording.clone(),
        listen: args.listen.listen,
        streams: streams::of_args(&args.streams, None)?,
        ..Destinations::default()
    };
    match format {
        Format::Text => destinations.text = Some(args.output.clone()),
        Format::Ndjson => destinations.ndjson.push(args.output.clone()),
        Format::Bunyan => destinations.bunyan = Some(args.output.clone()),
    }
    Ok(destinations)
}

/// Writes the report where it was asked for.
pub fn write_text(path: &Path, summary: &Summary) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("cannot write the report: {error}");
    if path == Path::new("-") {
        let text = text::render(summary, style(true));
        let mut out = std::io::stdout().lock();
        return out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(fail);
    }
    std::fs::write(path, text::render(summary, Style::default())).map_err(fail)
}
