//! Requests that become dearer: something that each of them walks through grows.

use std::collections::BTreeMap;

use super::{
    history::{Point, Process},
    sites,
    thresholds::Thresholds,
    trend::{Trend, round},
};
use crate::report::model::{Evidence, Finding, Frame, FrameKind, Severity, StackId, WorkKind};

/// Stacks shallower than this are no recursion.
const RECURSION_MIN: usize = 8;

/// Samples in the last part of the history below which nothing is said of functions.
const SAMPLES_MIN: f64 = 20.0;

#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn rule(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let busy = |point: &Point| point.requests.filter(|requests| *requests >= thresholds.requests * point.length_s);
    let on_cpu = process.series(|point| Some(point.on_cpu_ns / busy(point)?));
    let windows = on_cpu.len() as f64;
    let on_cpu_trend = Trend::of(&smooth(&on_cpu))?;
    let items = dearest_work(process, thresholds, &busy);
    let dearer = |trend: &Trend, least: f64| {
        trend.span_s >= thresholds.span_s
            && windows >= thresholds.windows
            && trend.gained() >= least
            && trend.last >= thresholds.cost_ratio * trend.first
            && trend.goes_on(thresholds.still_growing * 0.5)
    };
    let cpu_grows = dearer(&on_cpu_trend, thresholds.cost_ns) && on_cpu_trend.r2 >= thresholds.cost_r2;
    if !cpu_grows && items.is_none() {
        return None;
    }
    let mut finding = Finding {
        code: "requests.cost".to_owned(),
        severity: Severity::Warning,
        title: format!(
            "Each request costs more than the one before: {} on CPU at first, {} at last",
            milliseconds(on_cpu_trend.first),
            milliseconds(on_cpu_trend.last)
        ),
        since: process.since(&on_cpu),
        growth: Some(on_cpu_trend.growth("ns", process.requests_between(&on_cpu))),
        ..Finding::default()
    };
    let mut best = on_cpu_trend.r2;
    if let Some((name, trend)) = &items {
        best = best.max(trend.r2);
        finding.evidence.push(Evidence {
            text: format!(
                "{:.0} {name} on the thread pool for each request, {:.0} at first (+{:.1} a minute)",
                trend.last,
                trend.first,
                trend.slope * 60.0
            ),
            value: Some(round(trend.last)),
            unit: Some(format!("{name} a request")),
            stack: None,
        });
    }
    finding.confidence = round((0.5 + 0.3 * best + if items.is_some() && cpu_grows { 0.15 } else { 0.0 }).min(0.97));
    functions(process, &mut finding);
    finding.next.push(
        "a list that each request walks grows: look for what adds to it on a timer or at each request (routes, middleware, listeners), and add once"
            .to_owned(),
    );
    Some(finding)
}

/// Medians of successive windows, about a dozen of them: what one collection or one busy neighbour costs is gone.
fn smooth(series: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const PARTS: usize = 12;
    let size = (series.len() / PARTS).max(1);
    let middle = |part: &[(f64, f64)]| {
        let mut values: Vec<f64> = part.iter().map(|point| point.1).collect();
        values.sort_by(f64::total_cmp);
        Some((part.get(part.len() / 2)?.0, *values.get(values.len() / 2)?))
    };
    series.chunks(size).filter_map(middle).collect()
}

type Requests<'a> = &'a dyn Fn(&Point) -> Option<f64>;

/// The kind of thread-pool work of which each request takes more and more.
#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
fn dearest_work(process: &Process, thresholds: &Thresholds, busy: Requests<'_>) -> Option<(String, Trend)> {
    let kinds: BTreeMap<&(WorkKind, String), u64> =
        process.windows.iter().flat_map(|point| &point.pool).fold(BTreeMap::new(), |mut sums, (kind, n)| {
            *sums.entry(kind).or_default() += n;
            sums
        });
    let trends = kinds.into_keys().filter_map(|kind| {
        let series = process.series(|point| Some(point.pool.get(kind).copied().unwrap_or(0) as f64 / busy(point)?));
        let trend = Trend::of(&smooth(&series))?;
        let holds = trend.span_s >= thresholds.span_s
            && series.len() as f64 >= thresholds.windows
            && trend.gained() >= thresholds.cost_items
            && trend.last >= thresholds.cost_ratio * trend.first.max(0.5)
            && trend.r2 >= thresholds.r2
            && trend.goes_on(thresholds.still_growing);
        holds.then(|| (name(kind), trend))
    });
    trends.max_by(|(_, a), (_, b)| a.slope.total_cmp(&b.slope))
}

