//! Records as Prometheus has them: series that go on, by process, until it ends.
//!
//! Histograms are of fixed bounds here, so that they add up over any fleet; a value goes where the middle of its bucket of ours lies,
//! which is at most 0.55 % from it. There are at most [`SERIES_MAX`] series, however many processes and threads come: what has no room is
//! counted, and old series go with their process or thread.

mod put;

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    aggregate::histogram::{Histogram, middle},
    report::{
        Body, Record,
        model::{Process, Target},
    },
};

/// Lines of the exposition, those of histograms one by one: about two megabytes.
pub const SERIES_MAX: usize = 20_000;

/// Processes whose labels are kept.
const TARGETS_MAX: usize = 4096;

/// Upper bounds, in nanoseconds and as Prometheus writes them.
const BOUNDS: [(u64, &str); 16] = [
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
];

/// With `+Inf`, sum and count.
const HISTOGRAM_LINES: usize = BOUNDS.len() + 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A name, and what it means.
#[derive(Clone, Copy, Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
}

#[derive(Debug)]
struct Family {
    metric: Metric,
    /// By labels, as they are written.
    series: BTreeMap<String, Series>,
}

#[derive(Debug)]
struct Series {
    whose: Whose,
    value: Value,
}

/// With whom a series goes; 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Whose {
    pid: u32,
    tid: u32,
}

#[derive(Debug)]
enum Value {
    Number(f64),
    Histogram(Box<Bounded>),
}

/// Counts by bound, not cumulative; the last is beyond all bounds.
#[derive(Debug, Default)]
struct Bounded {
    counts: [u64; BOUNDS.len() + 1],
    sum_ns: u64,
}

/// All series.
#[derive(Debug, Default)]
pub struct Registry {
    families: BTreeMap<&'static str, Family>,
    lines: usize,
    /// Values for which there was no room.
    refused: u64,
    targets: BTreeMap<u32, Vec<(&'static str, String)>>,
    /// Processes and threads that have ended in this window, the last figures of which come at its end.
    ended: Vec<Whose>,
}

impl Registry {
    pub fn record(&mut self, record: &Record) {
        match &record.body {
            Body::Target(target) => self.begin(record.pid, target),
            Body::Process(Process::Exit { .. } | Process::Gone) => self.ended.push(Whose { pid: record.pid, tid: 0 }),
            Body::Warning(warning) if warning.code == "postgres_gone" => {
                self.ended.push(Whose { pid: record.pid, tid: 0 });
            }
            Body::Process(Process::ThreadEnd { tid, .. }) => self.ended.push(Whose { pid: record.pid, tid: *tid }),
            body => put::put(self, record.pid, body),
        }
        // The last record of a window.
        if let Body::Agent(_) = record.body {
            self.sweep();
        }
    }

    /// Series go with who has ended.
    fn sweep(&mut self) {
        let ended = std::mem::take(&mut self.ended);
        if ended.is_empty() {
            return;
        }
        for whole in ended.iter().filter(|whose| whose.tid == 0) {
            self.targets.remove(&whole.pid);
        }
        self.retain(|whose| !ended.contains(&whose) && !ended.contains(&Whose { tid: 0, ..whose }));
    }

