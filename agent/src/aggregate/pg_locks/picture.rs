//! One lock at one moment: who holds it, who waits behind whom, and what would set it free.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{LockBook, LockState, WaitFigures};
use crate::{
    postgres::{BackendKind, BackendState, Holder, LockId, Mode, Modes, PgPid},
    units::MonoNs,
};

/// Waits that are followed from one lock to the next.
const CHAIN_MAX: usize = 64;

/// One lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockPicture {
    pub id: LockId,
    /// The moment.
    pub at: MonoNs,
    pub holders: Vec<Holder>,
    pub holders_cut: bool,
    /// From the head on.
    pub queue: Vec<Queued>,
    /// Nobody waits any more: this is how it was.
    pub is_over: bool,
    /// Waits for it that ended in the window.
    pub ended: WaitFigures,
    /// From the head of the queue to who waits for nobody: each waits for the next one.
    pub chain: Vec<Link>,
    pub root: Option<Root>,
}

/// A waiter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    pub pid: PgPid,
    pub mode: Mode,
    pub since: MonoNs,
    /// It waits since then; else since then or earlier.
    pub exact: bool,
    /// Holders, then waiters ahead, whose modes conflict with the one that it wants: `pg_blocking_pids()`.
    pub blocked_by: Vec<PgPid>,
}

/// A wait for a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub pid: PgPid,
    pub id: LockId,
    pub mode: Mode,
}

/// The one to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    pub pid: PgPid,
    pub advice: Advice,
    /// Waiters for this lock that would have it at once if the root were gone.
    pub frees: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// The head of the queue, which holds nothing, makes those behind it wait that the holders would let pass.
    CancelHead,
    /// It holds the lock and does nothing: its client forgot to end the transaction.
    EndTransaction,
    /// It holds the lock and works.
    CancelHolder,
    /// A vacuum that cannot be put off holds the lock, and only who must wait for it does.
    AwaitVacuum,
    /// A prepared transaction holds the lock.
    FinishPrepared,
}

impl LockPicture {
    /// When the oldest wait that is going on began.
    #[must_use]
    pub fn oldest(&self) -> Option<MonoNs> {
        self.queue.iter().map(|waiter| waiter.since).min()
    }
}

impl LockBook {
    /// The lock as it is; `None` where nobody waits for it.
    pub(super) fn picture(&self, id: LockId, at: MonoNs) -> Option<LockPicture> {
        let lock = self.locks.get(&id)?;
        let head = *lock.queue.first()?;
        let queue = lock.queue.iter().filter_map(|pid| {
            let wait = self.waits.get(pid)?;
            let blocked_by = self.blockers(*pid);
            Some(Queued { pid: *pid, mode: wait.mode, since: wait.since, exact: wait.exact, blocked_by })
        });
        let (chain, last) = self.chain(head);
        Some(LockPicture {
            id,
            at,
            holders: lock.holders.iter().map(|(&pid, &modes)| Holder { pid, modes }).collect(),
            holders_cut: lock.holders_cut,
            queue: queue.collect(),
            is_over: false,
            ended: WaitFigures::default(),
            root: self.root(lock, head, &chain, last),
            chain,
        })
    }

    /// Whom a waiter waits for.
    fn blockers(&self, pid: PgPid) -> Vec<PgPid> {
        let Some(wait) = self.waits.get(&pid) else { return Vec::new() };
        let Some(lock) = self.locks.get(&wait.id) else { return Vec::new() };
        let holds = |(holder, modes): (&PgPid, &Modes)| *holder != pid && wait.mode.conflicts_with(*modes);
        let hard = lock.holders.iter().filter(|(holder, modes)| holds((holder, modes))).map(|(holder, _)| *holder);
        let ahead = lock.queue.iter().take_while(|waiter| **waiter != pid);
        let wants =
            |other: &&PgPid| self.waits.get(other).is_some_and(|other| wait.mode.conflicts_with(other.mode.bit()));
        let mut blockers: Vec<PgPid> = hard.collect();
        for pid in ahead.filter(wants) {
            if !blockers.contains(pid) {
                blockers.push(*pid);
            }
        }
        blockers
    }

