//! Numbers that must not be confused, and the one place that turns the kernel's clock into wall time.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};

macro_rules! newtype {
    ($($(#[$meta:meta])* $name:ident($inner:ty);)*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
    )*};
}

newtype! {
    /// A process (thread group) id in the initial pid namespace.
    Pid(u32);
    /// A thread id in the initial pid namespace.
    Tid(u32);
    /// An address in a target's memory.
    UserAddr(u64);
    /// An offset in a file.
    FileOffset(u64);
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    MonoNs(u64);
    /// A span of time in nanoseconds.
    DurationNs(u64);
    /// Nanoseconds since the Unix epoch.
    WallNs(u64);
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl UserAddr {
    /// An address so many bytes further on; one past the end of all addresses wraps, and then is not readable.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

/// A duration in whole nanoseconds: all that fit into 64 bits, which is some centuries.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl MonoNs {
    /// The time from `earlier` to here, 0 if that lies later.
    #[must_use]
    pub fn since(self, earlier: Self) -> DurationNs {
        DurationNs(self.0.saturating_sub(earlier.0))
    }
}

/// From `CLOCK_MONOTONIC` to wall time, by the offset that was measured last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds that `CLOCK_REALTIME` is ahead of `CLOCK_MONOTONIC`.
    pub offset_ns: i64,
}

impl Clock {
    #[must_use]
    pub fn wall(self, at: MonoNs) -> WallNs {
        WallNs(at.0.saturating_add_signed(self.offset_ns))
    }
}

const RFC3339_NS: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

/// RFC 3339 in UTC, always with nine digits after the point.
impl fmt::Display for WallNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .ok()
            .and_then(|at| at.format(RFC3339_NS).ok());
        f.write_str(text.as_deref().unwrap_or("9999-12-31T23:59:59.999999999Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_has_nine_digits() {
        assert_eq!(WallNs(0).to_string(), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(WallNs(1_700_000_000_000_000_001).to_string(), "2023-11-14T22:13:20.000000001Z");
        assert_eq!(WallNs(u64::MAX).to_string(), "2554-07-21T23:34:33.709551615Z");
    }

    #[test]
    fn the_clock_only_shifts() {
        assert_eq!(Clock { offset_ns: 5 }.wall(MonoNs(7)), WallNs(12));
        assert_eq!(Clock { offset_ns: -9 }.wall(MonoNs(7)), WallNs(0));
    }
}
