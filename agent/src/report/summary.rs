//! What the records of a trace add up to: the same sums from a live trace and from its file.
//!
//! Bounded as the core is: stacks and groups of time off CPU up to the core's own limits, slow turns and warnings up to a handful.

use std::collections::BTreeMap;

use super::{
    Body, ClusterSummary, Record,
    merge::{merge_cost, merge_gc, merge_ledger, merge_loop, merge_pool, merge_totals},
    model::{
        AgentCost, Class, End, Finding, Gc, GcType, HeapLimit, LedgerPart, LoopWindow, Memory, OffCpu, OffCpuTotals,
        OffReason, PgClient, Process, Profile, ProfileStack, ProfileThread, Role, SlowTurn, Stack, StackId, Target,
        ThreadPool, Warning, Window,
    },
};
use crate::{aggregate::histogram::Histogram, limits};

/// The sums of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    pub targets: BTreeMap<u32, TargetSummary>,
    /// PostgreSQL clusters by their postmasters.
    pub clusters: BTreeMap<u32, ClusterSummary>,
    /// Connections of processes to them, when most of them waited.
    pub pg_clients: BTreeMap<u32, PgClient>,
    pub stacks: BTreeMap<StackId, Stack>,
    /// Costs and losses; the agent's own lines only.
    pub agent: AgentCost,
    pub rss_bytes_max: u64,
    /// What is wrong, worst first, with the process; as many as [`FINDINGS_MAX`].
    pub findings: Vec<(u32, Finding)>,
    pub warnings: Vec<(String, u32, Warning)>,
    pub warnings_more: u64,
    /// Absent where the trace was cut short.
    pub end: Option<End>,
}

/// The sums of a process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TargetSummary {
    pub target: Option<Target>,
    pub windows: u64,
    pub duration_ns: u64,
    pub phases_seen_ns: u64,
    pub requests_seen_ns: u64,
    pub pool_seen_ns: u64,
    pub turns_seen_ns: u64,
    pub switches_seen_ns: u64,
    /// End of the last window.
    pub last_time: String,
    /// The main thread first.
    pub loops: BTreeMap<(Role, u32), LoopWindow>,
    /// All other threads, by role: how many, and their sums.
    pub threads: BTreeMap<Role, RoleSummary>,
    pub pool: Option<ThreadPool>,
    pub gc: BTreeMap<(u32, GcType), Gc>,
    pub run_queue: BTreeMap<Class, Histogram>,
    /// Longest first, with the time of their end.
    pub slow_turns: Vec<(String, SlowTurn)>,
    pub off_cpu: BTreeMap<OffCpuKey, OffCpuTotals>,
    pub off_cpu_other: OffCpuTotals,
    pub samples: BTreeMap<SampleKey, SampleTotals>,
    /// Samples whose stacks are not known.
    pub samples_other: u64,
    /// Time on CPU that a sample stands for.
    pub sample_period_ns: u64,
    /// The last look.
    pub memory: Option<Memory>,
    /// Length of the windows of a profile.
    pub profiled_ns: u64,
    /// Threads of a profile; those of a trace are in `loops` and `threads`.
    pub profiled: BTreeMap<u32, ProfileThread>,
    pub heap_limits: Vec<(String, HeapLimit)>,
    pub threads_started: u64,
    pub threads_ended: u64,
    /// Forks, execs and the end.
    pub life: Vec<(String, Process)>,
    pub life_more: u64,
}

