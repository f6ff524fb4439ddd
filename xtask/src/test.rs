//! Everything that has to hold before a change is taken: format, lints, tests.

use std::ffi::OsString;

use crate::{
    build::object,
    run::{Error, run, say},
    toolchain::host_cargo,
};

/// With arguments for `cargo test`, only that; without, all of it.
pub fn test(args: &[OsString]) -> Result<(), Error> {
    object()?;
    if args.is_empty() {
        say("format");
        run(&mut host_cargo(&["fmt", "--all", "--check"]))?;
        say("lints");
        let mut clippy = host_cargo(&["clippy", "--workspace", "--all-targets"]);
        run(clippy.args(FEATURES).args(["--", "--deny", "warnings"]))?;
    }
    say("tests");
    let mut test = host_cargo(&["test", "--workspace"]);
    run(test.args(FEATURES).args(args))
}

/// The kernel half's own tests need its records as bytes. Its program is only ever built for BPF: the feature that it requires is
/// not among these.
const FEATURES: [&str; 2] = ["--features", "agent-ebpf/user"];
