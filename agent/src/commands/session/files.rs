//! Files that processes run, with the probes in them.

use std::{
    collections::BTreeMap,
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::Arc,
};

use agent_ebpf::spec::{Group, Part, id};

use super::{Session, SessionError};
use crate::{
    limits::FILES_IDLE_MAX,
    probe::{
        attach::{AttachError, Probes},
        maps::monotonic_ns,
    },
    target::{
        memory::{LiveMemory, Memory as _},
        procfs::{self, Mapping},
    },
    units::{Pid, UserAddr},
};

/// Probes of one file, ready to be attached.
#[derive(Clone, Debug)]
pub struct FileProbes {
    /// Kept open: probes come and go, and the process by whose maps the file was found may go.
    pub file: Arc<File>,
    /// Which file it is: device and inode.
    pub identity: (u64, u64),
    /// File offset and probe id, by group.
    pub points: BTreeMap<Group, Vec<(u64, u64)>>,
    /// The one process that they are for, of a file that all others run, too.
    pub only: Option<Pid>,
}

impl FileProbes {
    /// Each full collection's begin and end is probed.
    #[must_use]
    pub fn counts_gcs(&self) -> bool {
        let has = |id: u64| self.points.values().flatten().any(|(_, probe)| *probe == id);
        [id::GC_START, id::GC_MARK_COMPACT, id::GC_END].into_iter().all(has)
    }

    pub(super) fn attach(&self, group: Group, probes: &mut Probes) -> Result<(), AttachError> {
        let points = self.points.get(&group).map_or(&[][..], Vec::as_slice);
        probes.attach(group, self.identity, &self.path(), points, self.only)
    }

    /// The process has probes already where these would go, at all places that are looked at: they are in the file's own pages, by
    /// whatever name it was opened.
    fn are_in(&self, pid: Pid, groups: &[Group]) -> bool {
        const LOOKED_AT: usize = 8;
        let Ok(mappings) = procfs::executable_mappings(pid) else { return false };
        let memory = LiveMemory::of(pid);
        let differs = |&(offset, _): &(u64, u64)| {
            let holds = |mapping: &&Mapping| {
                let end = mapping.offset + mapping.end.0.saturating_sub(mapping.start.0);
                mapping.inode == self.identity.1 && (mapping.offset..end).contains(&offset)
            };
            let Some(mapping) = mappings.iter().find(holds) else { return false };
            let (mut own, mut mapped) = ([0], [0]);
            let at = UserAddr(mapping.start.0 + (offset - mapping.offset));
            self.file.read_exact_at(&mut own, offset).is_ok()
                && memory.read_at(at, &mut mapped).is_ok()
                && own != mapped
        };
        let mut points = groups.iter().filter_map(|group| self.points.get(group)).flatten().take(LOOKED_AT).peekable();
        points.peek().is_some() && points.all(differs)
    }

    /// Without some of the probes.
    pub(super) fn without(mut self, ids: &[u64]) -> Self {
        self.points.values_mut().for_each(|points| points.retain(|(_, id)| !ids.contains(id)));
        self
    }

    /// A path that leads to the open file.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl Session {
    /// Attaches the probes of a process's files.
    pub fn add_files(&mut self, pid: Pid, mut files: Vec<FileProbes>) -> Result<(), SessionError> {
        for file in &mut files {
            if let Some(known) = self.same_file(pid, file) {
                file.identity = known;
            }
        }
        self.users.insert(pid, files.iter().map(|file| file.identity).collect());
        files.into_iter().try_for_each(|file| self.add_file(file))
    }

    /// The file by another name, whose probes this process passes already. Images that share a layer show its files on a device each, and
    /// the kernel puts probes on the one file below: once for each name, if it is asked to.
    pub(super) fn same_file(&self, pid: Pid, file: &FileProbes) -> Option<(u64, u64)> {
        let is_alike = |known: &&FileProbes| {
            known.identity.1 == file.identity.1 && known.only == file.only && known.points == file.points
        };
        let mut alike = self.files.iter().filter(is_alike).peekable();
        alike.peek()?;
        if alike.clone().any(|known| known.identity == file.identity) {
            return None;
        }
        file.are_in(pid, &self.attached()).then(|| alike.next().map(|known| known.identity)).flatten()
    }

    /// Groups whose probes are in all files now.
    pub(super) fn attached(&self) -> Vec<Group> {
        let always = self.groups.iter().copied().filter(|group| !self.governor.governs(*group));
        always.chain(self.governor.attached()).chain(self.demanded.iter().copied()).collect()
    }

    /// Detaches the oldest files that nobody runs any more, but for the last few.
    pub(super) fn release_files(&mut self) {
        let is_used = |file: &FileProbes| {
            file.points.contains_key(&Group::Postgres)
                || self.users.values().flatten().any(|used| *used == file.identity)
        };
        let idle: Vec<(u64, u64)> = self.files.iter().filter(|file| !is_used(file)).map(|file| file.identity).collect();
        for identity in idle.iter().take(idle.len().saturating_sub(FILES_IDLE_MAX)) {
            self.files.retain(|file| file.identity != *identity);
            if let Some(probes) = &mut self.probes {
                probes.detach_file(*identity);
            }
        }
    }

    /// Attaches a file's probes, unless they are already.
    pub(super) fn add_file(&mut self, file: FileProbes) -> Result<(), SessionError> {
        if self.files.iter().any(|known| known.identity == file.identity && known.only == file.only) {
            return Ok(());
        }
        let now = self.attached();
        if let Some(probes) = &mut self.probes {
            for group in now {
                file.attach(group, probes)?;
            }
            if self.files.is_empty() {
                if self.governor.is_attached(Group::Requests) {
                    self.maps.count_requests(true)?;
                }
                self.governor.begin(monotonic_ns());
            }
        }
        self.files.push(file);
        Ok(())
    }

    pub(super) fn has(&self, group: Group) -> bool {
        if group == Group::Faults {
            return self.probes.as_ref().is_some_and(|probes| probes.has_part(Part::Faults));
        }
        self.files.iter().any(|file| file.points.get(&group).is_some_and(|points| !points.is_empty()))
    }
}
