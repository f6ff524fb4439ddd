//! Which compilers there are, and what has to be said to them.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{Error, ask, cargo, tools, which};

/// The BPF target of the machines that we support: all little-endian.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The version that aya declares, and with it the workspace.
const DECLARED: Version = Version { major: 1, minor: 98 };

/// The first that warns of a feature that a crate switches on and does not use, which is so for all crates but one.
const LINTS_FEATURES: Version = Version { major: 1, minor: 96 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// From `rustc --version`: `rustc 1.96.0 (ac68faa20 2026-05-25)`, `rustc 1.97.0-nightly (..)`.
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().nth(1)?.split('.').map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }

    fn of(rustc: &mut Command) -> Option<Self> {
        ask(rustc.arg("--version")).and_then(|line| Self::parse(&line))
    }
}

/// A cargo for the user-space half, whose arguments begin with `words`.
///
/// aya 0.16 declares Rust 1.98 and uses one thing of its standard library that older compilers have, but not as stable:
/// `Result::map_or_default`. With an older compiler that feature is switched on by name, and the declared version is passed over;
/// with 1.98 or newer nothing of this happens. It stands here and nowhere else, to be deleted once 1.98 is everywhere.
pub fn host_cargo(words: &[&str]) -> Command {
    let mut command = cargo();
    command.args(words);
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Version::of(&mut Command::new(rustc));
    if let Some(version) = version.filter(|version| *version < DECLARED) {
        command.env("RUSTC_BOOTSTRAP", "1");
        let mut more = "-Zcrate-attr=feature(result_option_map_or_default)".to_owned();
        if version >= LINTS_FEATURES {
            more += " -Aunused_features";
        }
        command.env("RUSTFLAGS", flags(&more));
        if words.first().is_some_and(|word| *word != "fmt") {
            command.arg("--ignore-rust-version");
        }
    }
    command
}

/// `more` after the flags that the caller's environment asks for, once.
fn flags(more: &str) -> OsString {
    match env::var("RUSTFLAGS") {
        Ok(flags) if flags.contains(more) => flags.into(),
        Ok(flags) if !flags.is_empty() => format!("{flags} {more}").into(),
        _ => more.into(),
    }
}

/// A compiler that can make BPF.
#[derive(Debug)]
pub enum BpfCompiler {
    /// One with a `core` for BPF among its libraries: a distribution's package.
    Prebuilt { rustc: PathBuf },
    /// A nightly with the source of `core`, to be built by cargo.
    Nightly,
}

impl BpfCompiler {
    /// The distribution's compiler first: it is the same for everybody who has that distribution, and needs no `core` built.
    pub fn find() -> Option<Self> {
        let named = env::var_os("AGENT_BPF_RUSTC").map(PathBuf::from);
        let candidates = named.into_iter().chain(["/usr/bin/rustc".into()]).chain(which("rustc"));
        let prebuilt = candidates.into_iter().find(|rustc| has_core(rustc)).map(|rustc| Self::Prebuilt { rustc });
        prebuilt.or_else(|| has_nightly_source().then_some(Self::Nightly))
    }

    /// A cargo that builds for BPF with this compiler.
    pub fn cargo(&self) -> Result<Command, Error> {
        let mut command = match self {
            Self::Prebuilt { rustc } => {
                let mut command = cargo();
                command.arg("build").env("RUSTC", rustc);
                // aya-ebpf uses inline assembly of an experimental architecture, which no stable compiler allows by itself.
                command.env("RUSTC_BOOTSTRAP", "1");
                if Version::of(&mut Command::new(rustc)).is_some_and(|version| version < DECLARED) {
                    command.arg("--ignore-rust-version");
                }
                command
            }
            Self::Nightly => {
                let mut command = cargo();
                // The variables by which rustup's proxies pin the toolchain of what they start.
                command.env_remove("RUSTC").env_remove("CARGO").env("RUSTUP_TOOLCHAIN", "nightly");
                command.args(["build", "-Zbuild-std=core", "--ignore-rust-version"]);
                command
            }
        };
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([tools().join("bin")].into_iter().chain(env::split_paths(&path)));
        let path = path.map_err(|error| Error::Missing { what: "a usable PATH".into(), so: error.to_string() })?;
        command.env("PATH", path);
        // Line information for the verifier's log, and BTF for the kernel.
        command.env("RUSTFLAGS", "-C linker=bpf-linker -C debuginfo=2 -C link-arg=--btf");
        command.env_remove("CARGO_ENCODED_RUSTFLAGS");
        command.args(["--target", BPF_TARGET]);
        Ok(command)
    }
}

fn has_core(rustc: &Path) -> bool {
    let libraries = ask(Command::new(rustc).args(["--print", "target-libdir", "--target", BPF_TARGET]));
    let Some(files) = libraries.and_then(|directory| std::fs::read_dir(directory).ok()) else { return false };
    files.flatten().any(|file| {
        let name = file.file_name();
        let name = Path::new(&name);
        name.extension().is_some_and(|extension| extension == "rlib") && name.to_string_lossy().starts_with("libcore-")
    })
}

fn has_nightly_source() -> bool {
    let sysroot = ask(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// The linker of BPF objects: ours, or one on `PATH`.
pub fn bpf_linker() -> Option<PathBuf> {
    let ours = tools().join("bin/bpf-linker");
    if ours.is_file() { Some(ours) } else { which("bpf-linker") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_any_channel_are_read() {
        let read = |line| Version::parse(line).map(|version| (version.major, version.minor));
        assert_eq!(read("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some((1, 96)));
        assert_eq!(read("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)"), Some((1, 97)));
        assert_eq!(read("rustc"), None);
    }
}