fn name((kind, operation): &(WorkKind, String)) -> String {
    let kind = match kind {
        WorkKind::Fs => "fs",
        WorkKind::Dns => "dns",
        WorkKind::Crypto => "crypto",
        WorkKind::Zlib => "zlib",
        WorkKind::Other => "other",
        WorkKind::IoUring => "io_uring",
    };
    if operation.is_empty() { kind.to_owned() } else { format!("{kind}.{operation}") }
}

/// What a part of the history spent in each function.
#[derive(Default)]
struct Spent<'a> {
    requests: f64,
    /// Samples in which the function is on the stack, and the most times it is on one.
    by_function: BTreeMap<(&'a str, Option<&'a str>), InFunction<'a>>,
}

struct InFunction<'a> {
    samples: f64,
    depth: usize,
    frame: &'a Frame,
    stack: StackId,
}

#[expect(clippy::cast_precision_loss, reason = "samples")]
fn spent<'a>(process: &'a Process, points: &[&Point]) -> Spent<'a> {
    let mut spent = Spent::default();
    for point in points {
        spent.requests += point.requests.unwrap_or(0.0);
        for (stack, samples) in &point.profile {
            let Some(frames) = process.stacks.get(stack) else { continue };
            let mut seen = BTreeMap::<(&str, Option<&str>), (usize, &Frame)>::new();
            for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Js) {
                seen.entry((&frame.name, frame.file.as_deref())).or_insert((0, frame)).0 += 1;
            }
            for (function, (depth, frame)) in seen {
                let sum = spent.by_function.entry(function).or_insert(InFunction {
                    samples: 0.0,
                    depth: 0,
                    frame,
                    stack: *stack,
                });
                sum.samples += *samples as f64;
                if depth > sum.depth {
                    (sum.depth, sum.stack) = (depth, *stack);
                }
            }
        }
    }
    spent
}

/// Names functions of which each request takes more and more samples: those that recurse first, as they walk the list.
fn functions(process: &Process, finding: &mut Finding) {
    const SHOWN: usize = 3;
    let points: Vec<&Point> = process.windows.iter().collect();
    let part = points.len().div_ceil(4);
    let (Some(head), Some(tail)) = (points.get(..part), points.get(points.len() - part..)) else { return };
    let (before, after) = (spent(process, head), spent(process, tail));
    if before.requests <= 0.0 || after.requests <= 0.0 {
        return;
    }
    let mut grown: Vec<(f64, f64, &InFunction<'_>)> = Vec::new();
    for (function, now) in &after.by_function {
        let then = before.by_function.get(function).map_or(0.0, |then| then.samples) / before.requests;
        let each = now.samples / after.requests;
        if now.samples >= SAMPLES_MIN && each > 1.5 * then && !now.frame.name.is_empty() && now.frame.name != "[js]" {
            grown.push((each - then, then, now));
        }
    }
    let rank = |&(more, _, now): &(f64, f64, &InFunction<'_>)| {
        let own = now.frame.file.as_deref().is_some_and(|file| !file.starts_with("node:"));
        (now.depth >= RECURSION_MIN, own && now.frame.name != "(anonymous)", more)
    };
    grown.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(std::cmp::Ordering::Equal));
    for (more, then, now) in grown.into_iter().take(SHOWN) {
        let each = more + then;
        let recursion =
            if now.depth >= RECURSION_MIN { format!(" × {} on one stack", now.depth) } else { String::new() };
        finding.evidence.push(Evidence {
            text: format!(
                "{}{recursion}: {:.2} samples in 100 requests at first, {:.2} at last",
                sites::name_of(now.frame),
                then * 100.0,
                each * 100.0
            ),
            value: Some(round(each)),
            unit: Some("samples a request".to_owned()),
            stack: Some(now.stack),
        });
    }
}

fn milliseconds(ns: f64) -> String {
    if ns >= 1e6 { format!("{:.2} ms", ns / 1e6) } else { format!("{:.0} µs", ns / 1e3) }
}
