//! What is asked of `agent profile`, and of profiles elsewhere.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{
    StreamArgs,
    help::DIFF_EXAMPLES,
    values::{duration, lasting, pid, requests, share, window},
};

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
    #[arg(short, long, value_name = "PID", value_parser = pid, required_unless_present_any = ["all", "run"], conflicts_with_all = ["all", "run"])]
    pub pid: Vec<u32>,

    /// Every Node.js process of this host, and those that are started meanwhile
    #[arg(short, long, conflicts_with = "run")]
    pub all: bool,

    /// Stop after this long (30s, 500ms, 5m; bare numbers are seconds) [default: until Ctrl-C]
    #[arg(short, long, value_name = "TIME", value_parser = lasting)]
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

    /// Share of the host's CPUs that samples and stacks may take from what runs there, and three times of it for the agent to name them;
    /// where it is too much, one in 4, 16, … is taken, and counts for all of them
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = share)]
    pub max_overhead: f64,

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
