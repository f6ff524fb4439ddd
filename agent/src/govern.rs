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
    always: bool,
}

impl PhaseDuty {
    /// `hit_cost` is what one hit costs; probes start attached.
    #[must_use]
    pub fn new(hit_cost: Duration, always: bool) -> Self {
        Self { attached: true, rest: 0, hit_cost, always }
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
        per_second * HITS_PER_TURN * self.hit_cost.as_secs_f64()
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
    fn always_means_always() {
        let mut duty = PhaseDuty::new(HIT, true);
        assert_eq!(duty.step(1_000_000, SECOND), Action::Keep);
        assert!(duty.is_attached());
    }
}
