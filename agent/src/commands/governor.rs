//! Groups of probes that come off where they would be too dear, and for how long each was attached.

use std::time::Duration;

use agent_ebpf::spec::{Group, PROBES, slot};

use super::{
    driver::nanoseconds,
    session::{PhasesWanted, SwitchesWanted},
};
use crate::{
    govern::{Action, Budget, Duty, Level},
    units::MonoNs,
};

/// What a uprobe hit costs until it is measured: more than on most machines.
const UPROBE_COST: Duration = Duration::from_micros(2);

/// What the program of a uprobe does in a target, beyond the trap and the filter that are measured.
const PROGRAM_COST: Duration = Duration::from_nanos(120);

/// What a turn costs: two tracepoints, and a record that is sent.
const TURN_COST: Duration = Duration::from_nanos(800);

/// What a switch and a wake-up cost, by whomever: those of threads that are traced, of which there are most where it matters; those
/// of others are cheaper.
const SWITCH_COST: Duration = Duration::from_nanos(190);
const WAKE_UP_COST: Duration = Duration::from_nanos(120);

/// What a switch to or from a backend costs the server while its waits are followed, as `cargo xtask bench postgres` measures it, caches
/// and all; and one between others.
const WAIT_COST: Duration = Duration::from_nanos(800);
const STRANGERS_COST: Duration = Duration::from_nanos(80);

/// What a stack costs where the thread did something else since the last one: caches are cold.
const STACK_COST: Duration = Duration::from_micros(3);

/// The agent's own CPU time is looked at from then on: at first it reads the symbols of whole programs.
const OWN_GRACE: Duration = Duration::from_secs(3);

/// All that can come off; phases and switches are told apart, as they have a switch of their own.
const GOVERNED: [Group; 4] = [Group::Polls, Group::Pool, Group::Requests, Group::Waits];

/// Running totals of what is governed.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// By probe.
    pub hits: &'a [u64],
    /// Of all loops.
    pub turns: u64,
    /// Stacks that were walked, and of which samples.
    pub stacks: u64,
    pub sampled: u64,
    /// To or from a PostgreSQL backend.
    pub backend_switches: u64,
    /// The agent's own CPU time, and what of it looks at heaps took.
    pub own: Duration,
    pub looks: Duration,
    /// How many processes are watched.
    pub targets: usize,
    pub there: There,
}

/// What there is to be attached to.
#[derive(Clone, Copy, Debug)]
pub struct There {
    /// A file that uprobes are in: without one nothing comes off but what tells of switches.
    pub files: bool,
    /// A PostgreSQL cluster whose waits can be followed.
    pub clusters: bool,
}

impl There {
    fn has(self, group: Group) -> bool {
        match group {
            Group::Switches => true,
            Group::Waits => self.clusters,
            _ => self.files,
        }
    }
}

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
    /// How much rarer stacks off CPU, samples and looks at heaps are, as they cost too much, or as the agent itself does.
    stacks: Level,
    samples: Level,
    looks: Level,
    own: Level,
    began: MonoNs,
    /// Of a profile stacks off CPU are not cut down: they are what was asked for.
    cuts_down: bool,
    /// When it was last looked, and the hits by then.
    last: (MonoNs, Vec<u64>),
    /// What groups on suspicion have taken since they were attached.
    spent: Vec<(Group, Duration)>,
    /// Groups that were too dear, and since when.
    refused: Vec<(Group, MonoNs)>,
}

