//! libuv's thread pool in a window: how long items waited, ran and lay there done, how long the queue was, and for how long
//! all threads were at work.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{
    abi::thread_pool::source,
    state::{WorkKey, WorkState},
};
use zerocopy::FromBytes;

pub use super::work_kind::WorkKind;
use super::{
    histogram::Histogram,
    work_kind::{fs_operation, of_class, uring_operation},
};
use crate::{
    counters::{Counters, Reason},
    decode::{Task, Work},
    limits::{SWEEP_ITEMS_MAX, WORK_CLASSES_MAX, WORK_GROUPS_MAX},
    units::{MonoNs, UserAddr},
};

/// Finished items of one kind and operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkFigures {
    pub count: u64,
    pub cancelled: u64,
    pub failed: u64,
    pub queue_wait: Histogram,
    pub run: Histogram,
    pub completion_delay: Histogram,
    pub total: Histogram,
}

impl WorkFigures {
    fn add(&mut self, work: &Work, returned: MonoNs) {
        self.count += 1;
        self.cancelled += u64::from(work.cancelled);
        self.failed += u64::from(work.failed);
        if let (Some(from), Some(to)) = (work.submitted, work.started) {
            self.queue_wait.record(to.since(from).0);
        }
        if let (Some(from), Some(to)) = (work.started, work.ended) {
            self.run.record(to.since(from).0);
        }
        if let Some(from) = work.ended {
            self.completion_delay.record(returned.since(from).0);
        }
        if let Some(from) = work.submitted {
            self.total.record(returned.since(from).0);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.cancelled += other.cancelled;
        self.failed += other.failed;
        self.queue_wait.merge(&other.queue_wait);
        self.run.merge(&other.run);
        self.completion_delay.merge(&other.completion_delay);
        self.total.merge(&other.total);
    }
}

/// The queue and the threads over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// Most items that waited at one time.
    pub queue_len_max: u64,
    /// Items waiting, integrated over time.
    pub queue_len_ns: u64,
    /// Threads at work, integrated over time.
    pub busy_ns: u64,
    /// All threads were at work; 0 where their number is not known.
    pub all_busy_ns: u64,
}

/// What a window says of the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolFigures {
    pub occupancy: Occupancy,
    pub work: BTreeMap<(WorkKind, String), WorkFigures>,
}

/// When an item waited and ran; ends that are yet to come are at infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    submitted: u64,
    started: u64,
    ended: u64,
}

/// The pool of one process, from window to window.
#[derive(Clone, Debug, Default)]
pub struct PoolBook {
    /// Classes by vtable; `None` is asked for.
    classes: BTreeMap<UserAddr, Option<(WorkKind, String)>>,
    work: BTreeMap<Task, WorkFigures>,
    items: Vec<Item>,
    /// Vtables to be asked for.
    wanted: BTreeSet<UserAddr>,
}

impl PoolBook {
    pub fn add(&mut self, work: &Work, returned: MonoNs, counters: &mut Counters) {
        if let Task::Node(vtable) = work.task
            && !self.classes.contains_key(&vtable)
            && self.classes.len() < WORK_CLASSES_MAX
        {
            self.classes.insert(vtable, None);
            self.wanted.insert(vtable);
        }
        let task = if self.work.len() < WORK_GROUPS_MAX || self.work.contains_key(&work.task) {
            work.task
        } else {
            counters.add(Reason::WorkGroupsFull);
            Task::Unknown
        };
        self.work.entry(task).or_default().add(work, returned);
        if !matches!(work.task, Task::IoUring(_)) {
            let at = |moment: Option<MonoNs>, otherwise: u64| moment.map_or(otherwise, |moment| moment.0);
            let ended = at(work.ended, returned.0);
            let started = at(work.started, ended);
            self.sweep_later(Item { submitted: at(work.submitted, started), started, ended }, counters);
        }
    }

    /// Adds the items in flight: pairs of [`WorkKey`] and [`WorkState`], of which those of `tgid` count.
    pub fn in_flight(&mut self, tgid: u32, works: &[u8], counters: &mut Counters) {
        for entry in works.chunks_exact(size_of::<WorkKey>() + size_of::<WorkState>()) {
            let Ok((key, rest)) = WorkKey::read_from_prefix(entry) else { continue };
            let Ok(state) = WorkState::read_from_bytes(rest) else { continue };
            if key.tgid != tgid || state.source == source::IO_URING {
                continue;
            }
            let or = |moment: u64, otherwise: u64| if moment == 0 { otherwise } else { moment };
            let ended = or(state.ended_ns, u64::MAX);
            let started = or(state.started_ns, ended);
            self.sweep_later(Item { submitted: or(state.submitted_ns, started), started, ended }, counters);
        }
    }

    fn sweep_later(&mut self, item: Item, counters: &mut Counters) {
        if self.items.len() < SWEEP_ITEMS_MAX {
            self.items.push(item);
        } else {
            counters.add(Reason::SweepFull);
        }
    }

    /// Vtables whose class is not known, each once.
    pub fn wanted(&mut self) -> impl Iterator<Item = UserAddr> {
        std::mem::take(&mut self.wanted).into_iter()
    }

    pub fn learn(&mut self, vtable: UserAddr, class: Option<&str>) {
        if let Some(known) = self.classes.get_mut(&vtable) {
            *known = class.map(of_class);
        }
    }

    /// Ends the window; `None` if nothing was in the pool.
    pub fn close(&mut self, from: MonoNs, to: MonoNs, size: u32) -> Option<PoolFigures> {
        if self.work.is_empty() && self.items.is_empty() {
            return None;
        }
        let mut figures = PoolFigures::default();
        for (task, of_task) in std::mem::take(&mut self.work) {
            figures.work.entry(self.name(task)).or_default().merge(&of_task);
        }
        figures.occupancy = sweep(&std::mem::take(&mut self.items), from.0, to.0, u64::from(size));
        Some(figures)
    }

