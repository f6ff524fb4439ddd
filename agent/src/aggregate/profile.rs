//! Samples of what ran on the CPUs, by thread and stack.

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    counters::{Counters, Reason},
    decode::{Class, Sample},
    limits::{SAMPLE_STACKS_MAX, SAMPLE_WEIGHT_MAX},
    units::Tid,
};

/// The stacks of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SamplePlace {
    pub user_stack: Option<u64>,
    pub kernel_stack: Option<u64>,
}

impl SamplePlace {
    #[must_use]
    pub fn renamed(self, alias: &impl Fn(u64) -> u64) -> Self {
        Self { user_stack: self.user_stack.map(alias), kernel_stack: self.kernel_stack.map(alias) }
    }
}

/// What samples are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SampleKey {
    pub tid: Tid,
    pub class: Class,
    pub place: SamplePlace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleTotals {
    /// Those that are rarer than usual count for those that were left out, too.
    pub samples: u64,
    /// Of which: in garbage collection pauses.
    pub gc_samples: u64,
}

/// The samples of a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleFigures {
    pub period_ns: u64,
    /// Most samples first.
    pub stacks: Vec<(SampleKey, SampleTotals)>,
    /// Samples beyond the limit on stacks.
    pub other: u64,
}

impl SampleFigures {
    /// Puts samples of stacks that say the same together.
    pub fn rename_stacks(&mut self, alias: impl Fn(u64) -> u64) {
        let mut together = BTreeMap::<SampleKey, SampleTotals>::new();
        for (key, totals) in self.stacks.drain(..) {
            let place = key.place.renamed(&alias);
            let sum = together.entry(SampleKey { place, ..key }).or_default();
            sum.samples += totals.samples;
            sum.gc_samples += totals.gc_samples;
        }
        self.stacks = together.into_iter().collect();
        self.stacks.sort_by_key(|&(key, totals)| (Reverse(totals.samples), key));
    }
}

#[derive(Clone, Debug, Default)]
pub struct SampleWindow {
    period_ns: u64,
    stacks: BTreeMap<SampleKey, SampleTotals>,
    other: u64,
}

impl SampleWindow {
    pub fn add(&mut self, tid: Tid, sample: &Sample, counters: &mut Counters) {
        self.period_ns = sample.period_ns;
        let weight = u64::from(sample.weight.clamp(1, SAMPLE_WEIGHT_MAX));
        let place = SamplePlace { user_stack: sample.user_stack, kernel_stack: sample.kernel_stack };
        let key = SampleKey { tid, class: sample.class, place };
        if self.stacks.len() >= SAMPLE_STACKS_MAX && !self.stacks.contains_key(&key) {
            counters.add(Reason::SampleStacksFull);
            self.other += weight;
            return;
        }
        let totals = self.stacks.entry(key).or_default();
        totals.samples += weight;
        totals.gc_samples += if sample.in_gc { weight } else { 0 };
    }

    #[must_use]
    pub fn close(&mut self) -> SampleFigures {
        let Self { period_ns, stacks, other } = std::mem::take(self);
        let mut stacks: Vec<_> = stacks.into_iter().collect();
        stacks.sort_by_key(|&(key, totals)| (Reverse(totals.samples), key));
        SampleFigures { period_ns, stacks, other }
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn sample(user_stack: u64) -> Sample {
        Sample {
            user_stack: Some(user_stack),
            kernel_stack: None,
            class: Class::EventLoop,
            in_gc: user_stack == 0,
            weight: 1,
            period_ns: 10,
        }
    }

    #[test]
    fn no_sample_is_lost_in_a_flood_of_stacks() {
        let mut window = SampleWindow::default();
        let mut counters = Counters::default();
        let n = SAMPLE_STACKS_MAX as u64 + 100;
        for id in (0..n).chain(0..7) {
            window.add(Tid(1), &sample(id), &mut counters);
        }
        assert_eq!(counters.get(Reason::SampleStacksFull), 100);
        let figures = window.close();
        assert_eq!(figures.stacks.iter().map(|(_, totals)| totals.samples).sum::<u64>() + figures.other, n + 7);
        assert_eq!(figures.stacks[0].1, SampleTotals { samples: 2, gc_samples: 2 });
        assert_eq!(window.close(), SampleFigures::default());
    }

    #[test]
    fn a_sample_that_stands_for_others_counts_for_them() {
        let mut window = SampleWindow::default();
        let mut counters = Counters::default();
        for (stack, weight) in [(0, 1), (1, 1), (1, 4), (0, 16)] {
            window.add(Tid(1), &Sample { weight, ..sample(stack) }, &mut counters);
        }
        let totals: Vec<SampleTotals> = window.close().stacks.into_iter().map(|(_, totals)| totals).collect();
        assert_eq!(totals, [SampleTotals { samples: 17, gc_samples: 17 }, SampleTotals { samples: 5, gc_samples: 0 }]);
    }
}
