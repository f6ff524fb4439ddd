//! What `/proc` says of a process. Names, arguments and environment are the target's own words, so every read has a bound and
//! every parser takes any bytes.

mod memory;
mod parse;

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use self::parse::{boot_seconds, parse_anonymous, strings};
pub use self::{
    memory::{Memory, memory_u32},
    parse::{parse_maps, parse_stat, parse_status, parse_system_call},
};
use crate::{
    limits::{NET_TABLE_BYTES_MAX, PROC_FILE_BYTES_MAX, PROC_MAPS_BYTES_MAX, PROC_THREADS_MAX},
    units::{Pid, Tid, UserAddr, WallNs},
};

#[derive(Debug, Error)]
pub enum ProcError {
    #[error("no process {pid}")]
    NoProcess { pid: Pid },
    #[error("{tid} is a thread of process {pid}: give {pid}")]
    IsThread { tid: Pid, pid: Pid },
    #[error("process {pid} has exited and waits for its parent to notice")]
    Zombie { pid: Pid },
    #[error("process {pid} is a kernel thread")]
    KernelThread { pid: Pid },
    #[error("may not read {file} of process {pid}: run as root, or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")]
    Denied { pid: Pid, file: &'static str },
    #[error("{file} of process {pid}: {source}")]
    Read { pid: Pid, file: &'static str, source: io::Error },
    #[error("{file} of process {pid} is not in the form that the kernel documents")]
    Malformed { pid: Pid, file: &'static str },
    #[error("{path} was replaced after process {pid} had started: the file that it runs cannot be opened")]
    Replaced { pid: Pid, path: PathBuf },
}

impl ProcError {
    fn of(pid: Pid, file: &'static str, source: io::Error) -> Self {
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::PermissionDenied, _) => Self::Denied { pid, file },
            (io::ErrorKind::NotFound, _) | (_, Some(libc::ESRCH)) => Self::NoProcess { pid },
            _ => Self::Read { pid, file, source },
        }
    }
}

/// Which file it is, whatever its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

/// Seccomp mode: return probes have killed processes under a strict filter on some kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Off,
    Strict,
    Filter,
}

/// The lines of `/proc/PID/status` that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub tgid: u32,
    /// Real user id.
    pub uid: u32,
    /// The process's ids from the initial pid namespace to its own.
    pub pids: Vec<u32>,
    pub seccomp: Seccomp,
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    /// `R`, `S`, `D`, `T`, `t`, `Z`, `X` or `I`.
    pub state: char,
    /// Clock ticks from boot to the start.
    pub start_ticks: u64,
    /// The top of the first thread's stack as the program began; 0 to who may not know.
    pub start_stack: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    pub tid: Tid,
    pub comm: String,
    pub state: char,
}

/// A system call in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    pub number: i64,
    pub arguments: [u64; 6],
}

/// An executable mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: UserAddr,
    pub end: UserAddr,
    /// Offset in the file, 0 if there is none.
    pub offset: u64,
    /// Major number in the upper half, minor in the lower.
    pub device: u64,
    /// 0 for anonymous memory: compiled JavaScript, for one.
    pub inode: u64,
    /// As the process sees it; `[vdso]` and the like for special ones, empty for anonymous ones.
    pub path: PathBuf,
    pub deleted: bool,
}

impl Mapping {
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.inode != 0
    }
}

/// A process at the moment of the call.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: Pid,
    /// As the process sees it.
    pub exe: PathBuf,
    pub exe_identity: FileIdentity,
    pub command: Vec<String>,
    pub stat: Stat,
    pub status: Status,
}

impl Process {
    /// Reads the facts of a live process; a thread's id is refused with the id of its process.
    pub fn read(pid: Pid) -> Result<Self, ProcError> {
        let malformed = |file| ProcError::Malformed { pid, file };
        let status = read(pid, "status", PROC_FILE_BYTES_MAX)?;
        let status = parse_status(&status).ok_or_else(|| malformed("status"))?;
        if status.tgid != pid.0 {
            return Err(ProcError::IsThread { tid: pid, pid: Pid(status.tgid) });
        }
        let stat = parse_stat(&read(pid, "stat", PROC_FILE_BYTES_MAX)?).ok_or_else(|| malformed("stat"))?;
        if matches!(stat.state, 'Z' | 'X') {
            return Err(ProcError::Zombie { pid });
        }
        let exe = fs::read_link(path_of(pid, "exe")).map_err(|source| match source.kind() {
            // The directory is there, as `status` was; only kernel threads lack the link.
            io::ErrorKind::NotFound => ProcError::KernelThread { pid },
            _ => ProcError::of(pid, "exe", source),
        })?;
        let metadata = fs::metadata(path_of(pid, "exe")).map_err(|source| ProcError::of(pid, "exe", source))?;
        let command = strings(&read(pid, "cmdline", PROC_FILE_BYTES_MAX)?).collect();
        let exe_identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        Ok(Self { pid, exe, exe_identity, command, stat, status })
    }

