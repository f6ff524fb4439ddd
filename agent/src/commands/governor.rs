//! Groups of probes that come off where they would be too dear, and for how long each was attached.

use std::time::Duration;

use agent_ebpf::spec::Group;

use super::session::{PhasesWanted, SwitchesWanted};
use crate::{
    govern::{Action, Budget, Duty, Level, Passed, Prices, STACKS_ASSURED, Tolls, assured},
    units::{MonoNs, nanoseconds},
};

/// The agent's own CPU time is looked at from then on: at first it reads the symbols of whole programs.
const OWN_GRACE: Duration = Duration::from_secs(3);

/// What the budget is shared by, and the order in which it goes where it is not enough: what everything else is told by comes last.
const ORDER: [Lever; 8] = [
    Lever::Group(Group::Phases),
    Lever::Group(Group::Pool),
    Lever::Stacks,
    Lever::Samples,
    Lever::Group(Group::Polls),
    Lever::Group(Group::Waits),
    Lever::Group(Group::Requests),
    Lever::Group(Group::Switches),
];

/// Something that can be cut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lever {
    Group(Group),
    /// Stacks off CPU, and samples.
    Stacks,
    Samples,
}

/// Running totals of what is governed.
#[derive(Clone, Debug)]
pub struct Counts {
    pub passed: Passed,
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

/// One group.
#[derive(Debug)]
struct Governed {
    group: Group,
    duty: Duty,
    /// What its probes have taken.
    spent: Duration,
    /// Up to here it is counted for how long the probes were attached.
    marked: MonoNs,
    seen_ns: u64,
}

/// All of them.
#[derive(Debug)]
pub struct Governor {
    budget: Budget,
    prices: Prices,
    groups: Vec<Governed>,
    /// How much rarer stacks off CPU, samples and looks at heaps are, as they cost too much, or as the agent itself does.
    stacks: Level,
    samples: Level,
    looks: Level,
    own: Level,
    /// What stacks and samples have taken.
    stacks_spent: Duration,
    samples_spent: Duration,
    began: MonoNs,
    /// When it was last looked, and what probes might have taken by then.
    budgeted: (MonoNs, Duration),
    /// Of a profile stacks off CPU are not cut down: they are what was asked for.
    cuts_down: bool,
    /// What was passed by the last look.
    passed: Passed,
    /// What is taken by groups on suspicion.
    tolls: Tolls,
}

impl Governor {
    pub fn new(
        groups: &[Group],
        (phases, switches): (PhasesWanted, SwitchesWanted),
        budget: Budget,
        now: MonoNs,
    ) -> Self {
        let governed = |group, always| Governed {
            group,
            duty: Duty::new(now, always),
            spent: Duration::ZERO,
            marked: now,
            seen_ns: 0,
        };
        let of_group = |group: Group| match group {
            Group::Phases => (phases != PhasesWanted::Never).then(|| governed(group, phases == PhasesWanted::Always)),
            Group::Switches => Some(governed(group, switches == SwitchesWanted::Always)),
            _ => groups.contains(&group).then(|| governed(group, false)),
        };
        Self {
            budget,
            prices: Prices::default(),
            groups: ORDER.into_iter().filter_map(Lever::group).filter_map(of_group).collect(),
            stacks: Level::quick(now),
            samples: Level::quick(now),
            looks: Level::steady(now),
            own: Level::steady(now),
            stacks_spent: Duration::ZERO,
            samples_spent: Duration::ZERO,
            began: now,
            budgeted: (now, Duration::ZERO),
            cuts_down: switches == SwitchesWanted::Auto,
            passed: Passed::default(),
            tolls: Tolls::new(now),
        }
    }

