//! Who waits for which lock of a PostgreSQL cluster, behind whom, since when: one entry a lock.
//!
//! Waits end by the kernel half's records, to the microsecond, which tell when they began. Who waits, and behind whom, is read in the
//! server's own lock table: once a window, and within it when somebody waits for long. Where the scheduler does not tell of waits,
//! there is a record of each beginning, too.

mod picture;

use std::collections::{BTreeMap, BTreeSet};

pub use picture::{Advice, Link, LockPicture, Queued, Root};

use super::histogram::Histogram;
use crate::{
    counters::{Counters, Reason},
    decode::{LockEnd, LockOutcome, LockWait},
    limits::{PG_LOCK_WAIT_MIN_NS, PG_LOCKS_MAX, PG_LOCKS_REPORTED_MAX, PG_PARTIES_MAX},
    postgres::{Backend, LockId, LockKind, Mode, Modes, PgPid, Reading},
    units::{MonoNs, Pid},
};

/// Waits that ended in a window, of which it is known how many there were at a time: 16 B each.
const SPANS_MAX: usize = 1 << 16;

/// Deadlocks that a window tells one by one.
const DEADLOCKS_MAX: usize = 32;

/// The server takes down when a wait begins before the backend sleeps: what began so much later is another wait.
const SAME_WAIT_NS: u64 = 10_000_000;

/// From giving a wait up to the word that it was for a deadlock: microseconds, and a window's end may lie in between.
const GIVEN_UP_KEPT_NS: u64 = 2_000_000_000;

/// The waits of one cluster.
#[derive(Clone, Debug, Default)]
pub struct LockBook {
    from: MonoNs,
    processes: u32,
    waits: BTreeMap<PgPid, OpenWait>,
    locks: BTreeMap<LockId, LockState>,
    backends: BTreeMap<PgPid, Backend>,
    /// What was given up last, by whom: it may turn out to have been a deadlock.
    given_up: BTreeMap<PgPid, GivenUp>,
    deadlocks: Vec<Deadlock>,
    kinds: BTreeMap<LockKind, WaitFigures>,
    waiting_max: usize,
    /// Beginning and end of the waits that ended in the window.
    spans: Vec<(MonoNs, MonoNs)>,
    /// When the last reading began.
    read_at: MonoNs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OpenWait {
    id: LockId,
    mode: Mode,
    since: MonoNs,
    /// `since` is when it began, not when it was first seen.
    exact: bool,
    /// Readings in a row that did not know of it.
    missed: u32,
}

#[derive(Clone, Debug, Default)]
struct LockState {
    holders: BTreeMap<PgPid, Modes>,
    holders_cut: bool,
    /// From the head on; all of them have an entry in `waits`.
    queue: Vec<PgPid>,
    figures: WaitFigures,
    /// As it was at the end of the last window, or when a long wait for it ended, where it had more waiters.
    picture: Option<LockPicture>,
}

#[derive(Clone, Debug)]
struct GivenUp {
    wait: OpenWait,
    at: MonoNs,
    cycle: Vec<Link>,
}

/// Waits that ended in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitFigures {
    pub granted: u64,
    pub cancelled: u64,
    pub deadlocked: u64,
    pub wait: Histogram,
}

/// A wait that would have been in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    pub at: MonoNs,
    /// Who was chosen to give up.
    pub victim: PgPid,
    pub waited_ns: u64,
    /// Each waits for the next one's lock, the last for the first one's; the victim comes first. Empty where the circle is not
    /// known.
    pub cycle: Vec<Link>,
}