    /// When it started, to the tick (10 ms) past the second at which the machine booted.
    #[must_use]
    pub fn started(&self) -> Option<WallNs> {
        const NS: u64 = 1_000_000_000;
        let booted = boot_seconds(&read_path(Path::new("/proc/stat"), PROC_FILE_BYTES_MAX).ok()?)?;
        let since_boot = self.stat.start_ticks.checked_mul(NS / rustix::param::clock_ticks_per_second().max(1))?;
        booted.checked_mul(NS)?.checked_add(since_boot).map(WallNs)
    }
}

/// The process is there and has not exited.
#[must_use]
pub fn is_alive(pid: Pid) -> bool {
    read(pid, "stat", PROC_FILE_BYTES_MAX)
        .ok()
        .and_then(|stat| parse_stat(&stat))
        .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Resident memory, as the kernel keeps count of it: cheap, where `smaps` would walk the page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub shared_bytes: u64,
    pub swapped_bytes: u64,
}

/// `None` for a process that has gone.
#[must_use]
pub fn resident(pid: Pid) -> Option<Resident> {
    let status = read(pid, "status", PROC_FILE_BYTES_MAX).ok()?;
    let mut resident = Resident::default();
    for line in String::from_utf8_lossy(&status).lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let place = match key {
            "RssAnon" => &mut resident.anonymous_bytes,
            "RssFile" => &mut resident.file_bytes,
            "RssShmem" => &mut resident.shared_bytes,
            "VmSwap" => &mut resident.swapped_bytes,
            _ => continue,
        };
        let kilobytes: u64 = value.split_whitespace().next()?.parse().ok()?;
        *place = kilobytes.saturating_mul(1024);
    }
    Some(resident)
}

/// What a process id stands for: differs after the id was given to another process, and after an `execve`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    start_ticks: u64,
    /// Where the stack begins: the loader's choice, made anew for each program.
    start_stack: u64,
    exe: FileIdentity,
}

/// `None` for a process that has gone.
#[must_use]
pub fn incarnation(pid: Pid) -> Option<Incarnation> {
    let stat = read(pid, "stat", PROC_FILE_BYTES_MAX).ok()?;
    let Stat { comm: _, state: _, start_ticks, start_stack: _ } = parse_stat(&stat)?;
    // Field 28 of the line, 0 to those who may not know.
    let tail = stat.get(stat.iter().rposition(|byte| *byte == b')')?..)?;
    let start_stack = str::from_utf8(tail).ok()?.split_ascii_whitespace().nth(28 - 2)?.parse().ok()?;
    let metadata = fs::metadata(path_of(pid, "exe")).ok()?;
    let exe = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
    Some(Incarnation { start_ticks, start_stack, exe })
}

/// How long a process has been there, whatever programs it ran; to a clock tick.
#[must_use]
pub fn age(pid: Pid) -> Option<Duration> {
    let tick_ns = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let started = Duration::from_nanos(start_ticks(pid)?.checked_mul(tick_ns)?);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
    Some(now.saturating_sub(started))
}

/// Processes, in order of their ids.
#[must_use]
pub fn pids() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<Pid> = entries.filter_map(|entry| Some(Pid(entry.file_name().to_str()?.parse().ok()?))).collect();
    pids.sort_unstable();
    pids
}

/// Which file a process runs; `None` for one of the kernel's, and for one that has gone.
#[must_use]
pub fn executable_identity(pid: Pid) -> Option<FileIdentity> {
    let metadata = fs::metadata(path_of(pid, "exe")).ok()?;
    Some(FileIdentity { device: metadata.dev(), inode: metadata.ino() })
}

/// Where a process resolves relative paths, as it sees the path itself.
#[must_use]
pub fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(path_of(pid, "cwd")).ok()
}

/// The way to what the process has as its root directory.
#[must_use]
pub fn root(pid: Pid) -> PathBuf {
    path_of(pid, "root")
}

/// Its paths in the hierarchies of control groups.
#[must_use]
pub fn cgroups(pid: Pid) -> Vec<String> {
    let bytes = read(pid, "cgroup", PROC_FILE_BYTES_MAX).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).map(str::to_owned).collect()
}

