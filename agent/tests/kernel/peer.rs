//! A peer on the same run: bpftrace with a script that notes every stay off CPU.

use std::{path::Path, process::Command, time::Duration};

use rustix::process::Signal;

use crate::harness::Process;

/// One stay off CPU; times in `CLOCK_MONOTONIC` ns.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    pub tid: u32,
    /// The scheduler's state at the switch: of its low byte, 0 could have gone on.
    pub state: u64,
    pub out: f64,
    /// 0 where nobody was seen to wake it.
    pub woken: f64,
    /// Infinity where the thread was still off when the peer ended: an idle one of V8's may be for long.
    pub back: f64,
    /// Its end was not seen: `back` is when it was woken, as a CPU that idles takes a thread at once.
    pub is_cut: bool,
}

/// `TASK_INTERRUPTIBLE`: what a thread that waits for long is.
const ASLEEP: u64 = 1;

impl Stay {
    /// It was pushed off its CPU.
    pub fn is_preempted(&self) -> bool {
        self.state.trailing_zeros() >= 8
    }

    /// When the wait was over and the wait for a CPU began.
    pub fn runnable_from(&self) -> f64 {
        if self.is_preempted() {
            self.out
        } else if self.woken == 0.0 {
            self.back
        } else {
            // The waker's clock may be read before the switch ends.
            self.woken.max(self.out)
        }
    }
}

pub struct SchedPeer(Process);

impl SchedPeer {
    /// `None` where bpftrace is not installed. Returns once it traces.
    pub fn start(pid: u32) -> Option<Self> {
        let found = Command::new("bpftrace").arg("--version").output().is_ok();
        if !found {
            crate::harness::skip("bpftrace");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/sched.bt");
        let mut process = Process::spawn(
            Command::new("bpftrace")
                .env("BPFTRACE_MAP_KEYS_MAX", "262144")
                .args(["-B", "line"])
                .arg(script)
                .arg(pid.to_string()),
        );
        process.wait_out("READY");
        Some(Self(process))
    }

    #[track_caller]
    pub fn stays(mut self) -> Vec<Stay> {
        self.0.signal(Signal::INT);
        self.0.wait(Duration::from_secs(30));
        self.0.out.iter().filter_map(|line| parse(line)).collect()
    }
}

/// `@stay[tid, state, out, woken, in]: 1`, `@cut[tid, state, out, woken, again]: 1`, or `@out[tid]: out`
fn parse(line: &str) -> Option<Stay> {
    if let Some((tid, out)) = line.strip_prefix("@out[").and_then(|rest| rest.split_once("]: ")) {
        let (tid, out) = (tid.parse().ok()?, out.parse::<u64>().ok()?);
        return Some(Stay { tid, state: ASLEEP, out: out as f64, woken: 0.0, back: f64::INFINITY, is_cut: false });
    }
    let cut = line.strip_prefix("@cut[");
    let fields = cut.or_else(|| line.strip_prefix("@stay["))?.split(']').next()?;
    let mut fields = fields.split(", ").map(str::parse::<u64>);
    let mut next = || fields.next()?.ok();
    let (tid, state, out, woken, end) = (next()?, next()?, next()?, next()?, next()?);
    let (out, woken) = (out as f64, woken as f64);
    let mut stay = Stay { tid: tid as u32, state, out, woken, back: end as f64, is_cut: cut.is_some() };
    if stay.is_cut {
        stay.back = stay.runnable_from();
    }
    Some(stay)
}
