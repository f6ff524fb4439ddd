//! From figures to records.

use agent_ebpf::{abi::event_loop::Ledger, state::flag};

use super::model::{
    Gc, GcPause, LedgerPart, LoopTime, LoopWindow, Measure, OffCpu, OffCpuStack, OffCpuStay, OffCpuTotals, OnCpuStack,
    Phases, Profile, ProfileStack, ProfileThread, Role, RunQueue, SlowTurn, StackId, ThreadPool, ThreadWindow, Window,
    Work,
};
use crate::{
    aggregate::{
        gc::reason_name,
        ledger::{ThreadFigures, on_cpu_ns},
        off_cpu::{Group, Stay, Totals},
        process::ProcessFigures,
        profile::SampleFigures,
        thread_pool::PoolFigures,
        turns::{self, Pause, TurnFigures},
    },
    units::{Clock, Pid, Tid},
};

/// For how long probes that come and go were attached in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub phases_ns: u64,
    pub requests_ns: u64,
    pub pool_ns: u64,
    pub turns_ns: u64,
    pub switches_ns: u64,
}

#[must_use]
pub fn window(pid: Pid, figures: &ProcessFigures, seen: Seen, pool_size: u32) -> Window {
    let duration_ns = figures.to.since(figures.from).0;
    let mut loops: Vec<_> =
        figures.threads.iter().filter_map(|(thread, turns)| Some(loop_window(pid, thread, turns.as_ref()?))).collect();
    loops.sort_by_key(|of_loop| (of_loop.role, of_loop.tid));
    let mut threads: Vec<_> = figures
        .threads
        .iter()
        .filter(|(_, turns)| turns.is_none())
        .map(|(thread, _)| thread_window(pid, thread))
        .collect();
    threads.sort_by_key(|thread| (thread.role, thread.tid));
    Window {
        duration_ns,
        phases_seen_ns: seen.phases_ns.min(duration_ns),
        requests_seen_ns: seen.requests_ns.min(duration_ns),
        pool_seen_ns: Some(seen.pool_ns.min(duration_ns)),
        turns_seen_ns: Some(seen.turns_ns.min(duration_ns)),
        switches_seen_ns: Some(seen.switches_ns.min(duration_ns)),
        loops,
        threads,
        thread_pool: figures.pool.as_ref().map(|pool| thread_pool(pool, pool_size)),
        gc: figures
            .gc
            .iter()
            .map(|(&(tid, gc_type), of_type)| Gc {
                tid: tid.0,
                gc_type,
                duration: of_type.duration.clone(),
                reasons: of_type.reasons.iter().map(|(&name, &n)| (name.to_owned(), n)).collect(),
            })
            .collect(),
        run_queue: figures
            .run_queue
            .iter()
            .map(|(&class, latency)| RunQueue { class, latency: latency.clone() })
            .collect(),
    }
}

/// The thread of Node.js's platform that turns a loop for nothing but V8's delayed tasks: no worker, and no JavaScript. It has
/// this name from Node.js 22 on; in older versions it cannot be told apart.
const DELAYED_TASKS: &str = "DelayedTaskSche";

fn role(pid: Pid, thread: &ThreadFigures, is_loop: bool) -> Role {
    if thread.tid.0 == pid.0 {
        Role::Main
    } else if is_loop && thread.name != DELAYED_TASKS {
        Role::Worker
    } else if thread.flags & flag::POOL != 0 {
        Role::ThreadPool
    } else {
        Role::Other
    }
}

fn ledger_part(ledger: &Ledger, wall_ns: u64, unaccounted_ns: i64) -> LedgerPart {
    LedgerPart {
        wall_ns,
        idle_ns: ledger.idle_ns,
        on_cpu_ns: on_cpu_ns(ledger),
        blocked_ns: ledger.blocked_ns,
        runnable_ns: ledger.runnable_ns,
        stopped_ns: ledger.stopped_ns,
        unaccounted_ns,
        switches: ledger.switches,
    }
}