/// A window of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterFigures {
    pub from: MonoNs,
    pub to: MonoNs,
    pub processes: u32,
    /// Waits that are going on, and the most at one time.
    pub waiting: usize,
    pub waiting_max: usize,
    /// Those with the most waiters first.
    pub locks: Vec<LockPicture>,
    /// Locks that were waited for long enough, but are not listed.
    pub locks_more: usize,
    pub kinds: BTreeMap<LockKind, WaitFigures>,
    /// When the oldest wait that is going on began, by kind of lock.
    pub oldest: BTreeMap<LockKind, MonoNs>,
    pub deadlocks: Vec<Deadlock>,
    pub backends: BTreeMap<PgPid, Backend>,
}

impl LockBook {
    #[must_use]
    pub fn new(from: MonoNs) -> Self {
        Self { from, ..Self::default() }
    }

    /// A backend begins to wait.
    pub fn begin(&mut self, host_pid: Pid, wait: &LockWait, at: MonoNs, counters: &mut Counters) {
        if self.waits.len() >= PG_PARTIES_MAX
            || (self.locks.len() >= PG_LOCKS_MAX && !self.locks.contains_key(&wait.id))
        {
            counters.add(Reason::LockWaitsFull);
            return;
        }
        // One that began before and was found by a reading is the same one.
        if self.waits.get(&wait.pid).is_some_and(|before| before.id != wait.id) {
            counters.add(Reason::LockEndUnseen);
            self.remove(wait.pid);
        }
        let is_new = self
            .waits
            .insert(wait.pid, OpenWait { id: wait.id, mode: wait.mode, since: at, exact: true, missed: 0 })
            .is_none();
        self.backends.entry(wait.pid).or_insert_with(|| Backend { pid: wait.pid, host_pid, ..Backend::default() });
        let lock = self.locks.entry(wait.id).or_default();
        if let Some(lists) = &wait.lists {
            if !lists.holders_cut {
                lock.holders.clear();
            }
            lock.holders_cut = lists.holders_cut;
            lock.holders.extend(lists.holders.iter().map(|holder| (holder.pid, holder.modes)));
            // In the order in which they are; some of them may not have been seen to begin. Who gives up is one of them.
            let listed: Vec<PgPid> = lists.queue.iter().map(|(pid, _)| *pid).collect();
            let mut rest = std::mem::take(&mut lock.queue);
            rest.retain(|pid| lists.queue_cut && !listed.contains(pid));
            lock.queue = listed.into_iter().chain(rest).filter(|pid| wait.gives_up || *pid != wait.pid).collect();
            for (pid, mode) in &lists.queue {
                self.waits.entry(*pid).or_insert(OpenWait {
                    id: wait.id,
                    mode: *mode,
                    since: at,
                    exact: false,
                    missed: 0,
                });
            }
            let stands = |pid: &PgPid| self.waits.get(pid).is_some_and(|open| open.id == wait.id);
            lock.queue.retain(stands);
        }
        if (is_new && !wait.gives_up) || !lock.queue.contains(&wait.pid) {
            lock.queue.retain(|pid| *pid != wait.pid);
            lock.queue.push(wait.pid);
        }
        self.waiting_max = self.waiting_max.max(self.waits.len());
    }

    /// A wait is over, or was in vain.
    pub fn end(&mut self, host_pid: Pid, end: &LockEnd, at: MonoNs, counters: &mut Counters) {
        let Some((pid, wait)) = self.ended(host_pid, end) else {
            counters.add(Reason::LockWaitUnseen);
            return;
        };
        match end.outcome {
            LockOutcome::Deadlock => {
                self.deadlock(pid, wait, at, counters);
                return;
            }
            LockOutcome::Granted => self.figures(wait.id, |figures| figures.granted += 1),
            LockOutcome::Cancelled => {
                let cycle = self.cycle(pid);
                self.given_up.insert(pid, GivenUp { wait, at, cycle });
                self.figures(wait.id, |figures| figures.cancelled += 1);
            }
            LockOutcome::Unknown => {}
        }
        self.finish(pid, wait, at);
        // What was read since knows better.
        if end.outcome == LockOutcome::Granted
            && at >= self.read_at
            && let Some(lock) = self.locks.get_mut(&wait.id)
        {
            let modes = lock.holders.entry(pid).or_default();
            *modes = modes.with(wait.mode.bit());
        }
    }

