//! `agent daemon`: traces what a file says, now and later, until it is told to end.

use std::path::Path;

use agent_ebpf::spec::{Group, Part};

use super::{
    clusters::Search,
    driver::{self, DriverError, Mission, Whom, say},
    resident::Resident,
    session::{PhasesWanted, SwitchesWanted, TypesAhead},
    sinks::Destinations,
    subject, trace,
};
use crate::{
    cli::{DaemonArgs, Phases, Statements, exit},
    config::{Config, ConfigError},
    diagnose::Diagnosis,
    probe::attach::Settings,
    report::model::TraceConfig,
    target::{host, postgres::StatementText},
    units::nanoseconds,
};

/// Runs the command and returns the exit code.
#[must_use]
pub fn run(args: &DaemonArgs) -> u8 {
    let config = match config(args) {
        Ok(config) => config,
        Err(error) => {
            say(&format!("agent: {error}"));
            return exit::USAGE;
        }
    };
    if args.check_config {
        say(&format!("agent: {} is right", args.config.as_deref().unwrap_or(Path::new("")).display()));
        return exit::OK;
    }
    match stay(args, config) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("agent: {error}"));
            error.code()
        }
    }
}

fn config(args: &DaemonArgs) -> Result<Config, ConfigError> {
    args.config.as_deref().map_or_else(|| Ok(Config::default()), Config::read)
}

fn stay(args: &DaemonArgs, config: Config) -> Result<u8, DriverError> {
    host::allow_descriptors();
    let types = TypesAhead::read();
    let text = match config.trace.statements {
        Statements::None => StatementText::None,
        Statements::Fingerprint => StatementText::Fingerprint,
        Statements::Whole => StatementText::Whole,
    };
    let search = config.trace.postgres.then(|| Search::with_text(text));
    let destinations = Destinations {
        ndjson: config.output.ndjson.clone(),
        goes_on: true,
        listen: config.metrics.listen,
        streams: config.streams.clone(),
        ..Destinations::default()
    };
    let mission = mission(&config, args.ring_size);
    let whom = Whom {
        subjects: Vec::new(),
        launched: None,
        follow: false,
        examine: subject::examine,
        discovery: None,
        clusters: Vec::new(),
        search,
        resident: Some(Resident::new(config, args.config.clone())),
    };
    driver::drive(mission, whom, types, &destinations).map(|finished| finished.code)
}

fn mission(config: &Config, ring_bytes: Option<u32>) -> Mission {
    let settings = Settings {
        loop_off_cpu_min: trace::LOOP_OFF_CPU_MIN,
        other_off_cpu_min: trace::OTHER_OFF_CPU_MIN,
        ring_bytes,
        parts: &[Part::Ledger, Part::Polls, Part::Life, Part::IoUring, Part::Samples],
        sample_hz: config.trace.sample_hz,
        bounded_loops: false,
        lock_probes: false,
        announce_execs: true,
    };
    Mission {
        groups: &[Group::Gc, Group::GcKinds, Group::Pool, Group::Requests],
        phases: match config.trace.phases {
            Phases::Auto => PhasesWanted::Auto,
            Phases::Always => PhasesWanted::Always,
            Phases::Never => PhasesWanted::Never,
        },
        switches: SwitchesWanted::Auto,
        max_overhead: config.budget.max_overhead,
        window: config.trace.window,
        config: TraceConfig {
            window_ns: nanoseconds(config.trace.window),
            slow_turn_ns: nanoseconds(config.trace.slow_turn),
            loop_off_cpu_min_ns: nanoseconds(settings.loop_off_cpu_min),
            other_off_cpu_min_ns: nanoseconds(settings.other_off_cpu_min),
            sample_hz: settings.sample_hz,
            ..TraceConfig::default()
        },
        settings,
        duration: None,
        quiet: true,
        source_maps: config.trace.source_maps.clone(),
        pg_connection: None,
        diagnosis: Some(Diagnosis::default()),
        counts_objects: false,
        doing: "tracing",
        live: |_, _, _| None,
    }
}
