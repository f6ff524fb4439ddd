//! Locks of a PostgreSQL cluster: one entry a lock, those with the most waiters first, and the one thing to do about each.

use std::{cmp::Reverse, fmt::Write as _};

use super::{
    format::{Page, clock, count, cut, duration, percent, plural, ratio, safe},
    loops::{row, table},
};
use crate::report::{
    ClusterSummary, LockSummary,
    model::{Advice, BackendKind, BackendState, PgBackend, PgClient, PgDeadlock, PgLink, PgLock, PgRoot, PgWindow},
};

/// Locks that are printed one by one.
const LOCKS_SHOWN: usize = 8;

/// Groups of waiters behind the head that are.
const GROUPS_SHOWN: usize = 6;

pub fn render(page: &mut Page, pid: u32, cluster: &ClusterSummary) {
    headline(page, cluster);
    let mut locks: Vec<&LockSummary> = cluster.locks.values().collect();
    locks.sort_by_key(|lock| Reverse((lock.worst.waiting, lock.worst.oldest_wait_ns)));
    for lock in locks.iter().take(LOCKS_SHOWN) {
        of_lock(page, lock);
    }
    let more = (locks.len().saturating_sub(LOCKS_SHOWN) as u64).saturating_add(cluster.locks_more);
    if more != 0 {
        page.aside(&format!("  {} more: in the records", plural(more, "lock", "locks")));
    }
    deadlocks(page, cluster);
    waits(page, cluster);
    wait_events(page, cluster);
    about(page, pid, cluster);
}

/// What a process waits for across its connections.
pub fn of_client(page: &mut Page, client: &PgClient) {
    let PgClient { cluster, connections, waiting, locks, awaits: _ } = client;
    page.heading(&format!(
        "PostgreSQL (postmaster {cluster}): {} of {} wait for locks",
        count(*waiting),
        plural(*connections, "connection", "connections")
    ));
    for lock in locks.iter().take(LOCKS_SHOWN) {
        let name = lock.lock.name.as_deref().unwrap_or(&lock.lock.text);
        page.alarm(&format!(
            "  {} for {}, up to {}: behind {}; act on {}",
            count(lock.waiting),
            safe(name),
            duration(lock.oldest_wait_ns),
            lock.head,
            lock.root.map_or_else(|| "none".to_owned(), |pid| pid.to_string()),
        ));
    }
}

/// A window in one line.
pub fn live_text(time: &str, window: &PgWindow) -> String {
    let ended = window.waits.values().map(|waits| waits.wait.count()).fold(0, u64::saturating_add);
    let longest = window.waits.values().map(|waits| waits.wait.max()).max().unwrap_or(0);
    format!(
        "{}  {} wait for locks, {} at most; {} waits ended, after {} at most; {}",
        time.get(11..19).unwrap_or(time),
        count(window.waiting),
        count(window.waiting_max),
        count(ended),
        duration(longest),
        plural(u64::from(window.processes), "server process", "server processes"),
    )
}

fn headline(page: &mut Page, cluster: &ClusterSummary) {
    if cluster.waiting_max == 0 && cluster.locks.is_empty() {
        page.strong("PostgreSQL: nobody waited for a lock.");
        return;
    }
    page.strong(&format!(
        "PostgreSQL: {} waited for locks at one time, {} at the end; {} of {} or more",
        count(cluster.waiting_max),
        count(cluster.waiting),
        plural(cluster.locks.len() as u64, "lock with a wait", "locks with waits"),
        duration(cluster.cluster.as_ref().map_or(0, |cluster| cluster.lock_wait_min_ns)),
    ));
}

