//! Objects that JavaScript keeps: what full collections leave grows from one to the next.

use super::{
    history::{Point, Process},
    thresholds::Thresholds,
    trend::{Trend, round},
};
use crate::report::model::{Evidence, Finding, Heap, Severity};

#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
fn after_major(point: &Point) -> Option<f64> {
    let heaps = &point.memory.as_ref()?.heaps;
    // Of the largest heap: others' collections come at other times.
    let largest = heaps.iter().max_by_key(|heap| heap.used_bytes)?;
    largest.used_bytes_after_major.map(|bytes| bytes as f64)
}

pub fn rule(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let series = process.series(after_major);
    let trend = Trend::of(&series)?;
    #[expect(clippy::cast_precision_loss, reason = "collections")]
    let collections = series.len() as f64;
    // A line needs as many as the thirds that it is cut into; and each must leave more than the one before, but for a little.
    let slack = trend.gained() * 0.1;
    let rises = series.iter().zip(series.iter().skip(1)).all(|(before, after)| after.1 > before.1 - slack);
    let holds = trend.span_s >= thresholds.span_s * 0.5
        && collections >= thresholds.full_collections
        && trend.gained() >= thresholds.heap_bytes.max(thresholds.heap_share * trend.first)
        && trend.r2 >= thresholds.r2
        && trend.goes_on(thresholds.still_growing)
        && rises;
    if !holds {
        return None;
    }
    let requests = process.requests_between(&series);
    let limit = limit(process);
    let seconds_left = limit.map(|limit| (limit - trend.last).max(0.0) / trend.slope);
    let severity = match seconds_left {
        Some(seconds) if seconds < thresholds.critical_s => Severity::Critical,
        _ => Severity::Warning,
    };
    let per_request =
        if requests > 0.0 { format!(", {} a request", bytes(trend.gained() / requests)) } else { String::new() };
    let mut evidence = vec![Evidence {
        text: format!(
            "{} full collections left {} at first and {} at last, each more than the one before",
            series.len(),
            bytes(trend.first),
            bytes(trend.last)
        ),
        value: Some(trend.last),
        unit: Some("bytes".to_owned()),
        stack: None,
    }];
    if let (Some(seconds), Some(limit)) = (seconds_left, limit) {
        let text = format!("at this pace the heap is at its limit of {} in {}", bytes(limit), time(seconds));
        evidence.push(Evidence { text, value: Some(round(seconds)), unit: Some("s".to_owned()), stack: None });
    }
    Some(Finding {
        code: "memory.js_heap".to_owned(),
        severity,
        confidence: round((0.5 + 0.08 * collections.min(5.0) + 0.1 * trend.r2).min(0.97)),
        title: format!("JavaScript keeps objects: the heap grows by {} a minute after collection{per_request}", bytes(trend.slope * 60.0)),
        since: process.since(&series),
        growth: Some(trend.growth("bytes", requests)),
        evidence,
        next: vec![
            "look for a Map, an array or a cache without a limit, and for listeners and closures that are added at each request".to_owned(),
            "two heap snapshots some minutes apart, compared by constructor, name what is kept and by whom".to_owned(),
        ],
    })
}

#[expect(clippy::cast_precision_loss, reason = "bytes")]
fn limit(process: &Process) -> Option<f64> {
    let heaps = &process.last_memory()?.heaps;
    heaps
        .iter()
        .max_by_key(|heap| heap.used_bytes)
        .and_then(|Heap { limit_bytes, .. }| *limit_bytes)
        .map(|bytes| bytes as f64)
}

/// Three digits and a unit.
#[must_use]
pub fn bytes(bytes: f64) -> String {
    let (value, unit) = match bytes.abs() {
        at if at >= 1e9 => (bytes / 1e9, "GB"),
        at if at >= 1e6 => (bytes / 1e6, "MB"),
        at if at >= 1e3 => (bytes / 1e3, "kB"),
        _ => return format!("{bytes:.0} B"),
    };
    if value.abs() < 9.95 { format!("{value:.2} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A time that nobody needs to the second.
#[must_use]
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}