/// Threads of one role together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoleSummary {
    pub ledger: LedgerPart,
    /// On CPU for the garbage collector.
    pub gc_ns: u64,
    pub tids: std::collections::BTreeSet<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OffCpuKey {
    pub tid: Option<u32>,
    pub class: Class,
    pub reason: OffReason,
    pub user_stack: Option<StackId>,
    pub kernel_stack: Option<StackId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SampleKey {
    pub tid: u32,
    pub class: Class,
    pub user_stack: Option<StackId>,
    pub kernel_stack: Option<StackId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleTotals {
    pub samples: u64,
    /// Of which: in garbage collection pauses.
    pub gc_samples: u64,
}

/// Slow turns, warnings, and other lines that are kept whole.
const KEPT_MAX: usize = 20;

/// Findings over all processes: a rule makes one a process and cause.
const FINDINGS_MAX: usize = 256;

impl Summary {
    pub fn from_records<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut summary = Self::default();
        for record in records {
            summary.add(record);
        }
        summary
    }

    pub fn add(&mut self, record: &Record) {
        let Record { schema_version: _, time, pid, body } = record;
        match body {
            Body::Agent(cost) => {
                self.rss_bytes_max = self.rss_bytes_max.max(cost.rss_bytes);
                merge_cost(&mut self.agent, cost);
            }
            Body::End(end) => self.end = Some(end.clone()),
            Body::Stack(stack) => {
                if self.stacks.len() < limits::STACKS_SHOWN_MAX {
                    self.stacks.insert(stack.id, stack.clone());
                }
            }
            Body::Finding(finding) => self.finding(*pid, finding),
            Body::Warning(warning) => {
                if self.warnings.len() < KEPT_MAX {
                    self.warnings.push((time.clone(), *pid, warning.clone()));
                } else {
                    self.warnings_more += 1;
                }
            }
            Body::PgClient(client) => {
                if self.pg_clients.len() < limits::TARGETS_MAX || self.pg_clients.contains_key(pid) {
                    let worst = self.pg_clients.entry(*pid).or_default();
                    if client.waiting >= worst.waiting {
                        *worst = client.as_ref().clone();
                    }
                }
            }
            Body::PgCluster(_) | Body::PgWindow(_) | Body::PgLock(_) | Body::PgDeadlock(_) => {
                if self.clusters.len() < limits::PG_CLUSTERS_MAX || self.clusters.contains_key(pid) {
                    self.clusters.entry(*pid).or_default().add(time, body);
                }
            }
            Body::Target(_)
            | Body::Window(_)
            | Body::SlowTurn(_)
            | Body::GcPause(_)
            | Body::HeapLimit(_)
            | Body::OffCpu(_)
            | Body::Profile(_)
            | Body::Memory(_)
            | Body::Process(_) => {
                if self.targets.len() < limits::TARGETS_MAX || self.targets.contains_key(pid) {
                    self.targets.entry(*pid).or_default().add(time, body);
                }
            }
        }
    }

    fn finding(&mut self, pid: u32, finding: &Finding) {
        let rank = |finding: &Finding| (finding.severity, (finding.confidence * 1e6).round().to_bits());
        let at = self.findings.partition_point(|(_, kept)| rank(kept) >= rank(finding));
        self.findings.insert(at, (pid, finding.clone()));
        self.findings.truncate(FINDINGS_MAX);
    }
}

impl TargetSummary {
    fn add(&mut self, time: &str, body: &Body) {
        match body {
            Body::Target(target) => self.target = Some(target.as_ref().clone()),
            Body::Window(window) => self.window(time, window),
            Body::SlowTurn(turn) => self.slow_turn(time, turn),
            Body::HeapLimit(limit) => {
                if self.heap_limits.len() < KEPT_MAX {
                    self.heap_limits.push((time.to_owned(), limit.clone()));
                }
            }
            Body::OffCpu(off_cpu) => self.off_cpu(off_cpu),
            Body::Profile(profile) => self.profile(profile),
            Body::Memory(memory) => self.memory = Some((**memory).clone()),
            Body::Process(process) => self.process(time, process),
            // The windows' histograms hold every pause.
            Body::GcPause(_)
            | Body::Stack(_)
            | Body::Finding(_)
            | Body::PgCluster(_)
            | Body::PgWindow(_)
            | Body::PgLock(_)
            | Body::PgDeadlock(_)
            | Body::PgClient(_)
            | Body::Warning(_)
            | Body::Agent(_)
            | Body::End(_) => {}
        }
    }

    fn window(&mut self, time: &str, window: &Window) {
        let Window {
            duration_ns,
            phases_seen_ns,
            requests_seen_ns,
            pool_seen_ns,
            turns_seen_ns,
            switches_seen_ns,
            loops,
            threads,
            thread_pool,
            gc,
            run_queue,
        } = window;
        self.windows += 1;
        self.duration_ns = self.duration_ns.saturating_add(*duration_ns);
        self.phases_seen_ns = self.phases_seen_ns.saturating_add(*phases_seen_ns);
        self.requests_seen_ns = self.requests_seen_ns.saturating_add(*requests_seen_ns);
        self.turns_seen_ns = self.turns_seen_ns.saturating_add(turns_seen_ns.unwrap_or(*duration_ns));
        self.switches_seen_ns = self.switches_seen_ns.saturating_add(switches_seen_ns.unwrap_or(*duration_ns));
        self.pool_seen_ns = self.pool_seen_ns.saturating_add(pool_seen_ns.unwrap_or(*duration_ns));
        time.clone_into(&mut self.last_time);
        for of_loop in loops {
            let key = (of_loop.role, of_loop.tid);
            if let Some(sum) = self.loops.get_mut(&key) {
                merge_loop(sum, of_loop);
            } else if self.loops.len() < limits::LOOPS_MAX {
                self.loops.insert(key, of_loop.clone());
            }
        }
        for thread in threads {
            let sum = self.threads.entry(thread.role).or_default();
            merge_ledger(&mut sum.ledger, &thread.ledger);
            sum.gc_ns = sum.gc_ns.saturating_add(thread.gc_ns);
            if sum.tids.len() < limits::THREADS_MAX {
                sum.tids.insert(thread.tid);
            }
        }
        if let Some(pool) = thread_pool {
            merge_pool(self.pool.get_or_insert_default(), pool);
        }
        for of_type in gc {
            let sum = self.gc.entry((of_type.tid, of_type.gc_type)).or_insert_with(|| Gc {
                tid: of_type.tid,
                gc_type: of_type.gc_type,
                ..Gc::default()
            });
            merge_gc(sum, of_type);
        }
        for of_class in run_queue {
            self.run_queue.entry(of_class.class).or_default().merge(&of_class.latency);
        }
    }

    fn slow_turn(&mut self, time: &str, turn: &SlowTurn) {
        let at = self.slow_turns.partition_point(|(_, kept)| kept.busy_ns >= turn.busy_ns);
        if at < KEPT_MAX {
            self.slow_turns.insert(at, (time.to_owned(), turn.clone()));
            self.slow_turns.truncate(KEPT_MAX);
        }
    }

    fn profile(&mut self, profile: &Profile) {
        // A window without samples does not know.
        self.sample_period_ns = self.sample_period_ns.max(profile.period_ns);
        self.samples_other = self.samples_other.saturating_add(profile.other_samples);
        self.profiled_ns = self.profiled_ns.saturating_add(profile.duration_ns);
        for thread in &profile.threads {
            self.profiled_thread(thread);
        }
        for &ProfileStack { tid, class, user_stack, kernel_stack, samples, gc_samples } in &profile.stacks {
            let key = SampleKey { tid, class, user_stack, kernel_stack };
            if self.samples.len() >= limits::STACKS_SHOWN_MAX && !self.samples.contains_key(&key) {
                self.samples_other = self.samples_other.saturating_add(samples);
                continue;
            }
            let totals = self.samples.entry(key).or_default();
            totals.samples = totals.samples.saturating_add(samples);
            totals.gc_samples = totals.gc_samples.saturating_add(gc_samples);
        }
    }

    fn profiled_thread(&mut self, thread: &ProfileThread) {
        if self.profiled.len() >= limits::THREADS_MAX && !self.profiled.contains_key(&thread.tid) {
            return;
        }
        let known = self.profiled.entry(thread.tid).or_insert_with(|| ProfileThread { ledger: None, ..thread.clone() });
        thread.name.clone_into(&mut known.name);
        // A thread is known by what it once did.
        known.role = known.role.min(thread.role);
        if let Some(ledger) = &thread.ledger {
            merge_ledger(known.ledger.get_or_insert_default(), ledger);
        }
    }

    fn off_cpu(&mut self, off_cpu: &OffCpu) {
        for stack in &off_cpu.stacks {
            let key = OffCpuKey {
                tid: stack.tid,
                class: stack.class,
                reason: stack.reason,
                user_stack: stack.user_stack,
                kernel_stack: stack.kernel_stack,
            };
            if self.off_cpu.len() < limits::OFF_CPU_GROUPS_MAX || self.off_cpu.contains_key(&key) {
                merge_totals(self.off_cpu.entry(key).or_default(), &stack.totals);
            } else {
                merge_totals(&mut self.off_cpu_other, &stack.totals);
            }
        }
        if let Some(other) = &off_cpu.other {
            merge_totals(&mut self.off_cpu_other, other);
        }
    }

    fn process(&mut self, time: &str, process: &Process) {
        match process {
            Process::FirstTurn { .. } => {}
            Process::ThreadStart { .. } => self.threads_started += 1,
            Process::ThreadEnd { .. } => self.threads_ended += 1,
            Process::Fork { .. } | Process::Exec { .. } | Process::Exit { .. } | Process::Gone => {
                if self.life.len() < KEPT_MAX {
                    self.life.push((time.to_owned(), process.clone()));
                } else {
                    self.life_more += 1;
                }
            }
        }
    }
}
