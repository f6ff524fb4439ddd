//! A made-up trace of a PostgreSQL cluster: a pile-up behind a vacuum that began before it, a deadlock, and a row that three
//! sessions want in turn.

use agent::{
    core::{ClusterFacts, Input, Tick},
    postgres::{
        Backend, BackendKind, BackendState, Holder, LockId, LockReading, Mode, Modes, OpenWait, PgPid, Reading,
        WaitEvent, Waiter,
    },
    report::model::{Degraded, EndReason},
    units::{Clock, MonoNs, Pid, WallNs},
};
use agent_ebpf::{
    abi::{
        Header, family, kind,
        postgres::{LockEnd, LockTag, LockWait, PARTIES_MAX, Party, outcome, wait_flag},
    },
    histogram,
    state::{PgWaitKey, PgWaitSum},
};
use zerocopy::IntoBytes;

use super::{Batch, MS};

pub const POSTMASTER: u32 = 800;
const BEGIN: u64 = 500_000_000_000;

pub const TABLE: LockTag = LockTag { field1: 5, field2: 16384, field3: 0, field4: 0, kind: 0, method: 1 };
pub const TRANSACTION: LockTag = LockTag { field1: 7001, field2: 0, field3: 0, field4: 0, kind: 5, method: 1 };

pub fn id(tag: LockTag) -> LockId {
    let LockTag { field1, field2, field3, field4, kind, method } = tag;
    LockId { field1, field2, field3, field4, kind, method }
}

/// A wait that begins: pids and modes of holders, and of those ahead.
pub fn wait(at: u64, pid: u32, tag: LockTag, mode: u32, holders: &[(u32, u32)], queue: &[(u32, u32)]) -> LockWait {
    let mut record = LockWait {
        header: Header { kind: kind::LOCK_WAIT, tgid: pid, tid: pid, flags: wait_flag::LISTS, time_ns: at },
        cluster: POSTMASTER,
        pid,
        lock: 0x7f00_0000,
        proclock: 0x7f00_1000,
        proc: 0x7f00_2000,
        tag,
        mode,
        granted_modes: 0,
        waited_modes: 0,
        queue_len: u32::try_from(queue.len()).unwrap(),
        holders_listed: u32::try_from(holders.len()).unwrap(),
        queue_listed: u32::try_from(queue.len()).unwrap(),
        holders: [Party { pid: 0, modes: 0 }; PARTIES_MAX],
        queue: [Party { pid: 0, modes: 0 }; PARTIES_MAX],
    };
    for (slot, &(pid, modes)) in record.holders.iter_mut().zip(holders) {
        *slot = Party { pid, modes };
    }
    for (slot, &(pid, modes)) in record.queue.iter_mut().zip(queue) {
        *slot = Party { pid, modes };
    }
    record
}

pub fn end(at: u64, pid: u32, started: u64, tag: LockTag, mode: u32, outcome: u32) -> LockEnd {
    LockEnd {
        header: Header { kind: kind::LOCK_END, tgid: pid, tid: pid, flags: 0, time_ns: at },
        cluster: POSTMASTER,
        pid,
        lock: 0x7f00_0000,
        started_ns: started,
        tag,
        mode,
        outcome,
        reserved: 0,
    }
}

fn backend(pid: u32, kind: BackendKind, statement: &str) -> Backend {
    Backend {
        pid: PgPid(pid),
        host_pid: Pid(pid),
        kind,
        state: BackendState::Active,
        statement: Some(statement.into()),
        statement_since: Some(MonoNs(BEGIN - 300_000 * MS)),
        transaction_since: Some(MonoNs(BEGIN - 300_000 * MS)),
    }
}

fn facts() -> ClusterFacts {
    ClusterFacts {
        pid: Pid(POSTMASTER),
        since: MonoNs(BEGIN),
        clock: Clock { offset_ns: 1_790_000_000_000_000_000 },
        start_time: Some(WallNs(1_789_999_000_000_000_000)),
        exe: "/usr/lib/postgresql/15/bin/postgres".into(),
        server_version: Some("15.18 (Debian 15.18-0+deb12u1)".into()),
        processes: 9,
        degraded: vec![Degraded { feature: "postgres_statements".into(), reason: "test data".into() }],
        resource: [("service.name".into(), "unknown_service:postgres".into())].into(),
    }
}

/// The vacuum 901 holds the table, 902 wants to change it, and readers queue behind 902.
fn reading(at: u64, readers: &[u32]) -> Reading {
    let waiter = |pid, mode, since| Waiter { pid: PgPid(pid), mode: Mode(mode), since: Some(MonoNs(since)) };
    let mut queue = vec![waiter(902, 8, BEGIN - 4000 * MS)];
    queue.extend(readers.iter().map(|pid| waiter(*pid, 1, BEGIN + 100 * MS + u64::from(*pid))));
    let vacuum = "autovacuum: VACUUM ANALYZE public.manta (to prevent wraparound)";
    let mut backends = vec![
        backend(901, BackendKind::WraparoundVacuum, vacuum),
        backend(902, BackendKind::Client, "drop trigger if exists count_directories on manta"),
    ];
    backends
        .extend(readers.iter().map(|pid| backend(*pid, BackendKind::Client, "select * from manta where _key = $1")));
    Reading {
        cluster: Pid(POSTMASTER),
        at: MonoNs(at),
        processes: 9,
        locks: vec![LockReading {
            id: id(TABLE),
            holders: vec![Holder { pid: PgPid(901), modes: Modes(1 << 4) }],
            queue,
            cut: false,
        }],
        backends,
        torn: 0,
        is_glance: false,
        ends_told_since: MonoNs(0),
    }
}