fn phases(ledger: &Ledger) -> Phases {
    let [unsplit, timers, pending, prepare, poll, check, closing] = ledger.on_cpu_ns;
    Phases { unsplit, timers, pending, prepare, poll, check, closing }
}

fn loop_window(pid: Pid, thread: &ThreadFigures, turns: &TurnFigures) -> LoopWindow {
    let ledger = &thread.ledger;
    // Where polls are not watched, it is idle while it sleeps in one.
    let idle_ns = ledger.poll_ns.max(ledger.idle_ns).min(thread.wall_ns);
    LoopWindow {
        tid: thread.tid.0,
        name: thread.name.clone(),
        role: role(pid, thread, true),
        ledger: ledger_part(ledger, thread.wall_ns, thread.unaccounted_ns()),
        on_cpu_by_phase_ns: phases(ledger),
        gc_ns: ledger.gc_ns,
        gc_off_cpu_ns: turns.gc_off_cpu_ns.min(ledger.gc_ns),
        poll_ns: ledger.poll_ns,
        events: ledger.events,
        sync_fs: ledger.sync_fs,
        requests: ledger.requests,
        turns: turns.turns,
        slow_turns: turns.slow,
        utilization: utilization(idle_ns, thread.wall_ns),
        time: LoopTime { active_ns: thread.wall_ns - idle_ns, idle_ns },
        delay: turns.delay.clone(),
        turn_busy: turns.busy.clone(),
    }
}

/// Share of the time that the loop was not idle, to six digits; 0 where no time has passed.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a ratio that is shown to three digits")]
pub fn utilization(idle_ns: u64, wall_ns: u64) -> f64 {
    if wall_ns == 0 {
        return 0.0;
    }
    let active = wall_ns.saturating_sub(idle_ns) as f64 / wall_ns as f64;
    (active * 1e6).round() / 1e6
}

fn thread_window(pid: Pid, thread: &ThreadFigures) -> ThreadWindow {
    ThreadWindow {
        tid: thread.tid.0,
        name: thread.name.clone(),
        role: role(pid, thread, false),
        ledger: ledger_part(&thread.ledger, thread.wall_ns, thread.unaccounted_ns()),
        gc_ns: thread.ledger.gc_ns,
    }
}

fn thread_pool(pool: &PoolFigures, size: u32) -> ThreadPool {
    ThreadPool {
        size,
        queue_len_max: pool.occupancy.queue_len_max,
        queue_len_ns: pool.occupancy.queue_len_ns,
        busy_ns: pool.occupancy.busy_ns,
        all_busy_ns: pool.occupancy.all_busy_ns,
        work: pool
            .work
            .iter()
            .map(|((kind, operation), work)| Work {
                kind: *kind,
                operation: operation.clone(),
                count: work.count,
                cancelled: work.cancelled,
                failed: work.failed,
                queue_wait: work.queue_wait.clone(),
                run: work.run.clone(),
                completion_delay: work.completion_delay.clone(),
                total: work.total.clone(),
            })
            .collect(),
    }
}

#[must_use]
pub fn slow_turn(turn: &turns::SlowTurn, clock: Clock) -> SlowTurn {
    let wall_ns = turn.ended.since(turn.started).0;
    let accounted = crate::aggregate::ledger::accounted_ns(&turn.ledger);
    let unaccounted_ns =
        i64::try_from(wall_ns).unwrap_or(i64::MAX).saturating_sub(i64::try_from(accounted).unwrap_or(i64::MAX));
    SlowTurn {
        tid: turn.tid.0,
        open: turn.open,
        started: clock.wall(turn.started).to_string(),
        busy_ns: turn.busy_ns(),
        ledger: ledger_part(&turn.ledger, wall_ns, unaccounted_ns),
        on_cpu_by_phase_ns: phases(&turn.ledger),
        gc_ns: turn.ledger.gc_ns,
        sync_fs: turn.ledger.sync_fs,
        events: turn.ledger.events,
        gc: turn.pauses.iter().map(|pause| gc_pause(turn.tid, pause)).collect(),
        off_cpu: turn.stays.iter().map(stay).collect(),
        omitted: turn.omitted,
        on_cpu: turn
            .samples
            .iter()
            .map(|(place, samples)| OnCpuStack {
                samples: *samples,
                user_stack: place.user_stack.map(StackId),
                kernel_stack: place.kernel_stack.map(StackId),
            })
            .collect(),
    }
}