    /// From a waiter to somebody who waits for nobody; `None` if it leads in a circle.
    fn chain(&self, from: PgPid) -> (Vec<Link>, Option<PgPid>) {
        let mut chain = Vec::new();
        let mut seen = BTreeSet::new();
        let mut at = from;
        while let Some(wait) = self.waits.get(&at) {
            if !seen.insert(at) || chain.len() >= CHAIN_MAX {
                return (chain, None);
            }
            chain.push(Link { pid: at, id: wait.id, mode: wait.mode });
            let blockers = self.blockers(at);
            // Of several, one who waits for nobody holds everything up.
            let free = blockers.iter().find(|pid| !self.waits.contains_key(pid));
            match free.or_else(|| blockers.first()) {
                Some(next) => at = *next,
                None => return (chain, None),
            }
        }
        (chain, Some(at))
    }

    /// The circle that a waiter is in, if it is.
    pub(super) fn cycle(&self, victim: PgPid) -> Vec<Link> {
        // Breadth first: the shortest circle is the one that the server found.
        let mut came_from = BTreeMap::<PgPid, PgPid>::new();
        let mut next = std::collections::VecDeque::from([victim]);
        while let Some(pid) = next.pop_front() {
            for blocker in self.blockers(pid) {
                if blocker == victim {
                    let mut path = vec![pid];
                    while let Some(before) = path.last().and_then(|last| came_from.get(last)) {
                        path.push(*before);
                    }
                    let link =
                        |pid: &PgPid| self.waits.get(pid).map(|wait| Link { pid: *pid, id: wait.id, mode: wait.mode });
                    return path.iter().rev().filter_map(link).collect();
                }
                if self.waits.contains_key(&blocker) && blocker != pid && !came_from.contains_key(&blocker) {
                    came_from.insert(blocker, pid);
                    next.push_back(blocker);
                }
            }
        }
        Vec::new()
    }

    fn root(&self, lock: &LockState, head: PgPid, chain: &[Link], last: Option<PgPid>) -> Option<Root> {
        let last = last?;
        let backend = self.backends.get(&last);
        let kind = backend.map(|backend| backend.kind).unwrap_or_default();
        let state = backend.map(|backend| backend.state).unwrap_or_default();
        let behind_head = self.freed(lock, head);
        let is_vacuum = matches!(kind, BackendKind::WraparoundVacuum | BackendKind::AutovacuumWorker);
        let by_holder = |advice| {
            // Through other locks: once those are free, the head of this one goes on, and then the rest.
            let frees = if chain.len() == 1 { self.freed(lock, last) } else { lock.queue.len() };
            Some(Root { pid: last, advice, frees })
        };
        if last.0 == 0 {
            return by_holder(Advice::FinishPrepared);
        }
        if state == BackendState::IdleInTransaction {
            return by_holder(Advice::EndTransaction);
        }
        if behind_head > 0 {
            return Some(Root { pid: head, advice: Advice::CancelHead, frees: behind_head });
        }
        by_holder(if is_vacuum { Advice::AwaitVacuum } else { Advice::CancelHolder })
    }

    /// How many others would have the lock at once if one holder or waiter were gone: `ProcLockWakeup` of `proc.c`.
    fn freed(&self, lock: &LockState, gone: PgPid) -> usize {
        let mut held: BTreeMap<PgPid, Modes> =
            lock.holders.iter().filter(|(pid, _)| **pid != gone).map(|(pid, modes)| (*pid, *modes)).collect();
        let mut wanted_ahead = Modes::default();
        let mut freed = 0;
        for pid in lock.queue.iter().filter(|pid| **pid != gone) {
            let Some(wait) = self.waits.get(pid) else { continue };
            let stands = held.iter().any(|(holder, modes)| holder != pid && wait.mode.conflicts_with(*modes));
            if stands || wait.mode.conflicts_with(wanted_ahead) {
                wanted_ahead = wanted_ahead.with(wait.mode.bit());
            } else {
                let modes = held.entry(*pid).or_default();
                *modes = modes.with(wait.mode.bit());
                freed += 1;
            }
        }
        freed
    }
}
