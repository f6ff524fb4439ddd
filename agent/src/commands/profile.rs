//! `agent profile`: from a pid to a flame graph; and two profiles to their difference.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use agent_ebpf::spec::{Group, Part};

use super::{
    discover::Discovery,
    driver::{self, DriverError, Finished, Mission, Whom, say, style},
    launch::Launched,
    report::read_summary,
    session::{PhasesWanted, SwitchesWanted, TypesAhead},
    sinks::Destinations,
    streams, subject,
    trace::{LOOP_OFF_CPU_MIN, OTHER_OFF_CPU_MIN},
};
use crate::{
    cli::{By, DiffArgs, ProfileArgs, ProfileCommand, ProfileFormat, ViewArgs, exit},
    export::{
        flamegraph, folded, pprof, speedscope,
        stream::OtlpSignal,
        text::{self, Style},
    },
    probe::attach::Settings,
    report::{
        Body, Record,
        flame::{
            Flame, Measure, Spaces, View,
            diff::{Diff, Scale},
        },
        model::TraceConfig,
        summary::Summary,
    },
    units::{Pid, nanoseconds},
};

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &ProfileArgs) -> u8 {
    if let Some(ProfileCommand::Diff(args)) = &args.command {
        return match diff(args) {
            Ok(()) => exit::OK,
            Err(error) => {
                say(&format!("agent: {error}"));
                exit::FAILED
            }
        };
    }
    match profile(args) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

fn profile(args: &ProfileArgs) -> Result<u8, DriverError> {
    let format = format(args.format, &args.output).map_err(DriverError::Output)?;
    let mut destinations = Destinations {
        ndjson: args.ndjson.clone().into_iter().collect(),
        recording: args.recording.clone(),
        streams: streams::of_args(&args.streams, Some(OtlpSignal::Profiles))?,
        ..Destinations::default()
    };
    if format == ProfileFormat::Ndjson {
        destinations.ndjson.push(args.output.clone());
    } else {
        // Not after half a minute of measuring.
        writable(&args.output).map_err(DriverError::Output)?;
    }
    let types = TypesAhead::read();
    let whom = whom(args)?;
    if !args.quiet && whom.subjects.len() > 1 {
        say(&format!("agent: profiling {} processes; Ctrl-C ends it with a report", whom.subjects.len()));
    }
    let Finished { mut code, summary, .. } = driver::drive(mission(args), whom, types, &destinations)?;
    if format != ProfileFormat::Ndjson
        && let Err(error) = write(&args.output, format, &summary, view(args.view))
    {
        say(&format!("agent: {error}"));
        code = exit::FAILED;
    }
    Ok(code)
}

fn whom(args: &ProfileArgs) -> Result<Whom, DriverError> {
    let launched = Launched::of_command(&args.run)?;
    let mut discovery = args.all.then(Discovery::default);
    let subjects = match (&launched, &mut discovery) {
        (Some(launched), _) => vec![launched.subject()?],
        (None, Some(discovery)) => discovery.newcomers(),
        (None, None) => args.pid.iter().map(|pid| subject::examine_any(Pid(*pid))).collect::<Result<Vec<_>, _>>()?,
    };
    Ok(Whom {
        subjects,
        launched,
        follow: args.follow,
        examine: subject::examine_any,
        discovery,
        clusters: Vec::new(),
        resident: None,
        search: None,
    })
}

fn measure(view: ViewArgs) -> Option<Measure> {
    match (view.off_cpu, view.wall) {
        (true, _) => Some(Measure::OffCpu),
        (false, true) => Some(Measure::Wall),
        (false, false) => None,
    }
}

/// What to show.
#[must_use]
pub fn view(args: ViewArgs) -> View {
    View {
        measure: measure(args),
        by_thread: args.threads,
        fold_recursion: args.fold_recursion,
        spaces: match (args.user_stacks_only, args.kernel_stacks_only) {
            (true, _) => Spaces::User,
            (false, true) => Spaces::Kernel,
            (false, false) => Spaces::Both,
        },
        without_pids: false,
    }
}

fn mission(args: &ProfileArgs) -> Mission {
    let measure = measure(args.view).unwrap_or_default();
    // What is not asked for is not attached: samples alone cost a hundredth of what it takes to follow every switch.
    let (parts, sample_hz): (&'static [Part], u32) = match measure {
        Measure::OnCpu => (&[Part::Samples, Part::Life], args.frequency),
        Measure::OffCpu => (&[Part::Ledger, Part::Life], 0),
        Measure::Wall => (&[Part::Samples, Part::Ledger, Part::Life], args.frequency),
    };
    let settings = Settings {
        loop_off_cpu_min: args.off_cpu_threshold.unwrap_or(LOOP_OFF_CPU_MIN),
        other_off_cpu_min: args.off_cpu_threshold.unwrap_or(OTHER_OFF_CPU_MIN),
        ring_bytes: None,
        parts,
        sample_hz,
        bounded_loops: false,
        lock_probes: false,
        announce_execs: false,
    };
    let config = TraceConfig {
        window_ns: nanoseconds(args.window),
        loop_off_cpu_min_ns: nanoseconds(settings.loop_off_cpu_min),
        other_off_cpu_min_ns: nanoseconds(settings.other_off_cpu_min),
        sample_hz,
        profile: Some(measure),
        ..TraceConfig::default()
    };
    Mission {
        settings,
        // Beside the ledger: for whom threads of V8 work, and whether one of the pool waits for work or is kept from it.
        groups: if measure == Measure::OnCpu { &[Group::Gc] } else { &[Group::Gc, Group::GcKinds, Group::Pool] },
        phases: PhasesWanted::Never,
        switches: SwitchesWanted::Always,
        max_overhead: args.max_overhead,
        window: args.window,
        config,
        duration: args.duration,
        quiet: args.quiet,
        source_maps: args.source_maps.clone(),
        pg_connection: None,
        diagnosis: None,
        counts_objects: false,
        doing: "profiling",
        live: progress,
    }
}

/// One line a window, where somebody watches.
fn progress(record: &Record, summary: &Summary, style: Style) -> Option<String> {
    let Body::Agent(_) = &record.body else { return None };
    text::profile_progress(&record.time, summary, style)
}

/// What is to be written: what was asked for, else what the file's name says, else text.
fn format(wanted: Option<ProfileFormat>, output: &Path) -> Result<ProfileFormat, String> {
    if let Some(format) = wanted {
        return Ok(format);
    }
    if output == Path::new("-") {
        return Ok(ProfileFormat::Text);
    }
    ProfileFormat::of_name(output).ok_or_else(|| {
        format!(
            "the ending of {} does not say what it is to be: end it in .svg, .folded, .pb.gz, .speedscope.json or .ndjson, or \
             give --format",
            output.display()
        )
    })
}

fn writable(path: &Path) -> Result<(), String> {
    if path == Path::new("-") {
        return Ok(());
    }
    File::create(path).map(drop).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Writes a profile in the format that is wanted.
pub fn write(path: &Path, format: ProfileFormat, summary: &Summary, view: View) -> Result<(), String> {
    let flame = Flame::of(summary, view);
    let style = if path == Path::new("-") { style(true) } else { Style::default() };
    let fail = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut out = create(path).map_err(fail)?;
    match format {
        ProfileFormat::Text => out.write_all(text::profile(&flame, summary, style).as_bytes()),
        ProfileFormat::Svg => flamegraph::write(&mut out, &flame),
        ProfileFormat::Folded => folded::write(&mut out, &flame),
        ProfileFormat::Pprof => pprof::write(&mut out, &flame),
        ProfileFormat::Speedscope => speedscope::write(&mut out, &flame),
        // Records are written as they come.
        ProfileFormat::Ndjson => Ok(()),
    }
    .and_then(|()| out.flush())
    .map_err(fail)
}

fn create(path: &Path) -> io::Result<BufWriter<Box<dyn Write>>> {
    let to: Box<dyn Write> =
        if path == Path::new("-") { Box::new(io::stdout()) } else { Box::new(File::create(path)?) };
    Ok(BufWriter::new(to))
}

fn diff(args: &DiffArgs) -> Result<(), String> {
    let format = match format(args.format, &args.output)? {
        format @ (ProfileFormat::Text | ProfileFormat::Svg) => format,
        ProfileFormat::Folded if args.format.is_none() => ProfileFormat::Text,
        _ => return Err("a difference is written as text or svg".into()),
    };
    let view = View { by_thread: false, without_pids: true, ..view(args.view) };
    let read = |path: &Path| -> Result<Flame, String> {
        let flame = Flame::of(&read_summary(path)?, view);
        if flame.weight_ns() == 0 {
            return Err(format!("{} holds no {}", path.display(), text::measured(flame.measure)));
        }
        Ok(flame)
    };
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    if before.measure != after.measure {
        return Err(format!(
            "{} is about {}, and {} about {}: take both with the same options",
            args.before.display(),
            text::measured(before.measure),
            args.after.display(),
            text::measured(after.measure)
        ));
    }
    let scale = match (args.requests, args.by) {
        (Some((before, after)), _) => Scale::Requests { before, after },
        (None, By::Share) => Scale::Share,
        (None, By::Time) => Scale::Time,
    };
    let diff = Diff::of(&before, &after, scale);
    let fail = |error: io::Error| format!("cannot write {}: {error}", args.output.display());
    let mut out = create(&args.output).map_err(fail)?;
    let style = if args.output == Path::new("-") { style(true) } else { Style::default() };
    match format {
        ProfileFormat::Svg => flamegraph::write_diff(&mut out, &diff),
        _ => out.write_all(text::profile_diff(&diff, style).as_bytes()),
    }
    .and_then(|()| out.flush())
    .map_err(fail)
}
