//! What the loops wait for: thread pool, garbage collection, stays off CPU, run queue.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Write as _};

use super::{
    format::{Page, count, duration, percent, plural, ratio, safe},
    loops::{row, table},
    stack,
};
use crate::{
    aggregate::histogram::Histogram,
    report::{
        merge_totals, merge_work,
        model::{Class, GcType, HeapSeverity, OffCpuTotals, OffReason, ThreadPool, Work, WorkKind},
        summary::{Summary, TargetSummary},
    },
};

fn kind_name(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Fs => "fs",
        WorkKind::Dns => "dns",
        WorkKind::Crypto => "crypto",
        WorkKind::Zlib => "zlib",
        WorkKind::Other => "other",
        WorkKind::IoUring => "io_uring",
    }
}

/// Operations of a kind that are named.
const OPERATIONS_SHOWN: usize = 6;

pub fn thread_pool(page: &mut Page, target: &TargetSummary) {
    let Some(pool) = &target.pool else { return };
    let threads =
        if pool.size == 0 { "size not known".to_owned() } else { plural(u64::from(pool.size), "thread", "threads") };
    table(page, &format!("Thread pool ({threads})"));
    for (kind, of_kind) in by_kind(pool) {
        kind_rows(page, kind, &of_kind);
    }
    let of = target.pool_seen_ns;
    let mean = ratio(pool.queue_len_ns, of);
    let mut line = format!("  queue: {mean:.2} items on average, {} at most", count(pool.queue_len_max));
    if pool.size != 0 {
        let _ = write!(
            line,
            "; threads busy {} of the time, all at once {}",
            percent(pool.busy_ns, of.saturating_mul(u64::from(pool.size))),
            percent(pool.all_busy_ns, of),
        );
    }
    page.line(&line);
    if ratio(of, target.duration_ns) < 0.995 {
        let seen = percent(of, target.duration_ns);
        page.aside(&format!(
            "  items are those of {seen} of the time: to watch all of them would cost too much (--max-overhead)"
        ));
    }
}

fn by_kind(pool: &ThreadPool) -> BTreeMap<WorkKind, Vec<&Work>> {
    let mut kinds = BTreeMap::<WorkKind, Vec<&Work>>::new();
    for work in &pool.work {
        kinds.entry(work.kind).or_default().push(work);
    }
    kinds
}

fn kind_rows(page: &mut Page, kind: WorkKind, works: &[&Work]) {
    let mut sum = Work::default();
    for work in works {
        merge_work(&mut sum, work);
    }
    let mut named: Vec<_> = works.iter().filter(|work| !work.operation.is_empty()).collect();
    named.sort_by_key(|work| (Reverse(work.count), &work.operation));
    let mut notes: Vec<_> = named
        .iter()
        .take(OPERATIONS_SHOWN)
        .map(|work| format!("{} {}", safe(&work.operation), count(work.count)))
        .collect();
    if sum.cancelled != 0 {
        notes.push(format!("cancelled {}", count(sum.cancelled)));
    }
    if sum.failed != 0 {
        notes.push(format!("failed {}", count(sum.failed)));
    }
    let items = plural(sum.count, "item", "items");
    let notes = if notes.is_empty() { String::new() } else { format!(": {}", notes.join(", ")) };
    page.line(&format!("  {}, {items}{notes}", kind_name(kind)));
    let mut row = |name: &str, histogram: &Histogram| {
        if !histogram.is_empty() {
            row(page, name, histogram);
        }
    };
    if kind == WorkKind::IoUring {
        row("  in the kernel", &sum.total);
        return;
    }
    row("  queue wait", &sum.queue_wait);
    row("  run", &sum.run);
    row("  back to the loop", &sum.completion_delay);
}

fn gc_name(gc_type: GcType) -> &'static str {
    match gc_type {
        GcType::Minor => "minor",
        GcType::Major => "major",
        GcType::Incremental => "incremental steps",
        GcType::Unknown => "unknown type",
    }
}

