//! Medians and how sure they are.

/// A median with the bounds of its 95 % confidence interval.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// Resamples for the interval.
const RESAMPLES: usize = 2_000;

/// Fewer than six have no interval of 95 %: all of them lie on one side of the median more often than one time in twenty.
const SAMPLES_MIN: usize = 6;

/// The median, and the interval that the bootstrap gives it.
pub fn estimate(samples: &[f64]) -> Option<Estimate> {
    if samples.len() < SAMPLES_MIN {
        return None;
    }
    let median = median(samples)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let sample: Vec<f64> =
                (0..samples.len()).filter_map(|_| samples.get(random.below(samples.len())).copied()).collect();
            self::median(&sample)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |share: usize| medians.get(RESAMPLES * share / 1000).copied();
    Some(Estimate { median, low: at(25)?, high: at(974)? })
}

pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(*sorted.get(middle - 1)?, upper)) }
}

/// Xorshift: resampling wants repeatable, not secret.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end as u64).max(1)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median() {
        let samples: Vec<f64> = (0..101).map(f64::from).collect();
        let estimate = estimate(&samples).unwrap_or(Estimate { median: 0.0, low: 1.0, high: 0.0 });
        assert!((estimate.median - 50.0).abs() < f64::EPSILON);
        assert!(estimate.low < 50.0 && estimate.high > 50.0 && estimate.low > 30.0 && estimate.high < 70.0);
        assert!(self::estimate(&[]).is_none());
        assert!(self::estimate(&[1.0; SAMPLES_MIN - 1]).is_none() && self::estimate(&[1.0; SAMPLES_MIN]).is_some());
    }
}