    fn name(&self, task: Task) -> (WorkKind, String) {
        match task {
            Task::Fs(fs_type) => (WorkKind::Fs, fs_operation(fs_type).to_owned()),
            Task::GetAddrInfo => (WorkKind::Dns, "getaddrinfo".to_owned()),
            Task::GetNameInfo => (WorkKind::Dns, "getnameinfo".to_owned()),
            Task::Random => (WorkKind::Crypto, "random".to_owned()),
            Task::Node(vtable) => self.classes.get(&vtable).cloned().flatten().unwrap_or_default(),
            Task::Queued => (WorkKind::Other, "uv_queue_work".to_owned()),
            Task::Unknown => (WorkKind::Other, String::new()),
            Task::IoUring(opcode) => (WorkKind::IoUring, uring_operation(opcode).to_owned()),
        }
    }
}

/// Sweeps over the items' times within a window.
fn sweep(items: &[Item], from: u64, to: u64, size: u64) -> Occupancy {
    debug_assert!(from <= to, "windows do not run backwards");
    // (when, change of the queue, change of the threads at work); at one moment departures come before arrivals.
    let mut changes: Vec<(u64, i64, i64)> = Vec::with_capacity(items.len() * 3);
    for item in items {
        let (submitted, started, ended) =
            (item.submitted.clamp(from, to), item.started.clamp(from, to), item.ended.clamp(from, to));
        if started > submitted {
            changes.push((submitted, 1, 0));
            changes.push((started, -1, 0));
        }
        if ended > started {
            changes.push((started, 0, 1));
            changes.push((ended, 0, -1));
        }
    }
    changes.sort_unstable();
    let mut occupancy = Occupancy::default();
    let (mut at, mut queued, mut running) = (from, 0i64, 0i64);
    for (when, queue, run) in changes {
        let span = when - at;
        at = when;
        let (waiting, working) =
            (span.saturating_mul(queued.unsigned_abs()), span.saturating_mul(running.unsigned_abs()));
        occupancy.queue_len_ns = occupancy.queue_len_ns.saturating_add(waiting);
        occupancy.busy_ns = occupancy.busy_ns.saturating_add(working);
        if size != 0 && running.unsigned_abs() >= size {
            occupancy.all_busy_ns += span;
        }
        queued += queue;
        running += run;
        occupancy.queue_len_max = occupancy.queue_len_max.max(queued.unsigned_abs());
    }
    occupancy
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn work(task: Task, submitted: u64, started: u64, ended: u64) -> Work {
        let seen = |at| Some(MonoNs(at));
        Work {
            submitted: seen(submitted),
            started: seen(started),
            ended: seen(ended),
            task,
            cancelled: false,
            failed: false,
        }
    }

    #[test]
    fn a_pool_of_one_serves_one_after_the_other() {
        let mut pool = PoolBook::default();
        let mut counters = Counters::default();
        for k in 0..4 {
            pool.add(&work(Task::Fs(3), 0, k * 10, k * 10 + 10), MonoNs(k * 10 + 11), &mut counters);
        }
        let figures = pool.close(MonoNs(0), MonoNs(100), 1).unwrap();
        // Three wait while the first one runs, then two, then one.
        let expected = Occupancy { queue_len_max: 3, queue_len_ns: 60, busy_ns: 40, all_busy_ns: 40 };
        assert_eq!(figures.occupancy, expected);
        let reads = &figures.work[&(WorkKind::Fs, "read".to_owned())];
        assert_eq!(
            (reads.count, reads.queue_wait.sum(), reads.run.sum(), reads.completion_delay.sum()),
            (4, 60, 40, 4)
        );
        assert_eq!(pool.close(MonoNs(100), MonoNs(200), 1), None);
    }

    #[test]
    fn an_item_in_flight_counts_in_each_of_its_windows() {
        let items = [Item { submitted: 50, started: 150, ended: u64::MAX }];
        assert_eq!(
            sweep(&items, 0, 100, 1),
            Occupancy { queue_len_max: 1, queue_len_ns: 50, busy_ns: 0, all_busy_ns: 0 }
        );
        assert_eq!(
            sweep(&items, 100, 200, 1),
            Occupancy { queue_len_max: 1, queue_len_ns: 50, busy_ns: 50, all_busy_ns: 50 }
        );
    }

    #[test]
    fn a_class_that_comes_late_still_names_the_window() {
        let mut pool = PoolBook::default();
        let mut counters = Counters::default();
        pool.add(&work(Task::Node(UserAddr(64)), 0, 1, 2), MonoNs(3), &mut counters);
        assert_eq!(pool.wanted().collect::<Vec<_>>(), [UserAddr(64)]);
        pool.learn(UserAddr(64), Some("node::crypto::RandomBytesJob"));
        let figures = pool.close(MonoNs(0), MonoNs(9), 4).unwrap();
        assert_eq!(figures.work.keys().next(), Some(&(WorkKind::Crypto, "RandomBytes".to_owned())));
        assert_eq!(pool.wanted().count(), 0);
    }

    #[test]
    fn a_uring_item_has_no_queue() {
        let mut pool = PoolBook::default();
        pool.add(&work(Task::IoUring(22), 0, 0, 50), MonoNs(50), &mut Counters::default());
        let figures = pool.close(MonoNs(0), MonoNs(100), 1).unwrap();
        assert_eq!(figures.occupancy, Occupancy::default());
        assert_eq!(figures.work[&(WorkKind::IoUring, "read".to_owned())].total.sum(), 50);
    }
}