    /// What a hit costs was measured.
    pub fn set_prices(&mut self, prices: Prices) {
        self.prices = prices;
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
        self.charge(&counts.passed);
        self.look_at_own(now, counts);
        let whole = self.budget.whole(counts.targets);
        let (before, budget) = self.budgeted;
        let span = Duration::from_nanos(now.since(before).0);
        self.budgeted = (now, budget.saturating_add(span.mul_f64(whole)));
        let mut actions = Vec::new();
        for (rank, lever) in ORDER.into_iter().enumerate() {
            let room = self.room(rank, whole, counts.there);
            match lever {
                Lever::Group(group) if !counts.there.has(group) => {}
                Lever::Group(group) => actions.extend(self.step(group, now, room)),
                Lever::Stacks => self.stacks.step(now, self.stacks_spent, room),
                Lever::Samples => self.samples.step(now, self.samples_spent, room),
            }
        }
        actions
    }

    /// What probes might have taken so far from what runs here.
    #[must_use]
    pub fn budget(&self) -> Duration {
        self.budgeted.1
    }

    /// Books what was passed since the last look.
    fn charge(&mut self, passed: &Passed) {
        let new = passed.since(&self.passed);
        for governed in &mut self.groups {
            governed.spent += Duration::from_nanos(self.prices.of_group(governed.group, &new));
        }
        self.stacks_spent += Duration::from_nanos(self.prices.of_stacks(&new));
        self.samples_spent += Duration::from_nanos(self.prices.of_samples(&new));
        self.passed = passed.clone();
    }

    fn step(&mut self, group: Group, now: MonoNs, room: f64) -> Option<(Group, Action)> {
        let rarer = f64::from(self.records_rarer());
        let part = if matches!(group, Group::Polls | Group::Pool) { room / rarer } else { room };
        let governed = self.groups.iter_mut().find(|governed| governed.group == group)?;
        let was_attached = governed.duty.is_attached();
        let action = governed.duty.step(now, governed.spent, part);
        if was_attached {
            governed.mark(now);
        }
        (action != Action::Keep).then_some((group, action))
    }

    /// CPUs that the lever of this rank may take: what is its own in any case, or what is left by those that go after it, and by those
    /// that go before it, which can claim no more against it than what is their own.
    fn room(&self, rank: usize, whole: f64, there: There) -> f64 {
        let others = ORDER.into_iter().enumerate().filter(|(other, _)| *other != rank);
        let claimed = others.map(|(other, lever)| {
            let claim = self.claim(lever, there);
            if other < rank { claim.min(whole * lever.assured()) } else { claim }
        });
        let own = ORDER.get(rank).map_or(0.0, |lever| lever.assured());
        (whole * own).max(whole - claimed.sum::<f64>())
    }

    /// CPUs that are taken by one.
    fn claim(&self, lever: Lever, there: There) -> f64 {
        match lever {
            Lever::Group(group) if !there.has(group) => 0.0,
            Lever::Group(group) => {
                let governed = self.groups.iter().find(|governed| governed.group == group);
                governed.map_or(0.0, |governed| governed.duty.claim())
            }
            Lever::Stacks => self.stacks.claim(),
            Lever::Samples => self.samples.claim(),
        }
    }

