//! Is a process a PostgreSQL server, of what version, and where in its memory do its backends say who waits for whom?
//!
//! Told by what the program exports for its extensions, never by names or versions. Offsets that the server's private structures
//! have are found by values that are known (the process's own id, structures that point at each other), so that a build that
//! lays them out otherwise is noticed and refused, not misread.

mod activity;
mod layout;
mod locks;
mod wait_events;

use std::{collections::BTreeMap, path::PathBuf};

use thiserror::Error;

pub use activity::StatementText;
use activity::StatusLayout;
use layout::Layout;
use wait_events::WaitEvents;

use super::{
    elf::{ElfError, ElfFile, FileAddr, Lookup},
    procfs::{self, FileIdentity, Memory, ProcError, Process},
};
use crate::{
    limits::PG_PROCESSES_MAX,
    postgres::{PgPid, Reading, WaitEvent},
    units::{Clock, MonoNs, Pid, UserAddr, WallNs},
};

#[derive(Debug, Error)]
pub enum PostgresError {
    #[error(transparent)]
    Process(#[from] ProcError),
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error("process {pid} ({exe}) is not a PostgreSQL server: it does not export {missing}")]
    NotPostgres { pid: Pid, exe: PathBuf, missing: &'static str },
    #[error("process {pid} maps no code of its own program")]
    NotMapped { pid: Pid },
}

/// What every server program exports, of version 10 and newer at least.
const MARKS: [&str; 4] = ["PostmasterMain", "ProcSleep", "GrantAwaitedLock", "RemoveFromWaitQueue"];

/// Variables that are read in a server's memory.
const VARIABLES: [&str; 5] = ["MyProc", "MyProcPid", "MyLatch", "MyBEEntry", "pgstat_track_activity_query_size"];

/// Ancestors that may be servers of the same program: a backend's only one is the postmaster.
const ANCESTORS_MAX: usize = 4;

/// A running cluster: a postmaster and its backends.
#[derive(Debug)]
pub struct Server {
    pub postmaster: Process,
    pub started: Option<WallNs>,
    pub elf: ElfFile,
    /// A path to the file from this process's root.
    pub path: PathBuf,
    pub identity: FileIdentity,
    /// As the file has it: `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: Option<String>,
    variables: BTreeMap<&'static str, UserAddr>,
    layout: Layout,
    status: StatusLayout,
    wait_events: WaitEvents,
    backends: BTreeMap<Pid, Known>,
}

/// What does not change in a server process's life.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Clock ticks from boot to its start: tells it from a later one of the same id.
    start_ticks: u64,
    pid: PgPid,
    /// Addresses of its `PGPROC` and its `PgBackendStatus`, which may be 0.
    proc: UserAddr,
    status: UserAddr,
}

impl Server {
    /// Whether the program of a process is a PostgreSQL server's.
    #[must_use]
    pub fn is_one(pid: Pid) -> bool {
        procfs::open_exe(pid).is_ok_and(|(file, path)| {
            ElfFile::from_file(file, &path).is_ok_and(|elf| missing_mark(&elf).is_ok_and(|missing| missing.is_none()))
        })
    }

    /// The cluster that a process belongs to, be it the postmaster or a backend.
    pub fn of_process(pid: Pid) -> Result<Self, PostgresError> {
        let asked = Process::read(pid)?;
        let (file, path) = procfs::open_exe(pid)?;
        let elf = ElfFile::from_file(file, &path)?;
        if let Some(missing) = missing_mark(&elf)? {
            return Err(PostgresError::NotPostgres { pid, exe: asked.exe, missing });
        }
        let mut postmaster = asked;
        for _ in 0..ANCESTORS_MAX {
            let parent = procfs::parent(postmaster.pid).and_then(|parent| Process::read(parent).ok());
            match parent {
                Some(parent) if parent.exe_identity == postmaster.exe_identity => postmaster = parent,
                _ => break,
            }
        }
        let identity = postmaster.exe_identity;
        let mapping = procfs::executable_mappings(postmaster.pid)?
            .into_iter()
            .find(|mapping| mapping.inode == identity.inode)
            .ok_or(PostgresError::NotMapped { pid: postmaster.pid })?;
        let bias = elf.bias(mapping.start.0, mapping.offset).unwrap_or(0);
        let found = elf.lookup_exported(VARIABLES)?;
        let variables = VARIABLES
            .iter()
            .filter_map(|name| Some((*name, UserAddr(found.get(name)?.symbol()?.addr.0.wrapping_add(bias)))))
            .collect();
        let mut server = Self {
            started: postmaster.started(),
            version: elf.constant_text(b"PostgreSQL ", is_version),
            layout: Layout::of_code(&elf),
            status: StatusLayout::default(),
            wait_events: WaitEvents::of_program(&elf, bias),
            backends: BTreeMap::new(),
            postmaster,
            elf,
            path,
            identity,
            variables,
        };
        server.refresh();
        Ok(server)
    }

    #[must_use]
    pub fn pid(&self) -> Pid {
        self.postmaster.pid
    }

