//! Finds the Node.js processes of a host, now and later.

use std::collections::{HashMap, HashSet};

use log::debug;

use super::subject::{self, Subject};
use crate::{
    limits::PROGRAMS_KNOWN_MAX,
    target::procfs::{self, FileIdentity, Incarnation},
    units::Pid,
};

/// Looks through `/proc`; each process once, as long as it runs the same program.
#[derive(Debug, Default)]
pub struct Discovery {
    known: HashMap<Pid, Option<Incarnation>>,
    /// Programs that are no Node.js: most processes of a host run one of a few.
    others: HashSet<FileIdentity>,
}

impl Discovery {
    /// Node.js processes that were not there at the last look.
    pub fn newcomers(&mut self) -> Vec<Subject> {
        self.newcomers_among(|_| true)
    }

    /// Of those whom it is time to look at.
    pub fn newcomers_among(&mut self, mut is_time: impl FnMut(Pid) -> bool) -> Vec<Subject> {
        let pids = procfs::pids();
        let there: HashSet<Pid> = pids.iter().copied().collect();
        self.known.retain(|pid, _| there.contains(pid));
        pids.into_iter().filter(|pid| is_time(*pid)).filter_map(|pid| self.look(pid)).collect()
    }

    /// The process was looked at, by whoever.
    pub fn note(&mut self, pid: Pid) {
        self.known.insert(pid, procfs::incarnation(pid));
    }

    /// The process is looked at again, as if it had not been there.
    pub fn forget(&mut self, pid: Pid) {
        self.known.remove(&pid);
    }

    /// Whether it has become another program, or another process, since it was looked at.
    #[must_use]
    pub fn is_other(&self, pid: Pid) -> bool {
        self.known.get(&pid).is_some_and(|known| procfs::incarnation(pid) != *known)
    }

    /// The process, if it is a Node.js that was not there at the last look.
    pub fn look(&mut self, pid: Pid) -> Option<Subject> {
        // Threads of the kernel run no file.
        let program = procfs::executable_identity(pid)?;
        if self.others.contains(&program) {
            return None;
        }
        let incarnation = procfs::incarnation(pid);
        if self.known.insert(pid, incarnation) == Some(incarnation) {
            return None;
        }
        if pid.0 == std::process::id() {
            return None;
        }
        match subject::examine(pid) {
            Ok(subject) => Some(subject),
            Err(error) => {
                debug!("pid={pid} is left out: {error}");
                if !error.is_denied() && procfs::is_alive(pid) {
                    if self.others.len() >= PROGRAMS_KNOWN_MAX {
                        self.others.clear();
                    }
                    self.others.insert(program);
                }
                None
            }
        }
    }
}