fn of_lock(page: &mut Page, sum: &LockSummary) {
    let lock = &sum.worst;
    let name = match (&lock.lock.name, lock.lock.relation) {
        (Some(name), Some(_)) => format!("{} ({})", safe(name), safe(&lock.lock.text)),
        _ => safe(&lock.lock.text),
    };
    let older = if lock.oldest_is_older { " or more" } else { "" };
    page.heading(&format!(
        "LOCK  {name}   {}, the oldest for {}{older}, since {}{}",
        plural(lock.waiting, "waiter", "waiters"),
        duration(lock.oldest_wait_ns),
        clock(&lock.oldest_since),
        if sum.is_over { format!("; over by {}", clock(&sum.last)) } else { String::new() },
    ));
    for holder in &lock.holders {
        let note = if holder.blocks_head { "" } else { "   (not in the way)" };
        line(page, "holder", &holder.backend, &format!("{}{note}", holder.modes.join(" + ")));
    }
    if lock.holders_more {
        page.aside("  holders: more than were read");
    }
    if let Some(head) = &lock.head {
        line(page, "head", &head.backend, &format!("wants {}, for {}", head.mode, duration(head.wait_ns)));
    }
    for group in lock.behind.iter().take(GROUPS_SHOWN) {
        let statement = group.statement.as_deref().map(|text| format!("   {}", safe(text))).unwrap_or_default();
        let text = format!(
            "  behind   {} x {}, up to {}{statement}",
            count(group.count),
            safe(&group.mode),
            duration(group.oldest_wait_ns)
        );
        page.line(&cut(&text, page.style.width));
    }
    let rest: u64 = lock.behind.iter().skip(GROUPS_SHOWN).map(|group| group.count).sum();
    if rest != 0 {
        page.aside(&format!("  behind   {} more", count(rest)));
    }
    chain(page, &lock.chain);
    if let Some(root) = &lock.root {
        let advice = advice(root, lock);
        if sum.is_over {
            page.line(&format!("  helps    {advice}"));
        } else {
            page.alarm(&format!("  do       {advice}"));
        }
    }
    let ended = &sum.ended;
    if !ended.wait.is_empty() {
        page.line(&format!(
            "  ended    {} granted, {} cancelled, {} deadlocked; after {} at most",
            count(ended.granted),
            count(ended.cancelled),
            count(ended.deadlocked),
            duration(ended.wait.max()),
        ));
    }
}

fn line(page: &mut Page, what: &str, backend: &PgBackend, how: &str) {
    let who = if backend.pid == 0 { "prepared transaction".to_owned() } else { backend.pid.to_string() };
    page.line(&format!("  {what:<8} {who:<7} {how}{}", doing(backend)));
    if let Some(statement) = &backend.statement {
        page.line(&cut(&format!("                   {}", safe(statement)), page.style.width));
    }
}

fn doing(backend: &PgBackend) -> String {
    let since = |ns: Option<u64>| ns.map(|ns| format!(" for {}", duration(ns))).unwrap_or_default();
    match (backend.kind, backend.state) {
        (_, BackendState::IdleInTransaction) => {
            format!("   idle in transaction, which is open{}", since(backend.transaction_ns))
        }
        (BackendKind::WraparoundVacuum | BackendKind::AutovacuumWorker, _) => {
            format!("   autovacuum{}", since(backend.transaction_ns))
        }
        (_, BackendState::Active | BackendState::Idle | BackendState::Unknown) => String::new(),
    }
}

fn chain(page: &mut Page, chain: &[PgLink]) {
    let [_, rest @ ..] = chain else { return };
    for link in rest {
        page.line(&format!("  because  {} in turn waits for {} ({})", link.pid, safe(&link.lock), safe(&link.mode)));
        if let Some(statement) = &link.statement {
            page.line(&cut(&format!("                   {}", safe(statement)), page.style.width));
        }
    }
}

fn advice(root: &PgRoot, lock: &PgLock) -> String {
    let pid = root.backend.pid;
    let frees = match root.frees {
        0 => "frees nobody at once".to_owned(),
        n => format!("frees {} at once", plural(n, "waiter", "waiters")),
    };
    match root.advice {
        Advice::CancelHead => {
            let vacuum = lock.holders.iter().any(|holder| {
                matches!(holder.backend.kind, BackendKind::WraparoundVacuum | BackendKind::AutovacuumWorker)
            });
            let harmless = if vacuum { "; the vacuum alone is in nobody else's way" } else { "" };
            format!("cancel {pid} (select pg_cancel_backend({pid})) and try it again later: {frees}{harmless}")
        }
        Advice::EndTransaction => format!(
            "end the transaction of {pid}, whose client does nothing (select pg_terminate_backend({pid})): {frees}"
        ),
        Advice::CancelHolder => format!("wait for {pid}, or cancel it (select pg_cancel_backend({pid})): {frees}"),
        Advice::AwaitVacuum => format!("let the vacuum of {pid} finish; cancelled, it would begin anew"),
        Advice::FinishPrepared => format!("commit or roll back the prepared transaction (pg_prepared_xacts): {frees}"),
    }
}

