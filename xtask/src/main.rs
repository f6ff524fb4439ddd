//! The developer's one entrance: setup, build, test, bench.
//!
//! What cargo alone cannot do is here: the BPF object is compiled for another target, with another compiler, before the program
//! that carries it; and the tests need real Node.js binaries and the peers that their figures are compared with.

mod bench;
mod build;
mod fuzz;
mod image;
mod kernel;
mod run;
mod sbom;
mod setup;
mod test;
mod toolchain;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{run::Error, setup::Purpose};

#[derive(Debug, Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", about = "Setup, build, test, bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what is missing: nothing that is there is touched
    Setup {
        /// What it is for: each one includes those before it
        #[arg(value_enum, default_value_t = Purpose::Test)]
        purpose: Purpose,
    },
    /// Build the BPF object, then the program that carries it
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Measure what the agent costs, beside its peers
    Bench(bench::BenchArgs),
    /// Feed random bytes to everything that reads foreign ones
    Fuzz(fuzz::FuzzArgs),
    /// Build the container image
    Image(image::ImageArgs),
    /// Write what the program is made of, as `CycloneDX`
    Sbom(sbom::SbomArgs),
    /// Build, then run formatting, lints and every test
    Test {
        /// On Debian's kernel of this line, in qemu: the tests against the kernel, whose program the arguments are for
        #[arg(long, value_enum)]
        kernel: Option<kernel::Series>,
        /// There, instead: the systemd unit as an administrator installs it, under systemd
        #[arg(long, requires = "kernel", conflicts_with = "args")]
        unit: bool,
        /// Passed on to `cargo test`; with any, only the tests are run
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup { purpose } => setup::setup(purpose),
        Command::Build { release } => build::build(if release { build::Profile::Release } else { build::Profile::Dev }),
        Command::Bench(args) => bench::bench(&args),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Image(args) => image::image(&args),
        Command::Sbom(args) => sbom::sbom(&args),
        Command::Test { kernel: Some(series), unit: true, .. } => test::unit(series),
        Command::Test { kernel: Some(series), args, .. } => test::on_kernel(series, &args),
        Command::Test { kernel: None, args, .. } => test::test(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

impl Error {
    /// A child's own code is passed on, so that a caller sees what it would have seen without xtask.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { code: Some(code), .. } => u8::try_from(*code).unwrap_or(1),
            Self::Failed { code: None, .. } | Self::NotStarted { .. } | Self::Io { .. } | Self::Missing { .. } => 1,
        }
    }
}
