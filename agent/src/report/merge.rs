//! How two windows' figures become one: sums add up, histograms merge, largest values stay.

use super::{
    build::utilization,
    model::{AgentCost, FamilyAccount, Gc, LedgerPart, LoopWindow, OffCpuTotals, Phases, ThreadPool, Work},
};

fn add(sum: &mut u64, n: u64) {
    *sum = sum.saturating_add(n);
}

pub fn merge_ledger(sum: &mut LedgerPart, other: &LedgerPart) {
    let &LedgerPart { wall_ns, idle_ns, on_cpu_ns, blocked_ns, runnable_ns, stopped_ns, unaccounted_ns, switches } =
        other;
    add(&mut sum.wall_ns, wall_ns);
    add(&mut sum.idle_ns, idle_ns);
    add(&mut sum.on_cpu_ns, on_cpu_ns);
    add(&mut sum.blocked_ns, blocked_ns);
    add(&mut sum.runnable_ns, runnable_ns);
    add(&mut sum.stopped_ns, stopped_ns);
    sum.unaccounted_ns = sum.unaccounted_ns.saturating_add(unaccounted_ns);
    add(&mut sum.switches, switches);
}

fn merge_phases(sum: &mut Phases, other: &Phases) {
    let &Phases { unsplit, timers, pending, prepare, poll, check, closing } = other;
    add(&mut sum.unsplit, unsplit);
    add(&mut sum.timers, timers);
    add(&mut sum.pending, pending);
    add(&mut sum.prepare, prepare);
    add(&mut sum.poll, poll);
    add(&mut sum.check, check);
    add(&mut sum.closing, closing);
}

pub fn merge_loop(sum: &mut LoopWindow, other: &LoopWindow) {
    let LoopWindow {
        tid: _,
        name,
        role: _,
        ledger,
        on_cpu_by_phase_ns,
        gc_ns,
        gc_off_cpu_ns,
        poll_ns,
        events,
        sync_fs,
        requests,
        turns,
        slow_turns,
        utilization: _,
        time,
        delay,
        turn_busy,
    } = other;
    if !name.is_empty() {
        sum.name.clone_from(name);
    }
    merge_ledger(&mut sum.ledger, ledger);
    merge_phases(&mut sum.on_cpu_by_phase_ns, on_cpu_by_phase_ns);
    add(&mut sum.gc_ns, *gc_ns);
    add(&mut sum.gc_off_cpu_ns, *gc_off_cpu_ns);
    add(&mut sum.poll_ns, *poll_ns);
    add(&mut sum.events, *events);
    add(&mut sum.sync_fs, *sync_fs);
    add(&mut sum.requests, *requests);
    add(&mut sum.turns, *turns);
    add(&mut sum.slow_turns, *slow_turns);
    add(&mut sum.time.active_ns, time.active_ns);
    add(&mut sum.time.idle_ns, time.idle_ns);
    sum.utilization = utilization(sum.time.idle_ns, sum.time.idle_ns.saturating_add(sum.time.active_ns));
    sum.delay.merge(delay);
    sum.turn_busy.merge(turn_busy);
}

pub fn merge_pool(sum: &mut ThreadPool, other: &ThreadPool) {
    let ThreadPool { size, queue_len_max, queue_len_ns, busy_ns, all_busy_ns, work } = other;
    sum.size = *size;
    sum.queue_len_max = sum.queue_len_max.max(*queue_len_max);
    add(&mut sum.queue_len_ns, *queue_len_ns);
    add(&mut sum.busy_ns, *busy_ns);
    add(&mut sum.all_busy_ns, *all_busy_ns);
    for of_kind in work {
        let at =
            sum.work.binary_search_by(|mine| (mine.kind, &mine.operation).cmp(&(of_kind.kind, &of_kind.operation)));
        match at {
            Ok(at) => {
                if let Some(mine) = sum.work.get_mut(at) {
                    merge_work(mine, of_kind);
                }
            }
            Err(at) => sum.work.insert(at, of_kind.clone()),
        }
    }
}

pub fn merge_work(sum: &mut Work, other: &Work) {
    let Work { kind: _, operation: _, count, cancelled, failed, queue_wait, run, completion_delay, total } = other;
    add(&mut sum.count, *count);
    add(&mut sum.cancelled, *cancelled);
    add(&mut sum.failed, *failed);
    sum.queue_wait.merge(queue_wait);
    sum.run.merge(run);
    sum.completion_delay.merge(completion_delay);
    sum.total.merge(total);
}

pub fn merge_gc(sum: &mut Gc, other: &Gc) {
    let Gc { tid: _, gc_type: _, duration, reasons } = other;
    sum.duration.merge(duration);
    for (reason, n) in reasons {
        // Foreign text from a file: V8 has 28 reasons.
        if sum.reasons.len() < 64 || sum.reasons.contains_key(reason) {
            add(sum.reasons.entry(reason.clone()).or_default(), *n);
        }
    }
}

pub fn merge_totals(sum: &mut OffCpuTotals, other: &OffCpuTotals) {
    let &OffCpuTotals { count, total_ns, runnable_ns, max_ns, over_budget } = other;
    add(&mut sum.count, count);
    add(&mut sum.total_ns, total_ns);
    add(&mut sum.runnable_ns, runnable_ns);
    sum.max_ns = sum.max_ns.max(max_ns);
    add(&mut sum.over_budget, over_budget);
}

/// The kernel half has as many slots for hits.
const PROBES_MAX: usize = 128;

/// Costs of windows add up; books and counters run since the trace began, so the last ones hold.
pub fn merge_cost(sum: &mut AgentCost, other: &AgentCost) {
    let AgentCost {
        duration_ns,
        cpu_user_ns,
        cpu_system_ns,
        rss_bytes,
        bpf_run_ns,
        probes,
        probe_cost_ns,
        probe_budget_ns,
        naming,
        stacks_rarer,
        samples_rarer,
        looks_rarer,
        records_rarer,
        families,
        kernel_counters,
        counters,
        streams,
    } = other;
    add(&mut sum.duration_ns, *duration_ns);
    add(&mut sum.cpu_user_ns, *cpu_user_ns);
    add(&mut sum.cpu_system_ns, *cpu_system_ns);
    sum.rss_bytes = *rss_bytes;
    if let Some(ns) = bpf_run_ns {
        add(sum.bpf_run_ns.get_or_insert(0), *ns);
    }
    if let Some(ns) = probe_cost_ns {
        add(sum.probe_cost_ns.get_or_insert(0), *ns);
    }
    add(&mut sum.probe_budget_ns, *probe_budget_ns);
    sum.stacks_rarer = sum.stacks_rarer.max(*stacks_rarer);
    sum.samples_rarer = sum.samples_rarer.max(*samples_rarer);
    sum.looks_rarer = sum.looks_rarer.max(*looks_rarer);
    sum.records_rarer = sum.records_rarer.max(*records_rarer);
    for probe in probes {
        if let Some(mine) = sum.probes.iter_mut().find(|mine| mine.probe == probe.probe) {
            add(&mut mine.hits, probe.hits);
        } else if sum.probes.len() < PROBES_MAX {
            sum.probes.push(probe.clone());
        }
    }
    sum.naming.merge(naming);
    sum.families.clone_from(families);
    sum.kernel_counters.clone_from(kernel_counters);
    sum.counters.clone_from(counters);
    sum.streams.clone_from(streams);
}

/// Records dropped, over all families.
#[must_use]
pub fn dropped(families: &[FamilyAccount]) -> u64 {
    families.iter().fold(0, |sum, family| sum.saturating_add(family.dropped))
}