fn deadlocks(page: &mut Page, cluster: &ClusterSummary) {
    if cluster.deadlocks.is_empty() {
        return;
    }
    let all = (cluster.deadlocks.len() as u64).saturating_add(cluster.deadlocks_more);
    page.heading(&format!("Deadlocks: {}", count(all)));
    for (time, deadlock) in &cluster.deadlocks {
        let PgDeadlock { victim, wait_ns, cycle } = deadlock;
        page.line(&format!("  {}  {} gave up after {}", clock(time), victim.pid, duration(*wait_ns)));
        for link in cycle {
            let text = link.statement.as_deref().map(|text| format!("   {}", safe(text))).unwrap_or_default();
            let line = format!("    {} wants {} on {}{text}", link.pid, safe(&link.mode), safe(&link.lock));
            page.line(&cut(&line, page.style.width));
        }
    }
}

fn waits(page: &mut Page, cluster: &ClusterSummary) {
    if cluster.waits.values().all(|waits| waits.wait.is_empty()) {
        return;
    }
    table(page, "Waits for locks that ended");
    for (kind, waits) in &cluster.waits {
        row(page, kind, &waits.wait);
        page.line(&format!(
            "    {} granted, {} cancelled, {} deadlocked",
            count(waits.granted),
            count(waits.cancelled),
            count(waits.deadlocked)
        ));
    }
}

/// Events that are printed, those with the most time first.
const EVENTS_SHOWN: usize = 12;

fn wait_events(page: &mut Page, cluster: &ClusterSummary) {
    let mut events: Vec<_> = cluster.wait_events.iter().filter(|(_, event)| event.time_ns != 0).collect();
    if events.is_empty() {
        return;
    }
    events.sort_by_key(|(_, event)| Reverse(event.time_ns));
    table(page, "Backends waited");
    for ((class, name), event) in events.iter().take(EVENTS_SHOWN) {
        row(page, &safe(&format!("{class}:{name}")), &event.wait);
        let mut line = format!(
            "    {} in all, {:.2} backends on average; {}",
            duration(event.time_ns),
            ratio(event.time_ns, cluster.waits_seen_ns),
            plural(event.wait.count(), "wait that ended", "waits that ended"),
        );
        if event.waiting != 0 {
            let or_more = if event.oldest_is_older { " or more" } else { "" };
            let _ = write!(
                line,
                "; {} at the end, the oldest for {}{or_more}",
                count(event.waiting),
                duration(event.oldest_wait_ns)
            );
        }
        page.line(&line);
    }
    let (more, ns) = events
        .iter()
        .skip(EVENTS_SHOWN)
        .fold((0, 0u64), |(n, ns), (_, event)| (n + 1, ns.saturating_add(event.time_ns)));
    if more != 0 {
        page.aside(&format!(
            "  {}, {} in all: in the records",
            plural(more, "more event", "more events"),
            duration(ns)
        ));
    }
    if ratio(cluster.waits_seen_ns, cluster.duration_ns) < 0.995 {
        let seen = percent(cluster.waits_seen_ns, cluster.duration_ns);
        page.aside(&format!(
            "  waits are those of {seen} of the time: to watch all of them would cost too much (--max-overhead)"
        ));
    }
    page.aside("  off CPU, as pg_stat_activity names it; waits for clients, work and timers are left out");
}

fn about(page: &mut Page, pid: u32, cluster: &ClusterSummary) {
    page.heading(&format!("PostgreSQL, postmaster {pid}"));
    let Some(facts) = &cluster.cluster else { return };
    let version = facts.server_version.as_deref().unwrap_or("of a version that is not known");
    page.line(&format!(
        "  {}; {}; {} seen",
        safe(version),
        plural(u64::from(cluster.processes), "server process", "server processes"),
        duration(cluster.duration_ns)
    ));
    for degraded in &facts.degraded {
        page.alarm(&format!("  not seen: {}: {}", safe(&degraded.feature), safe(&degraded.reason)));
    }
}
