//! Debian packages.

use std::{
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use super::quietly;
use crate::run::{Error, run, say, which};

/// Installs packages, if there are any to install.
pub fn install(packages: &[&str]) -> Result<(), Error> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if which("apt-get").is_none() {
        return Err(Error::Missing {
            what: format!("what Debian has in the packages {list}"),
            so: "there is no apt-get here; install the like of them".into(),
        });
    }
    say(&format!("packages: {list}"));
    update()?;
    // Progress goes to standard error: standard output belongs to whoever called us.
    let mut command = as_root("apt-get");
    command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    quietly(&mut command)
}

/// Unpacks packages into a directory, without installing them.
pub fn unpack(packages: &[&str], into: &Path) -> Result<(), Error> {
    let io = |error| Error::Io { path: into.to_path_buf(), error };
    let downloads = into.join("packages");
    std::fs::create_dir_all(&downloads).map_err(io)?;
    update()?;
    let mut download = Command::new("apt-get");
    download.args(["download", "--quiet"]).args(packages).current_dir(&downloads);
    // As root it would say that its own user may not write there.
    download.args(["--option", "APT::Sandbox::User=root"]);
    quietly(&mut download)?;
    for file in std::fs::read_dir(&downloads).map_err(io)?.flatten() {
        run(Command::new("dpkg-deb").arg("--extract").arg(file.path()).arg(into))?;
    }
    std::fs::remove_dir_all(&downloads).map_err(io)
}

/// Package lists are fetched once in a run, and only if something is to be installed.
fn update() -> Result<(), Error> {
    static UPDATED: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    if UPDATED.set(()).is_err() {
        return Ok(());
    }
    quietly(as_root("apt-get").args(["update", "--quiet"]))
}

/// A program to be run as root: by itself if we are, else by sudo.
pub fn as_root(program: &str) -> Command {
    let is_root = Path::new("/proc/self").metadata().is_ok_and(|process| process.uid() == 0);
    if is_root {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        return command;
    }
    let mut command = Command::new("sudo");
    command.args(["--preserve-env=DEBIAN_FRONTEND", program]);
    command
}
