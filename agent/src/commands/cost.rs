//! What the agent itself costs: its own CPU time and memory, and what a probe takes from the thread that hits it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use agent_ebpf::spec::{Group, HITS_CALIBRATION};

use crate::{core::SelfCost, probe::attach::Probes};

/// Calls in a calibration: 2 ms at the 2 µs that a slow machine takes for one.
const CALLS: u32 = 1_000;

// A function of one emulated instruction, as most probed ones begin.
core::arch::global_asm!(
    ".pushsection .text.agent_calibration,\"ax\",@progbits",
    ".globl agent_calibration",
    ".type agent_calibration,@function",
    ".p2align 4",
    "agent_calibration:",
    "nop",
    "ret",
    ".size agent_calibration, . - agent_calibration",
    ".popsection",
);

unsafe extern "C" {
    fn agent_calibration();
}

/// Measures a hit: a probe on a function of this program, called often. `None` if it could not be placed.
pub fn calibrate(probes: &mut Probes) -> Option<Duration> {
    let (file, offset) = own_offset(agent_calibration as *const () as usize)?;
    let bare = time_calls();
    probes.attach(Group::Calibration, (0, 0), &file, &[(offset, HITS_CALIBRATION.into())], None).ok()?;
    let with_probe = time_calls();
    probes.detach(Group::Calibration);
    Some(Duration::from_nanos(with_probe.saturating_sub(bare)))
}

/// Nanoseconds a call: the best of several rounds, as everything else on the machine only adds.
fn time_calls() -> u64 {
    const ROUNDS: u32 = 5;
    let mut best = u64::MAX;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..CALLS / ROUNDS {
            // SAFETY: the function above does nothing and returns.
            unsafe { agent_calibration() }
        }
        let per_call = begin.elapsed().as_nanos() / u128::from(CALLS / ROUNDS);
        best = best.min(u64::try_from(per_call).unwrap_or(u64::MAX));
    }
    best
}

/// The file that an address of this program was mapped from, and its offset there.
fn own_offset(address: usize) -> Option<(std::path::PathBuf, u64)> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let (begin, end) = (usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        if (begin..end).contains(&address) {
            let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            return Some(("/proc/self/exe".into(), offset + (address - begin) as u64));
        }
    }
    None
}

/// CPU time and memory of this process so far.
pub fn of_self(hits: Vec<(u64, u64)>, hit_cost_ns: Option<u64>) -> SelfCost {
    let (cpu_user_ns, cpu_system_ns) = cpu_times();
    SelfCost {
        cpu_user_ns,
        cpu_system_ns,
        rss_bytes: resident_bytes().unwrap_or(0),
        hits,
        bpf_run_ns: None,
        hit_cost_ns,
        budget_ns: 0,
        stacks_rarer: 1,
        samples_rarer: 1,
        looks_rarer: 1,
        records_rarer: 1,
        streams: Vec::new(),
    }
}

/// CPU time so far of all threads whose work grows with what is watched: to watch less spares nothing of the others'.
pub fn governed_cpu_time() -> Duration {
    let (user_ns, system_ns) = cpu_times();
    let apart_ns = APART_NS.load(Ordering::Relaxed);
    Duration::from_nanos(user_ns.saturating_add(system_ns).saturating_sub(apart_ns))
}

/// CPU time of work that has a bound of its own.
static APART_NS: AtomicU64 = AtomicU64::new(0);

/// Takes a thread out of what is governed.
#[derive(Debug, Default)]
pub struct Apart {
    counted_ns: u64,
}

impl Apart {
    /// To be called by the thread now and then, and at its end. CPU time of the thread so far.
    pub fn count(&mut self) -> Duration {
        let now_ns = of_thread_ns();
        APART_NS.fetch_add(now_ns.saturating_sub(self.counted_ns), Ordering::Relaxed);
        self.counted_ns = now_ns;
        Duration::from_nanos(now_ns)
    }
}

/// CPU time of looks at what processes hold.
static LOOKS_NS: AtomicU64 = AtomicU64::new(0);

/// Looks, and counts what that takes.
pub fn of_look<T>(look: impl FnOnce() -> T) -> T {
    let before_ns = of_thread_ns();
    let found = look();
    LOOKS_NS.fetch_add(of_thread_ns().saturating_sub(before_ns), Ordering::Relaxed);
    found
}

/// CPU time of looks so far.
pub fn looks_cpu_time() -> Duration {
    Duration::from_nanos(LOOKS_NS.load(Ordering::Relaxed))
}

/// CPU time of this thread so far.
fn of_thread_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0)
}

/// Nanoseconds in user space and in the kernel, of all threads.
fn cpu_times() -> (u64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a `rusage`, which the call fills; zeroes are a valid one should it fail.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let nanoseconds = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_usec).unwrap_or(0) * 1_000
    };
    (nanoseconds(usage.ru_utime), nanoseconds(usage.ru_stime))
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
