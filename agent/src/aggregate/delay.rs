//! Event loop delay: how late a timer of fixed period would run, had the target one.
//!
//! The timer is restarted when it runs, as libuv's repeating timers are and as `monitorEventLoopDelay` has it. Due while the loop
//! polls, it runs at once; due while callbacks run, it runs after them. Its period is not part of the delay.

use super::histogram::Histogram;
use crate::units::MonoNs;

/// The virtual timer of one loop.
#[derive(Clone, Debug)]
pub struct DelayTimer {
    period_ns: u64,
    due: Option<MonoNs>,
}

impl DelayTimer {
    /// A period of 0 counts as one of 1 ns.
    #[must_use]
    pub fn new(period_ns: u64) -> Self {
        Self { period_ns: period_ns.max(1), due: None }
    }

    /// The loop ran callbacks from `started` to `polled`, and polled until `ended`.
    pub fn turn(&mut self, started: MonoNs, polled: MonoNs, ended: MonoNs, delays: &mut Histogram) {
        let polled = polled.max(started);
        let mut due = match self.due {
            // A turn is missing, so nobody knows when the timer ran: begin anew.
            Some(due) if due >= started => due,
            Some(_) | None => self.after(started),
        };
        if due < polled {
            delays.record(polled.since(due).0);
            due = self.after(polled);
        }
        if due <= ended {
            let times = ended.since(due).0 / self.period_ns + 1;
            delays.record_n(0, times);
            due = MonoNs(due.0.saturating_add(times.saturating_mul(self.period_ns)));
        }
        self.due = Some(due);
    }

    fn after(&self, at: MonoNs) -> MonoNs {
        MonoNs(at.0.saturating_add(self.period_ns))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(turns: &[(u64, u64, u64)], expected: &[(u64, u64)]) {
        let mut timer = DelayTimer::new(10);
        let mut delays = Histogram::default();
        for &(started, polled, ended) in turns {
            timer.turn(MonoNs(started), MonoNs(polled), MonoNs(ended), &mut delays);
        }
        let mut wanted = Histogram::default();
        for &(delay, times) in expected {
            wanted.record_n(delay, times);
        }
        assert_eq!(delays, wanted);
    }

    #[test]
    fn an_idle_loop_is_never_late() {
        check(&[(0, 0, 100)], &[(0, 10)]);
        check(&[(0, 0, 100), (100, 100, 200)], &[(0, 20)]);
    }

    #[test]
    fn a_busy_loop_is_late_by_what_is_left_of_it() {
        check(&[(0, 80, 80)], &[(70, 1)]);
        check(&[(0, 80, 85), (85, 100, 101)], &[(70, 1), (10, 1)]);
    }

    #[test]
    fn due_as_the_poll_begins_is_on_time() {
        check(&[(0, 10, 15)], &[(0, 1)]);
    }

    #[test]
    fn a_gap_in_the_turns_is_not_a_delay() {
        check(&[(0, 1, 12), (1_000_000, 1_000_001, 1_000_012)], &[(0, 2)]);
    }

    proptest! {
        #[test]
        fn a_long_poll_equals_many_short_ones(cuts in proptest::collection::vec(0u64..200, 0..20)) {
            let mut whole = Histogram::default();
            let mut pieces = Histogram::default();
            let mut one = DelayTimer::new(10);
            let mut many = DelayTimer::new(10);
            let end: u64 = cuts.iter().sum();
            one.turn(MonoNs(0), MonoNs(0), MonoNs(end), &mut whole);
            many.turn(MonoNs(0), MonoNs(0), MonoNs(0), &mut pieces);
            let mut at = 0;
            for cut in cuts {
                many.turn(MonoNs(at), MonoNs(at), MonoNs(at + cut), &mut pieces);
                at += cut;
            }
            prop_assert_eq!(whole, pieces);
        }
    }
}
