//! Which figure of a record is which metric.

use agent_ebpf::state::counter;

use super::{Kind, Metric, Registry, Whose};
use crate::{
    export::message::word,
    report::{
        Body,
        model::{AgentCost, GcType, LedgerPart, LoopWindow, Memory, PgLock, PgLockName, PgWindow, ThreadPool, Window},
    },
};

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, kind: Kind::Counter }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, kind: Kind::Gauge }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, kind: Kind::Histogram }
}

const UTILIZATION: Metric =
    gauge("nodejs_eventloop_utilization_ratio", "Share of the last window in which the loop did not wait in poll.");
const TIME: Metric = counter("nodejs_eventloop_time_seconds_total", "Time of the event loop, by state.");
const DELAY: Metric = histogram("nodejs_eventloop_delay_seconds", "How late a timer would run.");
const TURN: Metric =
    histogram("nodejs_eventloop_turn_seconds", "From the return of one poll to the entry into the next.");
const TURNS: Metric = counter("nodejs_eventloop_turns_total", "Turns of the event loop.");
const SLOW_TURNS: Metric = counter("nodejs_eventloop_slow_turns_total", "Turns that took longer than the threshold.");
const THREAD_TIME: Metric = counter("nodejs_thread_time_seconds_total", "Time of threads, by state: all of it.");
const WATCHED: Metric = counter(
    "agent_watched_seconds_total",
    "For how long a part of a process was watched: its figures are of that time. Probes that would be too dear come off for a while.",
);
const GC: Metric = histogram("v8js_gc_duration_seconds", "Pauses for garbage collection.");
const POOL_QUEUE: Metric =
    gauge("nodejs_threadpool_queue_length_max", "Most items that waited for a thread at one time in the last window.");
const POOL_WAIT: Metric = histogram("nodejs_threadpool_wait_seconds", "From submission until a thread took it up.");
const POOL_RUN: Metric = histogram("nodejs_threadpool_run_seconds", "Time that items ran on the thread pool.");
const RUN_QUEUE: Metric = histogram("nodejs_run_queue_latency_seconds", "From wake-up or preemption to running.");
const RESIDENT: Metric = gauge("nodejs_resident_memory_bytes", "Resident memory of the process.");
const HEAP_USED: Metric = gauge("v8js_memory_heap_used_bytes", "Used bytes of V8's heap.");
const HEAP_LIMIT: Metric = gauge("v8js_memory_heap_limit_bytes", "Limit of V8's heap.");
const HANDLES: Metric = gauge("nodejs_handles", "Open handles of the event loop, by libuv's type.");
const FINDINGS: Metric = counter("agent_findings_total", "What was found to be wrong, by code.");
const PG_WAITING: Metric = gauge("postgresql_lock_waiting", "Backends that wait for a lock.");
const PG_WAIT: Metric = histogram("postgresql_lock_wait_seconds", "Waits for locks that ended.");
const PG_LOCK_OLDEST: Metric = gauge(
    "postgresql_lock_oldest_wait_seconds",
    "How long the oldest wait for a lock that is going on has lasted, by kind.",
);
const PG_RELATION_OLDEST: Metric = gauge(
    "postgresql_relation_oldest_wait_seconds",
    "How long the oldest wait for a lock on or in a relation that is going on has lasted, from 0.1 s on.",
);
const PG_EVENT_WAIT: Metric =
    histogram("postgresql_wait_seconds", "Waits of backends that ended, by class and event of pg_stat_activity.");
const PG_EVENT_TIME: Metric =
    counter("postgresql_wait_time_seconds_total", "Time that backends waited, also in waits that go on.");
const PG_EVENT_OLDEST: Metric =
    gauge("postgresql_oldest_wait_seconds", "How long the oldest wait for an event that is going on has lasted.");
