//! Whose stacks they are.

use std::collections::BTreeMap;

use super::{Lane, View, build::command, frames::frames};
use crate::report::{
    model::Role,
    summary::{OffCpuKey, Summary, TargetSummary},
};

/// Who was measured.
#[derive(Clone, Copy)]
pub struct Thread {
    pub pid: u32,
    pub tid: Option<u32>,
    pub lane: Lane,
}

/// What the threads of a process are for.
pub struct Lanes {
    pid: u32,
    pub process: String,
    threads: BTreeMap<u32, (Lane, String)>,
}

impl Lanes {
    pub fn of(summary: &Summary, view: View, pid: u32, target: &TargetSummary) -> Self {
        let mut lanes = BTreeMap::new();
        let traced = target.loops.values().map(|of| (of.tid, of.role, &of.name));
        let profiled = target.profiled.values().map(|of| (of.tid, of.role, &of.name));
        for (tid, role, name) in traced.chain(profiled) {
            lanes.insert(tid, (Lane::of_thread(pid, tid, role, name), name.clone()));
        }
        for (role, sum) in &target.threads {
            for tid in &sum.tids {
                lanes.entry(*tid).or_insert_with(|| (Lane::of_thread(pid, *tid, *role, ""), String::new()));
            }
        }
        let sampled = target.samples.keys().map(|key| (key.tid, key.user_stack));
        let stayed = target.off_cpu.keys().filter_map(|key| Some((key.tid?, key.user_stack)));
        for (tid, user) in sampled.chain(stayed) {
            let first = || (Lane::of_thread(pid, tid, Role::Other, ""), String::new());
            let (lane, _) = lanes.entry(tid).or_insert_with(first);
            if *lane == Lane::Other
                && let Some(known) = Lane::of_frames(frames(summary, user).map(AsRef::as_ref))
            {
                *lane = known;
            }
        }
        let name = target.target.as_ref().map_or_else(|| "process".to_owned(), command);
        let process = if summary.targets.len() > 1 && !view.without_pids { format!("{name} ({pid})") } else { name };
        Self { pid, process, threads: lanes }
    }

    pub fn thread(&self, tid: Option<u32>) -> Thread {
        let known = tid.and_then(|tid| self.threads.get(&tid));
        Thread { pid: self.pid, tid, lane: known.map_or(Lane::Other, |(lane, _)| *lane) }
    }

    /// Lines of a trace do not say which thread it was.
    pub fn thread_of_stay(&self, key: &OffCpuKey) -> Thread {
        match key.tid {
            Some(_) => self.thread(key.tid),
            None => Thread { pid: self.pid, tid: None, lane: Lane::of_class(key.class) },
        }
    }

    pub fn label(&self, thread: Thread, by_thread: bool) -> String {
        let Some(tid) = thread.tid.filter(|_| by_thread) else { return thread.lane.name().to_owned() };
        let name = self.threads.get(&tid).map_or("", |(_, name)| name.as_str());
        let lane = match thread.lane {
            Lane::Main => "main thread",
            Lane::Worker => "worker thread",
            Lane::ThreadPool => "thread of the pool",
            Lane::V8 => "V8's thread",
            Lane::Other => "thread",
        };
        if name.is_empty() { format!("{lane} {tid}") } else { format!("{lane} {tid} {name}") }
    }
}
