//! The agent's own books: what was emitted, received and dropped, and what the agent cost.

use std::collections::BTreeMap;

use agent_ebpf::{
    abi::family,
    spec::{HITS_CALIBRATION, HITS_POSTGRES, LIBC_PROBES, POSTGRES_PROBES, PROBES, TRACEPOINTS},
    state::{FamilyCounters, counter},
};

use super::{FAMILIES, HitCost, SelfCost, Tick};
use crate::{
    aggregate::histogram::Histogram,
    counters::Counters,
    report::model::{AgentCost, FamilyAccount, ProbeHits},
    units::{DurationNs, MonoNs},
};

/// From here on, slots of the kernel half's `HITS` map are tracepoints; below, they are uprobes by id.
const TRACEPOINT_SLOTS: u64 = 64;

#[derive(Debug)]
pub struct Account {
    from: MonoNs,
    cost: SelfCost,
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
        let (probes, probe_cost_ns) = probes(&before, now);
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
            probes,
            probe_cost_ns,
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

/// Hits since the last reading by name of the probe, and what they cost.
fn probes(before: &SelfCost, now: &SelfCost) -> (Vec<ProbeHits>, Option<u64>) {
    let earlier: BTreeMap<u64, u64> = before.hits.iter().copied().collect();
    let mut probes = Vec::new();
    let mut cost_ns = 0u64;
    let HitCost { uprobe_ns, tracepoint_ns } = now.hit_cost.unwrap_or_default();
    for &(slot, hits) in &now.hits {
        let hits = hits.saturating_sub(earlier.get(&slot).copied().unwrap_or(0));
        if hits != 0 {
            let is_uprobe = slot < TRACEPOINT_SLOTS || slot >= u64::from(HITS_POSTGRES);
            let each = if is_uprobe { uprobe_ns } else { tracepoint_ns };
            cost_ns = cost_ns.saturating_add(hits.saturating_mul(each));
            probes.push(ProbeHits { probe: probe_name(slot), hits });
        }
    }
    (probes, now.hit_cost.map(|_| cost_ns))
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
