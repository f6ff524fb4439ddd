//! What the rules look at: the windows of each process, bounded.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    limits::{HISTORY_STACKS_MAX, HISTORY_WINDOWS_MAX, PROFILE_KEPT_MAX, TARGETS_MAX},
    report::{
        Body, ClusterSummary, Record,
        model::{
            LedgerPart, Memory, PgClient, Profile, Role, SCHEMA_VERSION, Stack, StackId, Target, Window, WorkKind,
        },
        summary::Summary,
    },
};

/// All processes.
#[derive(Debug, Default)]
pub struct History {
    processes: BTreeMap<u32, Process>,
    /// PostgreSQL's, by postmaster.
    clusters: BTreeMap<u32, ClusterSummary>,
}

/// One process.
#[derive(Debug, Default)]
pub struct Process {
    pub windows: VecDeque<Point>,
    pub stacks: BTreeMap<StackId, Stack>,
    pub wall_s: f64,
    target: Option<Box<Target>>,
    /// Its connections that waited for locks of PostgreSQL.
    pub postgres: Connections,
    /// Read just before the window that it belongs to ends.
    memory: Option<Memory>,
}

/// How a process's connections to PostgreSQL fared, a window each.
#[derive(Debug, Default)]
pub struct Connections {
    /// The line with the most waiting, and of those the one in which they had waited longest.
    pub worst: Option<PgClient>,
    /// When a connection was first seen to wait, and the last line.
    pub since: String,
    pub last: Option<PgClient>,
}

impl Connections {
    fn add(&mut self, time: &str, client: &PgClient) {
        let weight = |client: &PgClient| {
            (client.waiting, client.locks.iter().map(|lock| lock.oldest_wait_ns).max().unwrap_or(0))
        };
        if client.waiting > 0 {
            if self.since.is_empty() {
                time.clone_into(&mut self.since);
            }
            if self.worst.as_ref().is_none_or(|worst| weight(client) >= weight(worst)) {
                self.worst = Some(client.clone());
            }
        }
        self.last = Some(client.clone());
    }
}

/// Of a window, what has to be seen to stand for all of it.
const SEEN_LEAST: f64 = 0.1;

/// One window.
#[derive(Debug, Default)]
pub struct Point {
    /// Its end, in seconds since the first began.
    pub at_s: f64,
    pub time: String,
    pub length_s: f64,
    /// Requests served; where they were watched for a part of the window, from that part. `None` where they were not.
    pub requests: Option<f64>,
    pub memory: Option<Memory>,
    /// On CPU, of all event loops.
    pub on_cpu_ns: f64,
    /// Idle, and in all.
    pub idle_ns: f64,
    pub loops_ns: f64,
    /// Finished items of the thread pool; where it was watched for a part of the window, from that part. `None` where it was not.
    pub pool: Option<BTreeMap<(WorkKind, String), f64>>,
    /// Samples, most first.
    pub profile: Profile,
}

impl History {
    pub fn add(&mut self, record: &Record) {
        let is_known = self.processes.contains_key(&record.pid) || self.clusters.contains_key(&record.pid);
        if record.pid == 0 || !is_known && self.processes.len().saturating_add(self.clusters.len()) >= TARGETS_MAX {
            return;
        }
        match &record.body {
            Body::Window(window) => self.process(record.pid).window(&record.time, window),
            Body::Memory(memory) => self.process(record.pid).memory = Some((**memory).clone()),
            Body::Profile(profile) => self.process(record.pid).profile(profile),
            Body::Stack(stack) => {
                let process = self.process(record.pid);
                if process.stacks.len() < HISTORY_STACKS_MAX {
                    process.stacks.insert(stack.id, stack.clone());
                }
            }
            Body::PgCluster(_) | Body::PgWindow(_) | Body::PgLock(_) | Body::PgDeadlock(_) => {
                self.clusters.entry(record.pid).or_default().add(&record.time, &record.body);
            }
            Body::PgClient(client) => self.process(record.pid).postgres.add(&record.time, client),
            Body::Target(target) => self.process(record.pid).target = Some(target.clone()),
            Body::SlowTurn(_)
            | Body::GcPause(_)
            | Body::HeapLimit(_)
            | Body::OffCpu(_)
            | Body::Process(_)
            | Body::Finding(_)
            | Body::Warning(_)
            | Body::Agent(_)
            | Body::End(_) => {}
        }
    }

