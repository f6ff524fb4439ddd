//! Starts a program that is to be traced from its first instruction.
//!
//! The child is this program itself: it waits on a pipe, under the pid that it keeps, until the probes are in place, and
//! then becomes the program. Nothing is stopped and nothing is signalled; when the parent dies first, the child goes without
//! having become anything.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::io::{FdFlags, fcntl_setfd};

use super::{
    driver::DriverError,
    subject::{self, Subject, SubjectError},
};
use crate::{cli::exit, units::Pid};

/// The hidden word on the command line by which the child knows itself.
pub const LAUNCH: &str = "__launch";

/// A child that waits to become a program.
pub struct Launched {
    child: Child,
    start: OwnedFd,
    program: PathBuf,
    command: Vec<String>,
}

impl Launched {
    /// The same for a command line, which may be none.
    pub fn of_command(command: &[String]) -> Result<Option<Self>, DriverError> {
        let Some(program) = command.first() else { return Ok(None) };
        let fail = |source| DriverError::Launch { command: program.clone(), source };
        Self::prepare(command).map(Some).map_err(fail)
    }

    /// Starts the waiting child.
    pub fn prepare(command: &[String]) -> io::Result<Self> {
        let name = command.first().ok_or(io::ErrorKind::InvalidInput)?;
        let program = find(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not found in PATH"))?;
        let (wait, start) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Only this end shall live on in the child.
        fcntl_setfd(&wait, FdFlags::empty())?;
        let child = Command::new("/proc/self/exe")
            .arg(LAUNCH)
            .arg(wait.as_raw_fd().to_string())
            .args(command)
            .stdin(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, start, program, command: command.to_vec() })
    }

    /// What is going to be traced, as far as it can be told before it runs.
    pub fn subject(&self) -> Result<Subject, SubjectError> {
        subject::expect(Pid(self.child.id()), &self.program, &self.command)
    }

    /// Lets it become the program.
    pub fn go(self) {
        // A child that has gone already shows as a target that is gone.
        let _ = rustix::io::write(&self.start, b"!");
    }
}

/// The child's side: waits for the word, then becomes the program. Only returns if that fails.
#[must_use]
pub fn become_program(arguments: &[String]) -> u8 {
    let Some(([fd, program], rest)) = arguments.split_first_chunk::<2>() else { return exit::USAGE };
    let Ok(fd) = fd.parse::<RawFd>() else { return exit::USAGE };
    // SAFETY: the parent passed this descriptor for this purpose alone, and nothing else here uses it.
    let wait = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut word = [0];
    if !matches!(rustix::io::read(&wait, &mut word), Ok(1)) {
        return exit::FAILED;
    }
    drop(wait);
    let error = Command::new(program).args(rest).exec();
    log::error!("cannot start {program}: {error}");
    exit::FAILED
}

/// The file that a shell would run.
fn find(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
