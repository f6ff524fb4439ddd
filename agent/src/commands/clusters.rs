//! Finds the PostgreSQL clusters of a host, or those that serve some of its processes, now and later.

use std::collections::{HashMap, HashSet};

use log::debug;

use super::{postgres::Watch, subject};
use crate::{
    limits::{PG_CLUSTERS_MAX, PROGRAMS_KNOWN_MAX},
    target::{
        postgres::{Server, StatementText},
        procfs::{self, FileIdentity, Incarnation},
        sockets::Peers,
    },
    units::Pid,
};

/// Looks through `/proc`; each process once, as long as it runs the same program.
#[derive(Debug, Default)]
pub struct Search {
    /// Only what serves one of these; every cluster, where it is `None`.
    clients: Option<Vec<Pid>>,
    /// Fingerprints, where it is `None`.
    text: Option<StatementText>,
    known: HashMap<Pid, Option<Incarnation>>,
    /// Programs that are no server: most processes of a host run one of a few.
    others: HashSet<FileIdentity>,
    /// Clusters that serve none of them yet: connections are opened when they are needed.
    aside: Vec<Watch>,
}

impl Search {
    #[must_use]
    pub fn of_clients(clients: Vec<Pid>) -> Self {
        Self { clients: Some(clients), ..Self::default() }
    }

    /// Every cluster, with so much of its statements.
    #[must_use]
    pub fn with_text(text: StatementText) -> Self {
        Self { text: Some(text), ..Self::default() }
    }

    /// Clusters that were not there at the last look.
    pub fn newcomers(&mut self) -> Vec<Watch> {
        let pids = procfs::pids();
        let there: HashSet<Pid> = pids.iter().copied().collect();
        self.known.retain(|pid, _| there.contains(pid));
        self.aside.retain(|watch| there.contains(&watch.pid()));
        let mut found: Vec<Watch> = pids.into_iter().filter_map(|pid| self.look(pid)).collect();
        let Some(clients) = &self.clients else { return found };
        found.append(&mut self.aside);
        if found.is_empty() {
            return found;
        }
        let unix = Peers::read();
        let serves = |watch: &mut Watch| {
            watch.look_again();
            clients.iter().any(|client| !watch.serving(*client, &unix).is_empty())
        };
        let (serving, aside) = found
            .into_iter()
            .map(|mut watch| (serves(&mut watch), watch))
            .partition::<Vec<_>, _>(|(serves, _)| *serves);
        self.aside = aside.into_iter().map(|(_, watch)| watch).take(PG_CLUSTERS_MAX).collect();
        serving.into_iter().map(|(_, watch)| watch).collect()
    }

    fn look(&mut self, pid: Pid) -> Option<Watch> {
        // Threads of the kernel run no file.
        let program = procfs::executable_identity(pid)?;
        if self.others.contains(&program) {
            return None;
        }
        let incarnation = procfs::incarnation(pid);
        if self.known.insert(pid, incarnation) == Some(incarnation) {
            return None;
        }
        if !Server::is_one(pid) {
            // A process that is gone, or may not be read, says nothing of its program.
            if procfs::is_alive(pid) && procfs::open_exe(pid).is_ok() {
                if self.others.len() >= PROGRAMS_KNOWN_MAX {
                    self.others.clear();
                }
                self.others.insert(program);
            }
            return None;
        }
        // A backend: its postmaster is looked at by itself.
        if procfs::parent(pid).and_then(procfs::executable_identity) == Some(program) {
            return None;
        }
        Watch::begin(pid, subject::clock(), self.text.unwrap_or(StatementText::Fingerprint))
            .inspect_err(|error| debug!("pid={pid} is left out: {error}"))
            .ok()
    }
}
