//! The drivers: they turn a command line into inputs for the core, and carry out what the core asks for. They may see everything.

mod allocator;
mod asleep;
mod census;
mod clusters;
mod cost;
mod counting;
pub mod daemon;
mod diagnose;
mod discover;
pub mod doctor;
mod driver;
mod governor;
mod heap;
mod javascript;
pub mod launch;
mod lookout;
mod pods;
mod postgres;
pub mod profile;
mod relations;
pub mod report;
mod resident;
mod session;
mod sinks;
mod streams;
mod subject;
mod suspicions;
mod symbols;
pub mod trace;
mod wall_clock;

use std::io::Write;

use clap::CommandFactory;

use crate::cli::{Cli, Command, exit};

/// Runs a command and returns the exit code.
#[must_use]
pub fn run(cli: &Cli) -> u8 {
    match &cli.command {
        Command::Trace(args) => trace::run(args),
        Command::Diagnose(args) => diagnose::run(args),
        Command::Daemon(args) => daemon::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Report(args) => report::run(args),
        Command::Heap(args) => heap::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "agent", &mut text);
            print(&text)
        }
        Command::Man => {
            let mut text = Vec::new();
            match clap_mangen::Man::new(Cli::command()).render(&mut text) {
                Ok(()) => print(&text),
                Err(_) => exit::FAILED,
            }
        }
    }
}

fn print(text: &[u8]) -> u8 {
    let mut out = std::io::stdout().lock();
    if out.write_all(text).and_then(|()| out.flush()).is_ok() { exit::OK } else { exit::FAILED }
}
