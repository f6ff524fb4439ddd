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
        page.line(&format!("  {}", slope_of(growth)));
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

fn slope_of(growth: &Growth) -> String {
    let Growth { unit, slope, per_second: _, per_request, r2 } = growth;
    let mut text = format!("+{} a minute (r² {r2:.2})", figure(slope * 60.0, unit));
    if let Some(per_request) = per_request {
        let _ = write!(text, ", {} a request", figure(*per_request, unit));
    }
    text
}

/// Three digits, and the unit in a size that fits.
fn figure(value: f64, unit: &str) -> String {
    let [giga, mega, kilo, one] = match unit {
        "ns" => ["s", "ms", "µs", "ns"],
        "bytes" => ["GB", "MB", "kB", "B"],
        _ => ["G", "M", "k", ""],
    };
    let digits = |value: f64| match value.abs() {
        at if at >= 99.95 => format!("{value:.0}"),
        at if at >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    // Counts are told in full as long as they are short.
    let thousands = if matches!(unit, "ns" | "bytes") { 1e3 } else { 1e4 };
    let (divisor, scale) = match value.abs() {
        at if at >= 1e9 => (1e9, giga),
        at if at >= 1e6 => (1e6, mega),
        at if at >= thousands => (1e3, kilo),
        _ => (1.0, one),
    };
    let name = if matches!(unit, "ns" | "bytes") { String::new() } else { safe(unit) };
    let words = [digits(value / divisor), scale.to_owned(), name];
    words.iter().filter(|word| !word.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_is_told_in_units_that_fit() {
        let told = |unit: &str, slope, per_request| {
            let per_request = Some(per_request);
            slope_of(&Growth { unit: unit.to_owned(), slope, per_second: slope, per_request, r2: 0.99 })
        };
        assert_eq!(told("ns", 34_833.0, 559.4), "+2.09 ms a minute (r² 0.99), 559 ns a request");
        assert_eq!(told("bytes", 1_693_000.0, 4232.0), "+102 MB a minute (r² 0.99), 4.23 kB a request");
        assert_eq!(told("handles", 400.0, 1.0), "+24.0 k handles a minute (r² 0.99), 1.00 handles a request");
        assert_eq!(told("timers", 20.0, 0.5), "+1200 timers a minute (r² 0.99), 0.50 timers a request");
    }
}
