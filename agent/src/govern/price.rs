//! What it costs to pass a probe, whoever passes it.

use std::time::Duration;

use agent_ebpf::{
    abi::family,
    spec::{Group, HITS_CALIBRATION, HITS_COUNT, HITS_POSTGRES, PROBES, slot},
    state::{FamilyCounters, counter},
};

use crate::units::nanoseconds;

/// What a uprobe hit costs until it is measured: more than on most machines.
const UPROBE: Duration = Duration::from_micros(2);

/// What the program of a uprobe does in a target, beyond the trap and the filter that are measured.
const PROGRAM_NS: u64 = 120;

/// A turn: two tracepoints, and a record that is sent.
const TURN_NS: u64 = 800;

/// A switch and a wake-up, by whomever: those of threads that are traced, of which there are most where it matters; those of others
/// are cheaper.
const SWITCH_NS: u64 = 190;
const WAKE_UP_NS: u64 = 120;

/// A switch to or from a PostgreSQL backend while its waits are followed, as `cargo xtask bench postgres` measures it, caches and all;
/// and one between others.
const WAIT_NS: u64 = 800;
const STRANGERS_NS: u64 = 80;

/// A stack where the thread did something else since the last one: caches are cold.
const STACK_NS: u64 = 3_000;

/// Any other tracepoint: the same filter as of a uprobe, without the trap.
const TRACEPOINT_NS: u64 = 300;

const SWITCHES: [u32; 2] = [slot("sched_switch"), slot("sched_switch_record")];
const WAKE_UPS: [u32; 3] = [slot("sched_wakeup"), slot("sched_wakeup_new"), slot("sched_wakeup_record")];
const BACKEND_SWITCHES: u32 = slot("postgres_switch");
const OTHERS: [u32; 8] = [
    slot("process_fork"),
    slot("process_exec"),
    slot("process_exit"),
    slot("io_uring_submit"),
    slot("io_uring_complete"),
    slot("page_fault"),
    slot("postgres_fork"),
    slot("postgres_exit"),
];

/// How often what has a price was passed, in all or within some time.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    /// By slot of the kernel half's `HITS` map.
    pub hits: Vec<u64>,
    /// Of all loops.
    pub turns: u64,
    /// Stacks that were walked, and of which samples.
    pub stacks: u64,
    pub samples: u64,
    /// To or from a PostgreSQL backend.
    pub backend_switches: u64,
}

impl Passed {
    /// Running totals of the kernel half: hits by slot, records by family, counters.
    #[must_use]
    pub fn new(hits: Vec<u64>, families: &[FamilyCounters], counters: &[u64]) -> Self {
        let emitted = |of: u32| families.get(of as usize).map_or(0, |family| family.emitted);
        let counted = |of: u32| counters.get(of as usize).copied().unwrap_or(0);
        Self {
            hits,
            turns: emitted(family::EVENT_LOOP),
            stacks: counted(counter::STACKS_WALKED),
            samples: emitted(family::SAMPLE),
            backend_switches: counted(counter::PG_SWITCHES),
        }
    }

    /// What was passed between an earlier reading and this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.hits.iter().copied().chain(std::iter::repeat(0));
        Self {
            hits: self.hits.iter().zip(before).map(|(now, before)| now.saturating_sub(before)).collect(),
            turns: self.turns.saturating_sub(earlier.turns),
            stacks: self.stacks.saturating_sub(earlier.stacks),
            samples: self.samples.saturating_sub(earlier.samples),
            backend_switches: self.backend_switches.saturating_sub(earlier.backend_switches),
        }
    }
}

/// What a hit of a uprobe costs here; of everything else it is known in advance.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    uprobe_ns: u64,
}

impl Default for Prices {
    fn default() -> Self {
        Self { uprobe_ns: nanoseconds(UPROBE) }
    }
}

impl Prices {
    /// A trap was measured to cost this; on a busy machine too much is measured, as everything else only adds.
    #[must_use]
    pub fn measured(trap: Duration) -> Self {
        Self { uprobe_ns: nanoseconds(trap).saturating_add(PROGRAM_NS).min(nanoseconds(UPROBE)) }
    }

    /// Nanoseconds that a group's probes took. Others that poll pass the tracepoints at polls in a tenth of the time that a turn takes.
    #[must_use]
    pub fn of_group(&self, group: Group, passed: &Passed) -> u64 {
        match group {
            Group::Polls => passed.turns.saturating_mul(TURN_NS),
            Group::Switches => {
                let switches = hits(passed, SWITCHES).saturating_mul(SWITCH_NS);
                switches.saturating_add(hits(passed, WAKE_UPS).saturating_mul(WAKE_UP_NS))
            }
            Group::Waits => {
                let strangers = hits(passed, [BACKEND_SWITCHES]).saturating_sub(passed.backend_switches);
                let backends = passed.backend_switches.saturating_mul(WAIT_NS);
                backends.saturating_add(strangers.saturating_mul(STRANGERS_NS))
            }
            _ => self.of_hits(hits_of(group, passed)),
        }
    }

    /// Of so many hits of uprobes.
    #[must_use]
    pub fn of_hits(&self, hits: u64) -> u64 {
        hits.saturating_mul(self.uprobe_ns)
    }

    /// Of stacks, but for samples.
    #[must_use]
    pub fn of_stacks(&self, passed: &Passed) -> u64 {
        passed.stacks.saturating_sub(passed.samples).saturating_mul(STACK_NS)
    }

    /// Each of which has a stack.
    #[must_use]
    pub fn of_samples(&self, passed: &Passed) -> u64 {
        passed.samples.saturating_mul(STACK_NS)
    }

    /// Nanoseconds that all probes together took from what runs here.
    #[must_use]
    pub fn of_all(&self, passed: &Passed) -> u64 {
        let uprobes = (0..HITS_CALIBRATION).chain(HITS_POSTGRES..HITS_COUNT);
        let groups = [Group::Polls, Group::Switches, Group::Waits].map(|group| self.of_group(group, passed));
        let parts = [
            self.of_hits(hits(passed, uprobes)),
            hits(passed, OTHERS).saturating_mul(TRACEPOINT_NS),
            self.of_stacks(passed),
            self.of_samples(passed),
        ];
        groups.into_iter().chain(parts).fold(0, u64::saturating_add)
    }
}

/// Hits of a group's uprobes.
#[must_use]
pub fn hits_of(group: Group, passed: &Passed) -> u64 {
    let ids = PROBES.iter().filter(|probe| probe.group == group).filter_map(|probe| u32::try_from(probe.id).ok());
    hits(passed, ids)
}

fn hits(passed: &Passed, slots: impl IntoIterator<Item = u32>) -> u64 {
    let hits = slots.into_iter().filter_map(|slot| passed.hits.get(slot as usize));
    hits.fold(0, |sum, hits| sum.saturating_add(*hits))
}
