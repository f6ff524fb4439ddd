//! What is wrong, worst first: one block a finding.

use std::fmt::Write as _;

use super::{
    format::{Page, clock, duration, safe},
    stack,
};
use crate::report::{
    model::{Finding, Growth, Severity},
    summary::Summary,
};

pub fn render(page: &mut Page, summary: &Summary) {
    let seen = summary.targets.values().map(|target| target.duration_ns).max().unwrap_or(0);
    if summary.findings.is_empty() {
        let processes = summary.targets.len();
        let what = if processes == 1 { "the process".to_owned() } else { format!("{processes} processes") };
        page.strong(&format!("Nothing wrong was found in {what} over {}.", duration(seen)));
        return;
    }
    for (at, (pid, finding)) in summary.findings.iter().enumerate() {
        if at != 0 {
            page.line("");
        }
        block(page, summary, *pid, finding);
    }
}

fn block(page: &mut Page, summary: &Summary, pid: u32, finding: &Finding) {
    let Finding { code, severity, confidence, title, since, growth, evidence, next } = finding;
    let word = match severity {
        Severity::Info => "INFO",
        Severity::Warning => "WARNING",
        Severity::Critical => "CRITICAL",
    };
    let head = format!("{word}  {}", safe(title));
    match severity {
        Severity::Info => page.strong(&head),
        Severity::Warning | Severity::Critical => page.alarm(&head),
    }
    page.aside(&format!(
        "  process {pid}, since {} or before; confidence {:.0} %; {}",
        clock(since),
        confidence * 100.0,
        safe(code)
    ));
    if let Some(growth) = growth {
        page.line(&format!("  {}", slope(growth)));
    }
    for line in evidence {
        page.line(&format!("  - {}", safe(&line.text)));
        if let Some(id) = line.stack {
            page.line(&format!("      {}", stack::folded(summary, Some(id), None)));
        }
    }
    for step in next {
        page.line(&format!("  → {}", safe(step)));
    }
}

fn slope(growth: &Growth) -> String {
    let Growth { unit, slope, per_second: _, per_request, r2 } = growth;
    let unit = safe(unit);
    let mut text = format!("+{} {unit} a minute (r² {r2:.2})", figure(slope * 60.0));
    if let Some(per_request) = per_request {
        let _ = write!(text, ", {} a request", figure(*per_request));
    }
    text
}

/// Three digits, or whole thousands apart.
fn figure(value: f64) -> String {
    match value.abs() {
        at if at >= 1e9 => format!("{:.2} G", value / 1e9),
        at if at >= 1e6 => format!("{:.2} M", value / 1e6),
        at if at >= 1e4 => format!("{:.1} k", value / 1e3),
        at if at >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}
