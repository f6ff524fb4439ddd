//! Objects that JavaScript keeps: what full collections leave grows from one to the next; where they are too few, what is alive by a
//! census does. Neither may contradict the other, and censuses name what grows in either case.

use super::{
    history::Process,
    objects, sites,
    thresholds::Thresholds,
    trend::{Trend, round},
};
use crate::report::model::{Evidence, Finding, Heap, Severity, SiteKind};

/// A full collection: what it left, and the most that there was since the one before.
#[derive(Clone, Copy, Debug)]
struct Collection {
    at_s: f64,
    left: f64,
    most_before: f64,
}

/// Collections keep coming: long after the last one, what was kept then may be all that there will be. A heap that grows lets more come
/// before it is collected again, so each may be as late as some times the interval before it.
fn keep_coming(collections: &[Collection], end_s: f64) -> bool {
    const INTERVALS: f64 = 3.0;
    let mut latest = collections.iter().rev().map(|collection| collection.at_s);
    let (Some(last), Some(before)) = (latest.next(), latest.next()) else { return false };
    end_s - last <= INTERVALS * (last - before)
}

/// Of the largest heap: others' collections come at other times.
#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
fn collections(process: &Process) -> Vec<Collection> {
    let mut collections = Vec::new();
    let mut most = 0f64;
    for point in &process.windows {
        let heaps = point.memory.iter().flat_map(|memory| &memory.heaps);
        let Some(largest) = heaps.max_by_key(|heap| heap.used_bytes) else { continue };
        if let Some(left) = largest.used_bytes_after_major {
            collections.push(Collection { at_s: point.at_s, left: left as f64, most_before: most.max(left as f64) });
            most = 0.0;
        }
        most = most.max(largest.used_bytes.unwrap_or(0) as f64);
    }
    collections
}

/// Of what came between two collections, the share that the second one left. What only waits to be collected does not survive.
fn survived(pair: (&Collection, &Collection)) -> f64 {
    let (before, after) = pair;
    let came = after.most_before - before.left;
    if came <= 0.0 { 0.0 } else { (after.left - before.left) / came }
}

/// What stays, and how it is known.
struct Kept {
    series: Vec<(f64, f64)>,
    trend: Trend,
    /// Collections or censuses.
    count: f64,
    told: String,
}

/// By what full collections left.
fn by_collections(process: &Process, thresholds: &Thresholds) -> Option<Kept> {
    let collections = collections(process);
    let series: Vec<(f64, f64)> = collections.iter().map(|collection| (collection.at_s, collection.left)).collect();
    let survivals: Vec<f64> = collections.iter().zip(collections.iter().skip(1)).map(survived).collect();
    let trend = Trend::of(&series).or_else(|| of_two(&series))?;
    #[expect(clippy::cast_precision_loss, reason = "collections")]
    let count = series.len() as f64;
    // Two collections tell less than a line of them, so there must be no doubt that most of what came between them stayed.
    let least = if series.len() < 3 { thresholds.survival * 4.0 } else { thresholds.survival };
    let holds = grows(&trend, thresholds)
        && count >= thresholds.full_collections
        && keep_coming(&collections, process.windows.back().map_or(0.0, |point| point.at_s))
        && survivals.iter().all(|share| *share >= 0.0)
        && survivals.last().is_some_and(|share| *share >= least)
        && bears_out(&objects::live_bytes(process), &trend);
    let told = format!(
        "{} full collections left {} at first and {} at last, each more than the one before; {:.0} % of what came before the last one \
         stayed",
        series.len(),
        bytes(trend.first),
        bytes(trend.last),
        survivals.last().unwrap_or(&0.0) * 100.0
    );
    holds.then_some(Kept { series, trend, count, told })
}

/// By what is alive at each census: where collections are too few.
///
/// They are exact, so a line through them has to be three times as straight: any three of what comes and goes lie on a rough one now and then.
fn by_censuses(process: &Process, thresholds: &Thresholds) -> Option<Kept> {
    let thresholds = &Thresholds { r2: 1.0 - (1.0 - thresholds.r2) / 3.0, ..*thresholds };
    let series = objects::live_bytes(process);
    let trend = Trend::of(&series)?;
    let told = format!(
        "live objects, counted {} times from outside, were {} at first and {} at last",
        series.len(),
        bytes(trend.first),
        bytes(trend.last)
    );
    #[expect(clippy::cast_precision_loss, reason = "censuses")]
    let count = series.len() as f64;
    let (from_s, to_s) = (series.first()?.0, series.last()?.0);
    let left = collections(process).into_iter().filter(|one| (from_s..=to_s).contains(&one.at_s));
    let left: Vec<(f64, f64)> = left.map(|one| (one.at_s, one.left)).collect();
    let holds = grows(&trend, thresholds) && bears_out(&left, &trend);
    holds.then_some(Kept { series, trend, count, told })
}

