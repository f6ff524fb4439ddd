//! Requests that become dearer: something that each of them walks through grows.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    history::{Point, Process},
    sites,
    thresholds::Thresholds,
    trend::{Trend, round},
};
use crate::report::model::{Evidence, Finding, Frame, FrameKind, Severity, Stack, StackId, WorkKind};

/// Stacks shallower than this are no recursion.
const RECURSION_MIN: usize = 8;

/// Samples of a function in the last part of the history below which nothing is said of it.
const SAMPLES_MIN: f64 = 10.0;

const NS_PER_S: f64 = 1e9;

/// A machine whose neighbours have become busy is slower by no more than this.
const SLOWER_MACHINE: f64 = 2.0;

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
            && trend.goes_on_or_did(thresholds.still_growing * 0.5)
    };
    let cpu_grows = dearer(&on_cpu_trend, thresholds.cost_ns)
        && on_cpu_trend.r2 >= thresholds.cost_r2
        && matters(&on_cpu_trend, process.requests_between(&on_cpu), thresholds)
        && is_busier(process, thresholds)
        && (on_cpu_trend.last > SLOWER_MACHINE * on_cpu_trend.first || !is_all_slower(process));
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

/// What is gained is felt: in the latency of a request, or in what the loop has left for others.
fn matters(trend: &Trend, requests: f64, thresholds: &Thresholds) -> bool {
    let a_second = requests / trend.span_s;
    trend.gained() >= thresholds.cost_felt_ns || trend.gained() * a_second / NS_PER_S >= thresholds.cost_load
}

/// Everything takes longer by the same factor, as on a machine whose neighbours have become busy: a list that grows takes a growing
/// share of the samples, or of their depth. What too few samples tell, or one function that has been nearly all, is not this.
fn is_all_slower(process: &Process) -> bool {
    const SAMPLES_LEAST: f64 = 30.0;
    /// Standard errors that a share must have grown by: of some dozens that grew by chance, the greatest is less.
    const ERRORS: f64 = 3.0;
    const DEEPER: f64 = 1.2;
    /// A function that holds so much of the time, with few calls below it or with many of its own, has no share to gain, and a stack
    /// has no room for more of it.
    const NEARLY_ALL: f64 = 0.6;
    const CALLS: f64 = 4.0;
    let Some([before, after]) = thirds(process) else { return false };
    if before.samples < SAMPLES_LEAST || after.samples < SAMPLES_LEAST {
        return false;
    }
    !after.by_function.iter().any(|(function, now)| {
        let then = before.by_function.get(function);
        let (old, new) = (then.map_or(0.0, |then| then.samples), now.samples);
        let (old_share, new_share) = (old / before.samples, new / after.samples);
        let both = (old + new) / (before.samples + after.samples);
        let error = (both * (1.0 - both) * (1.0 / before.samples + 1.0 / after.samples)).sqrt();
        let is_deeper = now.recurses() && now.depth_of() > DEEPER * then.map_or(0.0, InFunction::depth_of);
        let walks = now.recurses() || now.below_top() <= CALLS;
        let is_nearly_all = old_share.min(new_share) >= NEARLY_ALL && now.is_own() && walks;
        new_share - old_share > ERRORS * error || is_deeper || is_nearly_all
    })
}

/// The loops as a whole have more to do, or all that they can do. Where only requests become fewer, what is done beside them is not
/// their cost.
fn is_busier(process: &Process, thresholds: &Thresholds) -> bool {
    /// Share of a CPU that leaves no room for more.
    const BUSY: f64 = 0.8;
    let load = process.series(|point| Some(point.on_cpu_ns / NS_PER_S / point.length_s));
    Trend::of(&smooth(&load)).is_some_and(|trend| {
        trend.last >= BUSY
            || trend.slope > 0.0 && trend.last >= (1.0 + (thresholds.cost_ratio - 1.0) * 0.5) * trend.first
    })
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
    let kinds: BTreeSet<&(WorkKind, String)> =
        process.windows.iter().flat_map(|point| &point.pool).flat_map(BTreeMap::keys).collect();
    let trends = kinds.into_iter().filter_map(|kind| {
        let series =
            process.series(|point| Some(point.pool.as_ref()?.get(kind).copied().unwrap_or(0.0) / busy(point)?));
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
    samples: f64,
    ns: f64,
    by_function: BTreeMap<(&'a str, Option<&'a str>), InFunction<'a>>,
}

struct InFunction<'a> {
    frame: &'a Frame,
    /// Of stacks that the function is on.
    ns: f64,
    samples: f64,
    /// The same times the frames between it and the innermost.
    ns_frames: f64,
    /// The most times that it is on one stack.
    depth: usize,
    /// The stack that it is on most often, or most time.
    stack: StackId,
    stack_ns: u64,
}

impl InFunction<'_> {
    fn below_top(&self) -> f64 {
        self.ns_frames / self.ns.max(1.0)
    }

    fn is_own(&self) -> bool {
        self.frame.file.as_deref().is_some_and(|file| !file.starts_with("node:"))
    }

    fn recurses(&self) -> bool {
        self.depth >= RECURSION_MIN
    }

    #[expect(clippy::cast_precision_loss, reason = "frames of one stack")]
    fn depth_of(&self) -> f64 {
        self.depth as f64
    }
}

