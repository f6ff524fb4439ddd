//! The loops: where their time went, delay, utilisation, slow turns.

use std::fmt::Write as _;

use super::{
    format::{Page, clock, count, duration, parts_bar, percent, plural, rate, ratio, safe, spark},
    profile, stack,
};
use crate::{
    aggregate::histogram::Histogram,
    report::{
        model::{LoopWindow, Phases, Role, SlowTurn},
        summary::{Summary, TargetSummary},
    },
};

/// Shares of a loop's wall time that do not overlap.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub struct Shares {
    pub wall_ns: u64,
    /// On CPU, less garbage collection.
    pub javascript_ns: u64,
    /// Garbage collection on CPU.
    pub gc_ns: u64,
    pub idle_ns: u64,
    pub blocked_ns: u64,
    pub runnable_ns: u64,
    pub stopped_ns: u64,
}

impl Shares {
    #[must_use]
    pub fn of(of_loop: &LoopWindow) -> Self {
        let ledger = &of_loop.ledger;
        // A pause is wall time: what it was blocked or waited for a CPU is in those shares already.
        let gc_ns = of_loop.gc_ns.saturating_sub(of_loop.gc_off_cpu_ns).min(ledger.on_cpu_ns);
        Self {
            wall_ns: ledger.wall_ns,
            javascript_ns: ledger.on_cpu_ns - gc_ns,
            gc_ns,
            idle_ns: ledger.idle_ns,
            blocked_ns: ledger.blocked_ns,
            runnable_ns: ledger.runnable_ns,
            stopped_ns: ledger.stopped_ns,
        }
    }
}

