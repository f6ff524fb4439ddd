//! Windows as metrics: by the names of OpenTelemetry's conventions where there are such, else by ours, which begin with `agent.`.

use super::{
    points::{Window, seconds},
    proto::{KeyValue, attribute},
};
use crate::{
    aggregate::histogram::{Histogram, middle},
    export::message::word,
    report::{
        Body,
        model::{self, AgentCost, GcType, LedgerPart, LoopWindow, Memory, PgWindow, Phases, ThreadPool},
    },
};

/// How long the window of a record is, if it holds metrics.
#[must_use]
pub fn duration_ns(body: &Body) -> Option<u64> {
    match body {
        Body::Window(window) => Some(window.duration_ns),
        Body::PgWindow(window) => Some(window.duration_ns),
        Body::Agent(agent) => Some(agent.duration_ns),
        Body::Memory(_) => Some(0),
        _ => None,
    }
}

pub fn put(body: &Body, into: &mut Window) {
    match body {
        Body::Window(window) => put_window(window, into),
        Body::PgWindow(window) => put_postgres(window, into),
        Body::Agent(agent) => put_agent(agent, into),
        Body::Memory(memory) => put_memory(memory, into),
        _ => {}
    }
}

fn put_window(window: &model::Window, into: &mut Window) {
    for turned in &window.loops {
        put_loop(turned, into);
    }
    for gc in &window.gc {
        let attributes = [attribute("v8js.gc.type", gc_type(gc.gc_type)), attribute("thread.id", gc.tid)];
        into.histogram_in_seconds("v8js.gc.duration", &gc.duration, &attributes);
    }
    if let Some(pool) = &window.thread_pool {
        put_pool(pool, into);
    }
    for (part, ns) in window.watched_ns() {
        into.time("agent.watched.time", ns, &[attribute("agent.watched.part", part)]);
    }
    for queue in &window.run_queue {
        let attributes = [attribute("agent.thread.class", word(&queue.class))];
        into.histogram("agent.run_queue.latency", &queue.latency, &attributes);
    }
    let mut others = LedgerPart::default();
    for thread in &window.threads {
        let LedgerPart { idle_ns, on_cpu_ns, blocked_ns, runnable_ns, stopped_ns, .. } = &thread.ledger;
        others.idle_ns += idle_ns;
        others.on_cpu_ns += on_cpu_ns;
        others.blocked_ns += blocked_ns;
        others.runnable_ns += runnable_ns;
        others.stopped_ns += stopped_ns;
    }
    put_ledger(&others, &[attribute("agent.thread.role", "other")], into);
}

/// As the conventions have it: what is no scavenge and no marking step is a full collection.
const fn gc_type(gc_type: GcType) -> &'static str {
    match gc_type {
        GcType::Minor => "minor",
        GcType::Major | GcType::Unknown => "major",
        GcType::Incremental => "incremental",
    }
}

