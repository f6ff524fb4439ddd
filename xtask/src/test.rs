//! Everything that has to hold before a change is taken: format, lints, tests.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{
    build::object,
    kernel::{self, Series},
    run::{Error, line_of, root, run, say, tools},
    toolchain::host_cargo,
};

/// Of the tests against the kernel those that run on an older one, too, whenever everything is tested.
pub const OLDER: Series = Series::V6_1;
const ON_OLDER: [&str; 4] = [
    "luck::an_agent_that_is_killed_leaves_nothing_attached_and_the_target_serving",
    "event_loop::utilization_is_what_perf_hooks_says_of_an_idle_and_of_a_saturated_loop",
    "postgres::a_pile_up_behind_a_vacuum_is_one_entry_with_its_root",
    "container::each_overlay_traces_node_in_another_container",
];

/// What these may take, emulated.
const ON_OLDER_LIMIT: Duration = Duration::from_secs(8 * 60);

/// What a run that somebody asked for may take: all tests, emulated.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// With arguments for `cargo test`, only that; without, all of it.
pub fn test(args: &[OsString]) -> Result<(), Error> {
    object()?;
    if args.is_empty() {
        say("format");
        run(&mut host_cargo(&["fmt", "--all", "--check"]))?;
        say("lints");
        let mut clippy = host_cargo(&["clippy", "--workspace", "--all-targets"]);
        run(clippy.args(FEATURES).args(["--", "--deny", "warnings"]))?;
        let mut fuzz = host_cargo(&["clippy"]);
        fuzz.arg("--manifest-path").arg(root().join("agent/fuzz/Cargo.toml"));
        fuzz.arg("--target-dir").arg(root().join("target"));
        run(fuzz.args(["--", "--deny", "warnings"]))?;
        dependencies()?;
    }
    say("tests");
    let mut test = host_cargo(&["test", "--workspace"]);
    run(test.args(FEATURES).args(args))?;
    if args.is_empty() {
        let args: Vec<OsString> = ["--exact"].into_iter().chain(ON_OLDER).map(OsString::from).collect();
        kernel::test(OLDER, &program()?, &args, ON_OLDER_LIMIT)?;
        unit(OLDER)?;
    }
    Ok(())
}

/// What is linked has licences that go with ours, and comes from the registry. Known vulnerabilities are another day's question, as their
/// list is fetched: `cargo deny check advisories`.
fn dependencies() -> Result<(), Error> {
    let mut deny = Command::new(tools().join("bin/cargo-deny"));
    deny.current_dir(root()).args(["--offline", "--log-level", "error", "check", "bans", "licenses", "sources"]);
    if Path::new(deny.get_program()).is_file() {
        say("dependencies");
        return run(&mut deny);
    }
    say("SKIPPED dependencies: need cargo-deny (cargo xtask setup)");
    match std::env::var_os("CI") {
        Some(_) => Err(Error::Missing { what: "cargo-deny".into(), so: "nothing is skipped on CI".into() }),
        None => Ok(()),
    }
}

/// The tests against the kernel, on another one.
pub fn on_kernel(series: Series, args: &[OsString]) -> Result<(), Error> {
    object()?;
    kernel::test(series, &program()?, args, LIMIT)
}

/// The systemd unit, on another kernel.
pub fn unit(series: Series) -> Result<(), Error> {
    object()?;
    let program = program()?;
    // Beside the directory of the tests' programs.
    let agent = program.ancestors().nth(2).map(|directory| directory.join("agent"));
    let agent = agent.ok_or_else(|| Error::Missing { what: "the agent".into(), so: "cargo built none".into() })?;
    kernel::unit(series, &agent, ON_OLDER_LIMIT)
}

/// Builds the program of the tests against the kernel, as `cargo test` would.
fn program() -> Result<PathBuf, Error> {
    let mut build = host_cargo(&["test", "--workspace"]);
    build.args(FEATURES).args(["--test", "kernel", "--no-run", "--message-format", "json-render-diagnostics"]);
    let output = build.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| Error::NotStarted { command: line_of(&build), error })?;
    if !output.status.success() {
        return Err(Error::Failed { command: line_of(&build), code: output.status.code() });
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let messages = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter(|message| message.pointer("/target/name").is_some_and(|name| name == "kernel"));
    let program = programs.find_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    program.ok_or_else(|| Error::Missing {
        what: "the program of the tests against the kernel".into(),
        so: "cargo built none".into(),
    })
}

/// The kernel half's own tests need its records as bytes. Its program is only ever built for BPF: the feature that it requires is
/// not among these.
const FEATURES: [&str; 2] = ["--features", "agent-ebpf/user"];
