//! What PostgreSQL's backends wait for, in their own words.
//!
//! Before it waits, a backend writes what for to a word in shared memory (`pgstat_report_wait_start`), and afterwards zero: it is
//! what `pg_stat_activity` shows. What stands there when it leaves the CPU is what it waits for until it is back. Nothing is
//! attached to the server for that, and a switch between others pays for two look-ups.

use agent_ebpf::{
    histogram,
    spec::slot,
    state::{PgBackend, PgWaitKey, PgWaitSum, counter, is_idle_wait},
};
use aya_ebpf::{helpers::bpf_probe_read_user, macros::raw_tracepoint, programs::RawTracePointContext};

use super::sched::read_u32;
use crate::kernel::{
    emit::{self, count, current, now_ns},
    globals, maps,
};

/// `linux/bpf.h`: fail where the key is there.
const BPF_NOEXIST: u64 = 1;

#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn postgres_switch(ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("postgres_switch") });
    let (_, previous) = current();
    if let Some(backend) = followed(previous) {
        leave(backend);
    }
    if let Some(backend) = followed(read_u32(ctx.arg(2), globals::TASK_PID.load())) {
        come_back(backend);
    }
    0
}

/// The backend that a thread is, if it is a traced one.
#[inline(always)]
fn followed(tid: u32) -> Option<*mut PgBackend> {
    // The idle task of each CPU.
    if tid == 0 { None } else { maps::PG_BACKENDS.get_ptr_mut(&tid) }
}

#[inline(always)]
fn leave(backend: *mut PgBackend) {
    // SAFETY: a value of a preallocated map; the thread is on one CPU at a time, and only the program on its switches writes it.
    // The time goes first: whoever sees the event sees since when.
    unsafe {
        if (*backend).event != 0 {
            count(counter::PG_WAIT_END_UNSEEN);
        }
        let event = waits_for((*backend).wait_pointer);
        if event != 0 {
            (&raw mut (*backend).out_ns).write_volatile(now_ns());
        }
        (&raw mut (*backend).event).write_volatile(event);
    }
}

/// What the running backend waits for; 0 where that is nothing.
#[inline(always)]
fn waits_for(pointer: u64) -> u32 {
    // SAFETY: the helper checks the addresses itself and fails on bad ones.
    let event =
        unsafe { bpf_probe_read_user(pointer as *const u64).and_then(|at| bpf_probe_read_user(at as *const u32)) };
    match event.unwrap_or(0) {
        event if is_idle_wait(event) => 0,
        event => event,
    }
}

#[inline(always)]
fn come_back(backend: *mut PgBackend) {
    // SAFETY: as in `leave`.
    let PgBackend { out_ns, cluster, event, .. } = unsafe { *backend };
    if event == 0 {
        return;
    }
    // SAFETY: as in `leave`.
    unsafe { (&raw mut (*backend).event).write_volatile(0) };
    let Some(window) = maps::PG_WAIT_WINDOW.get_ptr(0) else { return };
    // SAFETY: a value of an array; user space writes it between windows, and a wait that ends just then counts to either.
    let window = unsafe { *window };
    let now = now_ns();
    let from = if window.began_ns > out_ns { window.began_ns } else { out_ns };
    let sum = PgWaitSum { count: 1, time_ns: if now > from { now - from } else { 0 } };
    let bucket = histogram::index(now.wrapping_sub(out_ns)) as u16;
    let key = PgWaitKey { cluster, event, bucket, epoch: window.epoch as u16 };
    if add(&key, sum) {
        return;
    }
    // Another CPU may have been faster.
    if maps::PG_WAITS.insert(&key, &sum, BPF_NOEXIST).is_err() && !add(&key, sum) {
        count(counter::PG_WAITS_FULL);
    }
}

/// False where there is no such entry.
#[inline(always)]
fn add(key: &PgWaitKey, more: PgWaitSum) -> bool {
    let Some(sum) = maps::PG_WAITS.get_ptr_mut(key) else { return false };
    // SAFETY: aligned words in a map value; several CPUs add to them, each in one instruction.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({at} + 0) += {count}",
            "lock *(u64 *)({at} + 8) += {time}",
            at = in(reg) sum,
            count = in(reg) more.count,
            time = in(reg) more.time_ns,
        );
    }
    true
}

/// A postmaster starts a process.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn postgres_fork(ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("postgres_fork") });
    let (tgid, _) = current();
    let Some(cluster) = maps::CLUSTERS.get_ptr(&tgid) else { return 0 };
    // SAFETY: the value lives in a preallocated map; an aligned word of it is read.
    let wait_pointer = unsafe { (*cluster).wait_pointer };
    let child: u64 = ctx.arg(1);
    if wait_pointer == 0 || read_u32(child, globals::TASK_TGID.load()) == tgid {
        return 0;
    }
    let backend = PgBackend { wait_pointer, out_ns: 0, cluster: tgid, event: 0 };
    if maps::PG_BACKENDS.insert(&read_u32(child, globals::TASK_PID.load()), &backend, 0).is_err() {
        count(counter::PG_BACKENDS_FULL);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn postgres_exit(_ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("postgres_exit") });
    let (_, tid) = current();
    if followed(tid).is_some() {
        let _ = maps::PG_BACKENDS.remove(&tid);
    }
    0
}
