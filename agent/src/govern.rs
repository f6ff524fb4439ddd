//! Keeps the cost of phase probes under its budget.
//!
//! A turn passes five to seven phase probes. At fifty busy connections that is nothing; at one request a turn it would cost
//! a tenth of a core. So the probes are attached for one window in N, with N such that their cost stays under the
//! budget on average, and the report says what share of the time was seen. Pure: it is told what happened and
//! answers with what to do.

use std::time::Duration;

/// Share of one core that phase probes may cost on average.
pub const PHASE_BUDGET: f64 = 0.0025;

/// Probes that a turn passes.
const HITS_PER_TURN: f64 = 6.0;

/// Hits a second of a probe that is hit once each time that are never too dear: 2000 x 2 µs = 0.4 % of a core.
const FREE_HITS: f64 = 2000.0;

/// Longest pause between two looks, in windows: the split by phase is never older than this.
const OFF_WINDOWS_MAX: u32 = 30;

/// What the driver shall do with the phase probes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Keep,
    Attach,
    Detach,
}

/// Decides, window by window, whether phase probes are attached.
#[derive(Clone, Debug)]
pub struct PhaseDuty {
    attached: bool,
    /// Windows that the probes stay off yet.
    rest: u32,
    hit_cost: Duration,
    hits_each: f64,
    /// Events a second below which nothing comes off, whatever a hit was measured to cost: on a busy machine that is mostly noise.
    free_per_second: f64,
    always: bool,
}

impl PhaseDuty {
    /// `hit_cost` is what one hit costs; probes start attached.
    #[must_use]
    pub fn new(hit_cost: Duration, always: bool) -> Self {
        Self { attached: true, rest: 0, hit_cost, hits_each: HITS_PER_TURN, free_per_second: 0.0, always }
    }

    /// The same for probes that are hit once by each of what [`Self::step`] is told of.
    #[must_use]
    pub fn once_each(hit_cost: Duration) -> Self {
        Self { attached: true, rest: 0, hit_cost, hits_each: 1.0, free_per_second: FREE_HITS, always: false }
    }

    /// A hit was measured to cost this.
    pub fn set_hit_cost(&mut self, hit_cost: Duration) {
        self.hit_cost = hit_cost;
    }

    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached
    }

    /// A window has ended in which `turns` turns ended over `window`.
    pub fn step(&mut self, turns: u64, window: Duration) -> Action {
        if self.always {
            return Action::Keep;
        }
        if !self.attached {
            if self.rest > 1 {
                self.rest -= 1;
                return Action::Keep;
            }
            self.attached = true;
            return Action::Attach;
        }
        let rest = off_windows(self.cost(turns, window));
        if rest == 0 {
            return Action::Keep;
        }
        self.rest = rest;
        self.attached = false;
        Action::Detach
    }

    /// Share of a core that the probes cost while they are attached.
    fn cost(&self, turns: u64, window: Duration) -> f64 {
        if window.is_zero() {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let per_second = turns as f64 / window.as_secs_f64();
        if per_second < self.free_per_second {
            return 0.0;
        }
        per_second * self.hits_each * self.hit_cost.as_secs_f64()
    }
}

/// Windows to stay off after one window on, so that the average keeps to the budget.
fn off_windows(cost: f64) -> u32 {
    let over = (cost / PHASE_BUDGET).ceil() - 1.0;
    if over <= 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the maximum")]
    let windows = over.min(f64::from(OFF_WINDOWS_MAX)) as u32;
    windows
}

/// What shall be watched of something that may be kept for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    #[default]
    Nothing,
    /// What goes away of that which was seen to be made.
    Takers,
    /// Who makes it, and what goes away.
    Makers,
}

/// Decides when it is looked at who makes something: when it grows steadily, for seconds, and then not for a while.
#[derive(Clone, Debug)]
pub struct Suspicion {
    growth_windows: usize,
    making_windows: u32,
    /// The last counts, oldest first.
    counts: Vec<u64>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Making(u32),
    Taking(u32),
    Resting(u32),
}

/// Windows that a growth is looked at before makers are.
const GROWTH_WINDOWS: usize = 6;
/// Growth over these that is no more than noise.
const GROWTH_MIN: u64 = 32;
/// Windows in which makers are watched, in which what they made is watched on, and in which nothing is.
const MAKING_WINDOWS: u32 = 3;
const TAKING_WINDOWS: u32 = 4;
const RESTING_WINDOWS: u32 = 20;

