//! The wall clock, as records are told in it.

use std::time::Duration;

use super::subject;
use crate::units::{Clock, nanoseconds};

/// What differs by less is how exactly it was read: who reads it may be off CPU between two looks.
const SET_LEAST: Duration = Duration::from_millis(50);

/// What was told of it last.
pub struct WallClock(Clock);

impl Default for WallClock {
    fn default() -> Self {
        Self(subject::clock())
    }
}

impl WallClock {
    #[must_use]
    pub fn told(&self) -> Clock {
        self.0
    }

    /// What it is now, if it was set since, or the machine has slept, which the monotonic clock does not count.
    pub fn set_since(&mut self) -> Option<Clock> {
        let clock = subject::clock();
        let is_set = clock.offset_ns.abs_diff(self.0.offset_ns) >= nanoseconds(SET_LEAST);
        is_set.then(|| {
            self.0 = clock;
            clock
        })
    }
}