    fn begin(&mut self, pid: u32, target: &Target) {
        const SHOWN: [(&str, &str); 4] = [
            ("service", "service.name"),
            ("namespace", "k8s.namespace.name"),
            ("pod", "k8s.pod.name"),
            ("container", "k8s.container.name"),
        ];
        // Under the same number, but another one.
        if self.ended.contains(&Whose { pid, tid: 0 }) {
            self.ended.retain(|whose| whose.pid != pid);
            self.retain(|whose| whose.pid != pid);
        }
        if self.targets.len() < TARGETS_MAX {
            let label = |(label, key): (&'static str, &str)| Some((label, target.resource.get(key)?.clone()));
            self.targets.insert(pid, SHOWN.into_iter().filter_map(label).collect());
        }
    }

    fn retain(&mut self, keep: impl Fn(Whose) -> bool) {
        for family in self.families.values_mut() {
            family.series.retain(|_, series| keep(series.whose));
        }
        self.families.retain(|_, family| !family.series.is_empty());
        self.lines = self.families.values().map(|family| family.series.len() * lines(family.metric.kind)).sum();
    }

    /// The labels of a process, and more of them.
    fn labels(&self, pid: u32, more: &[(&str, &str)]) -> String {
        let mut text = String::new();
        let pid_text = pid.to_string();
        let of_pid = (pid != 0).then_some(("pid", pid_text.as_str()));
        let of_target = self.targets.get(&pid).into_iter().flatten().map(|(key, value)| (*key, value.as_str()));
        for (key, value) in of_pid.into_iter().chain(of_target).chain(more.iter().copied()) {
            text.push_str(if text.is_empty() { "" } else { "," });
            text.push_str(key);
            text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        text
    }

    fn series(&mut self, metric: Metric, whose: Whose, labels: String) -> Option<&mut Value> {
        let family = self.families.entry(metric.name).or_insert_with(|| Family { metric, series: BTreeMap::new() });
        if !family.series.contains_key(&labels) {
            if self.lines + lines(metric.kind) > SERIES_MAX {
                self.refused += 1;
                return None;
            }
            self.lines += lines(metric.kind);
        }
        let series = family.series.entry(labels).or_insert_with(|| Series {
            whose,
            value: match metric.kind {
                Kind::Counter | Kind::Gauge => Value::Number(0.0),
                Kind::Histogram => Value::Histogram(Box::default()),
            },
        });
        Some(&mut series.value)
    }

    fn set(&mut self, metric: Metric, whose: Whose, labels: String, value: f64) {
        if let Some(Value::Number(number)) = self.series(metric, whose, labels) {
            *number = value;
        }
    }

    fn add(&mut self, metric: Metric, whose: Whose, labels: String, value: f64) {
        if let Some(Value::Number(number)) = self.series(metric, whose, labels) {
            *number += value;
        }
    }

    /// As [`Self::set`], where it is more than before.
    fn raise(&mut self, metric: Metric, whose: Whose, labels: String, value: f64) {
        if let Some(Value::Number(number)) = self.series(metric, whose, labels) {
            *number = number.max(value);
        }
    }

    /// Takes a metric's series of a process away.
    fn forget(&mut self, metric: Metric, pid: u32) {
        if let Some(family) = self.families.get_mut(metric.name) {
            let before = family.series.len();
            family.series.retain(|_, series| series.whose.pid != pid);
            self.lines -= (before - family.series.len()) * lines(metric.kind);
            if family.series.is_empty() {
                self.families.remove(metric.name);
            }
        }
    }

    fn merge(&mut self, metric: Metric, whose: Whose, labels: String, histogram: &Histogram) {
        if histogram.is_empty() {
            return;
        }
        if let Some(Value::Histogram(bounded)) = self.series(metric, whose, labels) {
            bounded.merge(histogram);
        }
    }

    /// The exposition, in Prometheus's text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(self.lines * 100);
        for family in self.families.values() {
            let Metric { name, help, kind } = family.metric;
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
            for (labels, series) in &family.series {
                match &series.value {
                    Value::Number(number) if labels.is_empty() => {
                        let _ = writeln!(text, "{name} {number}");
                    }
                    Value::Number(number) => {
                        let _ = writeln!(text, "{name}{{{labels}}} {number}");
                    }
                    Value::Histogram(bounded) => bounded.write(&mut text, name, labels),
                }
            }
        }
        for (name, kind, help, value) in [
            ("agent_series", "gauge", "Series that are shown here, lines of histograms one by one.", self.lines as u64),
            (
                "agent_series_refused_total",
                "counter",
                "Values for which there was no room among the series.",
                self.refused,
            ),
        ] {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

const fn lines(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram => HISTOGRAM_LINES,
    }
}

impl Bounded {
    fn merge(&mut self, histogram: &Histogram) {
        self.sum_ns = self.sum_ns.saturating_add(histogram.sum());
        let zeros = (0, histogram.parts().zeros);
        for (value, n) in histogram.buckets().map(|(bucket, n)| (middle(bucket), n)).chain([zeros]) {
            let at = BOUNDS.iter().position(|(bound, _)| value <= *bound).unwrap_or(BOUNDS.len());
            if let Some(count) = self.counts.get_mut(at) {
                *count = count.saturating_add(n);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "beyond 104 days nobody counts nanoseconds")]
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        let mut total = 0u64;
        for (bound, n) in bounds.zip(self.counts) {
            total = total.saturating_add(n);
            let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
        }
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(text, "{name}_sum{labels} {}\n{name}_count{labels} {total}", self.sum_ns as f64 / 1e9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::model::{
        LoopWindow, PgLock, PgLockName, PgWaitEvent, PgWindow, SCHEMA_VERSION, Warning, Window,
    };

    fn window(pid: u32, tids: std::ops::Range<u32>) -> Record {
        let turned = |tid| {
            let mut turned = LoopWindow { tid, turns: 3, ..LoopWindow::default() };
            turned.delay.record(2_000_000);
            turned
        };
        let body = Body::Window(Box::new(Window { loops: tids.map(turned).collect(), ..Window::default() }));
        Record { schema_version: SCHEMA_VERSION, time: String::new(), pid, body }
    }

    fn end_of_window() -> Record {
        Record { body: Body::Agent(Box::default()), ..window(0, 0..0) }
    }

    #[track_caller]
    fn assert_nobody(registry: &Registry) {
        let text = registry.text();
        assert!(!text.contains("pid=\""), "{text}");
        assert!(registry.families.values().all(|family| family.metric.name.starts_with("agent_")), "{text}");
    }

    #[test]
    fn figures_add_up_and_go_with_their_process() {
        let mut registry = Registry::default();
        registry.record(&window(7, 1..2));
        registry.record(&window(7, 1..2));
        let text = registry.text();
        assert!(text.contains("nodejs_eventloop_turns_total{pid=\"7\",thread_id=\"1\"} 6\n"), "{text}");
        let delay = |le| format!("nodejs_eventloop_delay_seconds_bucket{{pid=\"7\",thread_id=\"1\",le=\"{le}\"}}");
        assert!(text.contains(&format!("{} 0\n", delay("0.001"))), "{text}");
        assert!(text.contains(&format!("{} 2\n", delay("0.0025"))), "{text}");
        registry.record(&Record { body: Body::Process(Process::Gone), ..window(7, 0..0) });
        // Its last window is closed after its end.
        registry.record(&window(7, 1..2));
        assert!(registry.text().contains("nodejs_eventloop_turns_total{pid=\"7\",thread_id=\"1\"} 9\n"));
        registry.record(&end_of_window());
        assert_nobody(&registry);
    }

    #[test]
    fn figures_of_a_thread_go_with_it_and_those_of_another_process_of_that_number_begin_anew() {
        let mut registry = Registry::default();
        registry.record(&window(7, 1..3));
        let ended = |body| Record { body: Body::Process(body), ..window(7, 0..0) };
        registry.record(&ended(Process::ThreadEnd { tid: 2, name: "w".into() }));
        registry.record(&window(7, 1..3));
        registry.record(&end_of_window());
        let text = registry.text();
        assert!(text.contains("thread_id=\"1\"} 6\n") && !text.contains("thread_id=\"2\""), "{text}");
        registry.record(&ended(Process::Gone));
        registry.record(&Record { body: Body::Target(Box::default()), ..window(7, 0..0) });
        registry.record(&window(7, 1..2));
        registry.record(&end_of_window());
        assert!(registry.text().contains("nodejs_eventloop_turns_total{pid=\"7\",thread_id=\"1\"} 3\n"));
    }

    #[test]
    fn there_is_a_bound_and_what_is_beyond_it_is_counted() {
        let mut registry = Registry::default();
        for pid in 1..2000 {
            registry.record(&window(pid, 0..3));
        }
        assert!(registry.lines <= SERIES_MAX && registry.refused > 0);
        assert!(registry.text().len() < 4 << 20);
        for pid in 1..2000 {
            registry.record(&Record { body: Body::Process(Process::Gone), ..window(pid, 0..0) });
        }
        registry.record(&end_of_window());
        assert_nobody(&registry);
    }

    #[test]
    fn the_oldest_wait_goes_with_those_who_wait() {
        let mut registry = Registry::default();
        let record = |body| Record { body, ..window(7, 0..0) };
        let event = |oldest| PgWaitEvent {
            class: "LWLock".into(),
            event: "WALWrite".into(),
            time_ns: 500_000_000,
            oldest_wait_ns: oldest,
            ..PgWaitEvent::default()
        };
        let of_cluster = |oldest: Option<u64>| {
            let oldest_wait_ns = oldest.map(|ns| ("tuple".to_owned(), ns)).into_iter().collect();
            let window = PgWindow { oldest_wait_ns, wait_events: vec![event(oldest)], ..PgWindow::default() };
            record(Body::PgWindow(Box::new(window)))
        };
        let lock = |ns| {
            let name =
                PgLockName { locktype: "tuple".into(), relation: Some(9), database: Some(5), ..PgLockName::default() };
            record(Body::PgLock(Box::new(PgLock { lock: name, oldest_wait_ns: ns, ..PgLock::default() })))
        };
        registry.record(&of_cluster(Some(2_000_000_000)));
        registry.record(&lock(2_000_000_000));
        registry.record(&lock(1_000_000_000));
        let text = registry.text();
        for line in [
            "postgresql_lock_oldest_wait_seconds{pid=\"7\",locktype=\"tuple\"} 2\n",
            "postgresql_relation_oldest_wait_seconds{pid=\"7\",relation=\"5.9\"} 2\n",
            "postgresql_oldest_wait_seconds{pid=\"7\",class=\"LWLock\",event=\"WALWrite\"} 2\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        registry.record(&of_cluster(None));
        let text = registry.text();
        assert!(!text.contains("oldest"), "{text}");
        assert!(text.contains("postgresql_wait_time_seconds_total{pid=\"7\",class=\"LWLock\",event=\"WALWrite\"} 1\n"));
        let warning = Warning { code: "postgres_gone".into(), message: String::new() };
        registry.record(&record(Body::Warning(warning)));
        registry.record(&end_of_window());
        assert_nobody(&registry);
    }

    #[test]
    fn labels_cannot_break_out() {
        let mut registry = Registry::default();
        let resource = [("service.name".to_owned(), "a\"b\\c\nd".to_owned())].into();
        let target = Target { resource, ..Target::default() };
        registry.record(&Record { body: Body::Target(Box::new(target)), ..window(7, 0..0) });
        assert_eq!(registry.labels(7, &[]), r#"pid="7",service="a\"b\\c\nd""#);
    }
}
