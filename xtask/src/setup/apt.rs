//! Debian packages.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use super::quietly;
use crate::run::{Error, line_of, run, say, which};

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
    let mut command = as_root("apt-get");
    command.args(["install", "--yes", "-qq", "--no-install-recommends"]);
    // Progress for programs, on standard output; and what dpkg prints without a terminal of its own.
    command.args(["--option", "APT::Status-Fd=1", "--option", "Dpkg::Use-Pty=0"]);
    // No wait for the disk after each of some hundred packages, as in Debian's own installer.
    command.args(["--option", "Dpkg::Options::=--force-unsafe-io"]);
    command.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    with_progress(&mut command)
}

/// Says how far apt is, once each fifth of the way.
fn with_progress(command: &mut Command) -> Result<(), Error> {
    let line = line_of(command);
    let not_started = |error| Error::NotStarted { command: line.clone(), error };
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(not_started)?;
    let mut said = None;
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
        let Some(progress) = Progress::parse(&line) else { continue };
        if said != Some(progress) {
            eprintln!("    {} {} %", progress.stage, progress.fifths * 20);
            said = Some(progress);
        }
    }
    let status = child.wait().map_err(not_started)?;
    if status.success() { Ok(()) } else { Err(Error::Failed { command: line, code: status.code() }) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    stage: &'static str,
    fifths: u32,
}

impl Progress {
    /// From a line of apt's `README.progress-reporting`: `dlstatus:1:12.5:Retrieving file 3 of 96`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let stage = match fields.next()? {
            "dlstatus" => "downloaded",
            "pmstatus" => "installed",
            _ => return None,
        };
        // The name of a package may have an architecture after a colon of its own.
        let percent = fields.find_map(|field| field.contains('.').then(|| field.parse::<f64>().ok()).flatten())?;
        let fifths = (0..=5).rev().find(|fifths| percent >= f64::from(fifths * 20))?;
        Some(Self { stage, fifths })
    }
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
pub fn update() -> Result<(), Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_by_fifths() {
        let read = |line| Progress::parse(line).map(|progress| (progress.stage, progress.fifths));
        assert_eq!(read("dlstatus:3:41.0156:Retrieving file 3 of 96"), Some(("downloaded", 2)));
        assert_eq!(read("pmstatus:libllvm22:amd64:100.0000:Installed libllvm22"), Some(("installed", 5)));
        assert_eq!(read("pmstatus:libllvm22:0.0000:Preparing"), Some(("installed", 0)));
        assert_eq!(read("Setting up libllvm22 (1:22.1.8) ..."), None);
        assert_eq!(read("pmstatus:"), None);
    }
}
