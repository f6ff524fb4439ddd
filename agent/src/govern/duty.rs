//! When a group of probes is attached, and when not.

use std::{collections::VecDeque, time::Duration};

use super::budget::share;
use crate::units::{MonoNs, nanoseconds};

/// What shall be done with the probes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Keep,
    Attach,
    Detach,
}

/// Cost is looked at over this long, and a little more than the budget is borne for as long.
const SPAN: Duration = Duration::from_secs(1);

/// So many times the budget is not borne from one look to the next.
const HOT: f64 = 4.0;

/// Probes that came off stay off for this long at least, as coming and going has its price, and at most, as what they tell grows old.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// Decides, look by look, whether a group of probes is attached.
#[derive(Clone, Debug)]
pub struct Duty {
    /// When they are attached again; `None` while they are.
    rests_until: Option<MonoNs>,
    /// Looks while they are attached, oldest first: when, and what they had cost.
    looks: VecDeque<(MonoNs, Duration)>,
    /// CPUs that they take on average, with their rests: what they were last sent to rest for, until it shows what they take now.
    reserved: f64,
    always: bool,
}

impl Duty {
    /// Probes start attached.
    #[must_use]
    pub fn new(now: MonoNs, always: bool) -> Self {
        Self { rests_until: None, looks: VecDeque::from([(now, Duration::ZERO)]), reserved: 0.0, always }
    }

    /// Probes that have just been attached: what they took before the first look does not count.
    #[must_use]
    pub fn starting() -> Self {
        Self { rests_until: None, looks: VecDeque::new(), reserved: 0.0, always: false }
    }

    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.rests_until.is_none()
    }

    /// CPUs that are taken, rests included.
    #[must_use]
    pub fn claim(&self) -> f64 {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return self.reserved };
        share(*first, *last).max(self.reserved)
    }

    /// `spent` is the running total of what the probes took, and `part` the CPUs that they may take on average.
    pub fn step(&mut self, now: MonoNs, spent: Duration, part: f64) -> Action {
        if let Some(until) = self.rests_until {
            if now < until {
                return Action::Keep;
            }
            self.rests_until = None;
            self.looks = VecDeque::from([(now, spent)]);
            return Action::Attach;
        }
        let last = self.looks.back().map_or(0.0, |look| share(*look, (now, spent)));
        self.looks.push_back((now, spent));
        while self.looks.get(1).is_some_and(|(at, _)| now.since(*at).0 >= nanoseconds(SPAN)) {
            self.looks.pop_front();
        }
        let Some(&first) = self.looks.front() else { return Action::Keep };
        let span = Duration::from_nanos(now.since(first.0).0);
        if span >= SPAN {
            self.reserved = 0.0;
        }
        let mean = share(first, (now, spent));
        if self.always || last < HOT * part && (mean <= part || span < SPAN) {
            return Action::Keep;
        }
        // A moment ago it was affordable: what is paid back is what is borne now.
        let over = last.max(mean) / part - 1.0;
        let rest = span.as_secs_f64() * over;
        let rest = rest.clamp(REST_MIN.as_secs_f64(), REST_MAX.as_secs_f64());
        self.rests_until = Some(MonoNs(now.0.saturating_add(nanoseconds(Duration::from_secs_f64(rest)))));
        self.looks.clear();
        self.reserved = part;
        Action::Detach
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "rates, not counts")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOK: u64 = 250_000_000;
    const HIT: Duration = Duration::from_micros(2);
    const PART: f64 = 0.01;

    /// Runs a load of so many hits a second in each look; CPUs that it took in each.
    fn run(duty: &mut Duty, load: impl IntoIterator<Item = u64>) -> Vec<f64> {
        let mut spent = Duration::ZERO;
        let mut now = 0;
        let steps = load.into_iter().map(|a_second| {
            let hits = if duty.is_attached() { a_second / 4 } else { 0 };
            let taken = HIT.mul_f64(hits as f64);
            spent += taken;
            now += LOOK;
            duty.step(MonoNs(now), spent, PART);
            taken.as_secs_f64() / 0.25
        });
        steps.collect()
    }

    fn started() -> Duty {
        Duty::new(MonoNs(0), false)
    }

    #[test]
    fn what_is_cheap_stays() {
        let mut duty = started();
        run(&mut duty, std::iter::repeat_n(4_900, 400));
        assert!(duty.is_attached());
    }

    #[test]
    fn what_is_dear_is_seen_now_and_then_within_its_part() {
        for a_second in [6_000, 20_000, 200_000, 500_000] {
            let costs = run(&mut started(), std::iter::repeat_n(a_second, 4_000));
            let mean = costs.iter().sum::<f64>() / 4_000.0;
            let on = costs.iter().filter(|cost| **cost > 0.0).count();
            // One look in the longest rest is the least there is.
            let floor = a_second as f64 * HIT.as_secs_f64() / 121.0;
            assert!(mean <= PART.max(floor) * 1.1, "{a_second}: {mean}");
            assert!(on >= 33, "{a_second}: {on} looks");
        }
    }

    #[test]
    fn always_means_always() {
        let mut duty = Duty::new(MonoNs(0), true);
        run(&mut duty, std::iter::repeat_n(1_000_000, 100));
        assert!(duty.is_attached());
    }

    proptest! {
        /// Whatever comes, much more than its part is taken for no longer than a second at a time.
        #[test]
        fn no_load_is_dear_for_long(load in proptest::collection::vec(0_u64..2_000_000, 1..400)) {
            let costs = run(&mut started(), load);
            for second in costs.windows(5) {
                prop_assert!(second.iter().filter(|cost| **cost >= HOT * PART).count() <= 1, "{second:?}");
            }
        }

        /// And what becomes cheap is back soon.
        #[test]
        fn what_has_become_cheap_comes_back(load in proptest::collection::vec(0_u64..2_000_000, 1..100)) {
            let mut duty = started();
            run(&mut duty, load.into_iter().chain(std::iter::repeat_n(0, 122)));
            prop_assert!(duty.is_attached());
        }
    }
}
