//! The report for a tired person: first where the loop's time went, last what the agent itself cost.

mod agent;
mod findings;
pub(super) mod format;
mod heap;
mod loops;
mod postgres;
mod profile;
mod stack;
mod waits;

use std::fmt::Write as _;

use format::{Page, cut, duration, rate};
pub use heap::{render as heap, render_diff as heap_diff};
use loops::Shares;
pub use profile::{measured, progress as profile_progress, render as profile, render_diff as profile_diff};

use crate::report::{
    Body, Record,
    model::{Process, Role, Target, Window},
    summary::{Summary, TargetSummary},
};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns.
    pub width: usize,
    pub colour: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self { width: 100, colour: false }
    }
}

/// The whole report.
#[must_use]
pub fn render(summary: &Summary, style: Style) -> String {
    let mut page = Page::new(style);
    if !summary.findings.is_empty() {
        findings::render(&mut page, summary);
        page.line("");
    }
    for (at, (pid, target)) in summary.targets.iter().enumerate() {
        if at != 0 {
            page.line("");
        }
        process(&mut page, summary, *pid, target);
    }
    for (at, (pid, cluster)) in summary.clusters.iter().enumerate() {
        if at != 0 || !summary.targets.is_empty() {
            page.line("");
        }
        postgres::render(&mut page, *pid, cluster);
    }
    if summary.targets.is_empty() && summary.clusters.is_empty() {
        page.strong("Nothing was traced.");
    }
    agent::render(&mut page, summary);
    page.into_text()
}

/// What is wrong, and nothing else but what looking cost.
#[must_use]
pub fn render_findings(summary: &Summary, style: Style) -> String {
    let mut page = Page::new(style);
    findings::render(&mut page, summary);
    agent::render(&mut page, summary);
    page.into_text()
}

fn process(page: &mut Page, summary: &Summary, pid: u32, target: &TargetSummary) {
    loops::render(page, summary, target);
    if let Some(client) = summary.pg_clients.get(&pid) {
        postgres::of_client(page, client);
    }
    waits::thread_pool(page, target);
    waits::gc(page, target);
    waits::off_cpu(page, summary, target);
    waits::run_queue(page, target);
    threads(page, target);
    about(page, pid, target);
}

fn threads(page: &mut Page, target: &TargetSummary) {
    if target.threads.is_empty() {
        return;
    }
    page.heading("Other threads");
    for (role, sum) in &target.threads {
        let name = match role {
            Role::Main => "main, without a loop",
            Role::Worker => "workers",
            Role::ThreadPool => "thread pool",
            Role::Other => "others (V8's, signals)",
        };
        page.line(&format!(
            "  {name:<22}{:>4}   on CPU {:>9}   waiting for a CPU {:>9}   switches {:>9}",
            sum.tids.len(),
            duration(sum.ledger.on_cpu_ns),
            duration(sum.ledger.runnable_ns),
            format::count(sum.ledger.switches),
        ));
    }
}

fn about(page: &mut Page, pid: u32, target: &TargetSummary) {
    page.heading(&format!("Process {pid}"));
    if let Some(Target { command, exe, node_version, kernel_release, cpus, degraded, .. }) = &target.target {
        let command = if command.is_empty() { exe.clone() } else { command.join(" ") };
        let version = node_version
            .as_deref()
            .map_or_else(|| "Node.js, version not known".to_owned(), |v| format!("Node.js {}", safe_version(v)));
        page.line(&format!("  {}", cut(&format::safe(&command), page.style.width.saturating_sub(2))));
        page.line(&format!(
            "  {version}; Linux {}, {cpus} CPUs; {} seen",
            format::safe(kernel_release),
            duration(target.duration_ns)
        ));
        for degraded in degraded {
            page.alarm(&format!("  not seen: {}: {}", format::safe(&degraded.feature), format::safe(&degraded.reason)));
        }
    }
    if target.threads_started + target.threads_ended != 0 {
        page.line(&format!(
            "  {}, {} ended",
            format::plural(target.threads_started, "thread started", "threads started"),
            format::count(target.threads_ended)
        ));
    }
    for (time, event) in &target.life {
        life(page, time, event);
    }
    if target.life_more != 0 {
        page.aside(&format!("  {} more like these", format::count(target.life_more)));
    }
}

fn safe_version(version: &str) -> String {
    format::safe(version.trim_start_matches('v'))
}

fn life(page: &mut Page, time: &str, event: &Process) {
    let clock = format::clock(time);
    match event {
        Process::Fork { child_pid } => page.line(&format!("  {clock}  forked process {child_pid}")),
        Process::Exec { name } => page.line(&format!("  {clock}  became another program: {}", format::safe(name))),
        Process::Exit { name: _, code: Some(0), signal: None, core_dumped: _ } => {
            page.line(&format!("  {clock}  exited with code 0"));
        }
        Process::Exit { name: _, code, signal, core_dumped } => {
            let how = match (code, signal) {
                (_, Some(signal)) => format!("was killed by signal {signal}"),
                (Some(code), None) => format!("exited with code {code}"),
                (None, None) => "exited".to_owned(),
            };
            page.alarm(&format!("  {clock}  {how}{}", if *core_dumped { ", core dumped" } else { "" }));
        }
        Process::Gone => page.alarm(&format!("  {clock}  is gone")),
        Process::FirstTurn { .. } | Process::ThreadStart { .. } | Process::ThreadEnd { .. } => {}
    }
}

/// One line about a window record, for a terminal; `None` for records of other types.
#[must_use]
pub fn live_line(record: &Record, style: Style) -> Option<String> {
    if let Body::PgWindow(window) = &record.body {
        return (window.duration_ns != 0).then(|| cut(&postgres::live_text(&record.time, window), style.width));
    }
    let Body::Window(window) = &record.body else { return None };
    // What is left between the last tick and the end is no window worth a line.
    (window.duration_ns != 0).then(|| cut(&live_text(&record.time, window), style.width))
}

fn live_text(time: &str, window: &Window) -> String {
    let clock = time.get(11..19).unwrap_or(time);
    let Some(of_loop) = window.loops.first() else {
        return format!("{clock}  no event loop has run");
    };
    let shares = Shares::of(of_loop);
    let of = shares.wall_ns;
    let share = |ns| 100.0 * format::ratio(ns, of);
    let mut text = format!(
        "{clock}  util {:.0} %  JS {:.0} %  GC {:.0} %  blocked {:.0} %  runq {:.0} %  delay p99 {}  turns {}",
        of_loop.utilization * 100.0,
        share(shares.javascript_ns),
        share(shares.gc_ns),
        share(shares.blocked_ns),
        share(shares.runnable_ns),
        duration(of_loop.delay.quantile(990)),
        rate(of_loop.turns, of),
    );
    if of_loop.slow_turns != 0 {
        let _ = write!(text, "  slow {}", of_loop.slow_turns);
    }
    if let Some(pool) = window.thread_pool.as_ref().filter(|pool| pool.queue_len_max != 0) {
        let _ = write!(text, "  pool queue {}", pool.queue_len_max);
    }
    text
}