const WAL_SYNC: WaitEvent = WaitEvent(0x0a00_0046);
const RELATION: WaitEvent = WaitEvent(0x0300_0000);
/// One whose name the server does not tell.
const UNNAMED: WaitEvent = WaitEvent(0x0100_0123);

fn waited(event: WaitEvent, ns: u64, count: u64) -> (PgWaitKey, PgWaitSum) {
    let bucket = u16::try_from(histogram::index(ns)).unwrap();
    (PgWaitKey { cluster: POSTMASTER, event: event.0, bucket, epoch: 0 }, PgWaitSum { count, time_ns: count * ns })
}

fn tick(now: u64) -> Input {
    let pg_waits = vec![waited(WAL_SYNC, 2 * MS, 30), waited(WAL_SYNC, 9 * MS, 1), waited(UNNAMED, MS / 10, 5)];
    let open = |pid, since| OpenWait { pid: Pid(pid), cluster: Pid(POSTMASTER), event: RELATION, since: MonoNs(since) };
    let pg_open_waits = vec![open(902, BEGIN - 4000 * MS), open(903, BEGIN + 101 * MS)];
    Input::Tick(Box::new(Tick {
        now: MonoNs(now),
        waits_seen_ns: 600 * MS,
        pg_waits,
        pg_open_waits,
        ..Tick::default()
    }))
}

pub fn inputs() -> Vec<Input> {
    let second = |n: u64| BEGIN + n * 1000 * MS;
    let mut batch = Batch::default();
    let mut inputs = vec![Input::Cluster(Box::new(facts())), Input::PgReading(Box::new(reading(BEGIN, &[])))];
    for (n, pid) in (0..).zip([903, 904, 905]) {
        let ahead: Vec<(u32, u32)> = [(902, 8), (903, 1), (904, 1)].into_iter().take(n + 1).collect();
        batch.add(wait(BEGIN + 100 * MS + u64::from(pid), pid, TABLE, 1, &[(901, 1 << 4)], &ahead).as_bytes());
    }
    // A deadlock: 906 and 907 each hold what the other one wants.
    let other = LockTag { field1: 7002, ..TRANSACTION };
    batch.add(wait(BEGIN + 200 * MS, 906, TRANSACTION, 5, &[(907, 1 << 7)], &[]).as_bytes());
    batch.add(wait(BEGIN + 300 * MS, 907, other, 5, &[(906, 1 << 7)], &[]).as_bytes());
    let given_up = |how| end(BEGIN + 700 * MS, 907, BEGIN + 300 * MS, other, 5, how);
    batch.add(given_up(outcome::CANCELLED).as_bytes());
    batch.add(given_up(outcome::DEADLOCK).as_bytes());
    batch.add(end(BEGIN + 701 * MS, 906, BEGIN + 200 * MS, TRANSACTION, 5, outcome::GRANTED).as_bytes());
    inputs.push(Input::Records { family: family::POSTGRES, bytes: batch.take() });
    inputs.push(Input::PgRelation {
        cluster: Pid(POSTMASTER),
        database: 5,
        relation: 16384,
        name: "public.manta".into(),
    });
    inputs.push(Input::PgReading(Box::new(reading(second(1), &[903, 904, 905]))));
    let backends = [903, 904, 950].map(PgPid).to_vec();
    inputs.push(Input::PgClient { client: Pid(4121), cluster: Pid(POSTMASTER), backends });
    let names = vec![(WAL_SYNC, "WALSync".to_owned()), (RELATION, "relation".to_owned())];
    inputs.push(Input::PgWaitEvents { cluster: Pid(POSTMASTER), names });
    inputs.push(tick(second(1)));
    // The head is cancelled; as it began before the trace, its end is all that the record tells.
    batch.add(
        LockEnd {
            pid: 0,
            ..end(second(1) + 500 * MS, 902, 0, LockTag { field1: 0, field2: 0, ..TABLE }, 0, outcome::CANCELLED)
        }
        .as_bytes(),
    );
    for pid in [903, 904, 905] {
        let started = BEGIN + 100 * MS + u64::from(pid);
        batch.add(end(second(1) + 501 * MS, pid, started, TABLE, 1, outcome::GRANTED).as_bytes());
    }
    inputs.push(Input::Records { family: family::POSTGRES, bytes: batch.take() });
    inputs.push(Input::PgReading(Box::new(Reading { locks: Vec::new(), ..reading(second(2), &[]) })));
    inputs.push(tick(second(2)));
    inputs.push(Input::TargetGone { pid: Pid(POSTMASTER), now: MonoNs(second(2)) });
    inputs.push(Input::Stop { now: MonoNs(second(2)), reason: EndReason::Duration });
    inputs
}
