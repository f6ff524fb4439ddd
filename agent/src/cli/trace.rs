//! What is asked of `agent trace`, `agent diagnose` and `agent daemon`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{
    Format, ListenArgs, StreamArgs,
    values::{duration, lasting, pid, ring_size, share, threshold, window},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// All the time where turns are slow enough, else for a window now and then
    Auto,
    /// All the time, whatever it costs
    Always,
    /// Never: time on CPU is not split by phase
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Statements {
    /// Not shown, but for what autovacuum says of itself
    None,
    /// Without their literals
    Fingerprint,
    /// As they are: they may hold secrets
    Whole,
}

/// What tells of waits for PostgreSQL's locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LockWaits {
    Switches,
    Probes,
}

#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Process to trace
    #[arg(short, long, value_name = "PID", value_parser = pid, required_unless_present = "run", conflicts_with = "run")]
    pub pid: Option<u32>,

    /// Stop after this long (30s, 500ms, 5m; bare numbers are seconds) [default: until Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = lasting)]
    pub duration: Option<Duration>,

    /// What to write [default: from the ending of --output, else text]
    #[arg(short, long, value_enum)]
    pub format: Option<Format>,

    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,

    /// Write the records as newline-delimited JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub ndjson: Option<PathBuf>,

    /// Write everything that came from the kernel to this file, to be replayed with `agent report`
    #[arg(long, value_name = "FILE")]
    pub recording: Option<PathBuf>,

    #[command(flatten)]
    pub streams: StreamArgs,

    #[command(flatten)]
    pub listen: ListenArgs,

    /// Turns whose callbacks take longer than this are reported one by one
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    pub slow_turn: Duration,

    /// Report stays off CPU at least this long [default: 100us on event-loop threads, 1ms on others]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub off_cpu_threshold: Option<Duration>,

    /// Samples a second and CPU of what runs there, which name the functions of slow turns; 0 is none
    #[arg(long, value_name = "HZ", default_value = "99", value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub sample_hz: u32,

    /// Directory with source maps (*.map), for scripts that were translated or bundled; maps beside or in scripts are found anyway
    #[arg(long, value_name = "DIR")]
    pub source_maps: Option<PathBuf>,

    /// Split time on CPU by phase of the event loop
    #[arg(long, value_enum, default_value = "auto")]
    pub phases: Phases,

    /// Share of the host's CPUs that all probes together may take from what runs there; where it is more, phases, the thread pool, stacks,
    /// turns, requests, switches are watched for a part of the time, in this order. A process pays at most twice that of one CPU
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub max_overhead: f64,

    /// Trace Node.js processes that the process starts, too
    #[arg(long)]
    pub follow: bool,

    /// Watch the locks of this PostgreSQL server too, and say which of the process's connections wait for them
    #[arg(long, value_name = "PID", value_parser = pid)]
    pub postgres: Option<u32>,

    /// Statements of PostgreSQL's backends
    #[arg(long, value_enum, default_value = "fingerprint")]
    pub pg_statements: Statements,

    /// File that holds the URL of a connection to PostgreSQL, without TLS, by which relations are named; it is never printed
    #[arg(long, value_name = "FILE", env = "AGENT_PG_CONNECTION_FILE")]
    pub pg_connection: Option<PathBuf>,

    /// How often figures are summed up
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = window)]
    pub window: Duration,

    /// Bytes of each ring buffer: a power of two, at least a page (tests of overflow)
    #[arg(long, value_name = "BYTES", hide = true, value_parser = ring_size)]
    pub ring_size: Option<u32>,

    /// Walk stacks without the kernel's help for loops, as kernels before 5.17 do (tests)
    #[arg(long, hide = true)]
    pub bounded_loops: bool,

    /// Where waits for PostgreSQL's locks are learnt of: from uprobes alone, as of servers older than 14 (tests)
    #[arg(long, value_enum, default_value = "switches", hide = true)]
    pub lock_waits: LockWaits,

    /// No live line, no progress: only the result and what goes wrong
    #[arg(short, long)]
    pub quiet: bool,

    /// Start this program and trace it from its first instruction
    #[arg(last = true, value_name = "COMMAND", id = "run")]
    pub run: Vec<String>,
}

#[derive(Args, Debug)]
pub struct DiagnoseArgs {
    /// Process to look at; may be given several times
    #[arg(short, long, value_name = "PID", value_parser = pid, required_unless_present = "all", conflicts_with = "all")]
    pub pid: Vec<u32>,

    /// Every Node.js process and every PostgreSQL cluster of this host
    #[arg(short, long)]
    pub all: bool,

    /// File that holds the URL of a connection to PostgreSQL, without TLS, by which relations are named; it is never printed
    #[arg(long, value_name = "FILE", env = "AGENT_PG_CONNECTION_FILE")]
    pub pg_connection: Option<PathBuf>,

    /// Look for this long (30s, 5m; bare numbers are seconds)
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = lasting)]
    pub duration: Duration,

    /// What to write
    #[arg(short, long, value_enum, default_value = "text")]
    pub format: Format,

    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,

    /// Write all records as newline-delimited JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub ndjson: Option<PathBuf>,

    #[command(flatten)]
    pub streams: StreamArgs,

    #[command(flatten)]
    pub listen: ListenArgs,

    /// Write a flame graph of what a request costs on CPU in the last third of the time, against the first, to this file (SVG)
    #[arg(long, value_name = "FILE")]
    pub flame_diff: Option<PathBuf>,

    /// Where native memory grows, watch malloc and free for seconds, and name who allocates what is not given back. It costs the process up
    /// to a tenth of a core meanwhile
    #[arg(long, conflicts_with = "all")]
    pub native_leaks: bool,

    /// Share of the host's CPUs that all probes together may take from what runs there; where it is more, phases, the thread pool, stacks,
    /// turns, requests, switches are watched for a part of the time, in this order. A process pays at most twice that of one CPU
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub max_overhead: f64,

    /// Set what a rule takes for a growth; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = threshold)]
    pub threshold: Vec<(String, f64)>,

    /// How often figures are summed up
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = window)]
    pub window: Duration,

    /// No progress: only the result and what goes wrong
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct DaemonArgs {
    /// The file that says what to do (TOML) [default: everything as it is by default]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Only say whether the file is right: exit code 0, or 2 and the line
    #[arg(long, requires = "config")]
    pub check_config: bool,

    /// Bytes of each ring buffer: a power of two, at least a page (tests of overflow)
    #[arg(long, value_name = "BYTES", hide = true, value_parser = ring_size)]
    pub ring_size: Option<u32>,
}