/// Threads of the process, in order of their ids; those that end meanwhile are left out.
pub fn threads(pid: Pid) -> Result<Vec<Thread>, ProcError> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(path_of(pid, "task")).map_err(|source| ProcError::of(pid, "task", source))? {
        let Ok(entry) = entry else { break };
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = read_path(&entry.path().join("stat"), PROC_FILE_BYTES_MAX).ok();
        if let Some(Stat { comm, state, start_ticks: _, start_stack: _ }) = stat.and_then(|stat| parse_stat(&stat)) {
            threads.push(Thread { tid: Tid(tid), comm, state });
        }
        if threads.len() == PROC_THREADS_MAX {
            break;
        }
    }
    threads.sort_by_key(|thread| thread.tid);
    Ok(threads)
}

/// The system call that a thread sleeps in; `None` if it runs, sleeps elsewhere, or may not be asked.
#[must_use]
pub fn system_call(pid: Pid, tid: Tid) -> Option<SystemCall> {
    let path = path_of(pid, &format!("task/{tid}/syscall"));
    parse_system_call(&read_path(&path, PROC_FILE_BYTES_MAX).ok()?)
}

/// Executable mappings. Takes the target's mmap lock for the time of the read: once a process, not on a timer.
pub fn executable_mappings(pid: Pid) -> Result<Vec<Mapping>, ProcError> {
    Ok(parse_maps(&read(pid, "maps", PROC_MAPS_BYTES_MAX)?))
}

/// Memory of no file that may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anonymous {
    pub start: UserAddr,
    pub end: UserAddr,
    pub is_code: bool,
}

/// Memory of no file: heaps, for one. Takes the target's mmap lock, as above.
pub fn anonymous_mappings(pid: Pid) -> Result<Vec<Anonymous>, ProcError> {
    let maps = read(pid, "maps", PROC_MAPS_BYTES_MAX)?;
    Ok(maps.split(|byte| *byte == b'\n').filter_map(|line| parse_anonymous(&String::from_utf8_lossy(line))).collect())
}

/// A variable of the environment that the process was started with.
pub fn environment(pid: Pid, key: &str) -> Result<Option<String>, ProcError> {
    let environ = read(pid, "environ", PROC_FILE_BYTES_MAX)?;
    Ok(strings(&environ).find_map(|entry| Some(entry.strip_prefix(key)?.strip_prefix('=')?.to_owned())))
}

/// Some variables of that environment; nothing else of it is kept.
pub fn variables<const N: usize>(pid: Pid, keys: [&str; N]) -> Result<[Option<String>; N], ProcError> {
    let environ = read(pid, "environ", PROC_FILE_BYTES_MAX)?;
    let value = |key: &str| {
        let mut entries = environ.split(|byte| *byte == 0);
        let value = entries.find_map(|entry| entry.strip_prefix(key.as_bytes())?.strip_prefix(b"="))?;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    Ok(keys.map(value))
}

/// The file that a process runs, in whatever mount namespace, and the path that leads there from here.
pub fn open_exe(pid: Pid) -> Result<(File, PathBuf), ProcError> {
    let path = path_of(pid, "exe");
    let file = File::open(&path).map_err(|source| ProcError::of(pid, "exe", source))?;
    Ok((file, path))
}

/// `None` of a process that has gone, and of the first one.
#[must_use]
pub fn parent(pid: Pid) -> Option<Pid> {
    let stat = read(pid, "stat", PROC_FILE_BYTES_MAX).ok()?;
    let tail = stat.get(stat.iter().rposition(|byte| *byte == b')')?..)?;
    // Field 4 of the line; the state is field 3.
    str::from_utf8(tail).ok()?.split_ascii_whitespace().nth(2)?.parse().ok().filter(|pid| *pid != 0).map(Pid)
}

/// Children of a process's first thread, which are all that a program of one thread has.
#[must_use]
pub fn children(pid: Pid) -> Vec<Pid> {
    if let Ok(children) = read_path(&path_of(pid, &format!("task/{pid}/children")), PROC_FILE_BYTES_MAX) {
        let text = String::from_utf8_lossy(&children);
        return text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid).collect();
    }
    // A kernel without CONFIG_PROC_CHILDREN.
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid);
    pids.filter(|child| parent(*child) == Some(pid)).collect()
}

/// Clock ticks from boot to a process's start: with its id, that is who it is.
#[must_use]
pub fn start_ticks(pid: Pid) -> Option<u64> {
    parse_stat(&read(pid, "stat", PROC_FILE_BYTES_MAX).ok()?).map(|stat| stat.start_ticks)
}