fn put_loop(turned: &LoopWindow, into: &mut Window) {
    let of = [attribute("thread.id", turned.tid), attribute("thread.name", turned.name.as_str())];
    let with = |key: &str, value: &str| [of.as_slice(), &[attribute(key, value)]].concat();
    into.gauge("nodejs.eventloop.utilization", "1", turned.utilization, &of);
    for (state, ns) in [("active", turned.time.active_ns), ("idle", turned.time.idle_ns)] {
        into.time("nodejs.eventloop.time", ns, &with("nodejs.eventloop.state", state));
    }
    if !turned.delay.is_empty() {
        let delay = &turned.delay;
        let figures = [
            ("min", seconds(delay.min())),
            ("max", seconds(delay.max())),
            ("mean", seconds(delay.mean())),
            ("stddev", deviation(delay) / 1e9),
            ("p50", seconds(delay.quantile(500))),
            ("p90", seconds(delay.quantile(900))),
            ("p99", seconds(delay.quantile(990))),
        ];
        for (name, value) in figures {
            into.gauge(&format!("nodejs.eventloop.delay.{name}"), "s", value, &of);
        }
    }
    into.histogram("agent.nodejs.eventloop.delay", &turned.delay, &of);
    into.histogram("agent.nodejs.eventloop.turn.duration", &turned.turn_busy, &of);
    into.count("agent.nodejs.eventloop.turns", "{turn}", turned.turns, &of);
    into.count("agent.nodejs.eventloop.slow_turns", "{turn}", turned.slow_turns, &of);
    into.count("agent.nodejs.sync_fs", "{request}", turned.sync_fs, &of);
    let Phases { unsplit, timers, pending, prepare, poll, check, closing } = turned.on_cpu_by_phase_ns;
    let phases = [
        ("unsplit", unsplit),
        ("timers", timers),
        ("pending", pending),
        ("prepare", prepare),
        ("poll", poll),
        ("check", check),
        ("closing", closing),
    ];
    for (phase, ns) in phases.into_iter().filter(|(_, ns)| *ns != 0) {
        into.time("agent.nodejs.eventloop.phase.time", ns, &with("agent.nodejs.eventloop.phase", phase));
    }
    put_ledger(&turned.ledger, &with("agent.thread.role", &word(&turned.role)), into);
}

fn put_ledger(ledger: &LedgerPart, of: &[KeyValue], into: &mut Window) {
    let states = [
        ("idle", ledger.idle_ns),
        ("on_cpu", ledger.on_cpu_ns),
        ("blocked", ledger.blocked_ns),
        ("runnable", ledger.runnable_ns),
        ("stopped", ledger.stopped_ns),
    ];
    for (state, ns) in states {
        let attributes = [of, &[attribute("agent.thread.state", state)]].concat();
        into.time("agent.thread.time", ns, &attributes);
    }
}

/// The standard deviation, with each value in the middle of its bucket.
#[expect(clippy::cast_precision_loss, reason = "a figure of three digits")]
fn deviation(histogram: &Histogram) -> f64 {
    let mean = histogram.mean() as f64;
    let off = |value: f64, n: u64| (value - mean).powi(2) * n as f64;
    let zeros = off(0.0, histogram.parts().zeros);
    let sum: f64 = histogram.buckets().map(|(bucket, n)| off(middle(bucket) as f64, n)).sum();
    ((sum + zeros) / (histogram.count().max(1)) as f64).sqrt()
}

fn put_pool(pool: &ThreadPool, into: &mut Window) {
    into.level("agent.nodejs.threadpool.size", "{thread}", pool.size.into(), &[]);
    into.level("agent.nodejs.threadpool.queue.length.max", "{item}", pool.queue_len_max, &[]);
    into.time("agent.nodejs.threadpool.busy", pool.busy_ns, &[]);
    for work in &pool.work {
        let mut of = vec![attribute("agent.nodejs.threadpool.kind", word(&work.kind))];
        if !work.operation.is_empty() {
            of.push(attribute("agent.nodejs.threadpool.operation", work.operation.as_str()));
        }
        into.count("agent.nodejs.threadpool.items", "{item}", work.count, &of);
        into.histogram("agent.nodejs.threadpool.queue_wait", &work.queue_wait, &of);
        into.histogram("agent.nodejs.threadpool.run", &work.run, &of);
    }
}

fn put_memory(memory: &Memory, into: &mut Window) {
    let resident = memory.resident;
    let bytes = resident.anonymous_bytes.saturating_add(resident.file_bytes).saturating_add(resident.shared_bytes);
    into.level("process.memory.usage", "By", bytes, &[]);
    for heap in &memory.heaps {
        let of = [attribute("thread.id", heap.tid)];
        let figures = [
            ("v8js.memory.heap.used", heap.used_bytes),
            ("agent.v8js.heap.limit", heap.limit_bytes),
            ("agent.v8js.external", heap.external_bytes),
            ("agent.v8js.malloced", heap.malloced_bytes),
        ];
        for (name, bytes) in figures {
            if let Some(bytes) = bytes {
                into.level(name, "By", bytes, &of);
            }
        }
        if let Some(handles) = heap.global_handles {
            into.level("agent.v8js.global_handles", "{handle}", handles, &of);
        }
    }
    for handles in &memory.loops {
        for (kind, n) in &handles.handles {
            let of = [attribute("thread.id", handles.tid), attribute("agent.libuv.handle.type", kind.as_str())];
            into.level("agent.libuv.handles", "{handle}", *n, &of);
        }
    }
}

