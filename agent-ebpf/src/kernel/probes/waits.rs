//! What PostgreSQL's backends wait for, in their own words.
//!
//! Before it waits, a backend writes what for to a word in shared memory (`pgstat_report_wait_start`), and afterwards zero: it is
//! what `pg_stat_activity` shows. What stands there when it leaves the CPU is what it waits for until it is back. Nothing is
//! attached to the server for that, and a switch between others pays for two look-ups.
//!
//! If that is a heavyweight lock, its `PGPROC` tells which. The wait is over when that says otherwise as the backend leaves the CPU the
//! next time; it had the lock when it was last back from waiting for it. Until then a wait is seen by nobody but the server's own
//! table of locks.

use agent_ebpf::{
    histogram,
    spec::slot,
    state::{PgBackend, PgLockWait, PgWaitKey, PgWaitSum, WAIT_CLASS_LOCK, counter, is_idle_wait},
};
use aya_ebpf::{
    helpers::bpf_probe_read_kernel,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};

use super::{
    postgres::{self, OwnWait},
    sched::{load_u32, read_u32},
};
use crate::kernel::{
    emit::{self, count, current, now_ns},
    globals, maps,
};

/// `linux/bpf.h`: fail where the key is there.
const BPF_NOEXIST: u64 = 1;

#[btf_tracepoint(function = "sched_switch")]
pub fn postgres_switch(ctx: BtfTracePointContext) -> i32 {
    emit::count_hit(const { slot("postgres_switch") });
    let (left, taken): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    let (_, previous) = current();
    let (previous, next) = (followed(previous), followed(load_u32(taken, globals::TASK_PID.load())));
    if previous.is_none() && next.is_none() {
        return 0;
    }
    count(counter::PG_SWITCHES);
    if let Some(backend) = previous {
        leave(backend, left);
    }
    if let Some(backend) = next {
        come_back(backend, 0);
    }
    0
}

/// Whether it is a heavyweight lock that is waited for.
#[inline(always)]
fn is_lock(event: u32) -> bool {
    event >> 24 == WAIT_CLASS_LOCK
}

/// The backend that a thread is, if it is a traced one.
#[inline(always)]
fn followed(tid: u32) -> Option<*mut PgBackend> {
    // The idle task of each CPU.
    if tid == 0 { None } else { maps::PG_BACKENDS.get_ptr_mut(&tid) }
}

#[inline(always)]
fn leave(backend: *mut PgBackend, task: u64) {
    // SAFETY: a value of a preallocated map; the thread is on one CPU at a time, and only programs that run on its behalf write it.
    if unsafe { (*backend).event } != 0 {
        // Not every kernel tells of every switch.
        count(counter::PG_WAIT_END_UNSEEN);
        come_back(backend, ran_ns(task));
    }
    // SAFETY: as before.
    let (event, known) = unsafe { (waits_for(backend), (*backend).lock.since_ns != 0) };
    if event == 0 && !known {
        // Waits for a client, mostly: not worth a look at the clock.
        return;
    }
    let now = now_ns();
    if known || is_lock(event) {
        lock_wait(backend, event, now);
    }
    // SAFETY: as before. The time goes first: whoever sees the event sees since when.
    unsafe {
        (&raw mut (*backend).out_ns).write_volatile(now);
        (&raw mut (*backend).event).write_volatile(event);
    }
}

/// For how long a task that leaves the CPU had it; 0 where that cannot be told.
#[inline(always)]
fn ran_ns(task: u64) -> u64 {
    let word = |offset: u32| {
        // SAFETY: the helper checks the address itself and fails on a bad one.
        unsafe { bpf_probe_read_kernel((task + u64::from(offset)) as *const u64) }.unwrap_or(0)
    };
    let (ran, before) = (globals::TASK_RAN.load(), globals::TASK_RAN_BEFORE.load());
    if ran == 0 || before == 0 { 0 } else { word(ran).saturating_sub(word(before)) }
}

