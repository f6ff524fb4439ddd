//! The command line: what can be asked of the program.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;

mod stream;

pub use stream::{ListenArgs, OtlpSignal, StreamArgs};

/// Exit codes, as documented in `--help`.
pub mod exit {
    pub const OK: u8 = 0;
    /// Something failed; a message says what.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The process does not exist, or is not one that can be traced.
    pub const NO_TARGET: u8 = 3;
    /// The kernel or the privileges do not allow it.
    pub const NOT_ALLOWED: u8 = 4;
    /// Done, and something is wrong: findings of severity warning or worse.
    pub const FOUND: u8 = 5;
    /// Ended by Ctrl-C, after everything was written.
    pub const INTERRUPTED: u8 = 130;
    /// Ended by SIGTERM, after everything was written.
    pub const TERMINATED: u8 = 143;
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    something failed; the message says what
  2    the command line is wrong
  3    no such process, or not one that can be traced
  4    the kernel or the privileges do not allow it: see `agent doctor`
  5    diagnose: done, and something is wrong (a warning or worse); 0 if nothing is
  130  ended by Ctrl-C, after the report was written
  143  ended by SIGTERM, after the report was written";

const TRACE_EXAMPLES: &str = "\
Examples:
  agent trace --pid 4121                                   until Ctrl-C, then the report
  agent trace --pid 4121 --duration 30s                    half a minute, then the report
  agent trace --pid 4121 --duration 30s --format ndjson -o trace.ndjson
  agent trace --pid 4121 --ndjson trace.ndjson             both: the report here, the records there
  agent trace --pid 4121 --to tls://logs.example:6514      the records to a collector, as they come
  agent trace --pid 4121 --slow-turn 50ms                  each turn longer than 50 ms one by one
  agent trace --pid 4121 --off-cpu-threshold 0             every stay off CPU, however short
  agent trace --follow -- node server.js                   from the first instruction, children too
  agent trace --pid 812                                    a PostgreSQL server: who waits for whose lock

The process is not stopped, signalled or changed: no flag, no restart, no inspector.";

const DAEMON_EXAMPLES: &str = "\
Examples:
  agent daemon                                             every Node.js and PostgreSQL process, records to standard output
  agent daemon --config /etc/agent/agent.toml              as this file says
  agent daemon --config agent.toml --check-config          say whether the file is right, and where it is not
  kill -HUP $(pidof agent)                                 read the file again; one with a mistake is refused, the old one stays

It traces processes that run and those that are started later, and waits where there is none. SIGTERM and Ctrl-C end it within five
seconds, after what was measured is written; however it ends, nothing stays attached.";

const DIAGNOSE_EXAMPLES: &str = "\
Examples:
  agent diagnose --pid 4121                                a minute, then what is wrong, worst first
  agent diagnose --all --duration 5m                       every Node.js and PostgreSQL process of this host
  agent diagnose --pid 4121 --format ndjson                one JSON object a finding
  agent diagnose --pid 4121 --threshold handles=50         take a smaller growth for one

Leaks and creeping costs are trends: the longer it looks, the smaller a growth it can tell from noise.";

const PROFILE_EXAMPLES: &str = "\
Examples:
  agent profile --pid 4121 --duration 30s                  half a minute, then the hottest functions
  agent profile --pid 4121 --duration 30s -o flame.svg     a flame graph; the ending says what it is to be
  agent profile --pid 4121 --off-cpu -o offcpu.svg         where it waits, and what for
  agent profile --pid 4121 --wall -o wall.svg              both, and idle apart
  agent profile --all --duration 30s -o node.pb.gz         every Node.js process of this host, for pprof
  agent profile -o start.speedscope.json -- node app.js    a program from its first instruction
  agent profile --pid 4121 --to otlp+http://host:4318      to a collector with a pipeline for profiles
  agent profile diff before.ndjson after.ndjson -o diff.svg

Endings of files: .svg, .folded or .txt, .pb.gz or .pprof, .speedscope.json, .ndjson.
No flag, no restart, no inspector: the process is not stopped, signalled or changed. A process that is no Node.js is profiled as
well, with its native stacks. Keep the records (.ndjson) to draw them in other ways later, with `agent report`, and to compare.";

const DIFF_EXAMPLES: &str = "\
Examples:
  agent profile diff before.ndjson after.ndjson            which functions grew, and which shrank
  agent profile diff before.ndjson after.ndjson -o diff.svg
  agent profile diff before.ndjson after.ndjson --by time  ms of CPU a second of the clock, not shares
  agent profile diff before.ndjson after.ndjson --requests 12000,13500

Boxes of the graph are as wide as the mean of both, red where they grew, blue where they shrank, and white where the difference may be
chance. Both files are records of `agent profile` (or of `agent trace`).";

const HEAP_EXAMPLES: &str = "\
Examples:
  agent heap --pid 4121                                    live objects by constructor, most bytes first
  agent heap --pid 4121 --top 100
  agent heap --pid 4121 -o before.ndjson                   keep it, to compare with a later one
  agent heap diff before.ndjson after.ndjson               what grew, most bytes first

The process is not stopped, signalled or changed, and no garbage is collected: its memory is read while it runs, as far as live
objects lead. Counts are within 10 % of a heap snapshot's where the collector is not at work all the time, on Node.js 18 to 26. Each
report says how much of what it looked at was moved meanwhile. Bytes are those of the objects themselves, not of what they hold.";

const HEAP_DIFF_EXAMPLES: &str = "\
Examples:
  agent heap diff before.ndjson after.ndjson               which constructors grew, and which shrank
  agent heap diff before.ndjson after.ndjson --top 100

Both files are written by `agent heap --pid PID -o FILE.ndjson`.";

const REPORT_EXAMPLES: &str = "\
Examples:
  agent report trace.ndjson                                the report again
  agent report trace.rec --format ndjson                   the records of a recording
  agent report trace.ndjson -o flame.svg                   what ran on the CPUs, as a flame graph
  agent report profile.ndjson --off-cpu -o waits.svg";

const LONG_ABOUT: &str = "\
Where does a running Node.js process spend its time?

agent attaches eBPF programs to an unmodified, running Node.js process and says where its event loops' time goes: callbacks \
by phase, garbage collection, blocking calls, waiting for a CPU, the thread pool. It needs root (or CAP_BPF, CAP_PERFMON and \
CAP_SYS_PTRACE) and Linux 5.15 or newer; `agent doctor` says what works here.";

/// Where does a running Node.js process spend its time?
#[derive(Debug, Parser)]
#[command(name = "agent", version, long_about = LONG_ABOUT, after_help = EXIT_CODES, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say more on standard error (-v: info, -vv: debug); `RUST_LOG` overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace a Node.js process (event loop, thread pool, garbage collection, off-CPU time, run queue), or a PostgreSQL server (locks)
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(TraceArgs),
    /// Say what is wrong with a process: what grows, how fast, who makes it, and what to do
    #[command(after_help = DIAGNOSE_EXAMPLES)]
    Diagnose(DiagnoseArgs),
    /// Trace every Node.js and PostgreSQL process of this host, now and later, as a file says
    #[command(after_help = DAEMON_EXAMPLES)]
    Daemon(DaemonArgs),
    /// Profile processes: where JavaScript, native code and the kernel spend their time, on CPU or waiting
    #[command(after_help = PROFILE_EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Profile(Box<ProfileArgs>),
    /// Count the live objects of a Node.js process by constructor, without a heap snapshot
    #[command(after_help = HEAP_EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Heap(HeapArgs),
    /// Print the report of an earlier trace again, or draw its profile
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Say what works on this host and on a process, what does not, why, and what to do about it
    #[command(after_help = "Examples:\n  agent doctor\n  agent doctor --pid 4121\n  agent doctor --json")]
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  agent completions bash > /etc/bash_completion.d/agent")]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page
    #[command(after_help = "Example:\n  agent man | man -l -")]
    Man,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A report for a person
    Text,
    /// Newline-delimited JSON, one self-contained record a line
    Ndjson,
    /// Records for the `bunyan` command, one a line
    Bunyan,
}

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