    /// Where the agent itself costs too much, there is less for it to do.
    fn look_at_own(&mut self, now: MonoNs, counts: &Counts) {
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

    /// Of groups that are attached on suspicion, for seconds, those that cost too much even so, as of the last look.
    pub fn too_dear(&mut self, now: MonoNs, demanded: &[Group]) -> Vec<Group> {
        self.tolls.collect(now, &self.passed, self.prices, demanded)
    }

    /// A group was not too dear of late.
    pub fn allows(&mut self, group: Group, now: MonoNs) -> bool {
        self.tolls.allows(group, now)
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

impl Lever {
    fn group(self) -> Option<Group> {
        if let Self::Group(group) = self { Some(group) } else { None }
    }

    /// The part of the budget that is its own.
    fn assured(self) -> f64 {
        match self {
            Self::Group(group) => assured(group),
            Self::Stacks | Self::Samples => STACKS_ASSURED,
        }
    }
}

impl Governed {
    fn mark(&mut self, now: MonoNs) {
        self.seen_ns += now.since(self.marked).0;
        self.marked = now;
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use agent_ebpf::spec::{HITS_COUNT, id, slot};
    use proptest::prelude::*;

    use super::*;
    use crate::govern::SHARE;

    const LOOK: Duration = Duration::from_millis(250);
    /// On two CPUs, of one process: probes may take two percent of one, the agent itself six.
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
                    passed: Passed { stacks: self.sampled, samples: self.sampled, ..Passed::default() },
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

    /// What a load would pass a second if all of it were watched.
    #[derive(Clone, Copy, Debug)]
    struct Rates {
        phases: u64,
        items: u64,
        turns: u64,
        stacks: u64,
        switches: u64,
    }

    const LOOKS_A_SECOND: u64 = 4;

    impl Rates {
        /// What is passed until the next look, as the governor has it.
        fn pass(&self, governor: &Governor, passed: &mut Passed) {
            let of = |group, rate: u64| if governor.is_attached(group) { rate / LOOKS_A_SECOND } else { 0 };
            let mut hit = |slot: u64, hits| {
                let slot = usize::try_from(slot).ok().and_then(|slot| passed.hits.get_mut(slot));
                *slot.expect("a slot") += hits;
            };
            hit(id::RUN_TIMERS, of(Group::Phases, self.phases));
            hit(id::FS_WORK, of(Group::Pool, self.items));
            hit(slot("sched_switch").into(), of(Group::Switches, self.switches));
            passed.turns += of(Group::Polls, self.turns);
            let stacks = of(Group::Switches, self.stacks) / u64::from(governor.stacks_rarer());
            passed.stacks += stacks;
        }
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let any = || prop_oneof![Just(0_u64), 0_u64..4_000, 0_u64..400_000];
        (any(), any(), any(), 0_u64..8_000, any()).prop_map(|(phases, items, turns, stacks, switches)| Rates {
            phases,
            items,
            turns,
            stacks,
            switches,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is watched, all of it together keeps to the budget.
        #[test]
        fn all_together_keep_to_the_budget(rates in rates()) {
            const SECONDS: u64 = 300;
            let wanted = (PhasesWanted::Auto, SwitchesWanted::Auto);
            let mut governor = Governor::new(&[Group::Polls, Group::Pool], wanted, BUDGET, MonoNs(0));
            let mut passed = Passed { hits: vec![0; HITS_COUNT as usize], ..Passed::default() };
            for look in 1..=SECONDS * LOOKS_A_SECOND {
                rates.pass(&governor, &mut passed);
                let (own, looks) = (Duration::ZERO, Duration::ZERO);
                let there = There { files: true, clusters: false };
                let counts = Counts { passed: passed.clone(), own, looks, targets: 1, there };
                governor.decide(MonoNs(look * nanoseconds(LOOK)), &counts);
            }
            let taken = Duration::from_nanos(Prices::default().of_all(&passed)).as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "few")]
            let share = taken / SECONDS as f64;
            let whole = BUDGET.whole(1);
            // The longest rest may be too short for what is seen in one look, and the first look of each is seen whatever it costs.
            let one_look = 0.25 * (0.8 + 0.32 + 0.076 + 0.8) / 30.0;
            prop_assert!(share <= whole * 1.1 + one_look, "{share} of {whole}");
        }

        /// And what is cheap is all seen.
        #[test]
        fn what_fits_into_the_budget_is_seen_all_the_time(turns in 0_u64..10_000, switches in 0_u64..40_000) {
            let wanted = (PhasesWanted::Auto, SwitchesWanted::Auto);
            let mut governor = Governor::new(&[Group::Polls, Group::Pool], wanted, BUDGET, MonoNs(0));
            let mut passed = Passed { hits: vec![0; HITS_COUNT as usize], ..Passed::default() };
            let rates = Rates { phases: 0, items: 1_000, turns, stacks: 0, switches };
            for look in 1..=240 {
                rates.pass(&governor, &mut passed);
                let there = There { files: true, clusters: false };
                let (own, looks) = (Duration::ZERO, Duration::ZERO);
                let counts = Counts { passed: passed.clone(), own, looks, targets: 1, there };
                prop_assert_eq!(governor.decide(MonoNs(look * nanoseconds(LOOK)), &counts), vec![]);
            }
        }
    }
}
