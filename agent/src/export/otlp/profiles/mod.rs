//! Stacks as profiles: of each process and window one of samples on CPU and one of time off CPU.
//!
//! The frames of a stack come up to a window after the line that first speaks of it, so a window waits until all of its stacks are
//! known, and no longer than until the next. What is ready at one moment is one request, with one dictionary: requests of profiles
//! cannot be put together by their bytes, as those of metrics and logs can.

pub mod proto;
mod request;
mod tables;

use std::{
    collections::{BTreeMap, btree_map},
    mem,
    sync::Arc,
};

use self::{proto::ProfilesRequest, request::Request};
use super::proto::Resource;
use crate::{
    limits::STACKS_SHOWN_MAX,
    report::{
        Body, Record,
        model::{OffCpu, Profile, Stack, StackId},
    },
};

/// Names of threads, by their ids.
type Names = Arc<BTreeMap<u32, String>>;

/// What is known of stacks, and the windows that wait for more of them: two of each process at most.
#[derive(Debug, Default)]
pub struct Profiles {
    /// Those that the core remembers to have told; what it has forgotten it tells again.
    stacks: BTreeMap<StackId, Stack>,
    processes: BTreeMap<u32, Facts>,
    /// By process and end.
    waiting: BTreeMap<(u32, u64), Window>,
}

/// Of a process's last window.
#[derive(Debug, Default)]
struct Facts {
    end_ns: u64,
    duration_ns: u64,
    names: Names,
}

/// A process in a window.
#[derive(Debug)]
struct Window {
    resource: Resource,
    end_ns: u64,
    duration_ns: u64,
    names: Names,
    on_cpu: Profile,
    off_cpu: OffCpu,
    /// It has waited once already.
    is_late: bool,
}

impl Profiles {
    /// Takes in what a record, of that time, says of stacks, threads and windows.
    pub fn add(&mut self, record: &Record, end_ns: u64, resource: impl FnOnce() -> Resource) {
        let pid = record.pid;
        match &record.body {
            Body::Stack(stack) => {
                if self.stacks.len() >= STACKS_SHOWN_MAX {
                    self.stacks.pop_first();
                }
                self.stacks.insert(stack.id, stack.clone());
            }
            Body::Window(window) => {
                let names = window.loops.iter().map(|of| (of.tid, &of.name));
                let names = names.chain(window.threads.iter().map(|of| (of.tid, &of.name)));
                self.learn(pid, (end_ns, window.duration_ns), names);
            }
            Body::Profile(profile) => {
                if profile.duration_ns != 0 {
                    let names = profile.threads.iter().map(|of| (of.tid, &of.name));
                    self.learn(pid, (end_ns, profile.duration_ns), names);
                }
                if !profile.stacks.is_empty() || profile.other_samples != 0 {
                    let sum = &mut self.window(pid, end_ns, resource).on_cpu;
                    sum.period_ns = profile.period_ns;
                    sum.stacks.extend_from_slice(&profile.stacks);
                    sum.other_samples = sum.other_samples.saturating_add(profile.other_samples);
                }
            }
            Body::OffCpu(off_cpu) => {
                let sum = &mut self.window(pid, end_ns, resource).off_cpu;
                sum.stacks.extend_from_slice(&off_cpu.stacks);
                if let Some(more) = &off_cpu.other {
                    let other = sum.other.get_or_insert_default();
                    other.count = other.count.saturating_add(more.count);
                    other.total_ns = other.total_ns.saturating_add(more.total_ns);
                }
            }
            _ => {}
        }
    }

    /// A window's length, and all threads that there are.
    fn learn<'a>(
        &mut self,
        pid: u32,
        (end_ns, duration_ns): (u64, u64),
        names: impl Iterator<Item = (u32, &'a String)>,
    ) {
        let names = names.filter(|(_, name)| !name.is_empty()).map(|(tid, name)| (tid, name.clone()));
        let names: Names = Arc::new(names.collect());
        if let Some(window) = self.waiting.get_mut(&(pid, end_ns)) {
            window.duration_ns = duration_ns;
            window.names = Arc::clone(&names);
        }
        self.processes.insert(pid, Facts { end_ns, duration_ns, names });
    }

    fn window(&mut self, pid: u32, end_ns: u64, resource: impl FnOnce() -> Resource) -> &mut Window {
        match self.waiting.entry((pid, end_ns)) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(place) => {
                let facts = self.processes.get(&pid);
                let duration_ns = match facts {
                    Some(facts) if facts.end_ns == end_ns => facts.duration_ns,
                    Some(facts) => end_ns.saturating_sub(facts.end_ns),
                    None => 0,
                };
                place.insert(Window {
                    resource: resource(),
                    end_ns,
                    duration_ns,
                    names: facts.map(|facts| Arc::clone(&facts.names)).unwrap_or_default(),
                    on_cpu: Profile::default(),
                    off_cpu: OffCpu::default(),
                    is_late: false,
                })
            }
        }
    }

    /// The process is gone, and its last window told.
    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
    }

    /// The windows whose stacks have all come, and those that have waited once already: to be called when a window of all processes
    /// is told.
    pub fn ready(&mut self) -> Vec<ProfilesRequest> {
        let stacks = &self.stacks;
        let (due, mut waiting): (BTreeMap<_, _>, BTreeMap<_, _>) =
            mem::take(&mut self.waiting).into_iter().partition(|(_, window)| window.is_late || window.is_named(stacks));
        for window in waiting.values_mut() {
            window.is_late = true;
        }
        self.waiting = waiting;
        Request::all(due.into_values(), &self.stacks)
    }

    /// All that is left: nothing more comes.
    pub fn rest(&mut self) -> Vec<ProfilesRequest> {
        Request::all(mem::take(&mut self.waiting).into_values(), &self.stacks)
    }
}

impl Window {
    fn is_named(&self, stacks: &BTreeMap<StackId, Stack>) -> bool {
        let sampled = self.on_cpu.stacks.iter().flat_map(|of| [of.user_stack, of.kernel_stack]);
        let stayed = self.off_cpu.stacks.iter().flat_map(|of| [of.user_stack, of.kernel_stack]);
        sampled.chain(stayed).flatten().all(|id| stacks.contains_key(&id))
    }
}
