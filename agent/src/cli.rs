//! The command line: what can be asked of the program.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

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
  agent trace --pid 4121 --slow-turn 50ms                  each turn longer than 50 ms one by one
  agent trace --pid 4121 --off-cpu-threshold 0             every stay off CPU, however short
  agent trace --follow -- node server.js                   from the first instruction, children too

The process is not stopped, signalled or changed: no flag, no restart, no inspector.";

const DIAGNOSE_EXAMPLES: &str = "\
Examples:
  agent diagnose --pid 4121                                a minute, then what is wrong, worst first
  agent diagnose --all --duration 5m                       every Node.js process of this host
  agent diagnose --pid 4121 --format ndjson                one JSON object a finding
  agent diagnose --pid 4121 --threshold handles=50         take a smaller growth for one

Leaks and creeping costs are trends: the longer it looks, the smaller a growth it can tell from noise.";

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
    /// Trace a Node.js process: event loop, thread pool, garbage collection, off-CPU time, run queue
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(TraceArgs),
    /// Say what is wrong with a process: what grows, how fast, who makes it, and what to do
    #[command(after_help = DIAGNOSE_EXAMPLES)]
    Diagnose(DiagnoseArgs),
    /// Print the report of an earlier trace again
    #[command(after_help = "Examples:\n  agent report trace.ndjson\n  agent report trace.rec --format ndjson")]
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phases {
    /// All the time where turns are slow enough, else for a window now and then
    Auto,
    /// All the time, whatever it costs
    Always,
    /// Never: time on CPU is not split by phase
    Never,
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

    /// Turns whose callbacks take longer than this are reported one by one
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = duration)]
    pub slow_turn: Duration,

    /// Report stays off CPU at least this long [default: 100us on event-loop threads, 1ms on others]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub off_cpu_threshold: Option<Duration>,

    /// Samples a second and CPU of what runs there, which name the functions of slow turns; 0 is none
    #[arg(long, value_name = "HZ", default_value = "99", value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub sample_hz: u32,

    /// Split time on CPU by phase of the event loop
    #[arg(long, value_enum, default_value = "auto")]
    pub phases: Phases,

    /// Trace Node.js processes that the process starts, too
    #[arg(long)]
    pub follow: bool,

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
pub struct DiagnoseArgs {
    /// Process to look at; may be given several times
    #[arg(short, long, value_name = "PID", required_unless_present = "all", conflicts_with = "all")]
    pub pid: Vec<u32>,

    /// Every Node.js process of this host
    #[arg(short, long)]
    pub all: bool,

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
pub struct ReportArgs {
    /// Records (newline-delimited JSON) or a recording; - is standard input
    pub file: PathBuf,

    /// What to write
    #[arg(short, long, value_enum, default_value = "text")]
    pub format: Format,

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

/// A time with a unit; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
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

fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window < Duration::from_millis(100) || window > Duration::from_mins(1) {
        return Err("a window lasts from 100ms to 60s".into());
    }
    Ok(window)
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
    fn a_command_may_follow_the_dashes() {
        let cli = Cli::try_parse_from(["agent", "trace", "--follow", "--", "node", "--flag", "x.js"]).unwrap();
        let Command::Trace(args) = cli.command else { panic!("not a trace") };
        assert_eq!(args.run, ["node", "--flag", "x.js"]);
        assert!(Cli::try_parse_from(["agent", "trace"]).is_err());
        assert!(Cli::try_parse_from(["agent", "trace", "--pid", "1", "--", "node"]).is_err());
    }
}