const BUILD: Metric = gauge("agent_build_info", "Which agent this is.");
const TARGETS: Metric = gauge("agent_targets", "Processes of Node.js that are traced.");
const CPU: Metric = counter("agent_cpu_seconds_total", "CPU time of the agent itself.");
const AGENT_RESIDENT: Metric = gauge("agent_resident_memory_bytes", "Resident memory of the agent itself.");
const PROBE_TIME: Metric = counter("agent_probe_seconds_total", "Time that probes took from what they trace.");
const PROBE_BUDGET: Metric = counter("agent_probe_budget_seconds_total", "Time that probes might take.");
const PROBE_HITS: Metric = counter("agent_probe_hits_total", "Hits of probes.");
const RARER: Metric = gauge(
    "agent_rarer_than_usual_ratio",
    "So many times rarer something is than usual, to keep to the budget: 1 is nothing cut down.",
);
const EMITTED: Metric = counter("agent_records_emitted_total", "Records that the kernel half sent, by family.");
const DROPPED: Metric = counter("agent_records_dropped_total", "Of which: the ring was full.");
const GIVEN_UP: Metric = counter("agent_given_up_total", "What was left out, by reason.");
const STREAM_EMITTED: Metric = counter("agent_stream_emitted_total", "Records that were made for a stream.");
const STREAM_DELIVERED: Metric = counter("agent_stream_delivered_total", "Records that a collector has.");
const STREAM_DROPPED: Metric = counter("agent_stream_dropped_total", "Records that were given up, by reason.");
const STREAM_RETRIES: Metric = counter("agent_stream_retries_total", "Tries of a stream that failed.");
const STREAM_WAITING: Metric = gauge("agent_stream_waiting", "Records that wait, in memory or on disk.");