/// The first and the last third. `None` without windows.
fn thirds(process: &Process) -> Option<[Spent<'_>; 2]> {
    let points: Vec<&Point> = process.windows.iter().collect();
    let part = points.len().div_ceil(3);
    let (head, tail) = (points.get(..part)?, points.get(points.len() - part..)?);
    Some([spent(process, head), spent(process, tail)])
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of minutes, and frames")]
fn spent<'a>(process: &'a Process, points: &[&Point]) -> Spent<'a> {
    let mut spent = Spent::default();
    for point in points {
        spent.requests += point.requests.unwrap_or(0.0);
        let samples = point.profile.stacks.iter().filter_map(|stack| Some((stack.user_stack?, stack.samples)));
        for (id, samples) in samples {
            let Some(Stack { frames, .. }) = process.stacks.get(&id) else { continue };
            let ns = samples * point.profile.period_ns;
            spent.samples += samples as f64;
            spent.ns += ns as f64;
            let mut seen = BTreeMap::<(&str, Option<&str>), (usize, usize, &Frame)>::new();
            for (at, frame) in frames.iter().enumerate().filter(|(_, frame)| frame.kind == FrameKind::Js) {
                seen.entry((&frame.name, frame.file.as_deref())).or_insert((0, at, frame)).0 += 1;
            }
            for (function, (depth, at, frame)) in seen {
                let sum = spent.by_function.entry(function).or_insert(InFunction {
                    frame,
                    ns: 0.0,
                    samples: 0.0,
                    ns_frames: 0.0,
                    depth: 0,
                    stack: id,
                    stack_ns: 0,
                });
                sum.ns += ns as f64;
                sum.samples += samples as f64;
                sum.ns_frames += ns as f64 * at as f64;
                if (depth.max(RECURSION_MIN), ns) > (sum.depth.max(RECURSION_MIN), sum.stack_ns) {
                    (sum.stack, sum.stack_ns) = (id, ns);
                }
                sum.depth = sum.depth.max(depth);
            }
        }
    }
    spent
}

/// Names functions that each request spends more and more time in: those that recurse first, then those that hold nearly all of the
/// growth, innermost first. What walks a list is one or the other.
fn functions(process: &Process, finding: &mut Finding) {
    const SHOWN: usize = 3;
    const CYCLE_SHOWN: usize = 6;
    /// How many times more of a request a function must take than at first, or which share of what a request takes more.
    const GROWN: f64 = 1.3;
    const OF_GROWTH: f64 = 0.5;
    /// Of the growth of the function that grows most: its callers grow as much as it does, and tell less.
    const NEARLY_ALL: f64 = 0.8;
    let Some([before, after]) = thirds(process) else { return };
    if before.requests <= 0.0 || after.requests <= 0.0 {
        return;
    }
    let growth = after.ns / after.requests - before.ns / before.requests;
    let mut grown: Vec<(f64, f64, &InFunction<'_>)> = Vec::new();
    for (function, now) in &after.by_function {
        let then = before.by_function.get(function).map_or(0.0, |then| then.ns) / before.requests;
        let each = now.ns / after.requests;
        let is_named = !now.frame.name.is_empty() && now.frame.name != "[js]";
        let more = each - then;
        let has_grown = each > GROWN * then || more > 0.0 && more >= OF_GROWTH * growth;
        if now.samples >= SAMPLES_MIN && has_grown && is_named && now.is_own() {
            grown.push((more, then, now));
        }
    }
    let most = grown.iter().map(|(more, _, _)| *more).fold(0.0, f64::max);
    grown.retain(|(more, _, now)| *more >= NEARLY_ALL * most || now.recurses());
    grown.sort_by(|(more, _, a), (other, _, b)| {
        b.recurses().cmp(&a.recurses()).then(a.below_top().total_cmp(&b.below_top())).then(other.total_cmp(more))
    });
    // Those of one cycle are one line.
    let (cycle, rest): (Vec<_>, Vec<_>) = grown.into_iter().partition(|(_, _, now)| now.recurses());
    if let Some(first) = cycle.first() {
        let names: Vec<String> = cycle.iter().take(CYCLE_SHOWN).map(|(_, _, now)| sites::name_of(now.frame)).collect();
        let more = if cycle.len() > CYCLE_SHOWN { ", …" } else { "" };
        let depth = cycle.iter().map(|(_, _, now)| now.depth).max().unwrap_or(0);
        finding.evidence.push(grown_function(&format!("{}{more} × {depth} on one stack", names.join(", ")), first));
    }
    for function in rest.iter().take(SHOWN) {
        finding.evidence.push(grown_function(&sites::name_of(function.2.frame), function));
    }
}

fn grown_function(name: &str, &(more, then, now): &(f64, f64, &InFunction<'_>)) -> Evidence {
    let each = more + then;
    Evidence {
        text: format!("{name}: {} of each request at first, {} at last", milliseconds(then), milliseconds(each)),
        value: Some(round(each)),
        unit: Some("ns a request".to_owned()),
        stack: Some(now.stack),
    }
}

fn milliseconds(ns: f64) -> String {
    if ns >= 1e6 { format!("{:.2} ms", ns / 1e6) } else { format!("{:.0} µs", ns / 1e3) }
}