#[must_use]
pub fn gc_pause(tid: Tid, pause: &Pause) -> GcPause {
    GcPause {
        tid: tid.0,
        gc_type: pause.pause.gc_type,
        reason: reason_name(pause.pause.reason).to_owned(),
        duration_ns: pause.duration_ns(),
    }
}

fn stay(stay: &Stay) -> OffCpuStay {
    OffCpuStay {
        reason: stay.group.reason,
        duration_ns: stay.duration_ns(),
        runnable_ns: stay.runnable_ns,
        user_stack: stay.group.user_stack.map(StackId),
        kernel_stack: stay.group.kernel_stack.map(StackId),
    }
}

/// `None` if there was nothing above the threshold.
#[must_use]
pub fn off_cpu(groups: &[(Group, Totals)], other: &Totals) -> Option<OffCpu> {
    if groups.is_empty() && other.count == 0 {
        return None;
    }
    let stacks = groups
        .iter()
        .map(|(group, totals)| OffCpuStack {
            tid: group.tid.map(|tid| tid.0),
            class: group.class,
            reason: group.reason,
            user_stack: group.user_stack.map(StackId),
            kernel_stack: group.kernel_stack.map(StackId),
            totals: off_cpu_totals(totals),
        })
        .collect();
    Some(OffCpu { stacks, other: (other.count != 0).then(|| off_cpu_totals(other)) })
}

/// `None` if nothing was sampled.
#[must_use]
pub fn profile(figures: &SampleFigures) -> Option<Profile> {
    if figures.stacks.is_empty() && figures.other == 0 {
        return None;
    }
    let stacks = figures.stacks.iter().map(|(key, totals)| ProfileStack {
        tid: key.tid.0,
        class: key.class,
        user_stack: key.place.user_stack.map(StackId),
        kernel_stack: key.place.kernel_stack.map(StackId),
        samples: totals.samples,
        gc_samples: totals.gc_samples,
    });
    Some(Profile {
        duration_ns: 0,
        period_ns: figures.period_ns,
        stacks: stacks.collect(),
        other_samples: figures.other,
        threads: Vec::new(),
    })
}

/// A window of `agent profile`: its samples, and of `window` what tells the threads apart.
#[must_use]
pub fn profile_window(figures: &SampleFigures, window: Window, measure: Measure) -> Profile {
    let Window { duration_ns, loops, threads, .. } = window;
    // Who runs is seen by samples alone; who waits is not.
    let has_ledger = measure != Measure::OnCpu;
    let of_loops = loops.into_iter().map(|of| (of.tid, of.name, of.role, of.ledger));
    let others = threads.into_iter().map(|of| (of.tid, of.name, of.role, of.ledger));
    let threads = of_loops.chain(others).map(|(tid, name, role, ledger)| ProfileThread {
        tid,
        name,
        role,
        ledger: has_ledger.then_some(ledger),
    });
    Profile { duration_ns, threads: threads.collect(), ..profile(figures).unwrap_or_default() }
}

fn off_cpu_totals(totals: &Totals) -> OffCpuTotals {
    let &Totals { count, total_ns, runnable_ns, max_ns, over_budget } = totals;
    OffCpuTotals { count, total_ns, runnable_ns, max_ns, over_budget }
}