impl Default for Suspicion {
    fn default() -> Self {
        Self::lasting(MAKING_WINDOWS)
    }
}

impl Suspicion {
    /// Makers are watched for so many windows.
    #[must_use]
    pub fn lasting(making_windows: u32) -> Self {
        Self { growth_windows: GROWTH_WINDOWS, making_windows, counts: Vec::new(), stage: Stage::Idle }
    }

    /// Two counts are enough: of something that is counted only now and then.
    #[must_use]
    pub fn at_once(self) -> Self {
        Self { growth_windows: 2, ..self }
    }

    /// A window has ended, with so many of it where they were counted.
    pub fn step(&mut self, count: Option<u64>) -> Watch {
        if let Some(count) = count {
            if self.counts.len() == self.growth_windows {
                self.counts.remove(0);
            }
            self.counts.push(count);
        }
        self.stage = match self.stage {
            Stage::Idle if self.grows() => Stage::Making(self.making_windows),
            Stage::Idle | Stage::Resting(1) => Stage::Idle,
            Stage::Making(1) => Stage::Taking(TAKING_WINDOWS),
            Stage::Making(left) => Stage::Making(left - 1),
            Stage::Taking(1) => Stage::Resting(RESTING_WINDOWS),
            Stage::Taking(left) => Stage::Taking(left - 1),
            Stage::Resting(left) => Stage::Resting(left - 1),
        };
        match self.stage {
            Stage::Idle | Stage::Resting(_) => Watch::Nothing,
            Stage::Making(_) => Watch::Makers,
            Stage::Taking(_) => Watch::Takers,
        }
    }

    fn grows(&self) -> bool {
        let (Some(first), Some(last)) = (self.counts.first(), self.counts.last()) else { return false };
        let rises = self.counts.iter().zip(self.counts.iter().skip(1)).filter(|(before, after)| after > before).count();
        self.counts.len() == self.growth_windows
            && *last >= first.saturating_add(GROWTH_MIN)
            && rises + 2 >= self.growth_windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HIT: Duration = Duration::from_micros(2);

    #[test]
    fn slow_turns_are_always_split() {
        let mut duty = PhaseDuty::new(HIT, false);
        for _ in 0..100 {
            assert_eq!(duty.step(200, SECOND), Action::Keep);
        }
        assert!(duty.is_attached());
    }

    #[test]
    fn fast_turns_are_split_within_the_budget() {
        const WINDOWS: u32 = 620;
        for turns in [500, 2_000, 10_000, 20_000] {
            let mut duty = PhaseDuty::new(HIT, false);
            let mut on = 0u32;
            for _ in 0..WINDOWS {
                on += u32::from(duty.is_attached());
                duty.step(turns, SECOND);
            }
            let cost = duty.cost(turns, SECOND) * f64::from(on) / f64::from(WINDOWS);
            let floor = duty.cost(turns, SECOND) / f64::from(OFF_WINDOWS_MAX + 1);
            assert!(cost <= PHASE_BUDGET.max(floor) * 1.05, "{turns} turns/s: {cost}");
            assert!(on > 0);
        }
    }

    #[test]
    fn makers_are_watched_while_something_grows() {
        let mut steady = Suspicion::default();
        assert!((0..100).all(|n| steady.step(Some(1000 + n % 3)) == Watch::Nothing));
        let mut leak = Suspicion::default();
        let mut steps: Vec<_> = (0..20).map(|n| leak.step(Some(n * 400))).collect();
        steps.dedup();
        assert_eq!(steps, [Watch::Nothing, Watch::Makers, Watch::Takers, Watch::Nothing]);
        assert_eq!(leak.step(None), Watch::Nothing);
    }

    #[test]
    fn two_counts_are_enough_where_they_are_rare() {
        let mut heap = Suspicion::lasting(5).at_once();
        assert_eq!([Some(100), None, None, Some(120), None].map(|count| heap.step(count)), [Watch::Nothing; 5]);
        assert_eq!(heap.step(Some(160)), Watch::Makers);
    }

    #[test]
    fn always_means_always() {
        let mut duty = PhaseDuty::new(HIT, true);
        assert_eq!(duty.step(1_000_000, SECOND), Action::Keep);
        assert!(duty.is_attached());
    }
}