    /// Offsets in `PGPROC` for the kernel half: the process id's, and that of the lock that is waited for; 0 is not known.
    #[must_use]
    pub fn offsets(&self) -> (u32, u32) {
        (self.layout.pid.unwrap_or(0), self.layout.wait_lock.unwrap_or(0))
    }

    /// What cannot be had of this build, and why: feature and reason.
    #[must_use]
    pub fn degraded(&self) -> Vec<(&'static str, String)> {
        let mut rows: Vec<_> =
            untested(self.version.as_deref()).map(|reason| ("postgres_version", reason)).into_iter().collect();
        for name in VARIABLES.iter().filter(|name| !self.variables.contains_key(*name)) {
            rows.push(("postgres_memory", format!("the program does not export {name}")));
        }
        if self.layout.pid.is_none() {
            rows.push(("postgres_holders", "no process id was found in PGPROC: holders have no names".to_owned()));
        }
        if self.layout.wait_lock.is_none() {
            rows.push(("postgres_queue", "the lock that is waited for was not found in PGPROC".to_owned()));
        }
        if self.status.activity.is_none() {
            rows.push(("postgres_statements", "no statement was found in PgBackendStatus".to_owned()));
        }
        if self.wait_events.pointer().is_none() {
            rows.push((
                "postgres_waits",
                "the program does not export my_wait_event_info (before version 14)".to_owned(),
            ));
        } else if !self.wait_events.has_names() {
            rows.push(("postgres_wait_names", "the program does not export pgstat_get_wait_event".to_owned()));
        }
        rows
    }

    /// Address of the variable that leads each process to what it waits for; 0 is not known.
    #[must_use]
    pub fn wait_pointer(&self) -> u64 {
        self.wait_events.pointer().map_or(0, |at| at.0)
    }

    /// Address of the variable that leads each process to its `PGPROC`; 0 is not known.
    #[must_use]
    pub fn my_proc(&self) -> u64 {
        self.variables.get("MyProc").map_or(0, |at| at.0)
    }

    /// The lock that one of its processes waits for just now: its address, and when that began by the server's clock.
    #[must_use]
    pub fn lock_of(&self, pid: Pid) -> Option<(u64, u64)> {
        let proc = self.backends.get(&pid).map(|known| known.proc).filter(|proc| proc.0 != 0)?;
        locks::waited(&Memory::open(pid)?, proc, self.layout.wait_lock?)
    }

    /// When those waits for locks began that go on just now, where the server says so.
    pub fn lock_waits(&self, clock: Clock) -> impl Iterator<Item = MonoNs> {
        let memory = self.backends.keys().find_map(|pid| Memory::open(*pid));
        let wait = |known: &Known| locks::waited(memory.as_ref()?, known.proc, self.layout.wait_lock?);
        let procs = self.backends.values().filter(|known| known.proc.0 != 0);
        procs.filter_map(wait).filter_map(move |(_, since)| locks::time(since, clock)).collect::<Vec<_>>().into_iter()
    }

    /// What one of its processes waits for just now, by its own word.
    #[must_use]
    pub fn waits_for(&self, pid: Pid) -> Option<WaitEvent> {
        self.wait_events.of_process(pid)
    }

    /// What the server calls those events that were not asked for before.
    pub fn wait_event_names(&mut self, events: impl IntoIterator<Item = WaitEvent>) -> Vec<(WaitEvent, String)> {
        self.wait_events.names(self.postmaster.pid, events)
    }

    /// Who waits for whom just now. `clock` tells the server's times.
    pub fn read(&mut self, now: MonoNs, clock: Clock, text: StatementText) -> Reading {
        self.refresh();
        let mut reading = Reading { cluster: self.pid(), at: now, processes: self.processes(), ..Reading::default() };
        let Some(memory) = self.backends.keys().find_map(|pid| Memory::open(*pid)) else { return reading };
        locks::read(&memory, &self.layout, &self.procs(), clock, &mut reading);
        let mut named: Vec<PgPid> = locks::parties(&reading);
        named.truncate(PG_PARTIES_NAMED_MAX);
        for pid in named {
            if let Some((host_pid, known)) = self.backends.iter().find(|(_, known)| known.pid == pid) {
                reading.backends.push(self.status.backend(&memory, *host_pid, pid, known.status, clock, text));
            }
        }
        reading
    }