    /// The wait that ended: as its record has it, or, if it began before the trace, as it was found by a reading.
    fn ended(&self, host_pid: Pid, end: &LockEnd) -> Option<(PgPid, OpenWait)> {
        if end.started.0 != 0 {
            let wait = OpenWait { id: end.id, mode: end.mode, since: end.started, exact: true, missed: 0 };
            return Some((end.pid, wait));
        }
        let of_host = |pid: &PgPid| self.backends.get(pid).is_some_and(|backend| backend.host_pid == host_pid);
        let open = self.waits.iter().find(|(pid, _)| of_host(pid)).map(|(pid, wait)| (*pid, *wait));
        open.or_else(|| self.given_up.iter().find(|(pid, _)| of_host(pid)).map(|(pid, given_up)| (*pid, given_up.wait)))
    }

    fn deadlock(&mut self, pid: PgPid, wait: OpenWait, at: MonoNs, counters: &mut Counters) {
        let given_up = self.given_up.remove(&pid).filter(|given_up| given_up.wait.id == wait.id);
        let (ended, cycle) = if let Some(given_up) = given_up {
            // It was counted as cancelled a moment ago.
            self.figures(wait.id, |figures| figures.cancelled = figures.cancelled.saturating_sub(1));
            (given_up.at, given_up.cycle)
        } else {
            let cycle = self.cycle(pid);
            self.finish(pid, wait, at);
            (at, cycle)
        };
        self.figures(wait.id, |figures| figures.deadlocked += 1);
        if self.deadlocks.len() >= DEADLOCKS_MAX {
            counters.add(Reason::DeadlockOmitted);
            return;
        }
        self.deadlocks.push(Deadlock { at, victim: pid, waited_ns: ended.since(wait.since).0, cycle });
    }

    /// Adds to a lock's sums and to those of its kind.
    fn figures(&mut self, id: LockId, change: impl Fn(&mut WaitFigures)) {
        change(self.kinds.entry(id.kind()).or_default());
        if let Some(lock) = self.locks.get_mut(&id) {
            change(&mut lock.figures);
        }
    }

    fn finish(&mut self, pid: PgPid, wait: OpenWait, at: MonoNs) {
        let waited_ns = at.since(wait.since).0;
        self.figures(wait.id, |figures| figures.wait.record(waited_ns));
        if self.spans.len() < SPANS_MAX {
            self.spans.push((wait.since, at));
        }
        if waited_ns >= PG_LOCK_WAIT_MIN_NS {
            self.keep_picture(wait.id, at);
        }
        // It may wait for the same lock again by now.
        if self.waits.get(&pid).is_some_and(|open| open.id == wait.id && open.since <= at) {
            self.remove(pid);
        }
    }

    /// The most waits at one moment of the window.
    fn most_at_once(&mut self, to: MonoNs) -> usize {
        let over = std::mem::take(&mut self.spans);
        let open = self.waits.values().map(|wait| (wait.since, to));
        let within = over.into_iter().chain(open).filter(|(_, end)| *end >= self.from);
        // Of what happens at the same time, ends come first.
        let mut steps: Vec<(MonoNs, i32)> = within.flat_map(|(begin, end)| [(begin, 1), (end, -1)]).collect();
        steps.sort_unstable();
        let mut now = 0_i32;
        let most = steps.iter().map(|(_, step)| {
            now += step;
            now
        });
        usize::try_from(most.max().unwrap_or(0)).unwrap_or(0)
    }

    /// Before the lock's waiters are fewer.
    fn keep_picture(&mut self, id: LockId, at: MonoNs) {
        let waiters = self.locks.get(&id).map_or(0, |lock| lock.queue.len());
        let kept = self.locks.get(&id).and_then(|lock| lock.picture.as_ref()).map_or(0, |picture| picture.queue.len());
        if waiters > kept
            && let Some(picture) = self.picture(id, at)
            && let Some(lock) = self.locks.get_mut(&id)
        {
            lock.picture = Some(picture);
        }
    }

