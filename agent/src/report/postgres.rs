//! From the figures of a PostgreSQL cluster to records.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::model::{
    Body, PgBackend, PgClient, PgClientLock, PgDeadlock, PgHolder, PgLink, PgLock, PgLockName, PgQueued, PgRoot,
    PgWaitEvent, PgWaiter, PgWaits, PgWaitsFor, PgWindow,
};
use crate::{
    aggregate::{
        pg_locks::{ClusterFigures, Deadlock, Link, LockPicture, Queued, Root, WaitFigures},
        pg_waits::{self, EventName},
    },
    postgres::{Backend, BackendKind, LockId, LockKind, Mode, PgPid},
    units::{Clock, MonoNs, Pid},
};

/// Waiters of one lock that are listed one by one.
const WAITERS_LISTED_MAX: usize = 256;

/// Groups of waiters that a line has; the rest is summed.
const GROUPS_MAX: usize = 16;

/// Names of relations by database and relation, from the catalog.
pub type RelationNames = BTreeMap<(u32, u32), String>;

/// The lines of a window, with their times.
#[must_use]
pub fn cluster(
    figures: &ClusterFigures,
    wait_events: &BTreeMap<EventName, pg_waits::WaitFigures>,
    waits_seen_ns: u64,
    names: &RelationNames,
    clock: Clock,
) -> Vec<(MonoNs, Body)> {
    let ClusterFigures {
        from,
        to,
        processes,
        waiting,
        waiting_max,
        locks,
        locks_more,
        kinds,
        oldest,
        deadlocks,
        backends,
    } = figures;
    let teller = |at| Teller { at, backends, names, clock };
    let duration_ns = to.since(*from).0;
    let window = PgWindow {
        duration_ns,
        waits_seen_ns: Some(waits_seen_ns).filter(|seen_ns| *seen_ns < duration_ns),
        processes: *processes,
        waiting: *waiting as u64,
        waiting_max: *waiting_max as u64,
        locks: locks.len() as u64,
        locks_more: *locks_more as u64,
        waits: kinds.iter().map(|(kind, figures)| (kind.name().to_owned(), waits(figures))).collect(),
        oldest_wait_ns: oldest.iter().map(|(kind, since)| (kind.name().to_owned(), to.since(*since).0)).collect(),
        wait_events: waited(wait_events, *to),
    };
    let mut lines = vec![(*to, Body::PgWindow(Box::new(window)))];
    lines.extend(locks.iter().map(|picture| (*to, Body::PgLock(Box::new(teller(picture.at).lock(picture))))));
    lines.extend(
        deadlocks
            .iter()
            .map(|deadlock| (deadlock.at, Body::PgDeadlock(Box::new(teller(deadlock.at).deadlock(deadlock))))),
    );
    lines
}

/// Which of a process's connections wait, and for what; `None` where it has none to the cluster.
#[must_use]
pub fn client(figures: &ClusterFigures, names: &RelationNames, cluster: Pid, backends: &[PgPid]) -> Option<PgClient> {
    let teller = Teller { at: figures.to, backends: &figures.backends, names, clock: Clock::default() };
    let serving: BTreeSet<PgPid> = backends.iter().copied().collect();
    let of_lock = |picture: &LockPicture| {
        let own: Vec<&Queued> = picture.queue.iter().filter(|waiter| serving.contains(&waiter.pid)).collect();
        let oldest = own.iter().map(|waiter| waiter.since).min()?;
        Some(PgClientLock {
            lock: teller.lock(picture).lock,
            waiting: own.len() as u64,
            oldest_wait_ns: figures.to.since(oldest).0,
            head: picture.queue.first().map_or(0, |head| head.pid.0),
            root: picture.root.map(|root| root.pid.0),
        })
    };
    let locks: Vec<PgClientLock> = figures.locks.iter().filter(|lock| !lock.is_over).filter_map(of_lock).collect();
    let waiting = locks.iter().map(|lock| lock.waiting).sum();
    let connections = backends.len() as u64;
    (connections > 0).then(|| PgClient { cluster: cluster.0, connections, waiting, locks, awaits: Vec::new() })
}

fn waited(events: &BTreeMap<EventName, pg_waits::WaitFigures>, to: MonoNs) -> Vec<PgWaitEvent> {
    let event = |((class, event), figures): (&EventName, &pg_waits::WaitFigures)| {
        let pg_waits::WaitFigures { wait, time_ns, waiting, oldest } = figures;
        PgWaitEvent {
            class: (*class).to_owned(),
            event: event.clone(),
            time_ns: *time_ns,
            waiting: *waiting,
            oldest_wait_ns: oldest.map(|(since, _)| to.since(since).0),
            oldest_is_older: oldest.is_some_and(|(_, exact)| !exact),
            wait: wait.clone(),
        }
    };
    let mut events: Vec<PgWaitEvent> = events.iter().map(event).collect();
    events.sort_by_key(|event| Reverse(event.time_ns));
    events
}

fn waits(figures: &WaitFigures) -> PgWaits {
    let WaitFigures { granted, cancelled, deadlocked, wait } = figures;
    PgWaits { granted: *granted, cancelled: *cancelled, deadlocked: *deadlocked, wait: wait.clone() }
}

struct Teller<'a> {
    at: MonoNs,
    backends: &'a BTreeMap<PgPid, Backend>,
    names: &'a RelationNames,
    clock: Clock,
}

