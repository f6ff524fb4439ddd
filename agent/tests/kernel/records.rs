//! The agent's records as a reader of the published format sees them: by JSON key, not by the agent's own types.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A value at a path of keys; panics with the record if it is not there.
#[track_caller]
pub fn get<'a>(record: &'a Value, key: &str) -> &'a Value {
    record.get(key).unwrap_or_else(|| panic!("no `{key}` in {record}"))
}

#[track_caller]
pub fn number(record: &Value, key: &str) -> f64 {
    get(record, key).as_f64().unwrap_or_else(|| panic!("`{key}` is no number in {record}"))
}

#[track_caller]
pub fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    get(record, key).as_str().unwrap_or_else(|| panic!("`{key}` is no string in {record}"))
}

#[track_caller]
pub fn list<'a>(record: &'a Value, key: &str) -> &'a [Value] {
    get(record, key).as_array().unwrap_or_else(|| panic!("`{key}` is no list in {record}"))
}

/// `CLOCK_REALTIME - CLOCK_MONOTONIC`, from the pair of reads that lie closest together.
fn clock_offset() -> i128 {
    let read = |clock| {
        let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `at` is a timespec that outlives the call.
        assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut at) }, 0);
        i128::from(at.tv_sec) * 1_000_000_000 + i128::from(at.tv_nsec)
    };
    (0..16)
        .map(|_| {
            let (before, wall, after) =
                (read(libc::CLOCK_MONOTONIC), read(libc::CLOCK_REALTIME), read(libc::CLOCK_MONOTONIC));
            (after - before, wall - i128::midpoint(before, after))
        })
        .min()
        .unwrap()
        .1
}

/// A trace's lines, in order.
pub struct Records {
    pub lines: Vec<Value>,
    /// Wall time less the target's clock.
    clock_offset: i128,
}

/// `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub start: f64,
    pub end: f64,
}

impl Span {
    pub fn length(self) -> f64 {
        self.end - self.start
    }

    pub fn holds(self, at: f64) -> bool {
        (self.start..self.end).contains(&at)
    }

    /// How much of the stretch from `start` to `end` lies inside.
    pub fn overlap(self, start: f64, end: f64) -> f64 {
        (end.min(self.end) - start.max(self.start)).max(0.0)
    }
}

impl Records {
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect();
        Self { lines, clock_offset: clock_offset() }
    }

    /// A record's RFC 3339 time as `CLOCK_MONOTONIC` nanoseconds.
    #[track_caller]
    pub fn monotonic(&self, record: &Value, key: &str) -> f64 {
        let at = text(record, key);
        let wall = OffsetDateTime::parse(at, &Rfc3339).unwrap_or_else(|error| panic!("{at}: {error}"));
        (wall.unix_timestamp_nanos() - self.clock_offset) as f64
    }

    pub fn of_type<'a>(&'a self, kind: &str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |record| text(record, "type") == kind)
    }

    #[track_caller]
    pub fn one(&self, kind: &str) -> &Value {
        let mut found = self.of_type(kind);
        let record = found.next().unwrap_or_else(|| panic!("no {kind} record among {}", self.lines.len()));
        assert!(found.next().is_none(), "more than one {kind} record");
        record
    }

    /// The target as it was first seen; an exec brings another record of it.
    #[track_caller]
    pub fn target(&self) -> &Value {
        self.of_type("target").next().expect("a target record")
    }

    /// From the beginning of the trace to the end of its last window.
    #[track_caller]
    pub fn span(&self) -> Span {
        let start = self.monotonic(self.target(), "trace_start_time");
        let end = self.of_type("window").map(|window| self.monotonic(window, "time")).fold(0.0, f64::max);
        assert!(end > start, "no windows");
        Span { start, end }
    }

    /// Every window's entry of one loop thread, by role (`main`, `worker`).
    #[track_caller]
    pub fn loop_windows(&self, role: &str) -> Vec<&Value> {
        let found: Vec<_> = self
            .of_type("window")
            .flat_map(|window| list(window, "loops"))
            .filter(|entry| text(entry, "role") == role)
            .collect();
        assert!(!found.is_empty(), "no {role} loop in {:?}", self.of_type("window").next());
        let tid = number(found[0], "tid");
        assert!(found.iter().all(|entry| number(entry, "tid") == tid), "more than one {role} loop");
        found
    }

    /// Every window's entry of a thread, loop or not, by tid.
    pub fn threads(&self) -> BTreeMap<u32, Vec<&Value>> {
        let mut by_tid: BTreeMap<u32, Vec<&Value>> = BTreeMap::new();
        for window in self.of_type("window") {
            for entry in list(window, "loops").iter().chain(list(window, "threads")) {
                by_tid.entry(number(entry, "tid") as u32).or_default().push(entry);
            }
        }
        by_tid
    }
}

/// A key's sum over records.
#[track_caller]
pub fn sum(records: &[&Value], key: &str) -> f64 {
    records.iter().map(|record| number(record, key)).sum()
}

/// The books of a ledger close: parts add up to the wall time within 1 %, and so they say themselves.
#[track_caller]
pub fn assert_closed(claim: &str, entries: &[&Value]) {
    let wall = sum(entries, "wall_ns");
    let parts: f64 =
        ["idle_ns", "on_cpu_ns", "blocked_ns", "runnable_ns", "stopped_ns"].iter().map(|key| sum(entries, key)).sum();
    crate::harness::close(&format!("{claim}: parts of wall time (%)"), 100.0, parts / wall * 100.0, 1.0);
    let unaccounted = sum(entries, "unaccounted_ns");
    assert!((wall - parts - unaccounted).abs() < 1e3, "unaccounted {unaccounted} is not {wall} - {parts}");
}

/// A histogram, merged over windows: bucket `i` of scale `s` holds `(2^(i / 2^s), 2^((i + 1) / 2^s)]`.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    pub count: f64,
    pub sum: f64,
    pub max: f64,
    zeros: f64,
    buckets: BTreeMap<u64, f64>,
    scale: f64,
}

impl Histogram {
    #[track_caller]
    pub fn merged<'a>(histograms: impl IntoIterator<Item = &'a Value>) -> Self {
        let mut merged = Self::default();
        for histogram in histograms {
            merged.scale = number(histogram, "scale");
            merged.count += number(histogram, "count");
            merged.sum += number(histogram, "sum_ns");
            merged.max = merged.max.max(number(histogram, "max_ns"));
            merged.zeros += number(histogram, "zeros");
            for bucket in list(histogram, "buckets") {
                *merged.buckets.entry(bucket[0].as_u64().unwrap()).or_default() += bucket[1].as_f64().unwrap();
            }
        }
        merged
    }

    /// Geometric middle of each bucket, with its count, from the lowest.
    pub fn values(&self) -> impl Iterator<Item = (f64, f64)> {
        let zeros = (self.zeros > 0.0).then_some((0.0, self.zeros));
        let per_octave = self.scale.exp2();
        zeros
            .into_iter()
            .chain(self.buckets.iter().map(move |(&index, &count)| (((index as f64 + 0.5) / per_octave).exp2(), count)))
    }

    pub fn quantile(&self, q: f64) -> f64 {
        let rank = (self.count * q).ceil().max(1.0);
        let mut seen = 0.0;
        for (value, count) in self.values() {
            seen += count;
            if seen >= rank {
                return value.min(self.max);
            }
        }
        self.max
    }
}