    fn remove(&mut self, pid: PgPid) {
        let Some(wait) = self.waits.remove(&pid) else { return };
        let Some(lock) = self.locks.get_mut(&wait.id) else { return };
        lock.queue.retain(|waiter| *waiter != pid);
        // Nobody waits, nobody waited long: there is nothing to tell.
        if lock.queue.is_empty() && lock.picture.is_none() {
            self.locks.remove(&wait.id);
        }
    }

    /// Sets right what records cannot tell.
    pub fn read(&mut self, reading: Reading, counters: &mut Counters) {
        let Reading { cluster: _, at, processes, locks, backends, torn, is_glance, ends_told_since } = reading;
        self.processes = processes;
        self.read_at = at;
        for _ in 0..torn {
            counters.add(Reason::LockTorn);
        }
        for backend in backends {
            self.backends.insert(backend.pid, backend);
        }
        let mut found = BTreeSet::new();
        for read in locks {
            if self.locks.len() >= PG_LOCKS_MAX && !self.locks.contains_key(&read.id) {
                counters.add(Reason::LockWaitsFull);
                continue;
            }
            let queue: Vec<PgPid> = read.queue.iter().map(|waiter| waiter.pid).collect();
            for waiter in &read.queue {
                found.insert(waiter.pid);
                let before = self.waits.get(&waiter.pid).copied().filter(|wait| wait.id == read.id);
                if before.is_none() {
                    self.remove(waiter.pid);
                }
                // Where ends are not watched, it may be another wait for the same lock by now.
                let is_newer =
                    |wait: &OpenWait| waiter.since.is_some_and(|since| since.since(wait.since).0 > SAME_WAIT_NS);
                let wait = match before {
                    Some(wait) if wait.exact && !is_newer(&wait) => OpenWait { missed: 0, ..wait },
                    before => OpenWait {
                        id: read.id,
                        mode: waiter.mode,
                        since: waiter.since.or(before.map(|wait| wait.since)).unwrap_or(at).min(at),
                        exact: waiter.since.is_some(),
                        missed: 0,
                    },
                };
                if self.waits.len() < PG_PARTIES_MAX || self.waits.contains_key(&waiter.pid) {
                    self.waits.insert(waiter.pid, wait);
                } else {
                    counters.add(Reason::LockWaitsFull);
                }
            }
            let lock = self.locks.entry(read.id).or_default();
            lock.holders = read.holders.iter().map(|holder| (holder.pid, holder.modes)).collect();
            lock.holders_cut = read.cut;
            // One that has begun since stays at the end.
            let later = std::mem::take(&mut lock.queue).into_iter().filter(|pid| !queue.contains(pid));
            let later: Vec<PgPid> =
                later.filter(|pid| self.waits.get(pid).is_some_and(|wait| wait.id == read.id)).collect();
            lock.queue = queue.into_iter().filter(|pid| self.waits.contains_key(pid)).chain(later).collect();
        }
        self.waiting_max = self.waiting_max.max(self.waits.len());
        if torn == 0 {
            self.forget_untold(&found, at.min(ends_told_since));
        }
        if !is_glance {
            self.forget_missed(&found, at, torn, counters);
        }
    }

    /// Waits from a time in which ends were not told are over where the server does not know of them.
    fn forget_untold(&mut self, found: &BTreeSet<PgPid>, until: MonoNs) {
        let is_over = |(pid, wait): &(&PgPid, &OpenWait)| wait.since < until && !found.contains(pid);
        let over: Vec<PgPid> = self.waits.iter().filter(is_over).map(|(pid, _)| *pid).collect();
        for pid in over {
            self.remove(pid);
        }
    }

