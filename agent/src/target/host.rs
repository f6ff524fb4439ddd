//! Facts about the machine: what its kernel and this process's privileges allow.

use std::{fs, path::Path};

use log::debug;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Capabilities that buy something, by number.
const CAPABILITIES: [(&str, u32, &str); 7] = [
    ("CAP_BPF", 39, "load BPF programs and maps"),
    ("CAP_PERFMON", 38, "attach to tracepoints and uprobes, read kernel memory from programs"),
    ("CAP_SYS_PTRACE", 19, "read another user's /proc/PID: maps, exe, root"),
    ("CAP_DAC_READ_SEARCH", 2, "open binaries that other users own"),
    (
        "CAP_SYS_ADMIN",
        21,
        "have uprobes before Linux 6.6, have perf events where kernel.perf_event_paranoid is above 2, or mount tracefs",
    ),
    ("CAP_SYSLOG", 34, "kernel addresses in /proc/kallsyms: names for kernel frames"),
    ("CAP_CHECKPOINT_RESTORE", 40, "open files that were replaced after a process had mapped them"),
];

/// Before they were capabilities of their own, these were parts of `CAP_SYS_ADMIN`, and the kernel still takes it for them.
const PARTS_OF_SYS_ADMIN: [u32; 4] = [39, 38, 34, 40];
const SYS_ADMIN: u32 = 21;

/// A capability, whether this process has it, and what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    pub name: &'static str,
    pub held: bool,
    pub buys: &'static str,
}

/// What was found; `None` is "the kernel does not say".
#[derive(Clone, Debug)]
pub struct Host {
    pub kernel_release: String,
    pub cpus: u32,
    pub capabilities: Vec<Capability>,
    /// `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// Mainline knows up to 2; Debian has 3 and Ubuntu 4 by default.
    pub perf_event_paranoid: Option<i32>,
    pub kptr_restrict: Option<u32>,
    /// `RLIMIT_MEMLOCK` cannot be raised; only matters before 5.11.
    pub memlock_fixed: bool,
}

impl Host {
    #[must_use]
    pub fn read() -> Self {
        Self {
            kernel_release: kernel_release(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
            capabilities: capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok().and_then(|text| chosen(&text)),
            perf_event_paranoid: sysctl("kernel/perf_event_paranoid"),
            kptr_restrict: sysctl("kernel/kptr_restrict"),
            memlock_fixed: !can_raise_memlock(),
        }
    }

    /// Major and minor version of the kernel.
    #[must_use]
    pub fn kernel_version(&self) -> Option<(u32, u32)> {
        version(&self.kernel_release)
    }

    /// Kernels with a patch that Debian and Ubuntu have may keep perf events, and with them tracepoints and samples, from who has but
    /// `CAP_PERFMON`. Whether this one does is seen when one is opened.
    #[must_use]
    pub fn may_keep_perf_events_back(&self) -> bool {
        let is_admin = self.capabilities.iter().any(|capability| capability.name == "CAP_SYS_ADMIN" && capability.held);
        !is_admin && self.perf_event_paranoid.is_some_and(|value| value > 2)
    }
}

/// As `uname -r` has it.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn capabilities(status: &str) -> Vec<Capability> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 != 0;
    let holds = |bit: u32| has(bit) || PARTS_OF_SYS_ADMIN.contains(&bit) && has(SYS_ADMIN);
    CAPABILITIES.into_iter().map(|(name, bit, buys)| Capability { name, held: holds(bit), buys }).collect()
}

/// The word in brackets, as in `none [integrity] confidentiality`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

fn sysctl<T: std::str::FromStr>(name: &str) -> Option<T> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

/// Has this process open as many files as it may at all. Shells and services give 1024 so that select(2) works, of which fifty programs
/// take more where each of their probes has a link of its own.
pub fn allow_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        debug!("as many files as before may be open: {error}");
    }
}

fn can_raise_memlock() -> bool {
    let now = getrlimit(Resource::Memlock);
    if now.current.is_none() {
        return true;
    }
    let raised = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok();
    if raised {
        // Only asking: an unlimited one is not needed from 5.11 on.
        let _ = setrlimit(Resource::Memlock, now);
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_begin_with_two_numbers() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.15.0"), Some((5, 15)));
        assert_eq!(version("weird"), None);
    }

    #[test]
    fn the_choice_stands_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality"), Some("integrity".into()));
        assert_eq!(chosen("none"), None);
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let held = |status: &str| -> Vec<&str> {
            capabilities(status).into_iter().filter(|cap| cap.held).map(|cap| cap.name).collect()
        };
        assert_eq!(held("CapPrm:\t000001ffffffffff\nCapEff:\t000000c000000000\n"), ["CAP_BPF", "CAP_PERFMON"]);
        assert!(held("").is_empty());
        let admin = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_CHECKPOINT_RESTORE"];
        assert_eq!(held("CapEff:\t0000000000200000\n"), admin);
    }
}
