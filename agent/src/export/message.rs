//! What a record says in one line, and how much it matters: for logs.

use std::fmt::Write as _;

use serde::Serialize;

use super::text::format::duration;
use crate::report::{
    Body,
    model::{HeapSeverity, LoopWindow, PgLock, Process, Severity, SlowTurn, Target},
};

/// How much a record matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

#[must_use]
pub fn level(body: &Body) -> Level {
    match body {
        Body::Stack(_)
        | Body::OffCpu(_)
        | Body::Profile(_)
        | Body::GcPause(_)
        | Body::Memory(_)
        | Body::Agent(_)
        | Body::PgClient(_)
        | Body::Process(
            Process::FirstTurn { .. }
            | Process::ThreadStart { .. }
            | Process::ThreadEnd { .. }
            | Process::Fork { .. }
            | Process::Exec { .. }
            | Process::Gone,
        ) => Level::Debug,
        Body::Target(_) | Body::PgCluster(_) | Body::Window(_) | Body::PgWindow(_) | Body::End(_) => Level::Info,
        Body::SlowTurn(_) | Body::PgLock(_) | Body::Warning(_) => Level::Warn,
        Body::PgDeadlock(_) => Level::Error,
        Body::HeapLimit(limit) => match limit.severity {
            HeapSeverity::Near | HeapSeverity::Unknown => Level::Error,
            HeapSeverity::OutOfMemory => Level::Fatal,
        },
        Body::Finding(finding) => match finding.severity {
            Severity::Info => Level::Info,
            Severity::Warning => Level::Warn,
            Severity::Critical => Level::Error,
        },
        Body::Process(Process::Exit { code, signal, core_dumped, .. }) => match (code, signal) {
            (_, Some(_)) if *core_dumped => Level::Fatal,
            (Some(0) | None, None) => Level::Info,
            (_, Some(_)) | (Some(_), None) => Level::Error,
        },
    }
}

#[must_use]
pub fn message(body: &Body) -> String {
    match body {
        Body::Target(target) => of_target(target),
        Body::Window(window) => match window.loops.first() {
            Some(main) => of_loop(main),
            None => format!("{} threads, no event loop", window.threads.len()),
        },
        Body::SlowTurn(turn) => of_slow_turn(turn),
        Body::GcPause(pause) => {
            format!(
                "garbage collection ({}) paused thread {} for {}",
                word(&pause.gc_type),
                pause.tid,
                duration(pause.duration_ns)
            )
        }
        Body::HeapLimit(limit) => match limit.severity {
            HeapSeverity::Near | HeapSeverity::Unknown => format!("the heap of thread {} is near its limit", limit.tid),
            HeapSeverity::OutOfMemory => format!("the heap of thread {} is at its limit, and V8 gives up", limit.tid),
        },
        Body::Stack(stack) => {
            let name = stack.frames.first().map_or("(empty)", |frame| frame.name.as_str());
            format!("stack {} of {} frames: {name}", String::from(stack.id), stack.frames.len())
        }
        Body::OffCpu(off) => format!("off CPU at {} stacks", off.stacks.len()),
        Body::Profile(profile) => format!("on CPU at {} stacks", profile.stacks.len()),
        Body::PgCluster(cluster) => format!("tracing the locks of {}, {} processes", cluster.exe, cluster.processes),
        Body::PgWindow(window) => format!("{} waits for locks, {} at most", window.waiting, window.waiting_max),
        Body::PgLock(lock) => of_lock(lock),
        Body::PgClient(client) => {
            format!("{} of {} connections wait for locks", client.waiting, client.connections)
        }
        Body::PgDeadlock(deadlock) => {
            format!("deadlock of {}: backend {} was given up", deadlock.cycle.len(), deadlock.victim.pid)
        }
        Body::Memory(memory) => {
            let bytes = memory.resident.anonymous_bytes + memory.resident.file_bytes + memory.resident.shared_bytes;
            format!("{:.1} MB resident", mega(bytes))
        }
        Body::Process(process) => of_process(process),
        Body::Finding(finding) => finding.title.clone(),
        Body::Warning(warning) => warning.message.clone(),
        Body::Agent(agent) => format!(
            "the agent took {} of CPU in {}, {:.1} MB",
            duration(agent.cpu_user_ns + agent.cpu_system_ns),
            duration(agent.duration_ns),
            mega(agent.rss_bytes)
        ),
        Body::End(end) => format!("the trace ended after {}", duration(end.duration_ns)),
    }
}

fn of_target(target: &Target) -> String {
    let version = target.node_version.as_deref().map(|version| format!(" (Node.js {version})")).unwrap_or_default();
    format!(
        "tracing {}{version}",
        if target.command.is_empty() { target.exe.clone() } else { target.command.join(" ") }
    )
}

fn of_loop(main: &LoopWindow) -> String {
    format!(
        "event loop {:.0} % busy, delay p50 {} p99 {}, {} turns, {} slow",
        main.utilization * 100.0,
        duration(main.delay.quantile(500)),
        duration(main.delay.quantile(990)),
        main.turns,
        main.slow_turns
    )
}

fn of_slow_turn(turn: &SlowTurn) -> String {
    let mut text = format!(
        "a turn of the event loop of thread {} took {}: {} on CPU, {} blocked, {} waiting for a CPU",
        turn.tid,
        duration(turn.busy_ns),
        duration(turn.ledger.on_cpu_ns),
        duration(turn.ledger.blocked_ns),
        duration(turn.ledger.runnable_ns)
    );
    if turn.gc_ns > 0 {
        let _ = write!(text, ", of which garbage collection {}", duration(turn.gc_ns));
    }
    text
}

fn of_lock(lock: &PgLock) -> String {
    let mut text =
        format!("{} wait for {}, for {} at most", lock.waiting, lock.lock.text, duration(lock.oldest_wait_ns));
    if let Some(root) = &lock.root {
        let _ = write!(text, "; backend {} holds them all up", root.backend.pid);
    }
    text
}

fn of_process(process: &Process) -> String {
    match process {
        Process::FirstTurn { tid } => format!("the first turn of thread {tid}'s loop was seen"),
        Process::ThreadStart { tid, .. } => format!("thread {tid} began"),
        Process::ThreadEnd { tid, name } => format!("thread {tid} ({name}) ended"),
        Process::Fork { child_pid } => format!("started process {child_pid}"),
        Process::Exec { name } => format!("became {name}"),
        Process::Exit { name, code: exit, signal, core_dumped } => {
            let core = if *core_dumped { ", with a core dump" } else { "" };
            match (exit, signal) {
                (_, Some(signal)) => format!("{name} was ended by signal {signal}{core}"),
                (Some(exit), None) => format!("{name} ended with code {exit}"),
                (None, None) => format!("{name} ended"),
            }
        }
        Process::Gone => "the process can be seen no more".into(),
    }
}

/// A code as it is in JSON.
#[must_use]
pub fn word(code: &impl Serialize) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