#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Process to trace
    #[arg(short, long, value_name = "PID", required_unless_present = "run", conflicts_with = "run")]
    pub pid: Option<u32>,

    /// Stop after this long (30s, 500ms, 5m; bare numbers are seconds) [default: until Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
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

    /// Share of the host's CPUs that probes may take which come off where they are hit too often: of the thread pool, of phases, of
    /// requests; a process pays at most twice that of one CPU
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub max_overhead: f64,

    /// Trace Node.js processes that the process starts, too
    #[arg(long)]
    pub follow: bool,

    /// Watch the locks of this PostgreSQL server too, and say which of the process's connections wait for them
    #[arg(long, value_name = "PID")]
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

    /// No live line, no progress: only the result and what goes wrong
    #[arg(short, long)]
    pub quiet: bool,

    /// Start this program and trace it from its first instruction
    #[arg(last = true, value_name = "COMMAND", id = "run")]
    pub run: Vec<String>,
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

/// What a profile is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileFormat {
    /// The hottest functions and stacks, for a person
    Text,
    /// Newline-delimited JSON, one self-contained record a line
    Ndjson,
    /// A flame graph, for a browser
    Svg,
    /// Collapsed stacks, one a line
    Folded,
    /// Gzipped profile.proto, for `go tool pprof`, Pyroscope, Parca
    Pprof,
    /// For speedscope.app
    Speedscope,
}

