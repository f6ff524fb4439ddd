//! Coverage-guided fuzzing of everything that reads foreign bytes, with libFuzzer.
//!
//! `cargo fuzz run` does the same where the compiler is new enough for the dependencies as they are; here it is built with the
//! one switch that older ones need.

use std::{fs, path::PathBuf, process::Command};

use clap::Args;

use crate::{
    run::{Error, root, run, say},
    toolchain,
};

#[derive(Args, Debug)]
pub struct FuzzArgs {
    /// Which one, by the name of its file [default: each in turn]
    target: Option<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// What makes a binary report its coverage to libFuzzer, and every memory error.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Zsanitizer=address";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

pub fn fuzz(args: &FuzzArgs) -> Result<(), Error> {
    let home = root().join("agent/fuzz");
    let output = root().join("target/fuzz");
    crate::build::object()?;
    say("fuzz targets");
    let mut build = toolchain::host_cargo(&["build", "--release", "--target", TRIPLE]);
    let flags = build
        .get_envs()
        .find_map(|(name, value)| {
            (name == "RUSTFLAGS").then(|| value.map(|value| value.to_string_lossy().into_owned()))
        })
        .flatten()
        .unwrap_or_default();
    build
        .arg("--manifest-path")
        .arg(home.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&output)
        .env("RUSTFLAGS", format!("{flags} {FLAGS}"))
        .env("RUSTC_BOOTSTRAP", "1");
    run(&mut build)?;
    for name in targets(&home)?.into_iter().filter(|name| args.target.as_ref().is_none_or(|wanted| wanted == name)) {
        say(&format!("{name}: {} s", args.seconds));
        let corpus = home.join("corpus").join(&name);
        let artifacts = home.join("artifacts").join(&name);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory).map_err(|error| Error::Io { path: directory.clone(), error })?;
        }
        let binary = output.join(TRIPLE).join("release").join(&name);
        let mut fuzz = Command::new(binary);
        fuzz.arg(format!("-max_total_time={}", args.seconds))
            .arg("-rss_limit_mb=4096")
            .arg("-timeout=20")
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(corpus);
        run(&mut fuzz)?;
    }
    Ok(())
}

/// Names of the targets: one file each.
fn targets(home: &std::path::Path) -> Result<Vec<String>, Error> {
    let directory: PathBuf = home.join("fuzz_targets");
    let entries = fs::read_dir(&directory).map_err(|error| Error::Io { path: directory.clone(), error })?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    Ok(names)
}
