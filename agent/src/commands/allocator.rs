//! Who allocates native memory that is not given back: probes on the C library's allocator, where it was asked for.
//!
//! Every thread of the process hits them, some thousand times a second, so they come only while native memory grows, and go for good
//! once they have cost what they may. Others that run the same library do not hit them: they are for one process.

use std::{collections::BTreeMap, io::ErrorKind, os::unix::fs::MetadataExt as _, sync::Arc, time::Duration};

use agent_ebpf::spec::{Group, id};

use super::{
    session::FileProbes,
    subject::{self, Subject, SubjectError},
};
use crate::{
    govern::Action,
    probe::plan::{self, FeatureState},
    report::model::Degraded,
    target::{
        elf::ElfFile,
        procfs::{self, Mapping},
    },
    units::{MonoNs, Pid},
};

/// What may be taken from the processes, in all: a tenth of a core for half a minute.
const ALLOCATIONS_BUDGET: Duration = Duration::from_secs(3);
/// With what it takes to see that what was handed out comes back.
const FREES_BUDGET: Duration = Duration::from_secs(4);

/// What a hit costs until it is measured.
const HIT_NS: u64 = 2_000;
/// A probe on a return has two traps, the first of which may be single-stepped.
const RETURN_HITS: u64 = 3;

/// Other allocators, which keep the size of what they hand out elsewhere.
const OTHERS: [&str; 4] = ["libjemalloc", "libtcmalloc", "libmimalloc", "libc.musl"];

/// As [`subject::examine`], with the probes of its allocator.
pub fn examine(pid: Pid) -> Result<Subject, SubjectError> {
    let mut subject = subject::examine(pid)?;
    match probes(pid) {
        Ok(file) => subject.files.push(file),
        Err(reason) => subject.facts.degraded.push(Degraded { feature: "native_leaks".into(), reason }),
    }
    Ok(subject)
}

fn probes(pid: Pid) -> Result<FileProbes, String> {
    let mappings = procfs::executable_mappings(pid).map_err(|error| error.to_string())?;
    let name = |mapping: &Mapping| mapping.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let named: Vec<(String, &Mapping)> =
        mappings.iter().filter(|mapping| mapping.is_file()).filter_map(|at| Some((name(at)?, at))).collect();
    if let Some((other, _)) = named.iter().find(|(name, _)| OTHERS.iter().any(|other| name.starts_with(other))) {
        return Err(format!("off: the process allocates over {other}, of which it is not known where it keeps sizes"));
    }
    let is_glibc = |name: &str| name == "libc.so.6" || name.starts_with("libc-2.");
    let (_, mapping) = named.iter().find(|(name, _)| is_glibc(name)).ok_or("off: the process has no glibc mapped")?;
    let (file, path) = procfs::open_mapped(pid, mapping).map_err(|error| error.to_string())?;
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::PermissionDenied => format!("off: {} may not be read", path.display()),
        _ => format!("off: {}: {error}", path.display()),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    let elf = ElfFile::from_file(file.try_clone().map_err(unreadable)?, &path).map_err(|error| error.to_string())?;
    let plan = plan::plan_libc(&elf).map_err(|error| error.to_string())?;
    if let FeatureState::Off { missing } = plan.feature(agent_ebpf::spec::Feature::NativeLeaks) {
        return Err(format!("off: no {} in {}", missing.join(", "), path.display()));
    }
    let mut points = BTreeMap::<Group, Vec<(u64, u64)>>::new();
    for placement in &plan.placements {
        points.entry(placement.probe.group).or_default().push((placement.offset.0, placement.probe.id));
    }
    Ok(FileProbes { file: Arc::new(file), identity: (metadata.dev(), metadata.ino()), points, only: Some(pid) })
}

/// What watching the allocator has cost, and for how long it was watched who allocates.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocations {
    spent_ns: u64,
    seen_ns: u64,
    /// Since when it is watched.
    since: Option<MonoNs>,
}

impl Allocations {
    /// Takes note of hits so far, by id.
    pub fn count(&mut self, hits: &[u64], hit_cost_ns: Option<u64>) {
        let hit_ns = hit_cost_ns.unwrap_or(HIT_NS);
        let sum = |ids: std::ops::RangeInclusive<u64>| -> u64 {
            ids.filter_map(|id| hits.get(usize::try_from(id).ok()?)).sum()
        };
        let returns = sum(id::MALLOC..=id::ALIGNED_ALLOC).saturating_mul(RETURN_HITS);
        self.spent_ns = returns.saturating_add(sum(id::FREE..=id::REALLOC_OLD)).saturating_mul(hit_ns);
    }

    /// Whether a group may be attached: all others always.
    #[must_use]
    pub fn allow(&self, group: Group) -> bool {
        let spent = Duration::from_nanos(self.spent_ns);
        match group {
            Group::Allocations => spent < ALLOCATIONS_BUDGET,
            Group::Frees => spent < FREES_BUDGET,
            Group::Gc
            | Group::GcKinds
            | Group::Pool
            | Group::Calibration
            | Group::Phases
            | Group::Postgres
            | Group::Requests
            | Group::Makers
            | Group::Takers
            | Group::Scopes
            | Group::Polls
            | Group::Switches
            | Group::Waits
            | Group::Faults
            | Group::Allocators => true,
        }
    }

    /// They are attached or detached, now.
    pub fn mark(&mut self, now: MonoNs, action: Action) {
        self.seen_ns = self.seen_ns(now);
        self.since = (action == Action::Attach).then_some(now);
    }

    /// For how long allocations were watched, by now.
    #[must_use]
    pub fn seen_ns(&self, now: MonoNs) -> u64 {
        self.seen_ns + self.since.map_or(0, |since| now.0.saturating_sub(since.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_cost_enough_goes_for_good_and_first_those_who_allocate() {
        let mut allocations = Allocations::default();
        let calls = |seconds: u64| seconds * 1_000_000_000 / (HIT_NS * (RETURN_HITS + 1));
        for (seconds, allocates, frees) in [(2, true, true), (3, false, true), (5, false, false)] {
            let hits: Vec<u64> =
                (0..64).map(|id| if id == id::MALLOC || id == id::FREE { calls(seconds) } else { 0 }).collect();
            allocations.count(&hits, None);
            assert_eq!(allocations.allow(Group::Allocations), allocates, "{seconds}");
            assert_eq!(allocations.allow(Group::Frees), frees, "{seconds}");
            assert!(allocations.allow(Group::Makers));
        }
    }

    #[test]
    fn time_counts_while_they_are_attached() {
        let mut allocations = Allocations::default();
        allocations.mark(MonoNs(10), Action::Attach);
        assert_eq!(allocations.seen_ns(MonoNs(15)), 5);
        allocations.mark(MonoNs(20), Action::Detach);
        assert_eq!(allocations.seen_ns(MonoNs(90)), 10);
    }
}
