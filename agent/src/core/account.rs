//! The agent's own books: what was emitted, received and dropped, and what the agent cost.

use std::{collections::BTreeMap, time::Duration};

use agent_ebpf::{
    abi::family,
    spec::{HITS_CALIBRATION, HITS_COUNT, LIBC_PROBES, POSTGRES_PROBES, PROBES, TRACEPOINTS},
    state::{FamilyCounters, counter},
};

use super::{FAMILIES, SelfCost, Tick};
use crate::{
    aggregate::histogram::Histogram,
    counters::Counters,
    govern::{Passed, Prices},
    report::model::{AgentCost, FamilyAccount, ProbeHits},
    units::{DurationNs, MonoNs},
};

/// From here on, slots of the kernel half's `HITS` map are tracepoints; below, they are uprobes by id.
const TRACEPOINT_SLOTS: u64 = 64;

#[derive(Debug)]
pub struct Account {
    from: MonoNs,
    cost: SelfCost,
    passed: Passed,
    decoded: [u64; FAMILIES],
    received: [u64; FAMILIES],
    families: [FamilyCounters; FAMILIES],
    naming: Histogram,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            from: MonoNs(0),
            cost: SelfCost::default(),
            passed: Passed::default(),
            decoded: [0; FAMILIES],
            received: [0; FAMILIES],
            families: [FamilyCounters { emitted: 0, dropped: 0 }; FAMILIES],
            naming: Histogram::default(),
        }
    }
}

impl Account {
    pub fn begin(&mut self, from: MonoNs) {
        self.from = from;
    }

    pub fn decoded(&mut self, family: u32) {
        if let Some(n) = self.decoded.get_mut(family as usize) {
            *n += 1;
        }
    }

    /// A stack has its names, so long after it was taken.
    pub fn named(&mut self, delay: DurationNs) {
        self.naming.record(delay.0);
    }

    /// The books as of the last tick.
    pub fn families(&self) -> Vec<FamilyAccount> {
        let figures = self.families.iter().zip(self.received).zip(self.decoded);
        figures
            .zip(family::NAMES)
            .map(|(((&FamilyCounters { emitted, dropped }, received), decoded), name)| {
                let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                FamilyAccount {
                    family: name.to_owned(),
                    emitted,
                    dropped,
                    received,
                    decoded,
                    pending: signed(emitted).saturating_sub(signed(received)).saturating_sub(signed(dropped)),
                }
            })
            .collect()
    }

    /// Ends a window.
    pub fn close(&mut self, tick: &Tick, counters: &Counters) -> AgentCost {
        self.families = tick.families;
        self.received = tick.received;
        let before = std::mem::replace(&mut self.cost, tick.self_cost.clone());
        let now = &self.cost;
        let passed = passed(tick);
        let new = passed.since(&self.passed);
        self.passed = passed;
        let prices = now.hit_cost_ns.map(|ns| Prices::measured(Duration::from_nanos(ns)));
        let duration_ns = tick.now.since(self.from).0;
        self.from = tick.now;
        let mut kernel_counters = BTreeMap::new();
        for (name, n) in counter::NAMES.into_iter().zip(tick.kernel_counters) {
            if n != 0 {
                kernel_counters.insert(name.to_owned(), n);
            }
        }
        AgentCost {
            duration_ns,
            cpu_user_ns: now.cpu_user_ns.saturating_sub(before.cpu_user_ns),
            cpu_system_ns: now.cpu_system_ns.saturating_sub(before.cpu_system_ns),
            rss_bytes: now.rss_bytes,
            bpf_run_ns: now.bpf_run_ns.map(|ns| ns.saturating_sub(before.bpf_run_ns.unwrap_or(0))),
            probes: probes(&new),
            probe_cost_ns: prices.map(|prices| prices.of_all(&new)),
            probe_budget_ns: now.budget_ns.saturating_sub(before.budget_ns),
            naming: std::mem::take(&mut self.naming),
            stacks_rarer: now.stacks_rarer.max(1),
            samples_rarer: now.samples_rarer.max(1),
            looks_rarer: now.looks_rarer.max(1),
            records_rarer: now.records_rarer.max(1),
            families: self.families(),
            kernel_counters,
            counters: counters.nonzero().map(|(name, n)| (name.to_owned(), n)).collect(),
            streams: self.cost.streams.clone(),
        }
    }
}

/// Running totals of what has a price.
fn passed(tick: &Tick) -> Passed {
    let mut hits = vec![0; HITS_COUNT as usize];
    for (slot, n) in &tick.self_cost.hits {
        if let Some(hits) = usize::try_from(*slot).ok().and_then(|slot| hits.get_mut(slot)) {
            *hits = *n;
        }
    }
    Passed::new(hits, &tick.families, &tick.kernel_counters)
}

/// Probes that were hit.
fn probes(passed: &Passed) -> Vec<ProbeHits> {
    let hit = (0..).zip(&passed.hits).filter(|(_, hits)| **hits != 0);
    hit.map(|(slot, hits)| ProbeHits { probe: probe_name(slot), hits: *hits }).collect()
}

fn probe_name(slot: u64) -> String {
    if slot == u64::from(HITS_CALIBRATION) {
        return "calibration".to_owned();
    }
    let uprobe =
        PROBES.iter().chain(POSTGRES_PROBES).chain(LIBC_PROBES).find(|probe| probe.id == slot).map(|probe| probe.name);
    let tracepoint = || {
        let at = usize::try_from(slot.checked_sub(TRACEPOINT_SLOTS)?).ok()?;
        Some(TRACEPOINTS.get(at)?.program)
    };
    uprobe.or_else(tracepoint).map_or_else(|| format!("slot_{slot}"), str::to_owned)
}