/// The name of a metric is its own: nothing of a record becomes one.
pub fn put(into: &mut Registry, pid: u32, body: &Body) {
    match body {
        Body::Window(window) => put_window(into, pid, window),
        Body::Memory(memory) => put_memory(into, pid, memory),
        Body::PgWindow(window) => put_postgres(into, pid, window),
        Body::PgLock(lock) => put_lock(into, pid, lock),
        Body::Agent(agent) => put_agent(into, agent),
        Body::Finding(finding) => {
            let labels = into.labels(pid, &[("code", &finding.code), ("severity", &word(&finding.severity))]);
            into.add(FINDINGS, Whose { pid, tid: 0 }, labels, 1.0);
        }
        _ => {}
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but doubles")]
fn number(n: u64) -> f64 {
    n as f64
}

fn seconds(ns: u64) -> f64 {
    number(ns) / 1e9
}

fn put_window(into: &mut Registry, pid: u32, window: &Window) {
    let whose = Whose { pid, tid: 0 };
    for turned in &window.loops {
        put_loop(into, pid, turned);
    }
    for thread in &window.threads {
        put_ledger(into, whose, &word(&thread.role), &thread.ledger);
    }
    for gc in &window.gc {
        let kind = match gc.gc_type {
            GcType::Minor => "minor",
            GcType::Major | GcType::Unknown => "major",
            GcType::Incremental => "incremental",
        };
        let labels = into.labels(pid, &[("v8js_gc_type", kind)]);
        into.merge(GC, whose, labels, &gc.duration);
    }
    for queue in &window.run_queue {
        let labels = into.labels(pid, &[("class", &word(&queue.class))]);
        into.merge(RUN_QUEUE, whose, labels, &queue.latency);
    }
    if let Some(pool) = &window.thread_pool {
        put_pool(into, pid, pool);
    }
    for (part, ns) in window.watched_ns() {
        let labels = into.labels(pid, &[("part", part)]);
        into.add(WATCHED, whose, labels, seconds(ns));
    }
}

fn put_loop(into: &mut Registry, pid: u32, turned: &LoopWindow) {
    let (whose, tid) = (Whose { pid, tid: turned.tid }, turned.tid.to_string());
    let thread = ("thread_id", tid.as_str());
    let labels = into.labels(pid, &[thread]);
    into.set(UTILIZATION, whose, labels.clone(), turned.utilization);
    into.merge(DELAY, whose, labels.clone(), &turned.delay);
    into.merge(TURN, whose, labels.clone(), &turned.turn_busy);
    into.add(TURNS, whose, labels.clone(), number(turned.turns));
    into.add(SLOW_TURNS, whose, labels, number(turned.slow_turns));
    for (state, ns) in [("active", turned.time.active_ns), ("idle", turned.time.idle_ns)] {
        let labels = into.labels(pid, &[thread, ("state", state)]);
        into.add(TIME, whose, labels, seconds(ns));
    }
    put_ledger(into, Whose { pid, tid: 0 }, &word(&turned.role), &turned.ledger);
}

/// By role, not by thread: threads of a pool or of workers come and go.
fn put_ledger(into: &mut Registry, whose: Whose, role: &str, ledger: &LedgerPart) {
    let states = [
        ("idle", ledger.idle_ns),
        ("on_cpu", ledger.on_cpu_ns),
        ("blocked", ledger.blocked_ns),
        ("runnable", ledger.runnable_ns),
        ("stopped", ledger.stopped_ns),
    ];
    for (state, ns) in states {
        let labels = into.labels(whose.pid, &[("role", role), ("state", state)]);
        into.add(THREAD_TIME, whose, labels, seconds(ns));
    }
}

fn put_pool(into: &mut Registry, pid: u32, pool: &ThreadPool) {
    let whose = Whose { pid, tid: 0 };
    let labels = into.labels(pid, &[]);
    into.set(POOL_QUEUE, whose, labels, number(pool.queue_len_max));
    for work in &pool.work {
        let labels = into.labels(pid, &[("kind", &word(&work.kind))]);
        into.merge(POOL_WAIT, whose, labels.clone(), &work.queue_wait);
        into.merge(POOL_RUN, whose, labels, &work.run);
    }
}

fn put_memory(into: &mut Registry, pid: u32, memory: &Memory) {
    let resident = memory.resident;
    let bytes = resident.anonymous_bytes.saturating_add(resident.file_bytes).saturating_add(resident.shared_bytes);
    let labels = into.labels(pid, &[]);
    into.set(RESIDENT, Whose { pid, tid: 0 }, labels, number(bytes));
    for heap in &memory.heaps {
        let (whose, tid) = (Whose { pid, tid: heap.tid }, heap.tid.to_string());
        for (metric, bytes) in [(HEAP_USED, heap.used_bytes), (HEAP_LIMIT, heap.limit_bytes)] {
            if let Some(bytes) = bytes {
                let labels = into.labels(pid, &[("thread_id", &tid)]);
                into.set(metric, whose, labels, number(bytes));
            }
        }
    }
    for handles in &memory.loops {
        let (whose, tid) = (Whose { pid, tid: handles.tid }, handles.tid.to_string());
        for (kind, n) in &handles.handles {
            let labels = into.labels(pid, &[("thread_id", &tid), ("type", kind)]);
            into.set(HANDLES, whose, labels, number(*n));
        }
    }
}

fn put_postgres(into: &mut Registry, pid: u32, window: &PgWindow) {
    let whose = Whose { pid, tid: 0 };
    let labels = into.labels(pid, &[]);
    into.set(PG_WAITING, whose, labels, number(window.waiting));
    let labels = into.labels(pid, &[("part", "postgresql_waits")]);
    into.add(WATCHED, whose, labels, seconds(window.watched_ns()));
    for (locktype, waits) in &window.waits {
        let labels = into.labels(pid, &[("locktype", locktype)]);
        into.merge(PG_WAIT, whose, labels, &waits.wait);
    }
    // What nobody waits for any more has no oldest wait.
    for metric in [PG_LOCK_OLDEST, PG_RELATION_OLDEST, PG_EVENT_OLDEST] {
        into.forget(metric, pid);
    }
    for (locktype, ns) in &window.oldest_wait_ns {
        let labels = into.labels(pid, &[("locktype", locktype)]);
        into.set(PG_LOCK_OLDEST, whose, labels, seconds(*ns));
    }
    for event in &window.wait_events {
        let labels = into.labels(pid, &[("class", &event.class), ("event", &event.event)]);
        into.merge(PG_EVENT_WAIT, whose, labels.clone(), &event.wait);
        into.add(PG_EVENT_TIME, whose, labels.clone(), seconds(event.time_ns));
        if let Some(ns) = event.oldest_wait_ns {
            into.set(PG_EVENT_OLDEST, whose, labels, seconds(ns));
        }
    }
}

/// By relation, as there are some hundreds of those: rows and transactions are ever new.
fn put_lock(into: &mut Registry, pid: u32, lock: &PgLock) {
    if lock.is_over {
        return;
    }
    let PgLockName { locktype: _, database, relation, name, text: _ } = &lock.lock;
    let Some(relation) = relation else { return };
    let name = name.clone().unwrap_or_else(|| format!("{}.{relation}", database.unwrap_or(0)));
    let labels = into.labels(pid, &[("relation", &name)]);
    into.raise(PG_RELATION_OLDEST, Whose { pid, tid: 0 }, labels, seconds(lock.oldest_wait_ns));
}

fn put_agent(into: &mut Registry, agent: &AgentCost) {
    let nobody = Whose::default();
    let targets = into.targets.len() as u64;
    into.set(TARGETS, nobody, String::new(), number(targets));
    let of = |key: &str, value: &str| Registry::default().labels(0, &[(key, value)]);
    into.set(BUILD, nobody, of("version", env!("CARGO_PKG_VERSION")), 1.0);
    for (mode, ns) in [("user", agent.cpu_user_ns), ("system", agent.cpu_system_ns)] {
        into.add(CPU, nobody, of("mode", mode), seconds(ns));
    }
    into.set(AGENT_RESIDENT, nobody, String::new(), number(agent.rss_bytes));
    if let Some(ns) = agent.probe_cost_ns {
        into.add(PROBE_TIME, nobody, String::new(), seconds(ns));
    }
    into.add(PROBE_BUDGET, nobody, String::new(), seconds(agent.probe_budget_ns));
    for probe in &agent.probes {
        into.add(PROBE_HITS, nobody, of("probe", &probe.probe), number(probe.hits));
    }
    for (what, times) in agent.rarer() {
        into.set(RARER, nobody, of("what", what), times.into());
    }
    // These run since the trace began: they are what they are.
    for family in &agent.families {
        into.set(EMITTED, nobody, of("family", &family.family), number(family.emitted));
        into.set(DROPPED, nobody, of("family", &family.family), number(family.dropped));
    }
    let given_up = agent.kernel_counters.iter().filter(|(name, _)| !counter::DONE.contains(&name.as_str()));
    for (reason, n) in given_up.chain(&agent.counters) {
        into.set(GIVEN_UP, nobody, of("reason", reason), number(*n));
    }
    for account in &agent.streams {
        let stream = ("stream", account.stream.as_str());
        for (metric, n) in [
            (STREAM_EMITTED, account.emitted),
            (STREAM_DELIVERED, account.delivered),
            (STREAM_RETRIES, account.retries),
        ] {
            let labels = into.labels(0, &[stream]);
            into.set(metric, nobody, labels, number(n));
        }
        for (place, n) in [("memory", account.queued), ("disk", account.spooled)] {
            let labels = into.labels(0, &[stream, ("place", place)]);
            into.set(STREAM_WAITING, nobody, labels, number(n));
        }
        for (reason, n) in &account.dropped {
            let labels = into.labels(0, &[stream, ("reason", reason)]);
            into.set(STREAM_DROPPED, nobody, labels, number(*n));
        }
    }
}