impl Governor {
    pub fn new(
        groups: &[Group],
        (phases, switches): (PhasesWanted, SwitchesWanted),
        budget: Budget,
        now: MonoNs,
    ) -> Self {
        let governed = |group, always| Governed { group, duty: Duty::new(now, 0, always), marked: now, seen_ns: 0 };
        let mut all: Vec<Governed> =
            GOVERNED.into_iter().filter(|group| groups.contains(group)).map(|group| governed(group, false)).collect();
        match phases {
            PhasesWanted::Never => {}
            PhasesWanted::Auto => all.push(governed(Group::Phases, false)),
            PhasesWanted::Always => all.push(governed(Group::Phases, true)),
        }
        all.push(governed(Group::Switches, switches == SwitchesWanted::Always));
        Self {
            budget,
            hit_cost: UPROBE_COST,
            groups: all,
            stacks: Level::quick(now),
            samples: Level::quick(now),
            looks: Level::steady(now),
            own: Level::steady(now),
            began: now,
            cuts_down: switches == SwitchesWanted::Auto,
            last: (now, Vec::new()),
            spent: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// A hit was measured to cost this; on a busy machine too much is measured, as everything else only adds.
    pub fn set_hit_cost(&mut self, hit_cost: Duration) {
        self.hit_cost = hit_cost.saturating_add(PROGRAM_COST).min(UPROBE_COST);
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
        let follows_switches = |group| matches!(group, Group::Switches | Group::Waits);
        let is_new = |governed: &&mut Governed| governed.duty.is_attached() && !follows_switches(governed.group);
        for governed in self.groups.iter_mut().filter(is_new) {
            governed.marked = now;
        }
    }

    /// Counts for how long each was attached that could be.
    pub fn mark(&mut self, now: MonoNs, there: There) {
        let is_there = |governed: &&mut Governed| there.has(governed.group) && governed.duty.is_attached();
        for governed in self.groups.iter_mut().filter(is_there) {
            governed.mark(now);
        }
    }

    /// Nanoseconds for which a group was attached since this was last asked.
    pub fn take_seen_ns(&mut self, group: Group) -> u64 {
        let governed = self.groups.iter_mut().find(|governed| governed.group == group);
        governed.map_or(0, |governed| std::mem::take(&mut governed.seen_ns))
    }

    /// What is to be attached or detached.
    pub fn decide(&mut self, now: MonoNs, counts: &Counts) -> Vec<(Group, Action)> {
        self.cut_down(now, counts);
        let budget = self.budget;
        let uprobe_cost = self.hit_cost;
        let rarer = f64::from(self.records_rarer());
        let step = |governed: &mut Governed| {
            let group = governed.group;
            let part = budget.part(group, counts.targets);
            let (hits, hit_cost, part) = match group {
                // Others that poll pass the tracepoints in a tenth of the time.
                Group::Polls => (counts.turns, TURN_COST, part / rarer),
                Group::Pool => (hits_of(group, counts.hits), uprobe_cost, part / rarer),
                Group::Switches => (switching_ns(counts.hits), Duration::from_nanos(1), part),
                Group::Waits => (waiting_ns(counts), Duration::from_nanos(1), part),
                _ => (hits_of(group, counts.hits), uprobe_cost, part),
            };
            let was_attached = governed.duty.is_attached();
            let action = governed.duty.step(now, hits, hit_cost, part);
            if was_attached {
                governed.mark(now);
            }
            (action != Action::Keep).then_some((group, action))
        };
        let is_there = |governed: &&mut Governed| counts.there.has(governed.group);
        self.groups.iter_mut().filter(is_there).filter_map(step).collect()
    }

    /// Where stacks or the agent itself cost too much, there are fewer of them, and less for it to do.
    fn cut_down(&mut self, now: MonoNs, counts: &Counts) {
        let cost = |stacks: u64| Duration::from_nanos(nanoseconds(STACK_COST).saturating_mul(stacks));
        let part = self.budget.stacks(counts.targets);
        // Each sample has a stack.
        self.stacks.step(now, cost(counts.stacks.saturating_sub(counts.sampled)), part);
        self.samples.step(now, cost(counts.sampled), part);
        if now.since(self.began).0 >= nanoseconds(OWN_GRACE) {
            self.own.step(now, counts.own, self.budget.own(counts.targets));
            self.looks.step(now, counts.looks, self.budget.looks(counts.targets));
        }
    }

    /// So many times rarer stacks off CPU shall be than usual.
    #[must_use]
    pub fn stacks_rarer(&self) -> u32 {
        if self.cuts_down { self.stacks.times().max(self.own.times()) } else { 1 }
    }

    /// And samples: of a profile also where the agent itself takes too much, as their names are what that is for. Beside all else that a
    /// trace does they are few, and findings are made of them.
    #[must_use]
    pub fn samples_rarer(&self) -> u32 {
        if self.cuts_down { self.samples.times() } else { self.samples.times().max(self.own.times()) }
    }

    /// And looks at heaps, on account of what they take themselves: findings are made of them, and rarer ones spare nothing else.
    #[must_use]
    pub fn looks_rarer(&self) -> u32 {
        self.looks.times()
    }

    /// And so many times less turns and the thread pool may take: where fewer stacks were not enough.
    #[must_use]
    pub fn records_rarer(&self) -> u32 {
        if self.cuts_down { self.own.times_after_first() } else { 1 }
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

    /// A group is attached for the first time, or again for the first: it has cost nothing yet.
    pub fn start(&mut self, group: Group, now: MonoNs) {
        if let Some(governed) = self.groups.iter_mut().find(|governed| governed.group == group) {
            governed.duty = Duty::starting();
            governed.marked = now;
        }
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

/// CPU time that the scheduler's programs took so far, without stacks.
fn switching_ns(hits: &[u64]) -> u64 {
    const SWITCH: [u32; 2] = [slot("sched_switch"), slot("sched_switch_record")];
    const WAKE_UP: [u32; 3] = [slot("sched_wakeup"), slot("sched_wakeup_new"), slot("sched_wakeup_record")];
    let of = |slots: &[u32], each: Duration| {
        let hits = slots.iter().filter_map(|slot| hits.get(*slot as usize)).sum::<u64>();
        hits.saturating_mul(nanoseconds(each))
    };
    of(&SWITCH, SWITCH_COST).saturating_add(of(&WAKE_UP, WAKE_UP_COST))
}

/// CPU time that following PostgreSQL's waits took so far.
fn waiting_ns(counts: &Counts) -> u64 {
    let all = counts.hits.get(slot("postgres_switch") as usize).copied().unwrap_or(0);
    let strangers = all.saturating_sub(counts.backend_switches).saturating_mul(nanoseconds(STRANGERS_COST));
    counts.backend_switches.saturating_mul(nanoseconds(WAIT_COST)).saturating_add(strangers)
}

fn hits_of(group: Group, hits: &[u64]) -> u64 {
    let ids = PROBES.iter().filter(|probe| probe.group == group).map(|probe| probe.id);
    ids.filter_map(|id| hits.get(usize::try_from(id).ok()?)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::SHARE;

    const LOOK: Duration = Duration::from_millis(250);
    /// On two CPUs, of one process: the agent itself may take six percent of one, and stacks one.
    const BUDGET: Budget = Budget::new(SHARE, 2);

    /// Running totals, of a load that takes so much in each look where nothing is cut down.
    struct Load {
        governor: Governor,
        now: MonoNs,
        own: Duration,
        looks: Duration,
        sampled: u64,
    }

    impl Load {
        fn new(switches: SwitchesWanted) -> Self {
            let governor = Governor::new(&[], (PhasesWanted::Never, switches), BUDGET, MonoNs(0));
            Self { governor, now: MonoNs(0), own: Duration::ZERO, looks: Duration::ZERO, sampled: 0 }
        }

        /// Runs for so long, with samples that cost so much to take and so much to name, and looks at heaps that cost so much.
        fn run(&mut self, lasting: Duration, a_second: u32, naming: Duration, looking: f64) {
            for _ in 0..lasting.as_millis() / LOOK.as_millis() {
                self.now = MonoNs(self.now.0 + nanoseconds(LOOK));
                let samples = a_second / 4 / self.governor.samples_rarer();
                self.sampled += u64::from(samples);
                let looked = LOOK.mul_f64(looking / f64::from(self.governor.looks_rarer()));
                self.looks += looked;
                self.own += naming * samples + looked;
                let counts = Counts {
                    hits: &[],
                    turns: 0,
                    stacks: self.sampled,
                    sampled: self.sampled,
                    backend_switches: 0,
                    own: self.own,
                    looks: self.looks,
                    targets: 1,
                    there: There { files: true, clusters: true },
                };
                self.governor.decide(self.now, &counts);
            }
        }

        fn rarer(&self) -> [u32; 4] {
            let governor = &self.governor;
            [governor.stacks_rarer(), governor.samples_rarer(), governor.looks_rarer(), governor.records_rarer()]
        }
    }

    #[test]
    fn samples_whose_names_cost_too_much_are_rarer_until_they_do_not() {
        let mut load = Load::new(SwitchesWanted::Always);
        load.run(Duration::from_mins(1), 99, Duration::from_micros(500), 0.0);
        assert_eq!(load.rarer(), [1; 4], "a twentieth of a CPU is within the budget");
        load.run(Duration::from_mins(1), 396, Duration::from_micros(500), 0.0);
        assert_eq!(load.rarer(), [1, 4, 1, 1]);
        load.run(Duration::from_mins(1), 20, Duration::from_micros(500), 0.0);
        assert_eq!(load.rarer(), [1; 4]);
    }

    #[test]
    fn so_many_samples_that_their_stacks_cost_too_much_are_rarer() {
        let mut load = Load::new(SwitchesWanted::Always);
        load.run(Duration::from_secs(10), 10_000, Duration::ZERO, 0.0);
        assert_eq!(load.rarer(), [1, 4, 1, 1]);
    }

    #[test]
    fn looks_at_heaps_that_cost_too_much_are_rarer_and_those_that_do_not_are_left_alone() {
        let mut load = Load::new(SwitchesWanted::Auto);
        load.run(Duration::from_mins(1), 0, Duration::ZERO, 0.1);
        assert_eq!(load.rarer(), [4, 1, 4, 1]);
        let mut load = Load::new(SwitchesWanted::Auto);
        load.run(Duration::from_mins(1), 396, Duration::from_micros(500), 0.01);
        assert_eq!(load.rarer(), [1024, 1, 1, 256], "of a trace samples are not what is spared");
    }
}
