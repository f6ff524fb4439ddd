//! What the agent cost and lost, and what it warns of.

use std::fmt::Write as _;

use agent_ebpf::state::counter;

use super::format::{Page, clock, count, duration, percent, ratio, safe};
use crate::report::{dropped, model::EndReason, summary::Summary};

pub fn render(page: &mut Page, summary: &Summary) {
    page.heading("The agent itself");
    cost(page, summary);
    books(page, summary);
    for (time, pid, warning) in &summary.warnings {
        page.alarm(&format!("  {}  process {pid}: {}", clock(time), safe(&warning.message)));
    }
    if summary.warnings_more != 0 {
        page.aside(&format!("  {} more warnings", count(summary.warnings_more)));
    }
    match summary.end.as_ref().map(|end| end.reason) {
        None => page.alarm("  the records end before the trace did: all figures are up to there"),
        Some(EndReason::Failed) => page.alarm("  the trace was ended by an error"),
        Some(EndReason::OutputClosed) => page.aside("  ended as its output was closed"),
        Some(EndReason::TargetsGone) => page.aside("  ended with the last process"),
        Some(EndReason::Duration | EndReason::Interrupted) => {}
    }
}

fn cost(page: &mut Page, summary: &Summary) {
    let agent = &summary.agent;
    let cpu_ns = agent.cpu_user_ns.saturating_add(agent.cpu_system_ns);
    page.line(&format!(
        "  {} of one CPU ({} user, {} system), {:.0} MB of memory at most",
        percent(cpu_ns, agent.duration_ns),
        duration(agent.cpu_user_ns),
        duration(agent.cpu_system_ns),
        ratio(summary.rss_bytes_max, 1_000_000),
    ));
    let hits: u64 = agent.probes.iter().fold(0, |sum, probe| sum.saturating_add(probe.hits));
    let mut line = format!("  probes hit {:.0} times a second", 1e9 * ratio(hits, agent.duration_ns));
    if let Some(ns) = agent.probe_cost_ns {
        let (taken, budget) = (percent(ns, agent.duration_ns), percent(agent.probe_budget_ns, agent.duration_ns));
        let _ = write!(line, ", which took about {taken} of one CPU from what runs here (they may take {budget})");
    }
    if let Some(ns) = agent.bpf_run_ns {
        let _ = write!(line, "; inside BPF programs {}", percent(ns, agent.duration_ns));
    }
    page.line(&line);
    for (what, times) in [
        ("stacks off CPU were", agent.stacks_rarer),
        ("samples were", agent.samples_rarer),
        ("looks at heaps were", agent.looks_rarer),
        ("turns and the thread pool were watched, as the agent itself took too much,", agent.records_rarer),
    ] {
        if times > 1 {
            page.aside(&format!("  {what} up to {times} times rarer than usual, to keep to --max-overhead"));
        }
    }
}

fn books(page: &mut Page, summary: &Summary) {
    let families = summary.end.as_ref().map_or(&summary.agent.families, |end| &end.families);
    let sum =
        |of: fn(&crate::report::model::FamilyAccount) -> u64| families.iter().map(of).fold(0, u64::saturating_add);
    let (emitted, received, lost) = (sum(|family| family.emitted), sum(|family| family.received), dropped(families));
    let line = format!("  records: {} emitted, {} received, {} dropped", count(emitted), count(received), count(lost));
    if lost == 0 {
        page.line(&line);
    } else {
        page.alarm(&line);
        for family in families.iter().filter(|family| family.dropped != 0) {
            page.alarm(&format!(
                "    {}: {} of {} dropped, as the ring buffer was full; its figures are too low",
                safe(&family.family),
                count(family.dropped),
                count(family.emitted)
            ));
        }
    }
    if let Some(end) = summary.end.as_ref().filter(|end| !end.balanced) {
        for family in end.families.iter().filter(|family| family.pending != 0) {
            page.alarm(&format!(
                "    {}: the books do not balance: emitted - received - dropped = {}",
                safe(&family.family),
                family.pending
            ));
        }
    }
    let counted = |name: &str| summary.agent.kernel_counters.get(name).copied().unwrap_or(0);
    let [stacks, frames, _] = counter::DONE.map(counted);
    if stacks > 0 {
        let mut line =
            format!("  stacks: {} walked, {:.0} frames deep on average", count(stacks), ratio(frames, stacks));
        let naming = &summary.agent.naming;
        if !naming.is_empty() {
            let (half, most) = (duration(naming.quantile(500)), duration(naming.quantile(990)));
            let _ = write!(line, "; named after {half} (p50), {most} (p99)");
        }
        page.line(&line);
    }
    let given_up = summary.agent.kernel_counters.iter().chain(&summary.agent.counters);
    let given_up = given_up.filter(|(name, _)| !counter::DONE.contains(&name.as_str()));
    let given_up: Vec<_> = given_up.map(|(name, n)| format!("{} {}", safe(name), count(*n))).collect();
    if !given_up.is_empty() {
        page.line(&format!("  given up: {}", given_up.join(", ")));
    }
}