fn put_postgres(window: &PgWindow, into: &mut Window) {
    into.level("agent.postgresql.lock.waiting", "{backend}", window.waiting, &[]);
    into.time("agent.watched.time", window.watched_ns(), &[attribute("agent.watched.part", "postgresql_waits")]);
    into.level("agent.postgresql.lock.waiting.max", "{backend}", window.waiting_max, &[]);
    for (locktype, waits) in &window.waits {
        let of = |outcome: &str| {
            [
                attribute("agent.postgresql.lock.type", locktype.as_str()),
                attribute("agent.postgresql.lock.outcome", outcome),
            ]
        };
        for (outcome, n) in
            [("granted", waits.granted), ("cancelled", waits.cancelled), ("deadlocked", waits.deadlocked)]
        {
            if n != 0 {
                into.count("agent.postgresql.lock.waits", "{wait}", n, &of(outcome));
            }
        }
        let of = [attribute("agent.postgresql.lock.type", locktype.as_str())];
        into.histogram("agent.postgresql.lock.wait", &waits.wait, &of);
    }
    for (locktype, ns) in &window.oldest_wait_ns {
        let of = [attribute("agent.postgresql.lock.type", locktype.as_str())];
        into.gauge("agent.postgresql.lock.oldest_wait", "s", seconds(*ns), &of);
    }
    for event in &window.wait_events {
        let of = [
            attribute("agent.postgresql.wait.class", event.class.as_str()),
            attribute("agent.postgresql.wait.event", event.event.as_str()),
        ];
        into.histogram("agent.postgresql.wait.duration", &event.wait, &of);
        into.time("agent.postgresql.wait.time", event.time_ns, &of);
        if let Some(ns) = event.oldest_wait_ns {
            into.gauge("agent.postgresql.wait.oldest", "s", seconds(ns), &of);
        }
    }
}

fn put_agent(agent: &AgentCost, into: &mut Window) {
    for (mode, ns) in [("user", agent.cpu_user_ns), ("system", agent.cpu_system_ns)] {
        into.time("process.cpu.time", ns, &[attribute("cpu.mode", mode)]);
    }
    into.level("process.memory.usage", "By", agent.rss_bytes, &[]);
    if let Some(ns) = agent.probe_cost_ns {
        into.time("agent.probe.time", ns, &[]);
    }
    into.time("agent.probe.budget", agent.probe_budget_ns, &[]);
    for (what, times) in agent.rarer() {
        into.level("agent.rarer_than_usual", "1", times.into(), &[attribute("agent.what", what)]);
    }
    for probe in &agent.probes {
        into.count("agent.probe.hits", "{hit}", probe.hits, &[attribute("agent.probe", probe.probe.as_str())]);
    }
    for family in &agent.families {
        let of = [attribute("agent.family", family.family.as_str())];
        into.level("agent.records.emitted", "{record}", family.emitted, &of);
        into.level("agent.records.dropped", "{record}", family.dropped, &of);
    }
    for account in &agent.streams {
        let of = |place: &str| [attribute("agent.stream", account.stream.as_str()), attribute("agent.place", place)];
        let places = [
            ("emitted", account.emitted),
            ("recovered", account.recovered),
            ("delivered", account.delivered),
            ("spooled", account.spooled),
            ("queued", account.queued),
            ("dropped", account.dropped()),
        ];
        for (place, n) in places {
            into.level("agent.stream.records", "{record}", n, &of(place));
        }
    }
}
