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
        let pids = procfs::pids();
        let there: HashSet<Pid> = pids.iter().copied().collect();
        self.known.retain(|pid, _| there.contains(pid));
        pids.into_iter().filter_map(|pid| self.look(pid)).collect()
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
