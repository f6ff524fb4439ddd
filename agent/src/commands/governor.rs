//! Groups of probes that come off where they would be too dear, and for how long each was attached.

use std::time::Duration;

use agent_ebpf::spec::{Group, PROBES};

use super::session::PhasesWanted;
use crate::{
    govern::{Action, Budget, Duty},
    units::MonoNs,
};

/// What a uprobe hit costs until it is measured: more than on most machines.
const UPROBE_COST: Duration = Duration::from_micros(2);

/// All that can come off; phases are told apart, as they have a switch of their own.
const GOVERNED: [Group; 2] = [Group::Pool, Group::Requests];

/// One group.
#[derive(Debug)]
struct Governed {
    group: Group,
    duty: Duty,
    /// Up to here it is counted for how long the probes were attached.
    marked: MonoNs,
    seen_ns: u64,
}

/// All of them.
#[derive(Debug)]
pub struct Governor {
    budget: Budget,
    hit_cost: Duration,
    groups: Vec<Governed>,
}

impl Governor {
    pub fn new(groups: &[Group], phases: PhasesWanted, budget: Budget, now: MonoNs) -> Self {
        let governed = |group, always| Governed { group, duty: Duty::new(now, 0, always), marked: now, seen_ns: 0 };
        let mut all: Vec<Governed> =
            GOVERNED.into_iter().filter(|group| groups.contains(group)).map(|group| governed(group, false)).collect();
        match phases {
            PhasesWanted::Never => {}
            PhasesWanted::Auto => all.push(governed(Group::Phases, false)),
            PhasesWanted::Always => all.push(governed(Group::Phases, true)),
        }
        Self { budget, hit_cost: UPROBE_COST, groups: all }
    }

    /// A hit was measured to cost this; on a busy machine too much is measured, as everything else only adds.
    pub fn set_hit_cost(&mut self, hit_cost: Duration) {
        self.hit_cost = hit_cost.min(UPROBE_COST);
    }

    /// Those that are attached now.
    pub fn attached(&self) -> impl Iterator<Item = Group> {
        self.groups.iter().filter(|governed| governed.duty.is_attached()).map(|governed| governed.group)
    }

    pub fn governs(&self, group: Group) -> bool {
        self.groups.iter().any(|governed| governed.group == group)
    }

    /// There was nothing to be attached to up to now.
    pub fn begin(&mut self, now: MonoNs) {
        for governed in self.groups.iter_mut().filter(|governed| governed.duty.is_attached()) {
            governed.marked = now;
        }
    }

    /// Counts for how long each was attached.
    pub fn mark(&mut self, now: MonoNs) {
        for governed in self.groups.iter_mut().filter(|governed| governed.duty.is_attached()) {
            governed.mark(now);
        }
    }

    /// Nanoseconds for which a group was attached since this was last asked.
    pub fn take_seen_ns(&mut self, group: Group) -> u64 {
        let governed = self.groups.iter_mut().find(|governed| governed.group == group);
        governed.map_or(0, |governed| std::mem::take(&mut governed.seen_ns))
    }

    /// What is to be attached or detached; `hits` are the totals by probe, `targets` how many processes are watched.
    pub fn decide(&mut self, now: MonoNs, hits: &[u64], targets: usize) -> Vec<(Group, Action)> {
        let (budget, hit_cost) = (self.budget, self.hit_cost);
        let step = |governed: &mut Governed| {
            let (group, hits) = (governed.group, hits_of(governed.group, hits));
            let was_attached = governed.duty.is_attached();
            let action = governed.duty.step(now, hits, hit_cost, budget.part(group, targets));
            if was_attached {
                governed.mark(now);
            }
            (action != Action::Keep).then_some((group, action))
        };
        self.groups.iter_mut().filter_map(step).collect()
    }

    /// A group has just been attached.
    pub fn is_back(&mut self, group: Group, now: MonoNs) {
        if let Some(governed) = self.groups.iter_mut().find(|governed| governed.group == group) {
            governed.marked = now;
        }
    }
}

impl Governed {
    fn mark(&mut self, now: MonoNs) {
        self.seen_ns += now.since(self.marked).0;
        self.marked = now;
    }
}

fn hits_of(group: Group, hits: &[u64]) -> u64 {
    let ids = PROBES.iter().filter(|probe| probe.group == group).map(|probe| probe.id);
    ids.filter_map(|id| hits.get(usize::try_from(id).ok()?)).sum()
}
