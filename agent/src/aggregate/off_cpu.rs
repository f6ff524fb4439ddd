//! Time off CPU in a window by class, reason and stack, above the threshold.
//!
//! Knows nothing of symbols: stacks stay ids. The ledgers hold all time off CPU, this only what can be explained.

use std::{cmp::Reverse, collections::BTreeMap};

use agent_ebpf::state::{ThreadState, flag};

use super::ledger::is_idle;
use crate::{
    counters::{Counters, Reason},
    decode::{self, Class, OffReason},
    limits::OFF_CPU_GROUPS_MAX,
    units::{MonoNs, Tid},
};

/// What a group of stays has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Where threads are told apart.
    pub tid: Option<Tid>,
    pub class: Class,
    pub reason: OffReason,
    pub user_stack: Option<u64>,
    pub kernel_stack: Option<u64>,
}

/// The sums of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub count: u64,
    pub total_ns: u64,
    pub runnable_ns: u64,
    pub max_ns: u64,
    pub over_budget: u64,
}

impl Totals {
    /// Those of one stay.
    #[must_use]
    pub fn of(stay: &Stay) -> Self {
        let total_ns = stay.duration_ns();
        Self { count: 1, total_ns, runnable_ns: stay.runnable_ns, max_ns: total_ns, over_budget: 0 }
    }

    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.total_ns = self.total_ns.saturating_add(other.total_ns);
        self.runnable_ns = self.runnable_ns.saturating_add(other.runnable_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.over_budget = self.over_budget.saturating_add(other.over_budget);
    }
}

/// One stay, measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    pub out: MonoNs,
    pub back: MonoNs,
    /// Of which: ready to run, waiting for a CPU.
    pub runnable_ns: u64,
    pub group: Group,
}

impl Stay {
    #[must_use]
    pub fn of(stay: &decode::OffCpu, back: MonoNs) -> Self {
        let runnable_ns = match stay.reason {
            OffReason::Preempted => back.since(stay.out).0,
            OffReason::Blocked | OffReason::Stopped | OffReason::Unknown => {
                stay.woken.map_or(0, |woken| back.since(woken.max(stay.out)).0)
            }
        };
        let group = Group {
            tid: None,
            class: stay.class,
            reason: stay.reason,
            user_stack: stay.user_stack,
            kernel_stack: stay.kernel_stack,
        };
        Self { out: stay.out, back, runnable_ns, group }
    }

    /// That of a thread which was not back yet at `now`; none if it runs, or waits for work as it should.
    #[must_use]
    pub fn open(state: &ThreadState, now: MonoNs) -> Option<Self> {
        if state.flags & flag::OFF_CPU == 0 || is_idle(state) {
            return None;
        }
        let stay = decode::OffCpu {
            out: MonoNs(state.out_ns),
            woken: (state.woken_ns != 0).then_some(MonoNs(state.woken_ns)),
            user_stack: (state.user_stack != 0).then_some(state.user_stack),
            kernel_stack: (state.kernel_stack != 0).then_some(state.kernel_stack),
            reason: OffReason::of_code(state.out_reason).unwrap_or(OffReason::Unknown),
            class: Class::of_flags(state.flags),
            over_budget: state.flags & flag::STACK_OVER_BUDGET != 0,
        };
        let mut stay = Self::of(&stay, now);
        stay.group.tid = Some(Tid(state.tid));
        Some(stay)
    }

    #[must_use]
    pub fn duration_ns(&self) -> u64 {
        self.back.since(self.out).0
    }
}

/// The groups of a window.
#[derive(Clone, Debug, Default)]
pub struct OffCpuWindow {
    groups: BTreeMap<Group, Totals>,
    other: Totals,
}

impl OffCpuWindow {
    pub fn add(&mut self, stay: &Stay, over_budget: bool, counters: &mut Counters) {
        let totals = if self.groups.len() < OFF_CPU_GROUPS_MAX || self.groups.contains_key(&stay.group) {
            self.groups.entry(stay.group).or_default()
        } else {
            counters.add(Reason::OffCpuGroupsFull);
            &mut self.other
        };
        totals.merge(&Totals { over_budget: u64::from(over_budget), ..Totals::of(stay) });
    }

    /// The groups that took longest, longest first and so many at most, and the sum of the rest.
    #[must_use]
    pub fn close(&mut self, reported_max: usize) -> (Vec<(Group, Totals)>, Totals) {
        let mut groups: Vec<_> = std::mem::take(&mut self.groups).into_iter().collect();
        let mut other = std::mem::take(&mut self.other);
        groups.sort_by_key(|&(group, totals)| (Reverse(totals.total_ns), group));
        for (_, totals) in groups.iter().skip(reported_max) {
            other.merge(totals);
        }
        groups.truncate(reported_max);
        (groups, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::OFF_CPU_REPORTED_MAX;

    fn stay(user_stack: u64, out: u64, back: u64) -> Stay {
        let group = Group {
            tid: None,
            class: Class::EventLoop,
            reason: OffReason::Blocked,
            user_stack: Some(user_stack),
            kernel_stack: None,
        };
        Stay { out: MonoNs(out), back: MonoNs(back), runnable_ns: 1, group }
    }

    #[test]
    fn a_flood_of_stacks_is_bounded_and_nothing_is_lost() {
        let mut window = OffCpuWindow::default();
        let mut counters = Counters::default();
        let n = OFF_CPU_GROUPS_MAX as u64 + 100;
        for id in 0..n {
            window.add(&stay(id, 0, id), false, &mut counters);
        }
        assert_eq!(counters.get(Reason::OffCpuGroupsFull), 100);
        let (groups, other) = window.close(OFF_CPU_REPORTED_MAX);
        assert_eq!(groups.len(), OFF_CPU_REPORTED_MAX);
        let total: u64 = groups.iter().map(|(_, totals)| totals.total_ns).sum();
        assert_eq!(total + other.total_ns, n * (n - 1) / 2);
        assert_eq!(groups.len() as u64 + other.count, n);
    }
}