/// The running backend leaves the CPU, and was in a wait for a lock the last time, or waits for one now.
#[inline(always)]
fn lock_wait(backend: *mut PgBackend, event: u32, now: u64) {
    // SAFETY: as in `leave`.
    let PgBackend { cluster, pid, lock_at, lock: before, .. } = unsafe { *backend };
    if lock_at == 0 {
        return;
    }
    let own = postgres::read::<OwnWait>(lock_at).unwrap_or_default();
    if before.since_ns != 0 {
        // Who lets others pass, to avoid a deadlock, sets its own beginning to zero.
        if own.lock == before.lock && (own.server_start == before.server_start || own.server_start == 0) {
            return;
        }
        granted(cluster, &before);
    }
    let OwnWait { lock, mode, server_start, .. } = own;
    let wait = if is_lock(event)
        && lock != 0
        && let Some(tag) = postgres::tag_at(lock)
    {
        PgLockWait { since_ns: now, back_ns: 0, lock, server_start, tag, mode, pid }
    } else {
        PgLockWait::NONE
    };
    // SAFETY: as in `leave`.
    unsafe { (&raw mut (*backend).lock).write(wait) };
}

/// A wait for a lock is over, in a cluster that is traced still.
#[inline(always)]
fn granted(cluster: u32, wait: &PgLockWait) {
    if maps::CLUSTERS.get_ptr(&cluster).is_some() {
        postgres::granted(cluster, wait);
    }
}

/// Where the running backend says what it waits for; 0 where that cannot be read.
#[inline(always)]
fn find(backend: *mut PgBackend) -> u64 {
    /// `PGPROC` has 880 bytes in version 15.
    const PROC_BYTES_MAX: u64 = 4096;
    // SAFETY: as in `leave`.
    let (pointer, cluster) = unsafe { ((*backend).wait_pointer, (*backend).cluster) };
    let at = postgres::read::<u64>(pointer).unwrap_or(0);
    let Some(cluster) = maps::CLUSTERS.get_ptr(&cluster) else { return at };
    // SAFETY: the value lives in a preallocated map; a copy of it torn by a removal is harmless.
    let cluster = unsafe { *cluster };
    let proc = if cluster.my_proc == 0 { 0 } else { postgres::read::<u64>(cluster.my_proc).unwrap_or(0) };
    // Before it has a `PGPROC`, it says so elsewhere.
    if proc != 0 && at.wrapping_sub(proc) < PROC_BYTES_MAX {
        let lock_at = if cluster.proc_wait_lock == 0 { 0 } else { proc + u64::from(cluster.proc_wait_lock) };
        let pid = postgres::pid_of(&cluster, proc);
        // SAFETY: as in `leave`.
        unsafe {
            (&raw mut (*backend).lock_at).write_volatile(lock_at);
            (&raw mut (*backend).pid).write_volatile(pid);
            // Until its id can be read, it is looked for.
            (&raw mut (*backend).event_at).write_volatile(if pid == 0 { 0 } else { at });
        }
    }
    at
}

/// What the running backend waits for; 0 where that is nothing.
#[inline(always)]
fn waits_for(backend: *mut PgBackend) -> u32 {
    // SAFETY: as in `leave`.
    let known = unsafe { (*backend).event_at };
    let at = if known == 0 { find(backend) } else { known };
    match postgres::read::<u32>(at).unwrap_or(0) {
        event if is_idle_wait(event) => 0,
        event => event,
    }
}

/// The backend is on a CPU again, since so long ago.
#[inline(always)]
fn come_back(backend: *mut PgBackend, ago_ns: u64) {
    // SAFETY: as in `leave`.
    let (out_ns, cluster, event) = unsafe { ((*backend).out_ns, (*backend).cluster, (*backend).event) };
    if event == 0 {
        return;
    }
    let now = now_ns().wrapping_sub(ago_ns);
    // SAFETY: as in `leave`.
    unsafe {
        (&raw mut (*backend).event).write_volatile(0);
        if is_lock(event) {
            (&raw mut (*backend).lock.back_ns).write_volatile(now);
        }
    }
    let Some(window) = maps::PG_WAIT_WINDOW.get_ptr(0) else { return };
    // SAFETY: a value of an array; user space writes it between windows, and a wait that ends just then counts to either.
    let window = unsafe { *window };
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
    let backend = PgBackend::new(tgid, wait_pointer);
    if maps::PG_BACKENDS.insert(&read_u32(child, globals::TASK_PID.load()), &backend, 0).is_err() {
        count(counter::PG_BACKENDS_FULL);
    }
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn postgres_exit(_ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("postgres_exit") });
    let (_, tid) = current();
    if let Some(backend) = followed(tid) {
        // SAFETY: as in `leave`.
        let PgBackend { cluster, lock, .. } = unsafe { *backend };
        if lock.since_ns != 0 {
            granted(cluster, &lock);
        }
        let _ = maps::PG_BACKENDS.remove(&tid);
    }
    0
}
