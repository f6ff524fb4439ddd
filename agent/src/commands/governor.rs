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

/// What a turn costs: two tracepoints, and a record that is sent.
const TURN_COST: Duration = Duration::from_nanos(800);

/// All that can come off; phases are told apart, as they have a switch of their own.
const GOVERNED: [Group; 3] = [Group::Polls, Group::Pool, Group::Requests];

/// CPUs that a group may take which is attached on suspicion. One that takes more comes off when it has taken so much in all, which is
/// some seconds to see who it is, or at once if it takes far more; then it is not attached again for a while.
const SUSPICION_MOST: f64 = 0.05;
const SUSPICION_AT_ONCE: f64 = 0.25;
const SUSPICION_SPENT: Duration = Duration::from_millis(300);
const REFUSED: Duration = Duration::from_mins(1);

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
    /// When it was last looked, and the hits by then.
    last: (MonoNs, Vec<u64>),
    /// What groups on suspicion have taken since they were attached.
    spent: Vec<(Group, Duration)>,
    /// Groups that were too dear, and since when.
    refused: Vec<(Group, MonoNs)>,
}

impl Governor {
    pub fn new(groups: &[Group], phases: PhasesWanted, budget: Budget, now: MonoNs) -> Self {
        let governed = |group, always| Governed { group, duty: Duty::new(now, 0, always), marked: now, seen_ns: 0 };
        let is_wanted = |group: &Group| *group == Group::Polls || groups.contains(group);
        let mut all: Vec<Governed> =
            GOVERNED.into_iter().filter(is_wanted).map(|group| governed(group, false)).collect();
        match phases {
            PhasesWanted::Never => {}
            PhasesWanted::Auto => all.push(governed(Group::Phases, false)),
            PhasesWanted::Always => all.push(governed(Group::Phases, true)),
        }
        Self {
            budget,
            hit_cost: UPROBE_COST,
            groups: all,
            last: (now, Vec::new()),
            spent: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// A hit was measured to cost this; on a busy machine too much is measured, as everything else only adds.
    pub fn set_hit_cost(&mut self, hit_cost: Duration) {
        self.hit_cost = hit_cost.min(UPROBE_COST);
    }

    /// Whether a group is attached.
    pub fn is_attached(&self, group: Group) -> bool {
        self.attached().any(|attached| attached == group)
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

    /// What is to be attached or detached; `hits` are the totals by probe, `turns` those of all loops, `targets` how many processes are
    /// watched.
    pub fn decide(&mut self, now: MonoNs, hits: &[u64], turns: u64, targets: usize) -> Vec<(Group, Action)> {
        let budget = self.budget;
        let uprobe_cost = self.hit_cost;
        let step = |governed: &mut Governed| {
            let group = governed.group;
            // Others that poll pass the tracepoints in a tenth of the time.
            let (hits, hit_cost) =
                if group == Group::Polls { (turns, TURN_COST) } else { (hits_of(group, hits), uprobe_cost) };
            let was_attached = governed.duty.is_attached();
            let action = governed.duty.step(now, hits, hit_cost, budget.part(group, targets));
            if was_attached {
                governed.mark(now);
            }
            (action != Action::Keep).then_some((group, action))
        };
        self.groups.iter_mut().filter_map(step).collect()
    }

    /// Of groups that are attached on suspicion, for seconds, those that cost too much even so. What makes handles and what frees them
    /// is of use together only.
    pub fn too_dear(&mut self, now: MonoNs, hits: &[u64], demanded: &[Group]) -> Vec<Group> {
        let (before, then) = std::mem::replace(&mut self.last, (now, hits.to_vec()));
        let span = Duration::from_nanos(now.since(before).0).as_secs_f64();
        let cost = |group: &Group| {
            let groups: &[Group] = match group {
                Group::Makers | Group::Takers => &[Group::Makers, Group::Takers],
                other => std::slice::from_ref(other),
            };
            let sum = |hits: &[u64]| groups.iter().map(|group| hits_of(*group, hits)).sum::<u64>();
            self.hit_cost * u32::try_from(sum(hits).saturating_sub(sum(&then))).unwrap_or(u32::MAX)
        };
        let before =
            |group: &Group| self.spent.iter().find(|(of, _)| of == group).map_or(Duration::ZERO, |(_, spent)| *spent);
        let spent: Vec<(Group, Duration)> =
            demanded.iter().map(|group| (*group, before(group) + cost(group))).collect();
        let is_dear = |(group, spent): &&(Group, Duration)| {
            let share = cost(group).as_secs_f64() / span;
            span > 0.0 && (share > SUSPICION_AT_ONCE || share > SUSPICION_MOST && *spent > SUSPICION_SPENT)
        };
        let dear: Vec<Group> = spent.iter().filter(is_dear).map(|(group, _)| *group).collect();
        self.spent = spent;
        self.refused.extend(dear.iter().map(|group| (*group, now)));
        dear
    }

    /// A group was not too dear of late.
    pub fn allows(&mut self, group: Group, now: MonoNs) -> bool {
        self.refused.retain(|(_, since)| now.since(*since).0 < REFUSED.as_nanos().try_into().unwrap_or(u64::MAX));
        self.refused.iter().all(|(refused, _)| *refused != group)
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