    /// What was sampled in the first and in the last third, of all processes, with the requests that were served meanwhile.
    #[must_use]
    pub fn thirds(&self) -> [(Summary, f64); 2] {
        let third = |is_last: bool| {
            let mut summary = Summary::default();
            let requests = self.processes.iter().map(|(pid, process)| {
                let size = process.windows.len().div_ceil(3);
                let skipped = if is_last { process.windows.len() - size } else { 0 };
                process.add_to(&mut summary, *pid, process.windows.iter().skip(skipped).take(size))
            });
            let requests = requests.sum();
            (summary, requests)
        };
        [third(false), third(true)]
    }

    pub fn forget(&mut self, pid: u32) {
        self.processes.remove(&pid);
        self.clusters.remove(&pid);
    }

    fn process(&mut self, pid: u32) -> &mut Process {
        self.processes.entry(pid).or_default()
    }

    pub fn clusters(&self) -> impl Iterator<Item = (u32, &ClusterSummary)> {
        self.clusters.iter().map(|(pid, cluster)| (*pid, cluster))
    }

    #[must_use]
    pub fn cluster(&self, pid: u32) -> Option<&ClusterSummary> {
        self.clusters.get(&pid)
    }

    pub fn processes(&self) -> impl Iterator<Item = (u32, &Process)> {
        self.processes.iter().map(|(pid, process)| (*pid, process))
    }
}

/// Wall time of a loop's thread but for what nobody knows of.
#[expect(clippy::cast_precision_loss, reason = "a figure for trends")]
fn accounted_ns(ledger: &LedgerPart) -> f64 {
    ledger.wall_ns as f64 - ledger.unaccounted_ns.max(0) as f64
}

/// Its time on CPU, scaled up from the time that is accounted for.
#[expect(clippy::cast_precision_loss, reason = "a figure for trends")]
fn on_cpu_ns(ledger: &LedgerPart) -> f64 {
    let accounted_ns = accounted_ns(ledger);
    if accounted_ns > 0.0 { ledger.on_cpu_ns as f64 * ledger.wall_ns as f64 / accounted_ns } else { 0.0 }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for trends, and the lengths of windows"
)]
impl Process {
    fn window(&mut self, time: &str, window: &Window) {
        let length_s = window.duration_ns as f64 / 1e9;
        self.wall_s += length_s;
        let memory = self.memory.take();
        // What is left between the last tick and the end says little, but what was counted then says much.
        if length_s < 0.05 {
            let before = self.windows.back_mut().and_then(|point| point.memory.as_mut());
            if let (Some(before), Some(census)) = (before, memory.and_then(|memory| memory.census)) {
                before.census = Some(census);
            }
            return;
        }
        let counted: u64 = window.loops.iter().map(|of_loop| of_loop.requests).sum();
        let seen_s = window.requests_seen_ns as f64 / 1e9;
        let requests = (seen_s > SEEN_LEAST * length_s).then(|| counted as f64 * length_s / seen_s);
        let loops = window.loops.iter().filter(|of_loop| matches!(of_loop.role, Role::Main | Role::Worker));
        let pool = window.thread_pool.iter().flat_map(|pool| &pool.work);
        let pool_seen_s = window.pool_seen_ns.unwrap_or(window.duration_ns) as f64 / 1e9;
        let scaled = |count: u64| count as f64 * length_s / pool_seen_s;
        let pool = pool.map(|work| ((work.kind, work.operation.clone()), scaled(work.count))).collect();
        let point = Point {
            at_s: self.wall_s,
            time: time.to_owned(),
            length_s,
            requests,
            memory,
            idle_ns: loops.clone().map(|of_loop| of_loop.ledger.idle_ns as f64).sum(),
            loops_ns: loops.clone().map(|of_loop| accounted_ns(&of_loop.ledger)).sum(),
            on_cpu_ns: loops.clone().map(|of_loop| on_cpu_ns(&of_loop.ledger)).sum(),
            pool: (pool_seen_s > SEEN_LEAST * length_s).then_some(pool),
            profile: Profile::default(),
        };
        if self.windows.len() == HISTORY_WINDOWS_MAX {
            self.windows.pop_front();
        }
        self.windows.push_back(point);
    }

