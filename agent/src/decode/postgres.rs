//! Waits for PostgreSQL's locks.

use agent_ebpf::abi::postgres::{self, LockTag, Party, outcome, wait_flag};

use crate::{
    postgres::{Holder, LockId, Mode, Modes, PgPid},
    units::{MonoNs, Pid, UserAddr},
};

/// A backend begins to wait for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockWait {
    /// The postmaster, in the initial pid namespace.
    pub cluster: Pid,
    pub pid: PgPid,
    pub lock: UserAddr,
    pub id: LockId,
    pub mode: Mode,
    /// Waiters ahead, as far as they can be trusted.
    pub queue_len: u32,
    /// `None` where the server's structures were not as expected.
    pub lists: Option<LockLists>,
    /// It is in the queue, and leaves it just now.
    pub gives_up: bool,
}

/// Who holds a lock and who waits for it already, just before another one does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockLists {
    pub holders: Vec<Holder>,
    pub holders_cut: bool,
    /// From the head on; a mode of 0 is not known.
    pub queue: Vec<(PgPid, Mode)>,
    pub queue_cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEnd {
    pub cluster: Pid,
    pub pid: PgPid,
    pub id: LockId,
    pub mode: Mode,
    pub started: MonoNs,
    pub outcome: LockOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOutcome {
    Granted,
    Cancelled,
    /// Comes after the wait was given up, where it was.
    Deadlock,
    Unknown,
}

fn id(tag: LockTag) -> LockId {
    let LockTag { field1, field2, field3, field4, kind, method } = tag;
    LockId { field1, field2, field3, field4, kind, method }
}

fn mode(code: u32) -> Mode {
    Mode(u8::try_from(code).ok().filter(|code| *code <= 8).unwrap_or(0))
}

pub fn lock_wait(record: &postgres::LockWait) -> LockWait {
    let flags = record.header.flags;
    let lists = (flags & wait_flag::LISTS != 0).then(|| LockLists {
        holders: listed(&record.holders, record.holders_listed)
            .map(|party| Holder { pid: PgPid(party.pid), modes: Modes(party.modes) })
            .collect(),
        holders_cut: flags & wait_flag::HOLDERS_CUT != 0,
        queue: listed(&record.queue, record.queue_listed).map(|party| (PgPid(party.pid), mode(party.modes))).collect(),
        queue_cut: flags & wait_flag::QUEUE_CUT != 0,
    });
    LockWait {
        cluster: Pid(record.cluster),
        pid: PgPid(record.pid),
        lock: UserAddr(record.lock),
        id: id(record.tag),
        mode: mode(record.mode),
        queue_len: record.queue_len,
        lists,
        gives_up: flags & wait_flag::GIVES_UP != 0,
    }
}

fn listed(parties: &[Party], len: u32) -> impl Iterator<Item = &Party> {
    parties.iter().take(len as usize)
}

pub fn lock_end(record: &postgres::LockEnd) -> LockEnd {
    LockEnd {
        cluster: Pid(record.cluster),
        pid: PgPid(record.pid),
        id: id(record.tag),
        mode: mode(record.mode),
        started: MonoNs(record.started_ns),
        outcome: match record.outcome {
            outcome::GRANTED => LockOutcome::Granted,
            outcome::CANCELLED => LockOutcome::Cancelled,
            outcome::DEADLOCK => LockOutcome::Deadlock,
            _ => LockOutcome::Unknown,
        },
    }
}
