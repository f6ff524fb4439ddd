//! Figures as OTLP's data points, about one window.
//!
//! Our buckets are those of OpenTelemetry's exponential histogram of scale 6, so histograms in nanoseconds (`ns`) go over as they are:
//! a quantile is at most 0.55 % off, as here. In seconds, which the conventions want for `v8js.gc.duration`, 10^-9 is no whole number
//! of buckets: they move by 1913.39 of them, of which the 0.39 is left out. Quantiles are then 0.42 % too high, at most 0.97 % off in
//! all. Count, sum, minimum and maximum are exact in both.

use super::proto::{
    Buckets, DELTA, ExponentialHistogram, Gauge, HistogramPoint, KeyValue, Metric, Number, Points, Sum, Value,
};
use crate::aggregate::histogram::Histogram;

const SCALE: i32 = agent_ebpf::histogram::SCALE.cast_signed();

/// `floor(64 * log2(10^9) + 1/2)`: what of the way from nanoseconds to seconds is whole buckets.
const BUCKETS_TO_SECONDS: i32 = 1913;

/// The metrics of one window.
#[derive(Debug)]
pub struct Window {
    pub start_ns: u64,
    pub end_ns: u64,
    pub metrics: Vec<Metric>,
}

#[must_use]
#[expect(clippy::cast_precision_loss, reason = "beyond 104 days nobody counts nanoseconds")]
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn whole(n: u64) -> Value {
    Value::AsInt(i64::try_from(n).unwrap_or(i64::MAX))
}

impl Window {
    fn number(&self, value: Value, attributes: &[KeyValue]) -> Number {
        Number {
            start_time_unix_nano: self.start_ns,
            time_unix_nano: self.end_ns,
            value: Some(value),
            attributes: attributes.to_vec(),
        }
    }

    /// One metric a name: points of the same one go together.
    fn add(&mut self, name: &str, unit: &str, points: Points) {
        let known = self.metrics.iter_mut().find(|metric| metric.name == name);
        match (known.and_then(|metric| metric.points.as_mut()), points) {
            (Some(Points::Gauge(mine)), Points::Gauge(more)) => mine.data_points.extend(more.data_points),
            (Some(Points::Sum(mine)), Points::Sum(more)) => mine.data_points.extend(more.data_points),
            (Some(Points::ExponentialHistogram(mine)), Points::ExponentialHistogram(more)) => {
                mine.data_points.extend(more.data_points);
            }
            (_, points) => {
                self.metrics.push(Metric { name: name.to_owned(), unit: unit.to_owned(), points: Some(points) });
            }
        }
    }

    pub fn gauge(&mut self, name: &str, unit: &str, value: f64, attributes: &[KeyValue]) {
        let data_points = vec![self.number(Value::AsDouble(value), attributes)];
        self.add(name, unit, Points::Gauge(Gauge { data_points }));
    }

    pub fn level(&mut self, name: &str, unit: &str, n: u64, attributes: &[KeyValue]) {
        let data_points = vec![self.number(whole(n), attributes)];
        self.add(name, unit, Points::Gauge(Gauge { data_points }));
    }

    fn sum(&mut self, name: &str, unit: &str, value: Value, attributes: &[KeyValue]) {
        let data_points = vec![self.number(value, attributes)];
        let sum = Sum { data_points, aggregation_temporality: DELTA, is_monotonic: true };
        self.add(name, unit, Points::Sum(sum));
    }

    pub fn count(&mut self, name: &str, unit: &str, n: u64, attributes: &[KeyValue]) {
        self.sum(name, unit, whole(n), attributes);
    }

    /// A time, in seconds.
    pub fn time(&mut self, name: &str, ns: u64, attributes: &[KeyValue]) {
        self.sum(name, "s", Value::AsDouble(seconds(ns)), attributes);
    }

    /// In nanoseconds, bucket by bucket.
    pub fn histogram(&mut self, name: &str, histogram: &Histogram, attributes: &[KeyValue]) {
        self.put_histogram(name, "ns", histogram, attributes, 0, |ns| seconds(ns) * 1e9);
    }

    /// In seconds: see above for what that costs.
    pub fn histogram_in_seconds(&mut self, name: &str, histogram: &Histogram, attributes: &[KeyValue]) {
        self.put_histogram(name, "s", histogram, attributes, BUCKETS_TO_SECONDS, seconds);
    }

    fn put_histogram(
        &mut self,
        name: &str,
        unit: &str,
        histogram: &Histogram,
        attributes: &[KeyValue],
        shift: i32,
        value: fn(u64) -> f64,
    ) {
        if histogram.is_empty() {
            return;
        }
        let point = HistogramPoint {
            attributes: attributes.to_vec(),
            start_time_unix_nano: self.start_ns,
            time_unix_nano: self.end_ns,
            count: histogram.count(),
            sum: Some(value(histogram.sum())),
            scale: SCALE,
            zero_count: histogram.parts().zeros,
            positive: buckets(histogram, shift),
            min: Some(value(histogram.min())),
            max: Some(value(histogram.max())),
        };
        let points = ExponentialHistogram { data_points: vec![point], aggregation_temporality: DELTA };
        self.add(name, unit, Points::ExponentialHistogram(points));
    }
}

/// From the first bucket that holds something to the last.
fn buckets(histogram: &Histogram, shift: i32) -> Option<Buckets> {
    let first = histogram.buckets().next()?.0;
    let mut bucket_counts = Vec::new();
    for (bucket, n) in histogram.buckets() {
        // Fewer than 64 octaves of 64 buckets.
        bucket_counts.resize((bucket - first) as usize, 0);
        bucket_counts.push(n);
    }
    Some(Buckets { offset: i32::try_from(first).ok()?.checked_sub(shift)?, bucket_counts })
}