/// Names of phases as people say them, and their times.
fn phases(phases: &Phases) -> [(&'static str, u64); 6] {
    let &Phases { unsplit: _, timers, pending, prepare, poll, check, closing } = phases;
    [
        ("poll callbacks", poll),
        ("timers", timers),
        ("check", check),
        ("idle/prepare", prepare),
        ("pending", pending),
        ("closing", closing),
    ]
}

/// `poll callbacks 71 %, timers 22 %`, largest first; empty where nothing was split.
fn phase_list(of_loop: &Phases) -> String {
    let mut named = phases(of_loop);
    let split = named.iter().fold(0u64, |sum, &(_, ns)| sum.saturating_add(ns));
    named.sort_by_key(|&(_, ns)| std::cmp::Reverse(ns));
    let shown: Vec<_> = named
        .iter()
        .filter(|&&(_, ns)| ratio(ns, split) >= 0.005)
        .map(|&(name, ns)| format!("{name} {}", percent(ns, split)))
        .collect();
    shown.join(", ")
}

fn title(of_loop: &LoopWindow) -> String {
    match of_loop.role {
        Role::Main => "Main thread".to_owned(),
        Role::Worker | Role::ThreadPool | Role::Other => {
            let name = if of_loop.name.is_empty() { String::new() } else { format!(" ({})", safe(&of_loop.name)) };
            format!("Loop thread {}{name}", of_loop.tid)
        }
    }
}

/// The first line of the report.
fn headline(of_loop: &LoopWindow) -> String {
    let shares = Shares::of(of_loop);
    let of = shares.wall_ns;
    let list = phase_list(&of_loop.on_cpu_by_phase_ns);
    let by_phase = if list.is_empty() { String::new() } else { format!(" ({list})") };
    let mut line = format!(
        "{}: {} JavaScript{by_phase}, {} GC, {} idle, {} blocked, {} waiting for a CPU",
        title(of_loop),
        percent(shares.javascript_ns, of),
        percent(shares.gc_ns, of),
        percent(shares.idle_ns, of),
        percent(shares.blocked_ns, of),
        percent(shares.runnable_ns, of),
    );
    if shares.stopped_ns != 0 {
        let _ = write!(line, ", {} stopped", percent(shares.stopped_ns, of));
    }
    line
}

/// A loop that did nothing to speak of: node's own helper threads turn loops too.
fn is_quiet(of_loop: &LoopWindow) -> bool {
    of_loop.role != Role::Main
        && ratio(of_loop.ledger.on_cpu_ns, of_loop.ledger.wall_ns) < 0.001
        && of_loop.slow_turns == 0
}

/// Loops that are printed one by one.
const LOOPS_SHOWN: usize = 8;

pub fn render(page: &mut Page, summary: &Summary, target: &TargetSummary) {
    let (quiet, busy): (Vec<_>, Vec<_>) = target.loops.values().partition(|of_loop| is_quiet(of_loop));
    for (at, of_loop) in busy.iter().take(LOOPS_SHOWN).enumerate() {
        if at != 0 {
            page.line("");
        }
        account(page, target, of_loop);
        if at == 0 {
            page.aside("  █ JavaScript  ▓ GC  ▒ blocked  ░ waiting for a CPU  · idle");
        }
        turns(page, target, of_loop);
    }
    let hidden = quiet.len() + busy.len().saturating_sub(LOOPS_SHOWN);
    if hidden != 0 {
        let hidden = plural(hidden as u64, "other event loop", "other event loops");
        page.aside(&format!("{hidden}, hardly ever on CPU: in the records"));
    }
    if target.loops.is_empty() {
        page.strong("No event loop has run: the process was idle all the time, or its threads turn none.");
    }
    slow_turns(page, summary, target);
}

/// Where the time went.
fn account(page: &mut Page, target: &TargetSummary, of_loop: &LoopWindow) {
    let shares = Shares::of(of_loop);
    page.strong(&headline(of_loop));
    let bar = parts_bar(
        &[
            ('█', shares.javascript_ns),
            ('▓', shares.gc_ns),
            ('▒', shares.blocked_ns),
            ('░', shares.runnable_ns),
            ('x', shares.stopped_ns),
            ('·', shares.idle_ns),
        ],
        page.style.width.saturating_sub(2).min(78),
    );
    page.line(&format!("  {bar}"));
    let ledger = &of_loop.ledger;
    let unaccounted = ledger.unaccounted_ns;
    let accounted = format!(
        "  {} accounted for of {}; unaccounted {}",
        duration(ledger.wall_ns.saturating_add_signed(unaccounted.saturating_neg())),
        duration(ledger.wall_ns),
        percent(unaccounted.unsigned_abs(), ledger.wall_ns),
    );
    page.aside(&(accounted + &switches_seen(target) + &phases_seen(target)));
}

/// How the loop turned.
fn turns(page: &mut Page, target: &TargetSummary, of_loop: &LoopWindow) {
    let ledger = &of_loop.ledger;
    let seen = ratio(target.turns_seen_ns, target.duration_ns);
    let seen_ns = scaled(ledger.wall_ns, seen);
    table(page, "Event loop");
    row(page, "delay", &of_loop.delay);
    row(page, "callbacks in a turn", &of_loop.turn_busy);
    page.line(&format!(
        "  utilization {:.1} %; {} ({}), {} slow; {}, {} off CPU",
        of_loop.utilization * 100.0,
        plural(of_loop.turns, "turn", "turns"),
        rate(of_loop.turns, seen_ns),
        count(of_loop.slow_turns),
        plural(of_loop.events, "event", "events"),
        plural(ledger.switches, "switch", "switches"),
    ));
    if seen < 0.995 {
        page.aside(&format!(
            "  turns are those of {} of the time: to watch all of them would cost too much (--max-overhead)",
            percent(target.turns_seen_ns, target.duration_ns)
        ));
    }
    if of_loop.sync_fs != 0 {
        page.line(&format!(
            "  {} on this thread",
            plural(of_loop.sync_fs, "synchronous file request", "synchronous file requests")
        ));
    }
}

/// A part of a time.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate that is rounded, and no more than all of it"
)]
fn scaled(ns: u64, part: f64) -> u64 {
    (ns as f64 * part) as u64
}

/// What is not seen is unaccounted.
fn switches_seen(target: &TargetSummary) -> String {
    if ratio(target.switches_seen_ns, target.duration_ns) < 0.995 {
        let seen = percent(target.switches_seen_ns, target.duration_ns);
        format!("; switches seen {seen} of the time, as all of them would cost too much (--max-overhead)")
    } else {
        String::new()
    }
}