/// What was measured in the other way grows, too. What comes and goes in a second or two (a batch, a cache that is emptied) is on a line in
/// the one way now and then, where there are few points, but hardly in both.
fn bears_out(other: &[(f64, f64)], trend: &Trend) -> bool {
    /// Of the growth, as the two do not measure quite the same: garbage floats, and a process may have several heaps.
    const SHARE_LEAST: f64 = 0.3;
    const R2_LEAST: f64 = 0.5;
    /// Of the time, or it says nothing.
    const SPAN_LEAST: f64 = 0.3;
    let other = Trend::of(other).or_else(|| of_two(other));
    let Some(other) = other.filter(|other| other.span_s >= SPAN_LEAST * trend.span_s) else { return true };
    other.slope >= SHARE_LEAST * trend.slope && other.r2 >= R2_LEAST
}

fn grows(trend: &Trend, thresholds: &Thresholds) -> bool {
    trend.span_s >= thresholds.span_s * 0.5
        && trend.gained() >= thresholds.heap_bytes.max(thresholds.heap_share * trend.first)
        && trend.r2 >= thresholds.r2
        && trend.goes_on(thresholds.still_growing)
}

pub fn rule(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let Kept { series, trend, count, told } =
        by_collections(process, thresholds).or_else(|| by_censuses(process, thresholds))?;
    let requests = process.requests_between(&series);
    let limit = limit(process);
    let seconds_left = limit.map(|limit| (limit - trend.last).max(0.0) / trend.slope);
    let severity = match seconds_left {
        Some(seconds) if seconds < thresholds.critical_s => Severity::Critical,
        _ => Severity::Warning,
    };
    let per_request =
        if requests > 0.0 { format!(", {} a request", bytes(trend.gained() / requests)) } else { String::new() };
    let mut evidence =
        vec![Evidence { text: told, value: Some(trend.last), unit: Some("bytes".to_owned()), stack: None }];
    let growers = objects::growers(process);
    evidence.extend(growers.iter().map(objects::Grower::evidence));
    if let (Some(seconds), Some(limit)) = (seconds_left, limit) {
        let text = format!("at this pace the heap is at its limit of {} in {}", bytes(limit), time(seconds));
        evidence.push(Evidence { text, value: Some(round(seconds)), unit: Some("s".to_owned()), stack: None });
    }
    let makers = sites::makers(process, SiteKind::HeapArea);
    let (allocators, names) = sites::allocators(process, &makers);
    evidence.extend(allocators);
    let mut next = Vec::new();
    if growers.iter().any(objects::Grower::is_timer) {
        next.push(
            "timers are set and neither fire nor are cleared: look for setTimeout and setInterval at each request"
                .to_owned(),
        );
    }
    if let Some(name) = names.first() {
        next.push(format!("look at {name} first: what does it make that is put where it stays?"));
    }
    next.push(
        "look for a Map, an array or a cache without a limit, and for listeners and closures that are added at each request".to_owned(),
    );
    if growers.is_empty() {
        next.push("two censuses some minutes apart (`agent heap`, `agent heap diff`) name what is kept".to_owned());
    }
    next.push("two heap snapshots, compared by constructor, name by whom it is kept".to_owned());
    Some(Finding {
        code: "memory.js_heap".to_owned(),
        severity,
        confidence: round((0.4 + 0.1 * count.min(5.0) + 0.07 * trend.r2).min(0.97)),
        title: format!(
            "JavaScript keeps objects: the heap grows by {} a minute after collection{per_request}",
            bytes(trend.slope * 60.0)
        ),
        since: process.since(&series),
        growth: Some(trend.growth("bytes", requests)),
        evidence,
        next,
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

/// A line through two points, which is always straight.
fn of_two(series: &[(f64, f64)]) -> Option<Trend> {
    let [first, last] = series else { return None };
    let span_s = last.0 - first.0;
    let slope = (last.1 - first.1) / span_s;
    (span_s > 0.0).then_some(Trend {
        slope,
        r2: 1.0,
        first: first.1,
        last: last.1,
        span_s,
        slope_last: slope,
        slope_first: slope,
        middles: [first.1, f64::midpoint(first.1, last.1), last.1],
        points: 2,
    })
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
