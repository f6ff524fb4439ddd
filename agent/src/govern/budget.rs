//! How much probes may take from what runs here.

use std::time::Duration;

use agent_ebpf::spec::Group;

use crate::units::MonoNs;

/// Of the host's CPUs, where nothing else is said.
pub const SHARE: f64 = 0.01;

/// What all that is watched may take from what runs here, and the agent beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    share: f64,
    cpus: usize,
}

impl Budget {
    /// `share` is of the time of all CPUs of the host: 0.01 is one percent.
    #[must_use]
    pub const fn new(share: f64, cpus: usize) -> Self {
        Self { share, cpus }
    }

    /// CPUs that all probes together may take on average while so many processes are watched. On a host of many CPUs each process is
    /// spared, too: it pays no more than twice the share of one CPU.
    #[must_use]
    pub fn whole(&self, targets: usize) -> f64 {
        const CPUS_A_TARGET: usize = 2;
        let cpus = self.cpus.min(targets.max(1).saturating_mul(CPUS_A_TARGET));
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let cpus = cpus as f64;
        self.share * cpus
    }

    /// The agent itself, in user space and beside its targets: what it does there is seldom in anybody's way.
    #[must_use]
    pub fn own(&self, targets: usize) -> f64 {
        const WEIGHT: f64 = 3.0;
        self.whole(targets) * WEIGHT
    }

    /// Of that, looks at what processes hold.
    #[must_use]
    pub fn looks(&self, targets: usize) -> f64 {
        const WEIGHT: f64 = 1.5;
        self.whole(targets) * WEIGHT
    }
}

/// CPUs that are taken from one look to another: when, and CPU time so far.
#[must_use]
pub fn share(from: (MonoNs, Duration), to: (MonoNs, Duration)) -> f64 {
    let span = Duration::from_nanos(to.0.since(from.0).0);
    if span.is_zero() { 0.0 } else { to.1.saturating_sub(from.1).as_secs_f64() / span.as_secs_f64() }
}

/// Of stacks of threads that leave the CPU, and of samples: see [`assured`].
pub const STACKS_ASSURED: f64 = 0.1;

/// Which part of the budget a group may take whatever all others do; beyond it, what they leave. All parts together are the budget.
#[must_use]
pub fn assured(group: Group) -> f64 {
    match group {
        Group::Polls | Group::Switches | Group::Waits => 0.175,
        Group::Requests => 0.125,
        Group::Pool => 0.1,
        Group::Phases => 0.05,
        // They are attached all the time, or on suspicion, which has a limit of its own.
        Group::Gc
        | Group::GcKinds
        | Group::Calibration
        | Group::Postgres
        | Group::Makers
        | Group::Takers
        | Group::Scopes
        | Group::Faults
        | Group::Allocators
        | Group::Allocations
        | Group::Frees => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(cpus: usize, targets: usize) -> f64 {
        Budget::new(SHARE, cpus).whole(targets)
    }

    #[test]
    fn neither_the_host_nor_a_process_pays_more_than_its_share() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        close(whole(2, 1), 0.02);
        close(whole(64, 1), 0.02);
        close(whole(64, 10), 0.2);
        close(whole(64, 1000), 0.64);
        close(whole(1, 0), 0.01);
    }
}