    /// What the server itself does not know of, twice in a row, is over: its end was not seen.
    fn forget_missed(&mut self, found: &BTreeSet<PgPid>, at: MonoNs, torn: u32, counters: &mut Counters) {
        let mut over = Vec::new();
        for (pid, wait) in &mut self.waits {
            if torn == 0 && wait.since < at && !found.contains(pid) {
                wait.missed += 1;
                if wait.missed > 1 {
                    over.push(*pid);
                }
            }
        }
        for pid in over {
            counters.add(Reason::LockEndUnseen);
            self.remove(pid);
        }
    }

    /// Ends the window.
    pub fn close(&mut self, to: MonoNs) -> ClusterFigures {
        let long = |book: &Self, lock: &LockState| {
            lock.queue
                .iter()
                .any(|pid| book.waits.get(pid).is_some_and(|wait| to.since(wait.since).0 >= PG_LOCK_WAIT_MIN_NS))
        };
        let open: Vec<LockId> = self.locks.iter().filter(|(_, lock)| long(self, lock)).map(|(id, _)| *id).collect();
        let mut locks: Vec<LockPicture> = Vec::new();
        for id in open {
            locks.extend(self.picture(id, to));
        }
        for (id, lock) in &mut self.locks {
            let figures = std::mem::take(&mut lock.figures);
            let kept = lock.picture.take();
            match locks.iter_mut().find(|picture| picture.id == *id) {
                Some(picture) => picture.ended = figures,
                None => locks.extend(kept.map(|picture| LockPicture {
                    is_over: lock.queue.is_empty(),
                    ended: figures,
                    ..picture
                })),
            }
        }
        self.locks.retain(|_, lock| !lock.queue.is_empty());
        // Should it end within the next window, this is how it was: as those who wait for it go one by one, there is less and
        // less to be seen.
        for picture in &locks {
            if let Some(lock) = self.locks.get_mut(&picture.id) {
                lock.picture = Some(LockPicture { ended: WaitFigures::default(), ..picture.clone() });
            }
        }
        locks.sort_by(|one, other| {
            (other.queue.len(), one.oldest(), one.id).cmp(&(one.queue.len(), other.oldest(), other.id))
        });
        let locks_more = locks.len().saturating_sub(PG_LOCKS_REPORTED_MAX);
        locks.truncate(PG_LOCKS_REPORTED_MAX);
        let backends = self.backends.clone();
        self.forget_idle(to);
        let to = to.max(self.from);
        self.waiting_max = self.most_at_once(to).max(self.waiting_max);
        ClusterFigures {
            from: std::mem::replace(&mut self.from, to),
            to,
            processes: self.processes,
            waiting: self.waits.len(),
            waiting_max: std::mem::replace(&mut self.waiting_max, self.waits.len()),
            locks,
            locks_more,
            kinds: std::mem::take(&mut self.kinds),
            oldest: self.oldest(),
            deadlocks: std::mem::take(&mut self.deadlocks),
            backends,
        }
    }

    fn oldest(&self) -> BTreeMap<LockKind, MonoNs> {
        let mut oldest = BTreeMap::new();
        for wait in self.waits.values() {
            let since = oldest.entry(wait.id.kind()).or_insert(wait.since);
            *since = wait.since.min(*since);
        }
        oldest
    }

    /// Backends that no lock speaks of any more, and what was given up long ago.
    fn forget_idle(&mut self, now: MonoNs) {
        let holders = self.locks.values().flat_map(|lock| lock.holders.keys());
        let spoken_of: BTreeSet<PgPid> = holders.chain(self.waits.keys()).copied().collect();
        self.backends.retain(|pid, _| spoken_of.contains(pid));
        self.given_up.retain(|_, given_up| now.since(given_up.at).0 < GIVEN_UP_KEPT_NS);
    }
}

#[cfg(test)]
mod tests;
