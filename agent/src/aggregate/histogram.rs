//! The one histogram: OpenTelemetry's exponential histogram at scale 6, mergeable bucket by bucket.
//!
//! A quantile is at most 0.55 % off the true value (half a bucket, geometrically), and count, sum, minimum and
//! maximum are exact. Buckets are allocated by octave, so a histogram of microseconds to seconds takes about 10 KiB.

use std::collections::BTreeMap;

use agent_ebpf::histogram::{INDEX_END, PER_OCTAVE, index};

const OCTAVE: usize = PER_OCTAVE as usize;

/// Counts of values, by default of nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Histogram {
    octaves: BTreeMap<u8, Box<[u64; OCTAVE]>>,
    /// Values that are exactly 0: exponential buckets have no place for them.
    zeros: u64,
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

/// What a histogram is made of, for a format that keeps it; see [`Histogram::from_parts`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Parts {
    pub zeros: u64,
    pub sum: u64,
    pub min: u64,
    pub max: u64,
    /// Index and count of each bucket that is not empty, in rising order.
    pub buckets: Vec<(u32, u64)>,
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Records the same value `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        if value == 0 {
            self.zeros = self.zeros.saturating_add(n);
        } else {
            self.add_bucket(index(value), n);
        }
        self.note(value, value, value.saturating_mul(n), n);
    }

    /// Adds `n` values of which only the bucket is known; they count as the bucket's middle. An index out of range is ignored.
    pub fn record_bucket(&mut self, bucket: u32, n: u64) {
        if n == 0 || bucket >= INDEX_END {
            return;
        }
        let middle = middle(bucket);
        self.add_bucket(bucket, n);
        self.note(middle, middle, middle.saturating_mul(n), n);
    }

    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        for (&octave, counts) in &other.octaves {
            let mine = self.octaves.entry(octave).or_insert_with(|| Box::new([0; OCTAVE]));
            for (mine, theirs) in mine.iter_mut().zip(counts.iter()) {
                *mine = mine.saturating_add(*theirs);
            }
        }
        self.zeros = self.zeros.saturating_add(other.zeros);
        self.note(other.min, other.max, other.sum, other.count);
    }

    fn add_bucket(&mut self, bucket: u32, n: u64) {
        let octave = u8::try_from(bucket / PER_OCTAVE).unwrap_or(u8::MAX);
        let counts = self.octaves.entry(octave).or_insert_with(|| Box::new([0; OCTAVE]));
        if let Some(count) = counts.get_mut((bucket % PER_OCTAVE) as usize) {
            *count = count.saturating_add(n);
        }
    }

    fn note(&mut self, min: u64, max: u64, sum: u64, n: u64) {
        if self.count == 0 || min < self.min {
            self.min = min;
        }
        self.max = self.max.max(max);
        self.sum = self.sum.saturating_add(sum);
        self.count = self.count.saturating_add(n);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// 0 if empty.
    #[must_use]
    pub fn min(&self) -> u64 {
        self.min
    }

    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// 0 if empty.
    #[must_use]
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value below or at which `per_mille` thousandths of the values lie (500 is the median); 0 if empty.
    #[must_use]
    pub fn quantile(&self, per_mille: u32) -> u64 {
        if self.count == 0 {
            return 0;
        }
        // The rank of the value wanted, 1 to count: ceil(count * q).
        let rank = (u128::from(self.count) * u128::from(per_mille.min(1000))).div_ceil(1000).max(1);
        if rank == u128::from(self.count) {
            return self.max;
        }
        let mut seen = u128::from(self.zeros);
        if seen >= rank {
            return 0;
        }
        for (bucket, n) in self.buckets() {
            seen += u128::from(n);
            if seen >= rank {
                return middle(bucket).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// Index and count of each bucket that is not empty, in rising order; zeros have none.
    pub fn buckets(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.octaves.iter().flat_map(|(&octave, counts)| {
            (u32::from(octave) * PER_OCTAVE..).zip(counts.iter().copied()).filter(|&(_, n)| n != 0)
        })
    }

    #[must_use]
    pub fn parts(&self) -> Parts {
        Parts { zeros: self.zeros, sum: self.sum, min: self.min, max: self.max, buckets: self.buckets().collect() }
    }

    /// `None` if an index is out of range. The count is that of the buckets.
    #[must_use]
    pub fn from_parts(parts: &Parts) -> Option<Self> {
        let mut histogram = Self { zeros: parts.zeros, count: parts.zeros, ..Self::default() };
        for &(bucket, n) in &parts.buckets {
            if bucket >= INDEX_END {
                return None;
            }
            histogram.add_bucket(bucket, n);
            histogram.count = histogram.count.saturating_add(n);
        }
        if histogram.count != 0 {
            histogram.sum = parts.sum;
            histogram.min = parts.min;
            histogram.max = parts.max;
        }
        Some(histogram)
    }
}

/// The geometric middle of a bucket, `2^((index + 1/2) / 64)`.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, positive and below 2^64")]
pub fn middle(bucket: u32) -> u64 {
    let exponent = (f64::from(bucket) + 0.5) / f64::from(PER_OCTAVE);
    exponent.exp2().round() as u64
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for &value in values {
            histogram.record(value);
        }
        histogram
    }

    /// The stated bound: `2^(1/128) - 1`, and half a unit for rounding.
    #[expect(clippy::cast_precision_loss, reason = "a bound that is coarser")]
    fn close(estimate: u64, truth: u64) -> bool {
        estimate.abs_diff(truth) as f64 <= truth as f64 * 0.0055 + 0.5
    }

    #[test]
    fn an_empty_histogram_is_all_zero() {
        let empty = Histogram::default();
        assert_eq!((empty.count(), empty.min(), empty.max(), empty.mean(), empty.quantile(500)), (0, 0, 0, 0, 0));
    }

    #[test]
    fn zeros_have_their_own_count() {
        let mut histogram = of(&[0, 0, 0, 7]);
        histogram.record_n(0, 1_000_000);
        assert_eq!(histogram.quantile(990), 0);
        assert_eq!(histogram.quantile(1000), 7);
        assert_eq!(histogram.parts().zeros, 1_000_003);
    }

    #[test]
    fn a_bucket_counts_as_its_middle() {
        let mut histogram = Histogram::default();
        histogram.record_bucket(index(1_000_000), 10);
        histogram.record_bucket(INDEX_END, 10);
        assert_eq!(histogram.count(), 10);
        assert!(close(histogram.mean(), 1_000_000));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_the_stated_error(mut values in proptest::collection::vec(0u64..1 << 45, 1..300), per_mille in 0u32..=1000) {
            let histogram = of(&values);
            values.sort_unstable();
            let rank = (values.len() * per_mille as usize).div_ceil(1000).max(1);
            let truth = values[rank - 1];
            prop_assert!(close(histogram.quantile(per_mille), truth), "{} for {truth}", histogram.quantile(per_mille));
        }

        #[test]
        fn merging_is_associative_and_commutative(
            a in proptest::collection::vec(any::<u64>(), 0..50),
            b in proptest::collection::vec(any::<u64>(), 0..50),
            c in proptest::collection::vec(any::<u64>(), 0..50),
        ) {
            let (a, b, c) = (of(&a), of(&b), of(&c));
            let merged = |x: &Histogram, y: &Histogram| { let mut m = x.clone(); m.merge(y); m };
            prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
            prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        }

        #[test]
        fn merging_is_recording_together(a in proptest::collection::vec(0u64..1 << 40, 0..50), b in proptest::collection::vec(0u64..1 << 40, 0..50)) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }

        #[test]
        fn parts_give_it_back(values in proptest::collection::vec(0u64..1 << 40, 0..50)) {
            let histogram = of(&values);
            prop_assert_eq!(Histogram::from_parts(&histogram.parts()), Some(histogram));
        }
    }
}
