//! The program: parses its command line, runs the command, ends with its exit code.

use std::process::ExitCode;

use agent::{
    cli::Cli,
    commands::{self, launch},
};
use clap::Parser;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, rest @ ..] = arguments.as_slice()
        && word == launch::LAUNCH
    {
        return ExitCode::from(launch::become_program(rest));
    }
    // Tables of large binaries are read and dropped: their memory shall go back at once, not wait in the heap.
    // SAFETY: sets a tunable of the allocator, before there is a second thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20) };
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new().filter_level(level).parse_default_env().format_timestamp_millis().init();
    ExitCode::from(commands::run(&cli))
}