fn phases_seen(target: &TargetSummary) -> String {
    if target.phases_seen_ns == 0 {
        "; phases were not seen".to_owned()
    } else if ratio(target.phases_seen_ns, target.duration_ns) < 0.995 {
        format!("; phases seen {} of the time", percent(target.phases_seen_ns, target.duration_ns))
    } else {
        String::new()
    }
}

/// The heading over rows of percentiles and bars.
pub fn table(page: &mut Page, title: &str) {
    page.heading(&format!(
        "{title:<24}{:>10}{:>10}{:>10}{:>10}{:>10}  1 µs        10 s",
        "p50", "p90", "p99", "p99.9", "max"
    ));
}

/// A row of percentiles under a heading that names them.
pub fn row(page: &mut Page, name: &str, histogram: &Histogram) {
    if histogram.is_empty() {
        page.line(&format!("  {name:<22}        -"));
        return;
    }
    let at = |per_mille| duration(histogram.quantile(per_mille));
    page.line(&format!(
        "  {name:<22}{:>10}{:>10}{:>10}{:>10}{:>10}  {}",
        at(500),
        at(900),
        at(990),
        at(999),
        duration(histogram.max()),
        spark(histogram),
    ));
}

/// Slow turns that are printed one by one.
const SLOW_SHOWN: usize = 5;

fn slow_turns(page: &mut Page, summary: &Summary, target: &TargetSummary) {
    let all = target.loops.values().map(|of_loop| of_loop.slow_turns).fold(0, u64::saturating_add);
    let open = target.slow_turns.iter().filter(|(_, turn)| turn.open).count() as u64;
    let all = all.saturating_add(open);
    if all == 0 {
        return;
    }
    let threshold = target.target.as_ref().map_or(0, |target| target.config.slow_turn_ns);
    let shown = if all > 1 { "; the longest" } else { "" };
    page.heading(&format!("Slow turns: {} of {} or more{shown}", count(all), duration(threshold)));
    for (time, turn) in target.slow_turns.iter().take(SLOW_SHOWN) {
        slow_turn(page, summary, target, time, turn);
    }
}

fn slow_turn(page: &mut Page, summary: &Summary, target: &TargetSummary, time: &str, turn: &SlowTurn) {
    let split = phase_list(&turn.on_cpu_by_phase_ns);
    let split = if split.is_empty() { split } else { format!(" ({split})") };
    let mut parts = vec![format!("on CPU {}{split}", duration(turn.ledger.on_cpu_ns))];
    let mut part = |name: &str, ns: u64| {
        if ratio(ns, turn.busy_ns) >= 0.005 {
            parts.push(format!("{name} {}", duration(ns)));
        }
    };
    part("blocked", turn.ledger.blocked_ns);
    part("waiting for a CPU", turn.ledger.runnable_ns);
    part("stopped", turn.ledger.stopped_ns);
    part("of which GC pauses", turn.gc_ns);
    if turn.sync_fs != 0 {
        parts.push(plural(turn.sync_fs, "synchronous file request", "synchronous file requests"));
    }
    let thread = if target.loops.keys().any(|&(role, tid)| role == Role::Main && tid == turn.tid) {
        String::new()
    } else {
        format!("thread {}, ", turn.tid)
    };
    let still = if turn.open { " and going on" } else { "" };
    page.line(&format!("  {}  {}{still}: {thread}{}", clock(time), duration(turn.busy_ns), parts.join(", ")));
    if let Some(functions) = profile::functions_of(summary, &turn.on_cpu) {
        page.line(&format!("      {functions}"));
    }
    if let Some(stay) = turn.off_cpu.first().filter(|stay| ratio(stay.duration_ns, turn.busy_ns) >= 0.05) {
        let frames = stack::folded(summary, stay.user_stack, stay.kernel_stack);
        page.line(&format!("      {} {}: {frames}", stack::reason(stay.reason), duration(stay.duration_ns)));
    }
}
