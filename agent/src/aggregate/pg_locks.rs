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
        let Reading { cluster: _, at, processes, locks, backends, torn, is_glance } = reading;
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
                let wait = match before {
                    Some(wait) if wait.exact => OpenWait { missed: 0, ..wait },
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
        if !is_glance {
            self.forget_missed(&found, at, torn, counters);
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
#[expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        decode::LockLists,
        postgres::{BackendKind, BackendState, Holder, LockReading, Waiter},
    };

    const MS: u64 = 1_000_000;
    const TABLE: LockId = LockId { field1: 5, field2: 16384, field3: 0, field4: 0, kind: 0, method: 1 };
    const TUPLE: LockId = LockId { field1: 5, field2: 16384, field3: 1, field4: 7, kind: 4, method: 1 };
    const ROW: LockId = LockId { field1: 7001, field2: 0, field3: 0, field4: 0, kind: 5, method: 1 };
    const OTHER_ROW: LockId = LockId { field1: 7002, ..ROW };

    /// A book under a script of events, a millisecond after each other.
    #[derive(Default)]
    struct Script {
        book: LockBook,
        counters: Counters,
        now: u64,
        began: BTreeMap<u32, (LockId, u8, u64)>,
    }

    impl Script {
        fn wait(&mut self, pid: u32, id: LockId, mode: u8, holders: &[(u32, u8)], ahead: &[(u32, u8)]) -> &mut Self {
            self.now += MS;
            let lists = LockLists {
                holders: holders
                    .iter()
                    .map(|(pid, mode)| Holder { pid: PgPid(*pid), modes: Mode(*mode).bit() })
                    .collect(),
                queue: ahead.iter().map(|(pid, mode)| (PgPid(*pid), Mode(*mode))).collect(),
                ..LockLists::default()
            };
            let wait = LockWait {
                cluster: Pid(1),
                pid: PgPid(pid),
                lock: crate::units::UserAddr(0x1000),
                id,
                mode: Mode(mode),
                queue_len: 0,
                lists: Some(lists),
                gives_up: false,
            };
            self.book.begin(Pid(pid), &wait, MonoNs(self.now), &mut self.counters);
            self.began.insert(pid, (id, mode, self.now));
            self
        }

        fn end(&mut self, pid: u32, outcome: LockOutcome) -> &mut Self {
            self.now += MS;
            let (id, mode, started) = self.began[&pid];
            let end =
                LockEnd { cluster: Pid(1), pid: PgPid(pid), id, mode: Mode(mode), started: MonoNs(started), outcome };
            self.book.end(Pid(pid), &end, MonoNs(self.now), &mut self.counters);
            self
        }

        fn is(&mut self, pid: u32, kind: BackendKind, state: BackendState) -> &mut Self {
            let backend = Backend { pid: PgPid(pid), host_pid: Pid(pid), kind, state, ..Backend::default() };
            self.book.backends.insert(backend.pid, backend);
            self
        }

        /// The window ends long after everything.
        fn close(&mut self) -> ClusterFigures {
            self.now += 1000 * MS;
            self.book.close(MonoNs(self.now))
        }
    }

    fn blocked_by(picture: &LockPicture, pid: u32) -> Vec<u32> {
        let waiter = picture.queue.iter().find(|waiter| waiter.pid == PgPid(pid)).unwrap();
        waiter.blocked_by.iter().map(|pid| pid.0).collect()
    }

    /// A vacuum, a change of the table, and three who read or write.
    fn pile_up() -> Script {
        let mut script = Script::default();
        script
            .is(10, BackendKind::WraparoundVacuum, BackendState::Active)
            .wait(11, TABLE, 8, &[(10, 4)], &[])
            .wait(12, TABLE, 1, &[(10, 4)], &[(11, 8)])
            .wait(13, TABLE, 1, &[(10, 4)], &[(11, 8), (12, 1)])
            .wait(14, TABLE, 3, &[(10, 4)], &[(11, 8), (12, 1), (13, 1)]);
        script
    }

    #[test]
    fn those_who_wait_behind_a_waiter_are_one_entry_and_it_is_the_one_to_act_on() {
        let figures = pile_up().close();
        assert_eq!((figures.locks.len(), figures.waiting, figures.waiting_max), (1, 4, 4));
        assert_eq!(figures.oldest, [(LockKind::Relation, MonoNs(MS))].into());
        let lock = &figures.locks[0];
        assert_eq!(lock.queue.iter().map(|waiter| waiter.pid.0).collect::<Vec<_>>(), [11, 12, 13, 14]);
        assert_eq!([11, 12, 13, 14].map(|pid| blocked_by(lock, pid)), [vec![10], vec![11], vec![11], vec![11]]);
        assert_eq!(lock.root, Some(Root { pid: PgPid(11), advice: Advice::CancelHead, frees: 3 }));
    }

    #[test]
    fn an_idle_transaction_is_ended_before_those_who_wait_for_it() {
        let mut script = pile_up();
        let figures = script.is(10, BackendKind::Client, BackendState::IdleInTransaction).close();
        let root = figures.locks[0].root.unwrap();
        // The table's change gets it, and the rest waits for that.
        assert_eq!(root, Root { pid: PgPid(10), advice: Advice::EndTransaction, frees: 1 });
    }

    #[test]
    fn a_lone_waiter_lets_the_vacuum_finish() {
        let mut script = Script::default();
        script.is(10, BackendKind::WraparoundVacuum, BackendState::Active).wait(11, TABLE, 8, &[(10, 4)], &[]);
        assert_eq!(script.close().locks[0].root, Some(Root { pid: PgPid(10), advice: Advice::AwaitVacuum, frees: 1 }));
    }

    #[test]
    fn a_chain_of_rows_leads_to_its_root() {
        let mut script = Script::default();
        script
            .is(20, BackendKind::Client, BackendState::IdleInTransaction)
            .wait(21, ROW, 5, &[(20, 7)], &[])
            .wait(22, TUPLE, 7, &[(21, 7)], &[])
            .wait(23, TUPLE, 7, &[(21, 7)], &[(22, 7)]);
        let figures = script.close();
        assert_eq!(figures.locks.iter().map(|lock| lock.id).collect::<Vec<_>>(), [TUPLE, ROW]);
        let chain: Vec<_> = figures.locks[0].chain.iter().map(|link| link.pid.0).collect();
        assert_eq!(chain, [22, 21]);
        assert_eq!(figures.locks[0].root, Some(Root { pid: PgPid(20), advice: Advice::EndTransaction, frees: 2 }));
        assert_eq!(blocked_by(&figures.locks[0], 23), [21, 22]);
    }

    #[test]
    fn a_deadlock_is_told_with_its_circle_and_counted_once() {
        let mut script = Script::default();
        script
            .wait(30, ROW, 5, &[(31, 7)], &[])
            .wait(31, OTHER_ROW, 5, &[(30, 7)], &[])
            .end(31, LockOutcome::Cancelled)
            .end(31, LockOutcome::Deadlock)
            .end(30, LockOutcome::Granted);
        let figures = script.close();
        let circle: Vec<_> = figures.deadlocks[0].cycle.iter().map(|link| (link.pid.0, link.id)).collect();
        assert_eq!((figures.deadlocks[0].victim, circle), (PgPid(31), vec![(31, OTHER_ROW), (30, ROW)]));
        let rows = &figures.kinds[&LockKind::Transaction];
        assert_eq!((rows.granted, rows.cancelled, rows.deadlocked, rows.wait.count()), (1, 0, 1, 2));
        assert_eq!((figures.waiting, figures.locks.len()), (0, 0));
    }

    #[test]
    fn who_is_granted_holds_from_then_on() {
        let mut script = pile_up();
        // The vacuum ends; the change of the table goes on, and now the others wait for a holder.
        script.end(11, LockOutcome::Granted);
        let lock = script.close().locks.remove(0);
        assert!(blocked_by(&lock, 12).contains(&11));
        assert_eq!(lock.queue[0].pid, PgPid(12));
    }

    #[test]
    fn short_waits_are_sums_and_leave_nothing_behind() {
        let mut script = Script::default();
        for n in 0..1000 {
            let row = LockId { field1: n, ..ROW };
            script.wait(40, row, 5, &[(41, 7)], &[]).end(40, LockOutcome::Granted);
        }
        assert!(script.book.locks.is_empty());
        let figures = script.close();
        assert_eq!((figures.locks.len(), figures.kinds[&LockKind::Transaction].granted), (0, 1000));
    }

    #[test]
    fn a_pile_up_that_is_over_is_shown_as_it_was() {
        let mut script = pile_up();
        script.now += 500 * MS;
        script.end(11, LockOutcome::Cancelled);
        for pid in [12, 13, 14] {
            script.end(pid, LockOutcome::Granted);
        }
        let figures = script.close();
        let lock = &figures.locks[0];
        assert!(lock.is_over);
        assert_eq!((lock.queue.len(), lock.ended.granted, lock.ended.cancelled), (4, 3, 1));
        assert!(script.close().locks.is_empty(), "it is told once");
    }

    #[test]
    fn who_gives_up_is_in_line_where_it_was() {
        let mut script = pile_up();
        let lists = LockLists {
            holders: vec![Holder { pid: PgPid(10), modes: Mode(4).bit() }],
            queue: [(11, 8), (12, 1), (13, 1), (14, 3)].map(|(pid, mode)| (PgPid(pid), Mode(mode))).to_vec(),
            ..LockLists::default()
        };
        let (id, mode, since) = script.began[&12];
        let wait = LockWait {
            cluster: Pid(1),
            pid: PgPid(12),
            lock: crate::units::UserAddr(0x1000),
            id,
            mode: Mode(mode),
            queue_len: 4,
            lists: Some(lists),
            gives_up: true,
        };
        script.book.begin(Pid(12), &wait, MonoNs(since), &mut script.counters);
        let lock = script.book.picture(TABLE, MonoNs(script.now)).unwrap();
        assert_eq!(lock.queue.iter().map(|waiter| waiter.pid.0).collect::<Vec<_>>(), [11, 12, 13, 14]);
    }

    /// As the scheduler tells of them: when they are over.
    #[test]
    fn waits_that_are_told_at_their_end_are_counted_as_they_were() {
        let mut script = Script::default();
        let mut tell = |pid, since, at| {
            let end = LockEnd {
                cluster: Pid(1),
                pid: PgPid(pid),
                id: TABLE,
                mode: Mode(8),
                started: MonoNs(since * MS),
                outcome: LockOutcome::Granted,
            };
            script.book.end(Pid(pid), &end, MonoNs(at * MS), &mut script.counters);
        };
        tell(1, 10, 30);
        tell(3, 5, 20);
        tell(2, 20, 40);
        // It waits for the same lock again by the time that its first wait is told.
        script.book.read(reading(60 * MS, &[(4, 8, Some(50 * MS))]), &mut script.counters);
        let end = LockEnd {
            cluster: Pid(1),
            pid: PgPid(4),
            id: TABLE,
            mode: Mode(8),
            started: MonoNs(42 * MS),
            outcome: LockOutcome::Granted,
        };
        script.book.end(Pid(4), &end, MonoNs(45 * MS), &mut script.counters);
        let figures = script.book.close(MonoNs(61 * MS));
        assert_eq!((figures.waiting, figures.waiting_max), (1, 2));
        assert_eq!(figures.kinds[&LockKind::Relation].wait.count(), 4);
        assert_eq!(script.counters.nonzero().count(), 0);
    }

    #[test]
    fn a_glance_forgets_nobody() {
        let mut script = pile_up();
        for n in 1..=3 {
            let glance = Reading { is_glance: true, ..reading(script.now + n * MS, &[(11, 8, None)]) };
            script.book.read(glance, &mut script.counters);
        }
        assert_eq!(script.book.waits.len(), 4);
    }

    fn reading(at: u64, queue: &[(u32, u8, Option<u64>)]) -> Reading {
        let waiter = |&(pid, mode, since): &(u32, u8, Option<u64>)| Waiter {
            pid: PgPid(pid),
            mode: Mode(mode),
            since: since.map(MonoNs),
        };
        let lock = LockReading {
            id: TABLE,
            holders: vec![Holder { pid: PgPid(10), modes: Mode(4).bit() }],
            queue: queue.iter().map(waiter).collect(),
            cut: false,
        };
        let locks = if queue.is_empty() { Vec::new() } else { vec![lock] };
        Reading { cluster: Pid(1), at: MonoNs(at), locks, ..Reading::default() }
    }

    #[test]
    fn waits_from_before_the_trace_are_found_and_end() {
        let mut script = Script { now: 10_000 * MS, ..Script::default() };
        script.is(11, BackendKind::Client, BackendState::Active);
        script.book.read(reading(10_000 * MS, &[(11, 8, Some(1_000 * MS)), (12, 1, None)]), &mut script.counters);
        let unseen = LockEnd {
            cluster: Pid(1),
            pid: PgPid(0),
            id: LockId::default(),
            mode: Mode(0),
            started: MonoNs(0),
            outcome: LockOutcome::Granted,
        };
        script.book.end(Pid(11), &unseen, MonoNs(11_000 * MS), &mut script.counters);
        let figures = script.close();
        let lock = &figures.locks[0];
        assert_eq!(lock.ended.wait.max(), 10_000 * MS);
        assert!(!lock.queue[0].exact, "12 may wait for longer than it was seen");
        assert_eq!(script.counters.get(Reason::LockWaitUnseen), 0);
    }

    #[test]
    fn a_wait_whose_end_was_lost_does_not_last_for_ever() {
        let mut script = pile_up();
        for n in 1..=2 {
            script.book.read(reading(script.now + n * MS, &[(11, 8, None)]), &mut script.counters);
            script.now += n * MS;
            let left = script.book.waits.len();
            assert_eq!(left, if n == 1 { 4 } else { 1 });
        }
        assert_eq!(script.counters.get(Reason::LockEndUnseen), 3);
        assert!(script.book.waits[&PgPid(11)].exact, "a reading does not blur what a record told");
    }
}
