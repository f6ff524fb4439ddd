//! The report for a tired person.

use crate::report::{Record, summary::Summary};

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
    let _ = (summary, style);
    String::new()
}

/// One line about a window record, for a terminal; `None` for records of other types.
#[must_use]
pub fn live_line(record: &Record, style: Style) -> Option<String> {
    let _ = (record, style);
    None
}
