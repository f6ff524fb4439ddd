//! Lock waits of a PostgreSQL cluster: a pile-up behind one lock, a wait that goes on and on, deadlocks.
//!
//! Waiting for a lock is how a database works; what is wrong is a lock that holds up many, or one for long. Short waits for rows, of
//! which a busy server has thousands a second, are never a finding.

use super::{Thresholds, history::Process};
use crate::report::{
    ClusterSummary, LockSummary,
    model::{
        Advice, BackendKind, Evidence, Finding, Frame, FrameKind, PgAwait, PgBackend, PgClient, PgDeadlock, PgHolder,
        PgLock, PgRoot, Severity,
    },
};

/// What is wrong with the locks of a cluster, worst first.
#[must_use]
pub fn lock_findings(cluster: &ClusterSummary, thresholds: &Thresholds) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        cluster.locks.values().filter_map(|lock| of_lock(lock, &cluster.locks, thresholds)).collect();
    findings.extend(of_deadlocks(cluster));
    findings.sort_by(|one, other| (other.severity, &one.title).cmp(&(one.severity, &other.title)));
    findings
}

fn of_lock(
    sum: &LockSummary,
    all: &std::collections::BTreeMap<String, LockSummary>,
    thresholds: &Thresholds,
) -> Option<Finding> {
    let lock = &sum.worst;
    // Everybody waits for somebody who waits for another lock: that one is told, and it tells of this one.
    let root_elsewhere =
        lock.chain.get(1).is_some_and(|link| all.contains_key(&link.lock) && link.lock != lock.lock.text);
    if root_elsewhere {
        return None;
    }
    let behind: u64 = all
        .values()
        .filter(|other| waits_through(&other.worst, &lock.lock.text))
        .map(|other| other.worst.waiting)
        .sum();
    let waiting = lock.waiting.saturating_add(behind);
    let waited_s = as_seconds(lock.oldest_wait_ns);
    let pileup = is_more(waiting, thresholds.pileup_waiters) && waited_s >= thresholds.pileup_s;
    let long = waited_s >= thresholds.lock_wait_s;
    if !pileup && !long {
        return None;
    }
    let is_critical =
        pileup && is_more(waiting, thresholds.pileup_critical) || waited_s >= 10.0 * thresholds.lock_wait_s;
    let severity = match (sum.is_over, is_critical) {
        (true, _) => Severity::Info,
        (false, true) => Severity::Critical,
        (false, false) => Severity::Warning,
    };
    let what = name(lock);
    let title = if pileup {
        format!("{waiting} PostgreSQL backends wait for {what}, {}", behind_whom(lock))
    } else {
        format!("a PostgreSQL backend has waited {} for {what}, {}", seconds(lock.oldest_wait_ns), behind_whom(lock))
    };
    Some(Finding {
        code: if pileup { "postgres.lock_pileup" } else { "postgres.lock_wait" }.to_owned(),
        severity,
        // Queue and holders were read, not inferred; only what a cut list hides is a guess.
        confidence: if lock.holders_more || lock.holders.is_empty() { 0.7 } else { 0.95 },
        title,
        since: lock.oldest_since.clone(),
        growth: None,
        evidence: evidence(sum, waiting, behind),
        next: lock.root.as_ref().map(|root| next(root, lock)).unwrap_or_default(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a count of processes")]
fn is_more(count: u64, threshold: f64) -> bool {
    count as f64 >= threshold
}

#[expect(clippy::cast_precision_loss, reason = "seconds")]
fn as_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What a process that awaits PostgreSQL waits for: its user starts there, and its loop has nothing to do.
#[must_use]
pub fn client_finding<'a>(
    process: &Process,
    cluster_of: impl Fn(u32) -> Option<&'a ClusterSummary>,
    thresholds: &Thresholds,
) -> Option<Finding> {
    let client: &PgClient = process.postgres.worst.as_ref()?;
    let worst = client.locks.iter().max_by_key(|lock| (lock.waiting, lock.oldest_wait_ns))?;
    let lock = cluster_of(client.cluster).and_then(|cluster| cluster.locks.get(&worst.lock.text));
    let waited_s = as_seconds(worst.oldest_wait_ns);
    // A pile-up of others counts, too: this process is in it.
    let all = lock.map_or(worst.waiting, |lock| lock.worst.waiting);
    let pileup = is_more(all, thresholds.pileup_waiters) && waited_s >= thresholds.pileup_s;
    if !pileup && waited_s < thresholds.lock_wait_s {
        return None;
    }
    let is_over = process.postgres.last.as_ref().is_none_or(|last| last.waiting == 0);
    let all_wait = client.waiting == client.connections;
    let severity = match (is_over, all_wait) {
        (true, _) => Severity::Info,
        (false, true) => Severity::Critical,
        (false, false) => Severity::Warning,
    };
    let of = if all_wait { "all".to_owned() } else { client.waiting.to_string() };
    let behind = lock.map(|lock| format!(", {}", behind_whom(&lock.worst))).unwrap_or_default();
    let what = lock.map_or_else(|| worst.lock.text.clone(), |lock| name(&lock.worst));
    let in_full = |text: &str| {
        let known = cluster_of(client.cluster).and_then(|cluster| cluster.locks.get(text));
        known.map_or_else(|| text.to_owned(), |lock| in_full(&lock.worst))
    };
    let mut evidence = Vec::new();
    if let Some(idle) = process.idle_share() {
        evidence.push(Evidence {
            text: format!("the event loop is {:.0} % idle: this process has nothing to do but wait", 100.0 * idle),
            value: Some(100.0 * idle),
            unit: Some("%".to_owned()),
            stack: None,
        });
    }
    evidence.extend(client.locks.iter().take(4).map(|lock| {
        #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
        let value = Some(lock.waiting as f64);
        Evidence {
            text: format!(
                "{} of its connections wait for {}, the oldest for {}; first in line is {}",
                lock.waiting,
                in_full(&lock.lock.text),
                seconds(lock.oldest_wait_ns),
                lock.head
            ),
            value,
            unit: Some("connections".to_owned()),
            stack: None,
        }
    }));
    if let Some(lock) = lock {
        evidence.extend(self::evidence(lock, lock.worst.waiting, 0).into_iter().skip(1));
    }
    let awaits = awaits(process, client);
    let idle_but = match (process.idle_share(), awaits.first()) {
        (Some(idle), Some(first)) => format!("the event loop is {:.0} % idle, but {}: ", 100.0 * idle, first.text),
        (None, Some(_)) | (_, None) => String::new(),
    };
    evidence.splice(1.min(evidence.len())..1.min(evidence.len()), awaits);
    let root = lock.and_then(|lock| lock.worst.root.as_ref().map(|root| next(root, &lock.worst)));
    Some(Finding {
        code: "postgres.awaited_lock".to_owned(),
        severity,
        confidence: 0.95,
        title: format!(
            "{idle_but}{of} of the {} connections to PostgreSQL wait for {what}{behind}",
            client.connections
        ),
        since: process.postgres.since.clone(),
        growth: None,
        evidence,
        next: root.unwrap_or_default(),
    })
}

/// Whose calls are suspended meanwhile.
#[expect(clippy::cast_precision_loss, reason = "a count of calls")]
fn awaits(process: &Process, client: &PgClient) -> Vec<Evidence> {
    let of = |call: &PgAwait| {
        let stack = process.stacks.get(&call.stack)?;
        let mut functions =
            stack.frames.iter().filter(|frame| frame.kind == FrameKind::Js).map(|frame| function(frame));
        let innermost = functions.next()?;
        let by = functions.next().map(|outer| format!(", awaited by {outer}")).unwrap_or_default();
        Some(Evidence {
            text: format!("{} awaits in {innermost} go on{by}", call.count),
            value: Some(call.count as f64),
            unit: Some("calls".to_owned()),
            stack: Some(call.stack),
        })
    };
    client.awaits.iter().filter_map(of).take(4).collect()
}

/// `getOrder (orders.js:41)`.
fn function(frame: &Frame) -> String {
    let file = frame.file.as_deref().map(|file| file.rsplit('/').next().unwrap_or(file));
    match (file, frame.line) {
        (Some(file), Some(line)) => format!("{} ({file}:{line})", frame.name),
        (Some(file), None) => format!("{} ({file})", frame.name),
        (None, _) => frame.name.clone(),
    }
}

/// The lock's head waits for somebody who waits for the lock of that name.
fn waits_through(lock: &PgLock, text: &str) -> bool {
    lock.lock.text != text && lock.chain.iter().skip(1).any(|link| link.lock == text)
}

fn name(lock: &PgLock) -> String {
    lock.lock.name.as_ref().map_or_else(|| lock.lock.text.clone(), |name| format!("a lock on {name}"))
}

/// `public.manta (relation 16384 of database 5)`.
fn in_full(lock: &PgLock) -> String {
    let text = &lock.lock.text;
    lock.lock.name.as_ref().map_or_else(|| text.clone(), |name| format!("{name} ({text})"))
}

fn behind_whom(lock: &PgLock) -> String {
    let blocker = lock.holders.iter().find(|holder| holder.blocks_head);
    let head = lock.head.as_ref().map_or(0, |head| head.backend.pid);
    match blocker {
        Some(holder) if lock.waiting > 1 => format!("behind {head}, which waits for {}", who(&holder.backend)),
        Some(holder) => format!("which {} holds", who(&holder.backend)),
        None => format!("behind {head}"),
    }
}

fn who(backend: &PgBackend) -> String {
    match backend.kind {
        BackendKind::WraparoundVacuum => format!("{} (autovacuum to prevent wraparound)", backend.pid),
        BackendKind::AutovacuumWorker => format!("{} (autovacuum)", backend.pid),
        _ if backend.pid == 0 => "a prepared transaction".to_owned(),
        _ => backend.pid.to_string(),
    }
}

fn seconds(ns: u64) -> String {
    format!("{}.{} s", ns / 1_000_000_000, ns / 100_000_000 % 10)
}

fn doing(backend: &PgBackend) -> String {
    backend.statement.as_deref().map(|statement| format!(": {statement}")).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts, and seconds")]
fn evidence(sum: &LockSummary, waiting: u64, behind: u64) -> Vec<Evidence> {
    let lock = &sum.worst;
    let holder = |holder: &PgHolder| {
        let note = if holder.blocks_head { "" } else { ", not in the head's way" };
        Evidence::line(format!(
            "{} holds {}{note}{}",
            who(&holder.backend),
            holder.modes.join(" and "),
            doing(&holder.backend)
        ))
    };
    let mut evidence = vec![Evidence {
        text: format!("{waiting} waiters for {}, the oldest for {}", in_full(lock), seconds(lock.oldest_wait_ns)),
        value: Some(waiting as f64),
        unit: Some("waiters".to_owned()),
        stack: None,
    }];
    // What the head of the queue holds itself is told with it.
    let head = lock.head.as_ref().map(|head| head.backend.pid);
    evidence.extend(lock.holders.iter().filter(|holder| Some(holder.backend.pid) != head).take(4).map(holder));
    if let Some(head) = &lock.head {
        evidence.push(Evidence {
            text: format!("{} is first in line, wants {}{}", head.backend.pid, head.mode, doing(&head.backend)),
            value: Some(head.wait_ns as f64 / 1e9),
            unit: Some("s".to_owned()),
            stack: None,
        });
    }
    for group in lock.behind.iter().take(4) {
        let statement = group.statement.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
        evidence.push(Evidence {
            text: format!("behind it {} want {}{statement}", group.count, group.mode),
            value: Some(group.count as f64),
            unit: Some("waiters".to_owned()),
            stack: None,
        });
    }
    if behind > 0 {
        evidence.push(Evidence::line(format!("{behind} more wait for locks of those who wait for this one")));
    }
    if sum.is_over {
        evidence.push(Evidence::line(format!("it was over by {}", sum.last)));
    }
    evidence
}

fn next(root: &PgRoot, lock: &PgLock) -> Vec<String> {
    let pid = root.backend.pid;
    let frees = root.frees;
    match root.advice {
        Advice::CancelHead => {
            let vacuum = lock.holders.iter().any(|holder| holder.backend.kind == BackendKind::WraparoundVacuum);
            let mut steps = vec![format!(
                "select pg_cancel_backend({pid}): it holds nothing that others want, and {frees} waiters go on at once"
            )];
            steps.push(if vacuum {
                "let the vacuum finish before it is tried again, with a lock_timeout of some seconds".to_owned()
            } else {
                "try it again with a lock_timeout of some seconds".to_owned()
            });
            steps
        }
        Advice::EndTransaction => vec![
            format!("select pg_terminate_backend({pid}): its client left a transaction open; {frees} waiters go on"),
            "set idle_in_transaction_session_timeout".to_owned(),
        ],
        Advice::CancelHolder => {
            vec![format!("wait for {pid}, or select pg_cancel_backend({pid}): {frees} waiters go on")]
        }
        Advice::AwaitVacuum => vec![format!("let the vacuum of {pid} finish: cancelled, it would begin anew")],
        Advice::FinishPrepared => {
            vec![format!("commit or roll back the prepared transaction (pg_prepared_xacts): {frees} waiters go on")]
        }
    }
}

fn of_deadlocks(cluster: &ClusterSummary) -> Option<Finding> {
    let (since, first) = cluster.deadlocks.first()?;
    let all = (cluster.deadlocks.len() as u64).saturating_add(cluster.deadlocks_more);
    let PgDeadlock { victim, wait_ns: _, cycle } = first;
    let mut evidence = vec![Evidence::line(format!("the first: {} gave up{}", victim.pid, doing(victim)))];
    evidence.extend(cycle.iter().map(|link| {
        let statement = link.statement.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
        Evidence::line(format!("{} wanted {} on {}{statement}", link.pid, link.mode, link.lock))
    }));
    Some(Finding {
        code: "postgres.deadlock".to_owned(),
        severity: Severity::Warning,
        confidence: 1.0,
        title: format!("{all} deadlock{} broken by PostgreSQL", if all == 1 { " was" } else { "s were" }),
        since: since.clone(),
        growth: None,
        evidence,
        next: vec!["let all transactions take their rows and locks in the same order".to_owned()],
    })
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::report::model::{PgLink, PgLockName, PgWaiter};

    const SECOND: u64 = 1_000_000_000;

    fn lock(text: &str, waiting: u64, oldest_wait_ns: u64, chain: &[&str]) -> (String, LockSummary) {
        let holder = PgBackend { pid: 10, kind: BackendKind::WraparoundVacuum, ..PgBackend::default() };
        let head = PgBackend { pid: 11, ..PgBackend::default() };
        let worst = PgLock {
            lock: PgLockName { text: text.to_owned(), ..PgLockName::default() },
            waiting,
            oldest_wait_ns,
            holders: vec![PgHolder {
                backend: holder,
                modes: vec!["ShareUpdateExclusiveLock".into()],
                blocks_head: true,
            }],
            head: Some(PgWaiter { backend: head.clone(), mode: "AccessExclusiveLock".into(), wait_ns: oldest_wait_ns }),
            chain: chain.iter().map(|lock| PgLink { lock: (*lock).to_owned(), ..PgLink::default() }).collect(),
            root: Some(PgRoot { backend: head, advice: Advice::CancelHead, frees: waiting.saturating_sub(1) }),
            ..PgLock::default()
        };
        (text.to_owned(), LockSummary { worst, ..LockSummary::default() })
    }

    fn findings(locks: impl IntoIterator<Item = (String, LockSummary)>) -> Vec<Finding> {
        let cluster = ClusterSummary { locks: locks.into_iter().collect(), ..ClusterSummary::default() };
        lock_findings(&cluster, &Thresholds::default())
    }

    #[test]
    fn a_pile_up_is_told_with_what_to_do() {
        let found = findings([lock("relation 1", 12, 4 * SECOND, &["relation 1"])]);
        assert_eq!((found[0].code.as_str(), found[0].severity), ("postgres.lock_pileup", Severity::Critical));
        assert!(found[0].title.contains("autovacuum to prevent wraparound"), "{}", found[0].title);
        assert!(found[0].next[0].contains("pg_cancel_backend(11)"), "{:?}", found[0].next);
    }

    #[test]
    fn short_and_few_waits_are_no_finding() {
        assert!(findings([lock("transaction 7", 2, SECOND, &["transaction 7"])]).is_empty());
        assert!(findings([lock("transaction 7", 200, SECOND / 2, &["transaction 7"])]).is_empty());
        assert!(findings([]).is_empty());
    }

    #[test]
    fn one_finding_speaks_for_the_locks_that_hang_on_its_own() {
        let row = lock("transaction 7", 1, 6 * SECOND, &["transaction 7"]);
        let tuple = lock("tuple (0,1)", 4, 5 * SECOND, &["tuple (0,1)", "transaction 7"]);
        let found = findings([row, tuple]);
        assert_eq!(found.len(), 1);
        assert!(found[0].title.starts_with("5 PostgreSQL backends wait for transaction 7"), "{}", found[0].title);
    }

    #[test]
    fn what_is_over_is_only_told() {
        let (text, mut sum) = lock("relation 1", 12, 4 * SECOND, &["relation 1"]);
        sum.is_over = true;
        assert_eq!(findings([(text, sum)])[0].severity, Severity::Info);
    }
}
