//! What is wrong with a process: the lines of `agent diagnose`.

use serde::{Deserialize, Serialize};

use super::StackId;

/// Something is wrong, with the evidence for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, dotted: `memory.global_handles`. What programs filter by.
    pub code: String,
    pub severity: Severity,
    /// 0 to 1: how sure the rule is that this is no coincidence.
    pub confidence: f64,
    /// One sentence.
    pub title: String,
    /// Since when, as far as it was seen: RFC 3339.
    pub since: String,
    /// What grows, and how fast; absent where nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub growth: Option<Growth>,
    /// The most telling first.
    pub evidence: Vec<Evidence>,
    /// What to do next, one step a line.
    pub next: Vec<String>,
}

/// The worst last, so that they order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    #[default]
    Info,
    Warning,
    Critical,
}

/// A trend over the windows of the observation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// What is counted: `bytes`, `handles`, `ns`.
    pub unit: String,
    /// The slope of a line through the windows, in units a second; robust against outliers.
    pub slope: f64,
    /// What was gained over the whole observation, a second.
    pub per_second: f64,
    /// The same for each request that the process served; absent where none were seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_request: Option<f64>,
    /// Share of the variation that the line explains: 1 is a straight line.
    pub r2: f64,
}

/// One line of evidence, with its figure and its stack where it has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The line of type `stack` that names its frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackId>,
}

impl Evidence {
    /// A line without a figure.
    #[must_use]
    pub fn line(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}
