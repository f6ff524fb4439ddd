//! What happened, as logs: slow turns, findings, heap limits, locks, deadlocks, exits, warnings.

use super::proto::{KeyValue, LogRecord, attribute};
use crate::{
    export::message::{Level, level, message},
    report::{
        Body,
        model::{Finding, Process, SlowTurn},
    },
};

/// The record as a log, if it tells of something that happened.
#[must_use]
pub fn of(body: &Body, time_ns: u64) -> Option<LogRecord> {
    let (event, attributes) = match body {
        Body::SlowTurn(turn) => ("agent.nodejs.slow_turn", of_slow_turn(turn)),
        Body::Finding(finding) => ("agent.finding", of_finding(finding)),
        Body::HeapLimit(limit) => ("agent.v8js.heap_limit", vec![attribute("thread.id", limit.tid)]),
        Body::PgLock(lock) if !lock.is_over => {
            let wait = attribute("agent.postgresql.lock.wait_ns", lock.oldest_wait_ns);
            let lock_name = attribute("agent.postgresql.lock", lock.lock.text.as_str());
            ("agent.postgresql.lock", vec![lock_name, attribute("agent.postgresql.lock.waiting", lock.waiting), wait])
        }
        Body::PgDeadlock(deadlock) => {
            ("agent.postgresql.deadlock", vec![attribute("agent.postgresql.backend", deadlock.victim.pid)])
        }
        Body::Process(Process::Exit { name, code, signal, .. }) => {
            let mut attributes = vec![attribute("process.executable.name", name.as_str())];
            attributes.extend(code.map(|code| attribute("process.exit.code", u32::from(code))));
            attributes.extend(signal.map(|signal| attribute("agent.process.exit.signal", u32::from(signal))));
            ("agent.process.exit", attributes)
        }
        Body::Warning(warning) => ("agent.warning", vec![attribute("agent.warning.code", warning.code.as_str())]),
        _ => return None,
    };
    let (severity_number, severity_text) = severity(level(body));
    Some(LogRecord {
        time_unix_nano: time_ns,
        observed_time_unix_nano: time_ns,
        severity_number,
        severity_text: severity_text.to_owned(),
        body: Some(message(body).into()),
        attributes,
        event_name: event.to_owned(),
    })
}

/// `SeverityNumber`, and what it is called.
const fn severity(level: Level) -> (i32, &'static str) {
    match level {
        Level::Debug => (5, "DEBUG"),
        Level::Info => (9, "INFO"),
        Level::Warn => (13, "WARN"),
        Level::Error => (17, "ERROR"),
        Level::Fatal => (21, "FATAL"),
    }
}

fn of_slow_turn(turn: &SlowTurn) -> Vec<KeyValue> {
    vec![
        attribute("thread.id", turn.tid),
        attribute("agent.turn.busy_ns", turn.busy_ns),
        attribute("agent.turn.on_cpu_ns", turn.ledger.on_cpu_ns),
        attribute("agent.turn.blocked_ns", turn.ledger.blocked_ns),
        attribute("agent.turn.runnable_ns", turn.ledger.runnable_ns),
        attribute("agent.turn.gc_ns", turn.gc_ns),
        attribute("agent.turn.sync_fs", turn.sync_fs),
    ]
}

fn of_finding(finding: &Finding) -> Vec<KeyValue> {
    let evidence: Vec<String> = finding.evidence.iter().map(|line| line.text.clone()).collect();
    vec![
        attribute("agent.finding.code", finding.code.as_str()),
        attribute("agent.finding.confidence", finding.confidence),
        attribute("agent.finding.since", finding.since.as_str()),
        attribute("agent.finding.evidence", evidence),
        attribute("agent.finding.next", finding.next.clone()),
    ]
}