impl ProfileFormat {
    /// What the name of a file says.
    #[must_use]
    pub fn of_name(path: &std::path::Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let ends = |ending: &str| name.len() > ending.len() && name.ends_with(ending);
        [
            (".svg", Self::Svg),
            (".folded", Self::Folded),
            (".collapsed", Self::Folded),
            (".txt", Self::Folded),
            (".pb.gz", Self::Pprof),
            (".pprof", Self::Pprof),
            (".speedscope.json", Self::Speedscope),
            (".speedscope", Self::Speedscope),
            (".ndjson", Self::Ndjson),
            (".jsonl", Self::Ndjson),
        ]
        .into_iter()
        .find_map(|(ending, format)| ends(ending).then_some(format))
    }
}

/// What of a profile is shown.
#[derive(Args, Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "flags of the command line")]
pub struct ViewArgs {
    /// Where threads wait, instead of where they run
    #[arg(long, conflicts_with = "wall")]
    pub off_cpu: bool,

    /// Where threads run and where they wait, with idle time apart
    #[arg(long)]
    pub wall: bool,

    /// Tell threads apart, and not only what they are for
    #[arg(long)]
    pub threads: bool,

    /// Show recursion once, and say how deep it is: frames that repeat, and cycles of up to eight
    #[arg(long)]
    pub fold_recursion: bool,

    /// Without the kernel's frames
    #[arg(short = 'U', long, conflicts_with = "kernel_stacks_only")]
    pub user_stacks_only: bool,

    /// With the kernel's frames alone
    #[arg(short = 'K', long)]
    pub kernel_stacks_only: bool,
}

#[derive(Args, Debug)]
pub struct ProfileArgs {
    #[command(subcommand)]
    pub command: Option<ProfileCommand>,

    /// Process to profile, Node.js or not; may be given more than once
    #[arg(short, long, value_name = "PID", required_unless_present_any = ["all", "run"], conflicts_with_all = ["all", "run"])]
    pub pid: Vec<u32>,

    /// Every Node.js process of this host, and those that are started meanwhile
    #[arg(short, long, conflicts_with = "run")]
    pub all: bool,

    /// Stop after this long (30s, 500ms, 5m; bare numbers are seconds) [default: until Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Samples a second and CPU
    #[arg(short = 'F', long, value_name = "HZ", default_value = "99", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub frequency: u32,

    /// Stays off CPU at least this long have a stack [default: 100us on event-loop threads, 1ms on others]
    #[arg(long, visible_alias = "min-block", value_name = "TIME", value_parser = duration)]
    pub off_cpu_threshold: Option<Duration>,

    #[command(flatten)]
    pub view: ViewArgs,

    /// Directory with source maps (*.map), for scripts that were translated or bundled; maps beside or in scripts are found anyway
    #[arg(long, value_name = "DIR")]
    pub source_maps: Option<PathBuf>,

    /// What to write [default: from the ending of --output, else text]
    #[arg(short, long, value_enum)]
    pub format: Option<ProfileFormat>,

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

    /// Profile Node.js processes that a process starts, too
    #[arg(long)]
    pub follow: bool,

