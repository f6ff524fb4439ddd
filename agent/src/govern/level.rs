//! How far detail is cut down where what costs cannot come off as a whole.

use std::{collections::VecDeque, time::Duration};

use super::budget::share;
use crate::units::{MonoNs, nanoseconds};

/// Each step makes something so many times rarer.
const STEP: u32 = 4;
/// And there are so many: 1024 times rarer is next to nothing.
const STEPS_MAX: u32 = 5;

/// What takes more than its part over this long is cut down, and what takes [`HOT`] times as much from one look to the next.
const QUICK_SPAN: Duration = Duration::from_secs(1);
const HOT: f64 = 4.0;

/// The same of what comes in bursts: they even out over this long.
const STEADY_SPAN: Duration = Duration::from_secs(5);

/// A step is taken back when less than this share of the part was used for so long: after it, cost is at most [`STEP`] times
/// as high, which is half of the part.
const CALM: f64 = 0.125;
const CALM_FOR: Duration = Duration::from_secs(5);

/// Decides, look by look, how much rarer something is made.
#[derive(Clone, Debug)]
pub struct Level {
    steps: u32,
    /// Cost is looked at over this long, and from one look to the next so many times the part is too much.
    span: Duration,
    hot: f64,
    /// Looks since the last step, oldest first: when, and the cost so far.
    looks: VecDeque<(MonoNs, Duration)>,
    /// Up to here too much was spent for a step back.
    busy: MonoNs,
}

impl Level {
    /// Of what is paid at a steady pace.
    #[must_use]
    pub fn quick(now: MonoNs) -> Self {
        Self { steps: 0, span: QUICK_SPAN, hot: HOT, looks: VecDeque::new(), busy: now }
    }

    /// Of what comes in bursts.
    #[must_use]
    pub fn steady(now: MonoNs) -> Self {
        Self { span: STEADY_SPAN, hot: f64::INFINITY, ..Self::quick(now) }
    }

    /// So many times rarer than usual.
    #[must_use]
    pub fn times(&self) -> u32 {
        STEP.pow(self.steps)
    }

    /// The same of what is spared by the first step.
    #[must_use]
    pub fn times_after_first(&self) -> u32 {
        STEP.pow(self.steps.saturating_sub(1))
    }

    /// CPUs that are taken now.
    #[must_use]
    pub fn claim(&self) -> f64 {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return 0.0 };
        share(*first, *last)
    }

    /// `spent` is the running total of CPU time, and `part` the CPUs that may be taken on average.
    pub fn step(&mut self, now: MonoNs, spent: Duration, part: f64) {
        let last = self.looks.back().map_or(0.0, |look| share(*look, (now, spent)));
        self.looks.push_back((now, spent));
        let span_ns = nanoseconds(self.span);
        while self.looks.get(1).is_some_and(|(at, _)| now.since(*at).0 >= span_ns) {
            self.looks.pop_front();
        }
        let Some(&first) = self.looks.front() else { return };
        let is_whole = now.since(first.0).0 >= span_ns;
        let mean = share(first, (now, spent));
        if last >= self.hot * part || is_whole && mean > part {
            if self.steps < STEPS_MAX {
                self.steps += 1;
                // What was spent before says nothing of what is spent from now on.
                self.looks.clear();
                self.looks.push_back((now, spent));
            }
            self.busy = now;
        } else if mean > CALM * part {
            self.busy = now;
        } else if self.steps > 0 && now.since(self.busy).0 >= nanoseconds(CALM_FOR) {
            self.steps -= 1;
            self.busy = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: u64 = 250_000_000;
    const PART: f64 = 0.01;

    /// Runs a load that takes so many CPUs in each look where nothing is cut down; what it takes in each, and the level by then.
    fn run(level: &mut Level, load: impl IntoIterator<Item = f64>) -> Vec<(f64, u32)> {
        let (mut now, mut spent) = (0, Duration::ZERO);
        level.step(MonoNs(now), spent, PART);
        let looks = load.into_iter().map(|wanted| {
            let taken = wanted / f64::from(level.times());
            now += LOOK;
            spent += Duration::from_secs_f64(taken * 0.25);
            level.step(MonoNs(now), spent, PART);
            (taken, level.times())
        });
        looks.collect()
    }

    fn started() -> Level {
        Level::quick(MonoNs(0))
    }

    #[test]
    fn what_is_within_its_part_is_left_alone() {
        assert!(run(&mut started(), std::iter::repeat_n(0.009, 400)).iter().all(|(_, times)| *times == 1));
    }

    #[test]
    fn a_steady_load_comes_to_rest() {
        let looks = run(&mut started(), std::iter::repeat_n(0.05, 400));
        assert!(looks.iter().skip(20).all(|(taken, times)| *times == 16 && *taken <= PART), "{looks:?}");
    }

    #[test]
    fn a_burst_is_not_what_it_takes() {
        let burst = |look: i32| if look % 20 == 0 { 0.15 } else { 0.001 };
        let looks = run(&mut Level::steady(MonoNs(0)), (0..400).map(burst));
        assert!(looks.iter().all(|(_, times)| *times == 1));
        let looks = run(&mut Level::steady(MonoNs(0)), (0..400).map(|look| 4.0 * burst(look)));
        assert!(looks.iter().any(|(_, times)| *times > 1));
    }

    proptest! {
        /// Whatever comes, much more than its part is taken for no longer than a second and a half.
        #[test]
        fn no_load_is_dear_for_long(load in proptest::collection::vec(0.0..1.0, 1..400)) {
            let looks = run(&mut started(), load);
            for second in looks.windows(6) {
                prop_assert!(second.iter().any(|(taken, _)| *taken < HOT * PART), "{second:?}");
            }
        }

        /// And all of it is back some time after it has become cheap.
        #[test]
        fn what_has_become_cheap_comes_back(load in proptest::collection::vec(0.0..1.0, 1..100)) {
            let mut level = started();
            let cheap = std::iter::repeat_n(0.0, 4 * 5 * 7);
            run(&mut level, load.into_iter().chain(cheap));
            prop_assert_eq!(level.times(), 1);
        }
    }
}