pub fn gc(page: &mut Page, target: &TargetSummary) {
    if target.gc.is_empty() && target.heap_limits.is_empty() {
        return;
    }
    table(page, "Garbage collection");
    let mut types = BTreeMap::<GcType, (Histogram, BTreeMap<&str, u64>)>::new();
    for (&(_, gc_type), gc) in &target.gc {
        let (duration, reasons) = types.entry(gc_type).or_default();
        duration.merge(&gc.duration);
        for (reason, n) in &gc.reasons {
            let sum = reasons.entry(reason.as_str()).or_default();
            *sum = n.saturating_add(*sum);
        }
    }
    for (gc_type, (of_type, reasons)) in &types {
        row(page, gc_name(*gc_type), of_type);
        let mut reasons: Vec<_> = reasons.iter().collect();
        reasons.sort_by_key(|&(reason, n)| (Reverse(n), reason));
        let reasons: Vec<_> = reasons.iter().map(|(reason, n)| format!("{} {n}", safe(reason))).collect();
        let what = if *gc_type == GcType::Incremental { ("step", "steps") } else { ("pause", "pauses") };
        page.line(&format!(
            "    {}, {} in all, {} of the time{}{}",
            plural(of_type.count(), what.0, what.1),
            duration(of_type.sum()),
            percent(of_type.sum(), target.duration_ns),
            if reasons.is_empty() { "" } else { ": " },
            reasons.join(", "),
        ));
    }
    let background = target.threads.values().fold(0u64, |sum, role| sum.saturating_add(role.gc_ns));
    if background > 0 {
        page.line(&format!(
            "  on V8's own threads      {} of CPU time, beside JavaScript or helping in its pauses",
            duration(background)
        ));
    }
    for (time, limit) in &target.heap_limits {
        let what = match limit.severity {
            HeapSeverity::Near => "the heap is at its limit: the next failed allocation kills the process",
            HeapSeverity::OutOfMemory => "out of memory: V8 aborts the process",
            HeapSeverity::Unknown => "the heap is at its limit",
        };
        page.alarm(&format!("  {}  thread {}: {what}", super::format::clock(time), limit.tid));
    }
}

/// Groups of stays that are printed one by one.
const STAYS_SHOWN: usize = 8;

/// What held up the loops. Other threads' stays are in the records: most of them wait for work, as they should.
pub fn off_cpu(page: &mut Page, summary: &Summary, target: &TargetSummary) {
    let mut all = OffCpuTotals::default();
    let mut preempted = OffCpuTotals::default();
    let mut others = target.off_cpu_other;
    // Stacks that differ in addresses only read the same.
    let mut groups = BTreeMap::<(OffReason, String), OffCpuTotals>::new();
    for (key, totals) in &target.off_cpu {
        match (key.class, key.reason) {
            (Class::ThreadPool | Class::Other, _) => merge_totals(&mut others, totals),
            (Class::EventLoop, reason) => {
                merge_totals(&mut all, totals);
                if reason == OffReason::Preempted {
                    merge_totals(&mut preempted, totals);
                } else {
                    let folded = stack::folded(summary, key.user_stack, key.kernel_stack);
                    merge_totals(groups.entry((reason, folded)).or_default(), totals);
                }
            }
        }
    }
    if all.count == 0 && others.count == 0 {
        return;
    }
    let config = target.target.as_ref().map(|target| target.config).unwrap_or_default();
    page.heading(&format!(
        "Event loops off CPU: {} in {} of {} or more",
        duration(all.total_ns),
        plural(all.count, "stay", "stays"),
        duration(config.loop_off_cpu_min_ns),
    ));
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(a, x), (b, y)| (Reverse(x.total_ns), a).cmp(&(Reverse(y.total_ns), b)));
    for ((reason, folded), totals) in groups.iter().take(STAYS_SHOWN) {
        stays(page, stack::reason(*reason), totals);
        page.line(&format!("            {folded}"));
    }
    let mut rest = OffCpuTotals::default();
    for (_, totals) in groups.iter().skip(STAYS_SHOWN) {
        merge_totals(&mut rest, totals);
    }
    if rest.count != 0 {
        stays(page, "elsewhere", &rest);
    }
    if preempted.count != 0 {
        stays(page, "preempted: ready to run, but others had the CPU", &preempted);
    }
    if all.over_budget != 0 {
        let n = plural(all.over_budget, "stay", "stays");
        page.aside(&format!("  {n} without a stack: their thread's budget for stacks was used up"));
    }
    if others.count != 0 {
        page.aside(&format!(
            "  other threads: {} in {} of {} or more, most of it waiting for work: in the records",
            duration(others.total_ns),
            plural(others.count, "stay", "stays"),
            duration(config.other_off_cpu_min_ns),
        ));
    }
}

fn stays(page: &mut Page, what: &str, totals: &OffCpuTotals) {
    page.line(&format!(
        "  {:>9} in {}, {} at most: {what}",
        duration(totals.total_ns),
        plural(totals.count, "stay", "stays"),
        duration(totals.max_ns),
    ));
}

pub fn run_queue(page: &mut Page, target: &TargetSummary) {
    if target.run_queue.is_empty() {
        return;
    }
    table(page, "Waiting for a CPU");
    for (class, latency) in &target.run_queue {
        row(page, stack::class(*class), latency);
    }
}