/// The address of the top of the first thread's stack, as it was when the program began; `None` if the kernel does not say.
#[must_use]
pub fn start_stack(pid: Pid) -> Option<u64> {
    let stat = parse_stat(&read(pid, "stat", PROC_FILE_BYTES_MAX).ok()?)?;
    Some(stat.start_stack).filter(|at| *at != 0)
}

/// What a process has written over its arguments: as PostgreSQL says there what it does.
#[must_use]
pub fn title(pid: Pid) -> Option<String> {
    let bytes = read(pid, "cmdline", TITLE_BYTES_MAX).ok()?;
    strings(&bytes).next()
}

/// Bytes of a title that are read.
const TITLE_BYTES_MAX: u64 = 512;

/// The TCP connections of a process's network namespace: the tables for IPv4 and IPv6, one after the other.
#[must_use]
pub fn net_tcp(pid: Pid) -> Vec<u8> {
    let mut tables = Vec::new();
    for table in ["net/tcp", "net/tcp6"] {
        tables.extend(read_path(&path_of(pid, table), NET_TABLE_BYTES_MAX).unwrap_or_default());
    }
    tables
}

/// Which network namespace a process is in.
#[must_use]
pub fn net_namespace(pid: Pid) -> Option<u64> {
    fs::metadata(path_of(pid, "ns/net")).ok().map(|metadata| metadata.ino())
}

/// Whether the kernel refuses to have a process's memory read; of one that is about to end, it only finds none.
#[must_use]
pub fn is_refused(pid: Pid) -> bool {
    File::open(format!("/proc/{pid}/mem")).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// The descriptor is one that epoll waits on.
#[must_use]
pub fn is_epoll(pid: Pid, descriptor: i32) -> bool {
    std::fs::read_link(path_of(pid, &format!("fd/{descriptor}")))
        .is_ok_and(|to| to == Path::new("anon_inode:[eventpoll]"))
}

/// Opens the very file that is mapped, in whatever mount namespace; with it, the path that leads there from here.
pub fn open_mapped(pid: Pid, mapping: &Mapping) -> Result<(File, PathBuf), ProcError> {
    // The link needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, and leads to deleted files too.
    let link = path_of(pid, &format!("map_files/{:x}-{:x}", mapping.start.0, mapping.end.0));
    if let Ok(file) = File::open(&link) {
        return Ok((file, link));
    }
    let within = mapping.path.strip_prefix("/").unwrap_or(&mapping.path);
    let path = path_of(pid, "root").join(within);
    let file = File::open(&path).map_err(|source| ProcError::of(pid, "root", source))?;
    let metadata = file.metadata().map_err(|source| ProcError::of(pid, "root", source))?;
    if mapping.deleted || metadata.ino() != mapping.inode {
        return Err(ProcError::Replaced { pid, path: mapping.path.clone() });
    }
    Ok((file, path))
}

fn path_of(pid: Pid, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

pub(super) fn read(pid: Pid, file: &'static str, most: u64) -> Result<Vec<u8>, ProcError> {
    read_path(&path_of(pid, file), most).map_err(|source| ProcError::of(pid, file, source))
}

/// At most `most` bytes; what is beyond is left unread.
fn read_path(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_readable() {
        let pid = Pid(std::process::id());
        let process = Process::read(pid).expect("our own process");
        assert_eq!(process.exe, std::env::current_exe().expect("our own path"));
        assert!(process.started() > Some(WallNs(0)));
        assert!(threads(pid).expect("our own threads").len() > 1);
        assert!(is_alive(pid));
        let maps = executable_mappings(pid).expect("our own mappings");
        let own = maps.iter().find(|map| map.path == process.exe).expect("our own code");
        assert_eq!(own.inode, process.exe_identity.inode);
        open_mapped(pid, own).expect("our own file");
    }

    #[test]
    fn a_thread_is_told_from_its_process() {
        let pid = Pid(std::process::id());
        let thread = threads(pid).expect("our own threads").into_iter().find(|thread| thread.tid.0 != pid.0);
        let tid = Pid(thread.expect("the test runs in a thread of its own").tid.0);
        let error = Process::read(tid).expect_err("a thread's id");
        assert_eq!(error.to_string(), format!("{tid} is a thread of process {pid}: give {pid}"));
        let error = Process::read(Pid(u32::MAX)).expect_err("no such process");
        assert_eq!(error.to_string(), "no process 4294967295");
    }
}
