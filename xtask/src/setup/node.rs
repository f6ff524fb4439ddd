//! Node.js binaries to be traced: official builds, and Debian's with its libraries apart.

use std::{
    env::consts,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{apt, quietly};
use crate::run::{self, Error, cache, run, say};

/// Debian's build: the program, V8 and the runtime in `libnode`, libuv by itself, and the libraries that these load; then what
/// it reads of itself from `/usr/share/nodejs`.
const DEBIAN: [&str; 11] = [
    "libnode108",
    "libuv1",
    "libbrotli1",
    "libc-ares2",
    "libicu72",
    "libnghttp2-14",
    "libssl3",
    "node-acorn",
    "node-busboy",
    "node-cjs-module-lexer",
    "node-undici",
];

fn directory(version: &str) -> PathBuf {
    cache().join("node").join(version)
}

/// Whether an official build is in the cache.
pub fn is_there(version: &str) -> bool {
    directory(version).join("bin/node").is_file()
}

/// Fetches an official build: `.cache/node/VERSION/bin/node`.
pub fn official(version: &str) -> Result<(), Error> {
    if is_there(version) {
        return Ok(());
    }
    let arch = match consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    say(&format!("node {version}"));
    let partial = fresh(&cache().join("node").join(format!("{version}.partial")))?;
    // The published files of the project are also packages of its own registry, whose client checks what it downloads.
    let package = format!("node-linux-{arch}@{version}");
    quietly(Command::new("npm").args(["pack", "--silent", &package]).current_dir(&partial))?;
    let archive = partial.join(format!("node-linux-{arch}-{version}.tgz"));
    run(Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(&partial)
        .args(["--strip-components=1", "package/bin/node"]))?;
    fs::remove_file(&archive).map_err(|error| Error::Io { path: archive, error })?;
    publish(&partial, &directory(version))
}

/// Fetches Debian's build: `.cache/debian-node/usr/..`.
pub fn debian() -> Result<(), Error> {
    let directory = cache().join("debian-node");
    // One file of the program and one that it reads of itself: with only the first it does not start.
    let parts = ["usr/bin/node", "usr/share/nodejs/cjs-module-lexer/lexer.js"];
    if parts.iter().all(|part| directory.join(part).is_file()) {
        return Ok(());
    }
    say("Debian's node, its libraries apart");
    let partial = fresh(&cache().join("debian-node.partial"))?;
    // Of the library's version: another source of packages may offer a newer program by the same name.
    let version = run::ask(Command::new("apt-cache").args(["show", "--no-all-versions", "libnode108"]))
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("Version: ").map(str::to_owned)))
        .ok_or_else(|| Error::Missing {
            what: "libnode108".into(),
            so: "is this Debian 12? apt-cache knows it not".into(),
        })?;
    let program = format!("nodejs={version}");
    let packages: Vec<&str> = DEBIAN.iter().copied().chain([program.as_str()]).collect();
    apt::unpack(&packages, &partial)?;
    publish(&partial, &directory)
}

/// An empty directory: what an interrupted run left there is gone.
pub fn fresh(path: &Path) -> Result<PathBuf, Error> {
    let io = |error| Error::Io { path: path.to_path_buf(), error };
    if path.exists() {
        fs::remove_dir_all(path).map_err(io)?;
    }
    fs::create_dir_all(path).map_err(io)?;
    Ok(path.to_path_buf())
}

/// Appears whole or not at all, in place of what is there.
pub fn publish(partial: &Path, whole: &Path) -> Result<(), Error> {
    if whole.exists() {
        fs::remove_dir_all(whole).map_err(|error| Error::Io { path: whole.to_path_buf(), error })?;
    }
    fs::rename(partial, whole).map_err(|error| Error::Io { path: whole.to_path_buf(), error })
}
