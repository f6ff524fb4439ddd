//! The lock table as it is in shared memory, read without its locks.
//!
//! Lists may change under the reader's hands. Each entry must point back to what it is an entry of, and each list must end where it
//! began; one that does not is read again.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{LOCK_PROCS, LOCK_QUEUE, Layout, PROCLOCK_LINK, WAIT_MODE, WAIT_PROCLOCK, WAIT_START};
use crate::{
    limits::{PG_LOCKS_MAX, PG_PARTIES_MAX},
    postgres::{Holder, LockId, LockReading, Mode, Modes, PgPid, Reading, Waiter},
    target::procfs::Memory,
    units::{Clock, MonoNs, UserAddr},
};

/// Readings of one lock until it is given up.
const TRIES: u32 = 3;

/// Microseconds from the Unix epoch to PostgreSQL's, 2000-01-01.
const POSTGRES_EPOCH_US: u64 = 946_684_800_000_000;

/// A `TimestampTz` on the clock of the trace; `None` for one that is not set, or lies before boot.
pub fn time(timestamp: u64, clock: Clock) -> Option<MonoNs> {
    let unix_us = timestamp.checked_add(POSTGRES_EPOCH_US).filter(|_| timestamp != 0)?;
    let wall = i64::try_from(unix_us.checked_mul(1000)?).ok()?;
    u64::try_from(wall.checked_sub(clock.offset_ns)?).ok().map(MonoNs)
}

/// Reads every lock that one of `procs` waits for.
pub fn read(memory: &Memory, layout: &Layout, procs: &BTreeMap<UserAddr, PgPid>, clock: Clock, reading: &mut Reading) {
    let (Some(wait_lock), Some(pid_at)) = (layout.wait_lock, layout.pid) else { return };
    let table = Table { memory, procs, pid_at, wait_lock, clock };
    let mut waited = BTreeSet::new();
    for proc in procs.keys() {
        let lock = memory.u64(proc.plus(u64::from(wait_lock))).unwrap_or(0);
        if lock != 0 && waited.len() < PG_LOCKS_MAX {
            waited.insert(UserAddr(lock));
        }
    }
    for lock in waited {
        match (0..TRIES).find_map(|_| table.lock(lock)) {
            Some(read) if !read.queue.is_empty() => reading.locks.push(read),
            Some(_) => {}
            None => reading.torn += 1,
        }
    }
    reading.locks.sort_by_key(|lock| lock.id);
}

/// The lock that a process waits for, and since when as the server has it.
pub fn waited(memory: &Memory, proc: UserAddr, wait_lock: u32) -> Option<(u64, u64)> {
    let wait: [u8; 32] = memory.array(proc.plus(u64::from(wait_lock)))?;
    Some((u64_at(&wait, 0)?, u64_at(&wait, usize::try_from(WAIT_START).ok()?)?)).filter(|(lock, _)| *lock != 0)
}

/// Everybody who is spoken of, each once; heads and holders first.
pub fn parties(reading: &Reading) -> Vec<PgPid> {
    let holders = reading.locks.iter().flat_map(|lock| lock.holders.iter().map(|holder| holder.pid));
    let heads = reading.locks.iter().filter_map(|lock| Some(lock.queue.first()?.pid));
    let rest = reading.locks.iter().flat_map(|lock| lock.queue.iter().map(|waiter| waiter.pid));
    let mut seen = BTreeSet::new();
    heads.chain(holders).chain(rest).filter(|pid| seen.insert(*pid)).collect()
}

struct Table<'a> {
    memory: &'a Memory,
    procs: &'a BTreeMap<UserAddr, PgPid>,
    pid_at: u32,
    wait_lock: u32,
    clock: Clock,
}

impl Table<'_> {
    /// `None` if it changed meanwhile, or is no lock.
    fn lock(&self, at: UserAddr) -> Option<LockReading> {
        let head: [u8; 64] = self.memory.array(at)?;
        let id = LockId {
            field1: u32_at(&head, 0)?,
            field2: u32_at(&head, 4)?,
            field3: u32_at(&head, 8)?,
            field4: u16::try_from(u32_at(&head, 12)? & 0xffff).ok()?,
            kind: *head.get(14)?,
            method: *head.get(15)?,
        };
        let mut cut = false;
        let holders = self.holders(at, UserAddr(u64_at(&head, 32)?), &mut cut)?;
        let queue = self.queue(at, UserAddr(u64_at(&head, 48)?), &mut cut)?;
        let again: [u8; 16] = self.memory.array(at)?;
        (head.get(..16)? == again).then_some(LockReading { id, holders, queue, cut })
    }

    fn pid(&self, proc: UserAddr) -> PgPid {
        // A prepared transaction holds by a PGPROC that no process has; its id is 0.
        let known = self.procs.get(&proc).copied();
        known.or_else(|| self.memory.u32(proc.plus(u64::from(self.pid_at))).map(PgPid)).unwrap_or_default()
    }

    fn holders(&self, lock: UserAddr, first: UserAddr, cut: &mut bool) -> Option<Vec<Holder>> {
        let end = lock.plus(LOCK_PROCS);
        let mut holders: Vec<Holder> = Vec::new();
        let mut node = first;
        for _ in 0..PG_PARTIES_MAX {
            if node == end {
                return Some(holders);
            }
            let entry: [u8; 48] = self.memory.array(UserAddr(node.0.checked_sub(PROCLOCK_LINK)?))?;
            if u64_at(&entry, 0)? != lock.0 {
                return None;
            }
            let leader = u64_at(&entry, 16)?;
            let proc = if leader == 0 { u64_at(&entry, 8)? } else { leader };
            let modes = Modes(u32_at(&entry, 24)?);
            if modes.0 != 0 {
                let pid = self.pid(UserAddr(proc));
                match holders.iter_mut().find(|holder| holder.pid == pid) {
                    Some(holder) => holder.modes = holder.modes.with(modes),
                    None => holders.push(Holder { pid, modes }),
                }
            }
            node = UserAddr(u64_at(&entry, 40)?);
        }
        *cut = true;
        Some(holders)
    }

    fn queue(&self, lock: UserAddr, first: UserAddr, cut: &mut bool) -> Option<Vec<Waiter>> {
        let end = lock.plus(LOCK_QUEUE);
        let mut queue = Vec::new();
        let mut proc = first;
        for _ in 0..PG_PARTIES_MAX {
            if proc == end || proc.0 == 0 {
                return Some(queue);
            }
            let links: [u8; 16] = self.memory.array(proc)?;
            let wait: [u8; 32] = self.memory.array(proc.plus(u64::from(self.wait_lock)))?;
            if u64_at(&wait, 0)? != lock.0 {
                return None;
            }
            // Its PROCLOCK says the same of both.
            let entry: [u8; 16] = self.memory.array(UserAddr(u64_at(&wait, usize::try_from(WAIT_PROCLOCK).ok()?)?))?;
            if u64_at(&entry, 0)? != lock.0 || u64_at(&entry, 8)? != proc.0 {
                return None;
            }
            let mode = u32_at(&wait, usize::try_from(WAIT_MODE).ok()?)?;
            let since = u64_at(&wait, usize::try_from(WAIT_START).ok()?)?;
            queue.push(Waiter {
                pid: self.pid(proc),
                mode: Mode(u8::try_from(mode).ok().filter(|mode| (1..=8).contains(mode))?),
                since: time(since, self.clock),
            });
            proc = UserAddr(u64_at(&links, 8)?);
        }
        *cut = true;
        Some(queue)
    }
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}