    /// How often figures are summed up
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = window)]
    pub window: Duration,

    /// No progress: only the result and what goes wrong
    #[arg(short, long)]
    pub quiet: bool,

    /// Start this program and profile it from its first instruction
    #[arg(last = true, value_name = "COMMAND", id = "run")]
    pub run: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum ProfileCommand {
    /// Compare two profiles: what grew, what shrank
    #[command(after_help = DIFF_EXAMPLES)]
    Diff(DiffArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Each profile's whole: what takes a larger part, whatever the load
    Share,
    /// The time that each took: what takes more of the machine
    Time,
}

#[derive(Args, Debug)]
pub struct DiffArgs {
    /// Records of the profile before (newline-delimited JSON)
    pub before: PathBuf,

    /// Records of the profile after
    pub after: PathBuf,

    /// What both are related to, to be compared
    #[arg(long, value_enum, default_value = "share")]
    pub by: By,

    /// Requests that were served during each: compares what a request costs
    #[arg(long, value_name = "BEFORE,AFTER", conflicts_with = "by", value_parser = requests)]
    pub requests: Option<(f64, f64)>,

    #[command(flatten)]
    pub view: ViewArgs,

    /// What to write: text or svg [default: from the ending of --output, else text]
    #[arg(short, long, value_enum)]
    pub format: Option<ProfileFormat>,

    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Args, Debug)]
pub struct DiagnoseArgs {
    /// Process to look at; may be given several times
    #[arg(short, long, value_name = "PID", required_unless_present = "all", conflicts_with = "all")]
    pub pid: Vec<u32>,

    /// Every Node.js process and every PostgreSQL cluster of this host
    #[arg(short, long)]
    pub all: bool,

    /// File that holds the URL of a connection to PostgreSQL, without TLS, by which relations are named; it is never printed
    #[arg(long, value_name = "FILE", env = "AGENT_PG_CONNECTION_FILE")]
    pub pg_connection: Option<PathBuf>,

    /// Look for this long (30s, 5m; bare numbers are seconds)
    #[arg(short, long, value_name = "TIME", default_value = "60s", value_parser = duration)]
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

    /// Share of the host's CPUs that probes may take which come off where they are hit too often: of the thread pool, of phases, of
    /// requests; a process pays at most twice that of one CPU
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
pub struct HeapArgs {
    #[command(subcommand)]
    pub command: Option<HeapCommand>,

    /// Process whose heap is counted
    #[arg(short, long, value_name = "PID", required = true)]
    pub pid: Option<u32>,

    #[command(flatten)]
    pub view: HeapViewArgs,

    /// Give up after this long, and say what was counted until then
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,

    /// No progress: only the result and what goes wrong
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum HeapCommand {
    /// Compare two censuses: what grew, what shrank
    #[command(after_help = HEAP_DIFF_EXAMPLES)]
    Diff(HeapDiffArgs),
}

/// How a census is shown.
#[derive(Args, Debug)]
pub struct HeapViewArgs {
    /// Constructors that a report lists; the rest is summed up
    #[arg(long, value_name = "N", default_value = "30")]
    pub top: usize,

    /// What to write [default: from the ending of --output, else text]
    #[arg(short, long, value_enum)]
    pub format: Option<Format>,

    /// The same as --format ndjson: a line a constructor, and one of all
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Args, Debug)]
pub struct HeapDiffArgs {
    /// The census before (newline-delimited JSON)
    pub before: PathBuf,

    /// The census after
    pub after: PathBuf,

    #[command(flatten)]
    pub view: HeapViewArgs,
}

#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Records (newline-delimited JSON) or a recording; - is standard input
    pub file: PathBuf,

    /// What to write [default: from the ending of --output, else text]
    #[arg(short, long, value_enum)]
    pub format: Option<ProfileFormat>,

    #[command(flatten)]
    pub view: ViewArgs,

    /// Where to write it; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Look at this process too: what can be traced in it
    #[arg(short, long, value_name = "PID")]
    pub pid: Option<u32>,

    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// Reads a share: `1%`, `0.5%`; without a sign it is percent, too.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let percent = number.parse::<f64>().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0);
    percent.map(|percent| percent / 100.0).ok_or_else(|| format!("`{text}` is not a share: write it like 1% or 0.5%"))
}

