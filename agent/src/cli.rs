//! The command line: what can be asked of the program.

mod heap;
mod help;
mod profile;
mod stream;
mod trace;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::help::{
    DAEMON_EXAMPLES, DIAGNOSE_EXAMPLES, EXIT_CODES, HEAP_EXAMPLES, LONG_ABOUT, PROFILE_EXAMPLES, REPORT_EXAMPLES,
    TRACE_EXAMPLES,
};
use self::values::pid;
pub use self::{
    heap::{HeapArgs, HeapCommand, HeapDiffArgs, HeapViewArgs},
    profile::{By, DiffArgs, ProfileArgs, ProfileCommand, ProfileFormat, ViewArgs},
    stream::{ListenArgs, OtlpSignal, StreamArgs},
    trace::{DaemonArgs, DiagnoseArgs, LockWaits, Phases, Statements, TraceArgs},
    values::{duration, share, window},
};

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

/// Where does a running Node.js process spend its time?
#[derive(Debug, Parser)]
#[command(name = "agent", version, long_about = LONG_ABOUT, after_help = EXIT_CODES, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// Say more on standard error (-v: info, -vv: debug); `RUST_LOG` overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
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
    #[arg(short, long, value_name = "PID", value_parser = pid)]
    pub pid: Option<u32>,

    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn examples_fit_a_terminal_and_prose_is_left_to_be_wrapped() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().collect();
            for line in lines.iter().filter(|line| line.starts_with("  ")) {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
            let is_prose = |line: &str| line.chars().count() > 60 && !line.starts_with(' ');
            for pair in lines.windows(2) {
                assert!(!(is_prose(pair[0]) && is_prose(pair[1])) || pair[0].ends_with('.'), "{pair:?}");
            }
            commands.extend(command.get_subcommands().cloned());
        }
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
    fn a_command_may_follow_the_dashes() {
        let cli = Cli::try_parse_from(["agent", "trace", "--follow", "--", "node", "--flag", "x.js"]).unwrap();
        let Command::Trace(args) = cli.command else { panic!("not a trace") };
        assert_eq!(args.run, ["node", "--flag", "x.js"]);
        assert!(Cli::try_parse_from(["agent", "trace"]).is_err());
        assert!(Cli::try_parse_from(["agent", "trace", "--pid", "1", "--", "node"]).is_err());
    }
}