    /// Its processes: ids in the initial pid namespace and as the server knows them.
    pub fn backends(&self) -> impl Iterator<Item = (Pid, PgPid)> + '_ {
        self.backends.iter().map(|(pid, known)| (*pid, known.pid))
    }

    /// Server processes beside the postmaster.
    #[must_use]
    pub fn processes(&self) -> u32 {
        u32::try_from(self.backends.len()).unwrap_or(u32::MAX)
    }

    fn procs(&self) -> BTreeMap<UserAddr, PgPid> {
        self.backends.values().filter(|known| known.proc.0 != 0).map(|known| (known.proc, known.pid)).collect()
    }

    /// Takes note of processes that came and went, and finds offsets that are not known yet.
    pub fn refresh(&mut self) {
        let mut now = BTreeMap::new();
        for pid in procfs::children(self.pid()).into_iter().take(PG_PROCESSES_MAX) {
            let Some(start_ticks) = procfs::start_ticks(pid) else { continue };
            let before = self.backends.get(&pid).copied();
            let known = match before.filter(|known| known.start_ticks == start_ticks && known.proc.0 != 0) {
                Some(known) => Some(known),
                None => self.look_at(pid, start_ticks),
            };
            now.extend(known.map(|known| (pid, known)));
        }
        self.backends = now;
        if !self.layout.is_complete() || !self.status.is_complete() {
            self.calibrate();
        }
    }

    fn look_at(&self, pid: Pid, start_ticks: u64) -> Option<Known> {
        let memory = Memory::open(pid)?;
        let word = |name| self.variables.get(name).and_then(|at| memory.u64(*at));
        let own = self.variables.get("MyProcPid").and_then(|at| memory.u32(*at))?;
        Some(Known {
            start_ticks,
            pid: PgPid(own),
            proc: UserAddr(word("MyProc").unwrap_or(0)),
            status: UserAddr(word("MyBEEntry").unwrap_or(0)),
        })
    }

    fn calibrate(&mut self) {
        let mut seen = Vec::new();
        for (pid, known) in self.backends.iter().filter(|(_, known)| known.proc.0 != 0).take(CALIBRATED_ON_MAX) {
            let Some(memory) = Memory::open(*pid) else { continue };
            let latch = self.variables.get("MyLatch").and_then(|at| memory.u64(*at)).unwrap_or(0);
            seen.push(layout::Sample { pid: known.pid, proc: known.proc, latch: UserAddr(latch), memory });
        }
        self.layout.calibrate(&seen);
        let Some(memory) = self.backends.keys().find_map(|pid| Memory::open(*pid)) else { return };
        let bytes = self.variables.get("pgstat_track_activity_query_size").and_then(|at| memory.u32(*at)).unwrap_or(0);
        let entries: Vec<_> = self
            .backends
            .values()
            .filter(|known| known.status.0 != 0)
            .take(CALIBRATED_ON_MAX)
            .map(|known| (known.pid, known.status))
            .collect();
        self.status.calibrate(&memory, &entries, bytes);
    }
}

/// Backends that offsets are checked on.
const CALIBRATED_ON_MAX: usize = 32;

/// Holders and waiters whose statements are read.
const PG_PARTIES_NAMED_MAX: usize = 256;

fn missing_mark(elf: &ElfFile) -> Result<Option<&'static str>, ElfError> {
    let found = elf.lookup_exported(MARKS)?;
    let is_there = |mark: &&str| found.get(*mark).is_some_and(|lookup| matches!(lookup, Lookup::Found(_)));
    Ok(MARKS.into_iter().find(|mark| !is_there(mark)))
}

/// `15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by ..`, `17beta1 on ..`: the text of `version()`.
fn is_version(text: &str) -> Option<String> {
    let (version, _) = text.split_once(" on ")?;
    let is_one = version.starts_with(|c: char| c.is_ascii_digit()) && version.len() < 80 && text.contains("compiled");
    is_one.then(|| version.to_owned())
}

/// What is said of a version that is not the one that it was tested with.
fn untested(version: Option<&str>) -> Option<String> {
    const TESTED: u32 = 15;
    /// Kinds of locks, and the order of the lists, are as in this one and after.
    const FIRST: u32 = 14;
    let Some((version, major)) = version.and_then(|version| Some((version, major(version)?))) else {
        return Some(format!("the program does not tell its version; tested with {TESTED}"));
    };
    match major {
        TESTED => None,
        older if older < FIRST => Some(format!(
            "version {version} is older than {FIRST}: locks may have the wrong kinds and holders be missing; tested with {TESTED}"
        )),
        _ => Some(format!(
            "version {version} was not tested, {TESTED} was: what its structures hold is searched for and checked, and what is not \
             found is told here"
        )),
    }
}

/// The first number of a version.
#[must_use]
pub fn major(version: &str) -> Option<u32> {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

/// An address in the file's code, with what a function's first instructions take from their first argument.
fn first_field(elf: &ElfFile, function: &str) -> Option<u32> {
    const CODE_BYTES: u64 = 256;
    let symbol = elf.lookup_exported([function]).ok()?.get(function)?.symbol()?;
    let bytes = if symbol.size == 0 { CODE_BYTES } else { symbol.size.min(CODE_BYTES) };
    let FileAddr(_) = symbol.addr;
    super::disasm::first_load_from_rdi(&elf.bytes_at(symbol.addr, bytes), symbol.addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_was_not_tested_is_told() {
        assert_eq!(untested(Some("15.18 (Debian 15.18-1)")), None);
        for (version, told) in
            [(Some("13.4"), "older than 14"), (Some("17.2"), "17.2 was not tested"), (None, "does not tell")]
        {
            assert!(untested(version).is_some_and(|reason| reason.contains(told)), "{version:?}");
        }
    }
}