    fn profile(&mut self, profile: &Profile) {
        let Some(point) = self.windows.back_mut() else { return };
        point.profile = Profile {
            period_ns: profile.period_ns,
            stacks: profile.stacks.iter().take(PROFILE_KEPT_MAX).cloned().collect(),
            ..Profile::default()
        };
    }

    /// Adds what was sampled in some windows; the requests that were served in them.
    fn add_to<'a>(&self, summary: &mut Summary, pid: u32, points: impl Iterator<Item = &'a Point>) -> f64 {
        let mut add = |time: &str, body: Body| {
            summary.add(&Record { schema_version: SCHEMA_VERSION, time: time.to_owned(), pid, body });
        };
        if let Some(target) = &self.target {
            add("", Body::Target(target.clone()));
        }
        let mut requests = 0.0;
        for point in points {
            requests += point.requests.unwrap_or(0.0);
            let mut profile = point.profile.clone();
            profile.duration_ns = (point.length_s * 1e9).round() as u64;
            for id in profile.stacks.iter().flat_map(|stack| [stack.user_stack, stack.kernel_stack]).flatten() {
                if let Some(stack) = self.stacks.get(&id) {
                    add(&point.time, Body::Stack(stack.clone()));
                }
            }
            add(&point.time, Body::Profile(profile));
        }
        requests
    }

    /// A figure of each window that has it, by time.
    pub fn series(&self, figure: impl Fn(&Point) -> Option<f64>) -> Vec<(f64, f64)> {
        self.windows.iter().filter_map(|point| Some((point.at_s, figure(point)?))).collect()
    }

    /// Share of the time that its event loops had nothing to do, in the windows since connections were waiting; of all, where none were.
    #[must_use]
    pub fn idle_share(&self) -> Option<f64> {
        let since = self.postgres.since.as_str();
        let (idle_ns, loops_ns) = self
            .windows
            .iter()
            .filter(|point| point.time.as_str() >= since)
            .fold((0.0, 0.0), |(idle, all), point| (idle + point.idle_ns, all + point.loops_ns));
        (loops_ns > 0.0).then(|| idle_ns / loops_ns)
    }

    /// The same of its memory.
    pub fn memory_series(&self, figure: impl Fn(&Memory) -> Option<f64>) -> Vec<(f64, f64)> {
        self.series(|point| figure(point.memory.as_ref()?))
    }

    /// Requests between the first and the last window of a series; 0 where they were not counted throughout.
    #[must_use]
    pub fn requests_between(&self, series: &[(f64, f64)]) -> f64 {
        let (Some(first), Some(last)) = (series.first(), series.last()) else { return 0.0 };
        self.requests_from(first.0, last.0)
    }

    /// Requests from one second to another, of windows the share that lies between; 0 where they were not counted.
    #[must_use]
    pub fn requests_from(&self, from_s: f64, to_s: f64) -> f64 {
        let counted = self.windows.iter().filter_map(|point| {
            let inside_s = point.at_s.min(to_s) - (point.at_s - point.length_s).max(from_s);
            (inside_s > 0.0).then_some((point.requests? * inside_s / point.length_s, inside_s))
        });
        let (requests, seen_s) = counted.fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        // The time in which they were not watched, and what is after the last window, had as many as the rest.
        if seen_s > 0.0 { requests * (to_s - from_s) / seen_s } else { 0.0 }
    }

    /// When the first window of a series ended.
    #[must_use]
    pub fn since(&self, series: &[(f64, f64)]) -> String {
        let first = series.first().map_or(0.0, |point| point.0);
        self.windows.iter().find(|point| point.at_s >= first).map(|point| point.time.clone()).unwrap_or_default()
    }

    #[must_use]
    pub fn last_memory(&self) -> Option<&Memory> {
        self.windows.iter().rev().find_map(|point| point.memory.as_ref())
    }
}
