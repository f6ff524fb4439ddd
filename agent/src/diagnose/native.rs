//! Memory that is neither V8's nor known to it: an addon's, a library's, the allocator's.

use super::{
    history::Process,
    js_heap::bytes,
    sites,
    thresholds::Thresholds,
    trend::{Trend, round},
};
use crate::report::model::{Evidence, Finding, Heap, Memory, Severity, SiteKind};

/// Anonymous memory less what V8 accounts for; `None` where V8's part is not known.
#[must_use]
pub fn rest(memory: &Memory) -> Option<i64> {
    if memory.heaps.is_empty() {
        return None;
    }
    let of_v8 = memory.heaps.iter().map(|heap| {
        let parts = [heap.resident_bytes, heap.external_bytes, heap.malloced_bytes];
        parts.iter().flatten().sum::<u64>()
    });
    let all = memory.resident.anonymous_bytes.saturating_add(memory.resident.swapped_bytes);
    Some(all.cast_signed().saturating_sub(of_v8.sum::<u64>().cast_signed()))
}

#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn rule(process: &Process, thresholds: &Thresholds) -> Option<Finding> {
    let series = process.memory_series(|memory| rest(memory).map(|bytes| bytes as f64));
    let trend = Trend::of(&series)?;
    let resident = process.memory_series(|memory| Some(memory.resident.anonymous_bytes as f64));
    let of_resident = Trend::of(&resident)?;
    let of_heaps = |bytes_of: fn(&Heap) -> Option<u64>| {
        let series = process.memory_series(|memory| {
            let of_each: Vec<u64> = memory.heaps.iter().filter_map(bytes_of).collect();
            (!of_each.is_empty()).then(|| of_each.iter().sum::<u64>() as f64)
        });
        Trend::of(&series)
    };
    let kept = of_heaps(|heap| heap.used_bytes_min);
    let pages = of_heaps(|heap| heap.resident_bytes);
    let gained = |trend: Option<Trend>| trend.map_or(0.0, |trend| trend.gained());
    let room = gained(pages) - gained(kept).max(0.0);
    let holds = trend.span_s >= thresholds.span_s
        && series.len() as f64 >= thresholds.windows
        && trend.gained() >= thresholds.native_bytes.max(thresholds.native_share * trend.first)
        && trend.r2 >= thresholds.r2
        && trend.goes_on(thresholds.still_growing)
        // Where the process as a whole does not grow, its parts were only told apart wrongly.
        && of_resident.gained() >= 0.5 * trend.gained()
        && of_resident.goes_on(thresholds.still_growing)
        // A heap that is given more room for what it makes and drops: V8 holds pages back for later then, and counts them nowhere.
        && room < 0.5 * trend.gained();
    if !holds {
        return None;
    }
    let requests = process.requests_between(&series);
    let per_request =
        if requests > 0.0 { format!(", {} a request", bytes(trend.gained() / requests)) } else { String::new() };
    let of_heap = kept.map_or(0.0, |trend| trend.slope);
    let mut evidence = vec![Evidence {
        text: format!(
            "resident memory grows by {} a minute, V8's heap by {}: what grows is native",
            bytes(of_resident.slope * 60.0),
            bytes(of_heap * 60.0)
        ),
        value: Some(trend.last),
        unit: Some("bytes".to_owned()),
        stack: None,
    }];
    let (leaks, culprit) = leaks(process, requests / trend.span_s);
    evidence.extend(leaks);
    let makers = sites::makers(process, SiteKind::Page);
    let outside: Vec<_> =
        makers.iter().filter(|maker| sites::culprit(process, maker.stack).is_some()).cloned().collect();
    evidence.extend(sites::evidence(&outside, "pages first touched outside of Node.js itself"));
    let mut next = Vec::new();
    if let Some(name) = culprit {
        next.push(format!("look at {name}: what it allocates is not given back"));
    } else if let Some(frame) = outside.first().and_then(|maker| sites::culprit(process, maker.stack)) {
        next.push(format!("look at {}: memory that it touches first does not come back", sites::name_of(frame)));
    } else {
        next.push(
            "look at addons and libraries: none of the stacks that touched new pages leads out of Node.js itself"
                .to_owned(),
        );
    }
    Some(Finding {
        code: "memory.native".to_owned(),
        severity: Severity::Warning,
        confidence: round(
            (0.55 + 0.15 * (trend.span_s / 60.0).min(1.0) + 0.2 * ((trend.r2 - 0.9) / 0.1).clamp(0.0, 1.0)).min(0.95),
        ),
        title: format!(
            "Native memory grows by {} a minute{per_request}, outside of V8's heap",
            bytes(trend.slope * 60.0)
        ),
        since: process.since(&series),
        growth: Some(trend.growth("bytes", requests)),
        evidence,
        next,
    })
}

/// Who allocates what is not given back, and how much of it a request; and whose code the first of them is. Only where it was asked for.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn leaks(process: &Process, requests_per_second: f64) -> (Vec<Evidence>, Option<String>) {
    const SHOWN: usize = 3;
    const SHARE_MIN: f64 = 0.05;
    let makers = sites::makers(process, SiteKind::Allocation);
    let memories = process.windows.iter().rev().filter_map(|point| point.memory.as_ref());
    let seen_s = memories.map(|memory| memory.allocations_seen_ns).find(|ns| *ns > 0).unwrap_or(0) as f64 / 1e9;
    let all: u64 = makers.iter().map(|maker| maker.kept).sum();
    if all == 0 || seen_s <= 0.0 {
        return (Vec::new(), None);
    }
    let (of, what) =
        if requests_per_second > 0.0 { (seen_s * requests_per_second, "request") } else { (seen_s, "second") };
    let line = |maker: &sites::Maker| {
        let each = maker.kept as f64 / of;
        Evidence {
            text: format!(
                "{:.0} % of the memory that was allocated and not given back was allocated here: {} a {what}",
                maker.kept as f64 / all as f64 * 100.0,
                bytes(each)
            ),
            value: Some(round(each)),
            unit: Some(format!("bytes a {what}")),
            stack: Some(maker.stack),
        }
    };
    let shown = makers.iter().take(SHOWN).filter(|maker| maker.kept as f64 >= SHARE_MIN * all as f64);
    let culprit = makers.first().and_then(|maker| sites::culprit(process, maker.stack)).map(sites::name_of);
    (shown.map(line).collect(), culprit)
}
