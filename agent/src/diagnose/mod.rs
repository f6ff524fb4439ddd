//! What is wrong: pure rules over a history of windows.
//!
//! A rule sees what a reader of the records sees, so that a trace that was saved can be diagnosed again. Leaks and creeping costs are ratios
//! and trends: no rule looks at one window alone, each wants a growth that goes on to the end, and divides it by the requests served.

mod cost;
mod counts;
pub mod history;
mod js_heap;
mod native;
mod objects;
pub mod postgres;
mod sites;
#[cfg(test)]
mod tests;
mod thresholds;
mod trend;

pub use history::History;
pub use native::rest as native_rest;
pub use thresholds::{Thresholds, UnknownThreshold};

use crate::report::{
    Body, ClusterSummary, Record,
    model::{Finding, SCHEMA_VERSION},
};

/// Follows the records of a trace, and makes lines of what is wrong as it ends.
#[derive(Debug, Default)]
pub struct Diagnosis {
    thresholds: Thresholds,
    history: History,
    /// The records hold findings already: they were diagnosed when they were made.
    has_findings: bool,
}

impl Diagnosis {
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, ..Self::default() }
    }

    /// Takes a record in; the lines that belong before it.
    pub fn before(&mut self, record: &Record) -> Vec<Record> {
        self.has_findings |= matches!(record.body, Body::Finding(_));
        if !matches!(record.body, Body::End(_)) {
            self.history.add(record);
            return Vec::new();
        }
        if self.has_findings { Vec::new() } else { self.findings(&record.time) }
    }

    /// A process has gone, and nobody will ask what was wrong with it.
    pub fn forget(&mut self, pid: u32) {
        self.history.forget(pid);
    }

    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// What is wrong by now, worst first.
    #[must_use]
    pub fn findings(&self, now: &str) -> Vec<Record> {
        let of_process = |(pid, process)| {
            let clusters = |cluster| self.history.cluster(cluster);
            let findings = process_findings(process, clusters, &self.thresholds);
            findings.into_iter().map(move |finding| (pid, finding))
        };
        let of_cluster = |(pid, cluster)| {
            let findings = postgres::lock_findings(cluster, &self.thresholds);
            findings.into_iter().map(move |finding| (pid, finding))
        };
        let mut found: Vec<(u32, Finding)> = self.history.processes().flat_map(of_process).collect();
        found.extend(self.history.clusters().flat_map(of_cluster));
        found.sort_by(|(_, a), (_, b)| {
            b.severity.cmp(&a.severity).then(b.confidence.total_cmp(&a.confidence)).then(a.code.cmp(&b.code))
        });
        let line = |(pid, finding)| Record {
            schema_version: SCHEMA_VERSION,
            time: now.to_owned(),
            pid,
            body: Body::Finding(Box::new(finding)),
        };
        found.into_iter().map(line).collect()
    }
}

/// Every rule. What has a cause that was found is evidence of that, not a finding of its own.
fn process_findings<'a>(
    process: &history::Process,
    cluster: impl Fn(u32) -> Option<&'a ClusterSummary>,
    thresholds: &Thresholds,
) -> Vec<Finding> {
    let mut causes: Vec<Finding> = Vec::new();
    causes.extend(counts::global_handles(process, thresholds));
    causes.extend(counts::scope_handles(process, thresholds));
    if let Some(mut opened) = counts::loop_handles(process, thresholds) {
        // What Node.js wraps a handle in is held by a global one: of that, only the maker is news.
        if let Some(at) = causes.iter().position(|cause| wraps(cause, &opened)) {
            let mut wrapper = causes.swap_remove(at);
            opened.evidence.extend(wrapper.evidence.drain(..).filter(|line| line.stack.is_some()));
            opened.next.splice(0..0, wrapper.next.into_iter().take(usize::from(opened.evidence.len() > 1)));
        }
        causes.push(opened);
    }
    let js_heap = js_heap::rule(process, thresholds);
    let native = native::rule(process, thresholds);
    for effect in js_heap.into_iter().chain(native) {
        match causes.iter_mut().find(|cause| explains(cause, &effect, thresholds)) {
            Some(cause) => cause.evidence.push(as_evidence(&effect)),
            None => causes.push(effect),
        }
    }
    causes.extend(cost::rule(process, thresholds));
    causes.extend(postgres::client_finding(process, cluster, thresholds));
    causes
}

/// No more than some global handles for each that was opened.
fn wraps(cause: &Finding, opened: &Finding) -> bool {
    const EACH: f64 = 4.0;
    let (Some(global), Some(opened)) = (&cause.growth, &opened.growth) else { return false };
    cause.code == "handles.global" && global.slope <= EACH * opened.slope
}

/// Things that stay keep memory: if there is no more of it for each than a thing may plausibly hold, that is where it goes.
fn explains(cause: &Finding, effect: &Finding, thresholds: &Thresholds) -> bool {
    let (Some(things), Some(bytes)) = (&cause.growth, &effect.growth) else { return false };
    cause.code.starts_with("handles.")
        && things.slope > 0.0
        && bytes.slope / things.slope < thresholds.bytes_held_by_a_handle
}

fn as_evidence(effect: &Finding) -> crate::report::model::Evidence {
    let mut line = crate::report::model::Evidence::line(format!("with them: {}", effect.title));
    if let Some(growth) = &effect.growth {
        line.value = Some(growth.slope);
        line.unit = Some(format!("{}/s", growth.unit));
    }
    line
}
