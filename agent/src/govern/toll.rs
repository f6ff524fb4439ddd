//! What probes take that are attached on suspicion, and which of them are too dear.

use std::time::Duration;

use agent_ebpf::spec::Group;

use super::{Passed, Prices, hits_of};
use crate::units::MonoNs;

/// CPUs that a group may take. One that takes more comes off when it has taken so much in all, which is some seconds to see who it is, or at
/// once if it takes far more; then it is not attached again for a while.
const MOST: f64 = 0.05;
const AT_ONCE: f64 = 0.25;
const SPENT: Duration = Duration::from_millis(300);
const REFUSED: Duration = Duration::from_mins(1);

/// The books of what is on suspicion.
#[derive(Debug)]
pub struct Tolls {
    /// When it was last looked, and what was passed by then.
    last: (MonoNs, Passed),
    /// What groups have taken since they were attached.
    spent: Vec<(Group, Duration)>,
    /// Groups that were too dear, and since when.
    refused: Vec<(Group, MonoNs)>,
}

impl Tolls {
    #[must_use]
    pub fn new(now: MonoNs) -> Self {
        Self { last: (now, Passed::default()), spent: Vec::new(), refused: Vec::new() }
    }

    /// Books what was passed by now, and tells which of the groups that are attached cost too much.
    pub fn collect(&mut self, now: MonoNs, passed: &Passed, prices: Prices, attached: &[Group]) -> Vec<Group> {
        let (before, then) = std::mem::replace(&mut self.last, (now, passed.clone()));
        let span = Duration::from_nanos(now.since(before).0).as_secs_f64();
        let new = passed.since(&then);
        let before = |group| self.spent.iter().find(|(of, _)| *of == group).map_or(Duration::ZERO, |(_, spent)| *spent);
        let tolls = attached.iter().map(|&group| (group, toll(group, &new, prices)));
        let (mut spent, mut dear) = (Vec::new(), Vec::new());
        for (group, toll) in tolls {
            let all = before(group) + toll;
            let share = toll.as_secs_f64() / span;
            if span > 0.0 && (share > AT_ONCE || share > MOST && all > SPENT) {
                dear.push(group);
            } else {
                spent.push((group, all));
            }
        }
        self.spent = spent;
        self.refused.extend(dear.iter().map(|group| (*group, now)));
        dear
    }

    /// A group was not too dear of late.
    pub fn allows(&mut self, group: Group, now: MonoNs) -> bool {
        self.refused.retain(|(_, since)| Duration::from_nanos(now.since(*since).0) < REFUSED);
        self.refused.iter().all(|(refused, _)| *refused != group)
    }
}

/// What makes handles and what frees them is of use together only.
fn toll(group: Group, new: &Passed, prices: Prices) -> Duration {
    let groups: &[Group] = match &group {
        Group::Makers | Group::Takers => &[Group::Makers, Group::Takers],
        other => std::slice::from_ref(other),
    };
    let hits = groups.iter().map(|group| hits_of(*group, new)).fold(0, u64::saturating_add);
    Duration::from_nanos(prices.of_hits(hits))
}

#[cfg(test)]
mod tests {
    use agent_ebpf::spec::{HITS_COUNT, id};

    use super::*;

    const BOTH: [Group; 2] = [Group::Makers, Group::Takers];

    /// Running totals of a load that makes so many handles a second, for so many seconds: when which group is too dear.
    struct Load {
        tolls: Tolls,
        passed: Passed,
        now: MonoNs,
    }

    impl Load {
        fn new() -> Self {
            let passed = Passed { hits: vec![0; HITS_COUNT as usize], ..Passed::default() };
            Self { tolls: Tolls::new(MonoNs(0)), passed, now: MonoNs(0) }
        }

        fn run(&mut self, seconds: u64, a_second: u64, attached: &[Group]) -> Option<(u64, Vec<Group>)> {
            (1..=seconds * 4).find_map(|look| {
                self.now = MonoNs(self.now.0 + 250_000_000);
                let hits = usize::try_from(id::HANDLE_CREATE).ok().and_then(|slot| self.passed.hits.get_mut(slot));
                *hits? += a_second / 4;
                let dear = self.tolls.collect(self.now, &self.passed, Prices::default(), attached);
                (!dear.is_empty()).then_some((look, dear))
            })
        }
    }

    #[test]
    fn what_costs_little_may_stay() {
        let mut load = Load::new();
        assert_eq!(load.run(60, 5_000, &BOTH), None);
        assert!(load.tolls.allows(Group::Makers, load.now));
    }

    #[test]
    fn what_costs_much_comes_off_after_a_while_and_what_costs_far_more_at_once() {
        // A hit costs 2 µs where it was not measured: a tenth of a CPU, of which three tenths of a second are spent after three seconds.
        let (look, dear) = Load::new().run(60, 50_000, &BOTH).unwrap_or_default();
        assert_eq!((look, dear), (13, BOTH.to_vec()));
        assert_eq!(Load::new().run(60, 200_000, &BOTH), Some((1, BOTH.to_vec())));
    }

    #[test]
    fn what_was_too_dear_is_refused_for_a_minute_and_nothing_else_is() {
        let mut load = Load::new();
        load.run(1, 200_000, &BOTH);
        let after = |seconds: u64| MonoNs(load.now.0 + seconds * 1_000_000_000);
        assert!(load.tolls.allows(Group::Scopes, after(0)));
        assert!(!load.tolls.allows(Group::Makers, after(59)));
        assert!(load.tolls.allows(Group::Makers, after(60)));
    }

    #[test]
    fn a_group_that_was_detached_meanwhile_begins_anew() {
        let mut load = Load::new();
        assert_eq!(load.run(2, 50_000, &BOTH), None);
        assert_eq!(load.run(1, 50_000, &[]), None);
        let again = load.run(60, 50_000, &BOTH).map(|(look, _)| look);
        assert_eq!(again, Some(13));
    }
}
