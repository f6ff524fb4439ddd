//! What a driver is told: what is to be measured, in whom, and how it went.

use std::{path::PathBuf, time::Duration};

use agent_ebpf::spec::Group;

use crate::{
    cli::exit,
    commands::{
        clusters::Search,
        discover::Discovery,
        launch::Launched,
        postgres::Watch,
        resident::Resident,
        session::{PhasesWanted, SessionError, SwitchesWanted},
        subject::{Subject, SubjectError},
    },
    diagnose::Diagnosis,
    export::text::Style,
    probe::attach::Settings,
    report::{Record, model::TraceConfig, summary::Summary},
    target::postgres::PostgresError,
    units::Pid,
};

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("{0}")]
    Output(String),
    #[error("cannot start {command}: {source}")]
    Launch { command: String, source: std::io::Error },
    #[error(
        "no Node.js process runs here (or none that may be looked at): name one with --pid, or start it after `--`"
    )]
    NobodyThere,
    #[error("the runtime could not start: {0}")]
    Runtime(#[source] std::io::Error),
}

impl DriverError {
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Subject(error) if error.is_denied() => exit::NOT_ALLOWED,
            Self::Subject(_) | Self::Postgres(_) | Self::NobodyThere => exit::NO_TARGET,
            Self::Session(_) => exit::NOT_ALLOWED,
            Self::Output(_) | Self::Launch { .. } | Self::Runtime(_) => exit::FAILED,
        }
    }
}

/// What is to be measured, and how.
pub struct Mission {
    pub settings: Settings,
    /// Uprobes that every file gets.
    pub groups: &'static [Group],
    pub phases: PhasesWanted,
    pub switches: SwitchesWanted,
    /// Share of the host's CPUs that probes may take which can come off.
    pub max_overhead: f64,
    pub window: Duration,
    pub config: TraceConfig,
    pub duration: Option<Duration>,
    pub quiet: bool,
    /// Where the user keeps maps of translated scripts.
    pub source_maps: Option<PathBuf>,
    /// The file that says how to ask for the names of PostgreSQL's relations.
    pub pg_connection: Option<PathBuf>,
    /// What is wrong is said as it ends; then it is looked at what processes hold, too.
    pub diagnosis: Option<Diagnosis>,
    /// Live objects are counted where a heap grows, which costs seconds of CPU for a large one.
    pub counts_objects: bool,
    /// What is done to a process, in a word for people.
    pub doing: &'static str,
    /// One line about a record, where somebody watches.
    pub live: fn(&Record, &Summary, Style) -> Option<String>,
}

/// Who is looked at.
pub struct Whom {
    pub subjects: Vec<Subject>,
    /// A program that has not begun yet.
    pub launched: Option<Launched>,
    /// Children that are of the kind, too.
    pub follow: bool,
    /// How a process is looked at that has become another program.
    pub examine: fn(Pid) -> Result<Subject, SubjectError>,
    /// Looks for more while it lasts.
    pub discovery: Option<Discovery>,
    /// PostgreSQL servers, whose locks are watched.
    pub clusters: Vec<Watch>,
    /// Looks for more of these while it lasts.
    pub search: Option<Search>,
    /// Of a daemon, which stays when nobody is there.
    pub resident: Option<Resident>,
}

/// How it went.
pub struct Finished {
    pub code: u8,
    pub summary: Summary,
    pub diagnosis: Option<Diagnosis>,
}
