//! What is asked of `agent heap`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Format,
    help::HEAP_DIFF_EXAMPLES,
    values::{duration, pid},
};

#[derive(Args, Debug)]
pub struct HeapArgs {
    #[command(subcommand)]
    pub command: Option<HeapCommand>,

    /// Process whose heap is counted
    #[arg(short, long, value_name = "PID", value_parser = pid, required = true)]
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