/// A time with a unit; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let value: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a time: write it like 30s, 500ms, 100us or 2m"))?;
    let seconds = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" | "µs" => 1e-6,
        "ns" => 1e-9,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`: use ns, us, ms, s, m or h")),
    };
    Duration::try_from_secs_f64(value * seconds).map_err(|_| format!("`{text}` is too long a time"))
}

fn threshold(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write it like handles=50")?;
    let value: f64 = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
    Ok((name.to_owned(), value))
}

pub fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window < Duration::from_millis(100) || window > Duration::from_mins(1) {
        return Err("a window lasts from 100ms to 60s".into());
    }
    Ok(window)
}

/// Two numbers of requests.
fn requests(text: &str) -> Result<(f64, f64), String> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    text.split_once(',')
        .and_then(|(before, after)| number(before).zip(number(after)))
        .ok_or_else(|| "two numbers above 0 with a comma between them, as in 12000,13500".into())
}

fn ring_size(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| format!("`{text}` is not a number of bytes"))?;
    if !bytes.is_power_of_two() || bytes < 4096 {
        return Err("a power of two, at least 4096".into());
    }
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("30").unwrap(), Duration::from_secs(30));
        assert_eq!(duration("1.5ms").unwrap(), Duration::from_nanos(1_500_001) - Duration::from_nanos(1));
        assert_eq!(duration("100us").unwrap(), Duration::from_micros(100));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        assert!(duration("soon").unwrap_err().contains("write it like"));
        assert!(duration("3 fortnights").unwrap_err().contains("unknown unit"));
        assert!(duration("99999999999999999999h").unwrap_err().contains("too long"));
    }

    #[test]
    fn a_profile_has_somebody_to_profile_or_two_files_to_compare() {
        let parse = |args: &str| Cli::try_parse_from(["agent", "profile"].into_iter().chain(args.split(' ')));
        assert!(Cli::try_parse_from(["agent", "profile"]).is_err());
        assert!(parse("--pid 1 --pid 2 -F 49 --off-cpu").is_ok());
        assert!(parse("--all --wall --threads").is_ok());
        assert!(parse("-- node x.js").is_ok());
        assert!(parse("--all --pid 1").is_err());
        assert!(parse("--pid 1 --off-cpu --wall").is_err());
        assert!(parse("diff a b --requests 1,2").is_ok());
        assert!(parse("diff a").is_err());
        assert!(parse("diff a b --requests 1,0").is_err());
    }

    #[test]
    fn a_heap_is_that_of_a_process_or_two_are_compared() {
        let parse = |args: &str| Cli::try_parse_from(["agent", "heap"].into_iter().chain(args.split(' ')));
        assert!(Cli::try_parse_from(["agent", "heap"]).is_err());
        assert!(parse("--pid 1 --top 5 -o a.ndjson").is_ok());
        assert!(parse("diff a b --format ndjson").is_ok());
        assert!(parse("diff a").is_err());
        assert!(parse("--pid 1 diff a b").is_err());
    }

    #[test]
    fn a_file_name_says_what_it_is_to_be() {
        let check = |name: &str, format| assert_eq!(ProfileFormat::of_name(name.as_ref()), format, "{name}");
        check("a.svg", Some(ProfileFormat::Svg));
        check("dir/A.PB.GZ", Some(ProfileFormat::Pprof));
        check("a.speedscope.json", Some(ProfileFormat::Speedscope));
        check("a.txt", Some(ProfileFormat::Folded));
        check("a.ndjson", Some(ProfileFormat::Ndjson));
        check("a.json", None);
        check(".svg", None);
        check("-", None);
    }

    #[test]
    fn a_command_may_follow_the_dashes() {
        let cli = Cli::try_parse_from(["agent", "trace", "--follow", "--", "node", "--flag", "x.js"]).unwrap();
        let Command::Trace(args) = cli.command else { panic!("not a trace") };
        assert_eq!(args.run, ["node", "--flag", "x.js"]);
        assert!(Cli::try_parse_from(["agent", "trace"]).is_err());
        assert!(Cli::try_parse_from(["agent", "trace", "--pid", "1", "--", "node"]).is_err());
    }
}
