//! Handles that are made and never given back: V8's global ones, those in scopes that stay open, libuv's.

use std::collections::BTreeSet;

use super::{
    history::Process,
    sites::{self, Maker},
    thresholds::Thresholds,
    trend::Trend,
};
use crate::report::model::{Evidence, Finding, Memory, Severity, SiteKind};

/// The one thing to grow, and how.
struct Grown {
    trend: Trend,
    series: Vec<(f64, f64)>,
    requests: f64,
}

/// A count that has grown steadily, to the end.
fn grown(
    process: &Process,
    thresholds: &Thresholds,
    least: f64,
    figure: impl Fn(&Memory) -> Option<f64>,
) -> Option<Grown> {
    let series = process.memory_series(figure);
    let trend = Trend::of(&series)?;
    #[expect(clippy::cast_precision_loss, reason = "windows")]
    let windows = series.len() as f64;
    let holds = trend.span_s >= thresholds.span_s
        && windows >= thresholds.windows
        && trend.gained() >= least
        // A slope is not yet a gain: where windows are late, it may be that of a part of the time.
        && trend.last - trend.first >= 0.5 * least
        && trend.r2 >= thresholds.r2
        && trend.goes_on(thresholds.still_growing);
    holds.then(|| Grown { trend, requests: process.requests_between(&series), series })
}

impl Grown {
    fn rate(&self) -> String {
        let per_request = if self.requests > 0.0 { self.trend.gained() / self.requests } else { 0.0 };
        if per_request >= 0.05 {
            format!("{per_request:.2} a request, {:.1} a second", self.trend.slope)
        } else {
            format!("{:.1} a second", self.trend.slope)
        }
    }

    /// A straight line over a long time is hardly a coincidence; nor is a whole number a request.
    fn confidence(&self) -> f64 {
        let long = (self.trend.span_s / 60.0).min(1.0);
        let line = ((self.trend.r2 - 0.9) / 0.1).clamp(0.0, 1.0);
        let per_request = if self.requests > 0.0 { self.trend.gained() / self.requests } else { 0.0 };
        let whole = if per_request >= 0.5 && (per_request - per_request.round()).abs() < 0.05 { 0.1 } else { 0.0 };
        super::trend::round((0.6 + 0.1 * long + 0.2 * line + whole).min(0.99))
    }

    fn finding(&self, process: &Process, code: &str, title: String, unit: &str) -> Finding {
        Finding {
            code: code.to_owned(),
            severity: Severity::Warning,
            confidence: self.confidence(),
            title,
            since: process.since(&self.series),
            growth: Some(self.trend.growth(unit, self.requests)),
            evidence: vec![Evidence {
                text: format!(
                    "{:.0} {unit} at first, {:.0} at last, in {:.0} s",
                    self.trend.first, self.trend.last, self.trend.span_s
                ),
                value: Some(self.trend.last),
                unit: Some(unit.to_owned()),
                stack: None,
            }],
            next: Vec::new(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn global_handles(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let grown = grown(process, thresholds, thresholds.handles, |memory| {
        let counts: Vec<u64> = memory.heaps.iter().filter_map(|heap| heap.global_handles).collect();
        (!counts.is_empty()).then(|| counts.iter().sum::<u64>() as f64)
    })?;
    let makers = sites::makers(process, SiteKind::GlobalHandle);
    let (strong, weak) = makers.iter().fold((0, 0), |sum, maker| (sum.0 + maker.strong, sum.1 + maker.weak));
    // The collector frees weak ones in its own time: that is no leak.
    if weak > strong {
        return None;
    }
    let title = format!("Global handles are made and not released: {}", grown.rate());
    let mut finding = grown.finding(process, "handles.global", title, "handles");
    finding.evidence.extend(sites::evidence(&makers, "handles"));
    if strong + weak > 0 {
        let text =
            format!("{strong} of {} that were looked at are held strongly: no collection frees them", strong + weak);
        finding.evidence.push(Evidence::line(text));
    } else {
        finding.confidence = (finding.confidence - 0.15).max(0.0);
        finding.evidence.push(Evidence::line("their makers were not seen: watch for longer"));
    }
    finding.next = next_global(process, &makers);
    Some(finding)
}

fn next_global(process: &Process, makers: &[Maker]) -> Vec<String> {
    let mut next = Vec::new();
    if let Some(frame) = makers.first().and_then(|maker| sites::culprit(process, maker.stack)) {
        next.push(format!("look at {}: what it makes is not given back", sites::name_of(frame)));
    }
    next.push(
        "in an addon: napi_delete_reference for each napi_create_reference, Reset() for each v8::Global or Nan::Persistent; \
         without an addon: v8.getHeapStatistics().used_global_handles_size tells when it stops"
            .to_owned(),
    );
    next
}

#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn scope_handles(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let grown = grown(process, thresholds, thresholds.handles, |memory| {
        memory.heaps.iter().filter_map(|heap| heap.scope_handles_min).max().map(|most| most as f64)
    })?;
    let title = format!("Handles pile up in a handle scope that stays open: {}", grown.rate());
    let mut finding = grown.finding(process, "handles.scope", title, "handles");
    let makers = sites::makers(process, SiteKind::ScopeBlock);
    finding.evidence.extend(sites::evidence(&makers, "blocks of 1022 handles"));
    if let Some(frame) = makers.first().and_then(|maker| sites::culprit(process, maker.stack)) {
        finding
            .next
            .push(format!("look at {}: it makes handles within one call that does not return", sites::name_of(frame)));
    }
    finding.next.push(
        "open a scope around each round of the native loop: napi_open_handle_scope and napi_close_handle_scope, or v8::HandleScope"
            .to_owned(),
    );
    Some(finding)
}

/// The type of handle that grows most.
#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn loop_handles(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let memories = process.windows.iter().filter_map(|point| point.memory.as_ref());
    let types: BTreeSet<&str> = memories
        .flat_map(|memory| &memory.loops)
        .flat_map(|of_loop| of_loop.handles.keys())
        .map(String::as_str)
        .collect();
    let found = types.into_iter().filter_map(|kind| {
        let grown = grown(process, thresholds, thresholds.loop_handles, |memory| {
            // A count that may be short is none.
            let is_whole = memory.loops.iter().all(|of_loop| !of_loop.partial);
            let count: u64 = memory.loops.iter().filter_map(|of_loop| of_loop.handles.get(kind)).sum();
            (is_whole && !memory.loops.is_empty()).then_some(count as f64)
        })?;
        Some((kind, grown))
    });
    let (kind, grown) = found.max_by(|(_, a), (_, b)| a.trend.slope.total_cmp(&b.trend.slope))?;
    let title = format!("{} are opened and never closed: {}", plural(kind), grown.rate());
    let mut finding = grown.finding(process, &format!("handles.libuv.{kind}"), title, "handles");
    finding.next = vec![
        format!("find what opens handles of type {kind} and does not close() or destroy() them"),
        "process.getActiveResourcesInfo() inside the process lists them by type".to_owned(),
    ];
    Some(finding)
}

fn plural(kind: &str) -> &'static str {
    match kind {
        "tcp" => "TCP sockets",
        "udp" => "UDP sockets",
        "pipe" => "Pipes",
        "timer" => "Timers",
        "fs_event" => "File watchers",
        "fs_poll" => "File pollers",
        "process" => "Child processes",
        "signal" => "Signal handlers",
        "async" => "Async handles",
        "poll" => "Polled descriptors",
        "tty" => "Terminals",
        _ => "Handles of libuv",
    }
}