impl Teller<'_> {
    fn lock(&self, picture: &LockPicture) -> PgLock {
        let LockPicture { id, at: _, holders, holders_cut, queue, is_over, ended, chain, root } = picture;
        let oldest = queue.iter().min_by_key(|waiter| waiter.since);
        let head = queue.first();
        let blocks_head = |pid: PgPid| head.is_some_and(|head| head.blocked_by.contains(&pid));
        let holders: Vec<PgHolder> = holders
            .iter()
            .map(|holder| PgHolder {
                backend: self.backend(holder.pid),
                modes: holder.modes.iter().map(|mode| mode.name().to_owned()).collect(),
                blocks_head: blocks_head(holder.pid),
            })
            .collect();
        let mut name = self.name(*id);
        if name.name.is_none() && id.kind() == LockKind::Relation {
            name.name = holders.iter().find_map(vacuumed);
        }
        PgLock {
            lock: name,
            is_over: *is_over,
            waiting: queue.len() as u64,
            oldest_wait_ns: oldest.map_or(0, |waiter| self.ago(waiter.since)),
            oldest_since: oldest.map_or_else(String::new, |waiter| self.clock.wall(waiter.since).to_string()),
            oldest_is_older: oldest.is_some_and(|waiter| !waiter.exact),
            holders,
            holders_more: *holders_cut,
            head: head.map(|head| PgWaiter {
                backend: self.backend(head.pid),
                mode: head.mode.name().to_owned(),
                wait_ns: self.ago(head.since),
            }),
            behind: self.behind(queue.get(1..).unwrap_or_default()),
            chain: self.links(chain),
            root: root.map(|Root { pid, advice, frees }| PgRoot {
                backend: self.backend(pid),
                advice,
                frees: frees as u64,
            }),
            ended: waits(ended),
            waits_for: queue.iter().take(WAITERS_LISTED_MAX).map(|waiter| self.waits_for(waiter)).collect(),
        }
    }

    fn ago(&self, since: MonoNs) -> u64 {
        self.at.since(since).0
    }

    fn name(&self, id: LockId) -> PgLockName {
        let name = id.database().zip(id.relation()).and_then(|key| self.names.get(&key)).cloned();
        PgLockName {
            locktype: id.kind().name().to_owned(),
            database: id.database(),
            relation: id.relation(),
            name,
            text: id.to_string(),
        }
    }

    fn backend(&self, pid: PgPid) -> PgBackend {
        let Some(backend) = self.backends.get(&pid) else { return PgBackend { pid: pid.0, ..PgBackend::default() } };
        let Backend { pid, host_pid, kind, state, statement, statement_since, transaction_since } = backend;
        PgBackend {
            pid: pid.0,
            host_pid: Some(host_pid.0),
            kind: *kind,
            state: *state,
            statement: statement.clone(),
            statement_ns: statement_since.map(|since| self.ago(since)),
            transaction_ns: transaction_since.map(|since| self.ago(since)),
        }
    }

    fn statement(&self, pid: PgPid) -> Option<String> {
        self.backends.get(&pid)?.statement.clone()
    }

    fn behind(&self, queue: &[Queued]) -> Vec<PgQueued> {
        let mut groups = BTreeMap::<(Mode, Option<String>), (u64, u64)>::new();
        for waiter in queue {
            let (count, oldest) = groups.entry((waiter.mode, self.statement(waiter.pid))).or_default();
            *count += 1;
            *oldest = (*oldest).max(self.ago(waiter.since));
        }
        let mut groups: Vec<PgQueued> = groups
            .into_iter()
            .map(|((mode, statement), (count, oldest_wait_ns))| PgQueued {
                mode: mode.name().to_owned(),
                statement,
                count,
                oldest_wait_ns,
            })
            .collect();
        groups.sort_by_key(|group| Reverse((group.count, group.oldest_wait_ns)));
        if let Some(rest) = (groups.len() > GROUPS_MAX).then(|| groups.split_off(GROUPS_MAX - 1)) {
            let modes: BTreeSet<&str> = rest.iter().map(|group| group.mode.as_str()).collect();
            groups.push(PgQueued {
                mode: modes.into_iter().collect::<Vec<_>>().join(", "),
                statement: None,
                count: rest.iter().map(|group| group.count).sum(),
                oldest_wait_ns: rest.iter().map(|group| group.oldest_wait_ns).max().unwrap_or(0),
            });
        }
        groups
    }

    fn links(&self, links: &[Link]) -> Vec<PgLink> {
        let link = |link: &Link| PgLink {
            pid: link.pid.0,
            mode: link.mode.name().to_owned(),
            lock: link.id.to_string(),
            statement: self.statement(link.pid),
        };
        links.iter().map(link).collect()
    }

    fn waits_for(&self, waiter: &Queued) -> PgWaitsFor {
        PgWaitsFor {
            pid: waiter.pid.0,
            mode: waiter.mode.name().to_owned(),
            wait_ns: self.ago(waiter.since),
            blocked_by: waiter.blocked_by.iter().map(|pid| pid.0).collect(),
        }
    }

    fn deadlock(&self, deadlock: &Deadlock) -> PgDeadlock {
        let Deadlock { at: _, victim, waited_ns, cycle } = deadlock;
        PgDeadlock { victim: self.backend(*victim), wait_ns: *waited_ns, cycle: self.links(cycle) }
    }
}

/// The table that a vacuum says it works on: the one that it holds in the mode of vacuums.
fn vacuumed(holder: &PgHolder) -> Option<String> {
    let is_vacuum = matches!(holder.backend.kind, BackendKind::WraparoundVacuum | BackendKind::AutovacuumWorker);
    let holds = holder.modes.iter().any(|mode| mode == Mode(4).name());
    let text = holder.backend.statement.as_deref().filter(|_| is_vacuum && holds)?;
    let rest = text.strip_prefix("autovacuum: ")?;
    let rest = rest.strip_prefix("VACUUM ANALYZE ").or_else(|| rest.strip_prefix("VACUUM "))?;
    Some(rest.strip_suffix(" (to prevent wraparound)").unwrap_or(rest).to_owned())
}
