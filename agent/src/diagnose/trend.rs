//! Lines through points that are robust against the odd one.

use crate::report::model::Growth;

/// Points that are looked at; of more, each n-th.
const POINTS_MAX: usize = 240;

/// A trend over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Units a second: the median of the slopes between all pairs of points (Theil and Sen).
    pub slope: f64,
    /// Of a least-squares line.
    pub r2: f64,
    pub first: f64,
    pub last: f64,
    pub span_s: f64,
    /// The slope of the last third.
    pub slope_last: f64,
    /// The slope of the first third.
    pub slope_first: f64,
    /// The median of each third.
    pub middles: [f64; 3],
    pub points: usize,
}

impl Trend {
    /// `None` of fewer than three points, or none apart in time.
    #[must_use]
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let step = points.len().div_ceil(POINTS_MAX).max(1);
        let points: Vec<(f64, f64)> = points.iter().copied().step_by(step).collect();
        let (first, last) = (points.first()?, points.last()?);
        let span_s = last.0 - first.0;
        if points.len() < 3 || span_s <= 0.0 {
            return None;
        }
        let third = points.len().div_ceil(3).max(2);
        let tail = points.get(points.len().saturating_sub(third)..)?;
        let head = points.get(..third)?;
        let middle = points.get(third..points.len().saturating_sub(third)).filter(|middle| !middle.is_empty());
        let median_of = |part: &[(f64, f64)]| median(part.iter().map(|point| point.1));
        let few = points.len().div_ceil(8);
        Some(Self {
            slope: theil_sen(&points)?,
            r2: r2(&points),
            // Not the outermost points alone: one may be odd.
            first: median(points.iter().take(few).map(|point| point.1)),
            last: median(points.iter().rev().take(few).map(|point| point.1)),
            span_s,
            slope_last: theil_sen(tail)?,
            slope_first: theil_sen(head)?,
            middles: [median_of(head), median_of(middle.unwrap_or(&points)), median_of(tail)],
            points: points.len(),
        })
    }

    #[must_use]
    pub fn gained(&self) -> f64 {
        self.slope * self.span_s
    }

    /// It goes on, to the end.
    #[must_use]
    pub fn goes_on(&self, share: f64) -> bool {
        self.slope > 0.0 && self.slope_last >= share * self.slope
    }

    /// It goes on, or it went on throughout: a fifth of the gain and more lies between the middles of the first and the second third, and
    /// of the second and the last. The last third alone is noisy, and falls where a busy neighbour of the machine leaves; a step has its gain
    /// on one side, and so has what fills up.
    #[must_use]
    pub fn goes_on_or_did(&self, share: f64) -> bool {
        const EITHER_SIDE: f64 = 0.2;
        let [first, second, last] = self.middles;
        let enough = EITHER_SIDE * (last - first);
        self.goes_on(share) || self.slope > 0.0 && enough > 0.0 && second - first >= enough && last - second >= enough
    }

    #[must_use]
    pub fn growth(&self, unit: &str, requests: f64) -> Growth {
        let per_second = (self.last - self.first) / self.span_s;
        Growth {
            unit: unit.to_owned(),
            slope: round(self.slope),
            per_second: round(per_second),
            per_request: (requests > 0.0).then(|| round(self.gained() / requests)),
            r2: round(self.r2),
        }
    }
}

/// To four digits.
#[must_use]
pub fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10f64.powf(3.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn theil_sen(points: &[(f64, f64)]) -> Option<f64> {
    let mut slopes = Vec::new();
    for (at, &(t1, v1)) in points.iter().enumerate() {
        for &(t2, v2) in points.iter().skip(at + 1) {
            if t2 > t1 {
                slopes.push((v2 - v1) / (t2 - t1));
            }
        }
    }
    (!slopes.is_empty()).then(|| median(slopes.into_iter()))
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred points")]
fn r2(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (st, sv) = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    let (mt, mv) = (st / n, sv / n);
    let (mut tt, mut vv, mut tv) = (0.0, 0.0, 0.0);
    for &(t, v) in points {
        tt += (t - mt) * (t - mt);
        vv += (v - mv) * (v - mv);
        tv += (t - mt) * (v - mv);
    }
    if tt == 0.0 || vv == 0.0 { 0.0 } else { tv * tv / (tt * vv) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn trend(value: impl Fn(f64) -> f64) -> Trend {
        let points: Vec<_> = (0..60).map(|t| (f64::from(t), value(f64::from(t)))).collect();
        Trend::of(&points).unwrap()
    }

    #[test]
    fn a_line_is_a_line() {
        let line = trend(|t| 5.0 + 3.0 * t);
        assert!((line.slope - 3.0).abs() < 1e-9 && line.r2 > 0.999 && line.goes_on(0.9));
    }

    #[test]
    fn one_odd_point_bends_nothing() {
        let line = trend(|t| if (t - 30.0).abs() < 0.5 { 1e6 } else { 3.0 * t });
        assert!((line.slope - 3.0).abs() < 0.2);
    }

    #[test]
    fn what_fills_up_does_not_go_on() {
        assert!(!trend(|t| t.min(30.0) * 100.0).goes_on(0.5));
        assert!(!trend(|t| 100.0 * (1.0 - (-t / 10.0).exp())).goes_on(0.5));
    }

    #[test]
    fn what_goes_on_on_a_machine_that_becomes_faster_did_go_on() {
        let faster = |from: f64| trend(move |t| (100.0 + 5.0 * t) * if t < from { 1.0 } else { 0.8 });
        assert!((40..58).all(|from| faster(f64::from(from)).goes_on_or_did(0.25)));
        assert!((40..58).any(|from| !faster(f64::from(from)).goes_on(0.25)));
    }

    #[test]
    fn what_steps_or_fills_up_did_not_go_on() {
        let step = |at: f64| trend(move |t| if t < at { 100.0 } else { 200.0 });
        assert!((1..60).all(|at| !step(f64::from(at)).goes_on_or_did(0.25)));
        assert!(!trend(|t| 100.0 * (1.0 - (-t / 10.0).exp())).goes_on_or_did(0.25));
    }

    #[test]
    fn what_comes_and_goes_is_no_line() {
        assert!(trend(|t| t % 10.0).r2 < 0.5);
    }
}
