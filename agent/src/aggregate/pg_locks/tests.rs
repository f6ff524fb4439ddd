#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

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
            holders: holders.iter().map(|(pid, mode)| Holder { pid: PgPid(*pid), modes: Mode(*mode).bit() }).collect(),
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
        let end = LockEnd { cluster: Pid(1), pid: PgPid(pid), id, mode: Mode(mode), started: MonoNs(started), outcome };
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

#[test]
fn what_was_over_before_ends_were_told_is_forgotten_at_once() {
    let mut script = pile_up();
    let ends_told_since = MonoNs(u64::MAX);
    let read = Reading { ends_told_since, ..reading(script.now + MS, &[(11, 8, None)]) };
    script.book.read(read, &mut script.counters);
    assert_eq!(script.book.waits.keys().collect::<Vec<_>>(), [&PgPid(11)]);
    assert_eq!(script.counters.nonzero().count(), 0);
}

#[test]
fn who_waits_for_the_same_lock_again_has_not_waited_all_the_time() {
    let mut script = pile_up();
    let began = script.book.waits[&PgPid(11)].since.0;
    let mut read = |since: u64| {
        script.book.read(reading(began + 500 * MS, &[(11, 8, Some(since))]), &mut script.counters);
        script.book.waits[&PgPid(11)].since.0
    };
    assert_eq!(read(began - MS / 10), began, "the server's word is of the same wait");
    assert_eq!(read(began + 400 * MS), began + 400 * MS);
}
