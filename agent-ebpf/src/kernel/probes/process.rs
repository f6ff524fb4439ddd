//! The life of processes and threads.

use agent_ebpf::{
    abi::{
        event_loop::Ledger,
        family, kind,
        process::{Exec, Exit, Fork, exec_flag, exit_flag},
    },
    spec::slot,
    state::target_flag,
};
use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_probe_read_kernel},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use aya_log_ebpf::warn;

use super::sched::read_u32;
use crate::kernel::{
    emit::{self, current, header, now_ns, send},
    globals, maps, thread,
};

#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("process_fork") });
    let (tgid, _) = current();
    let Some(target) = thread::target(tgid) else { return 0 };
    let child: u64 = ctx.arg(1);
    let child_tgid = read_u32(child, globals::TASK_TGID.load());
    let child_tid = read_u32(child, globals::TASK_PID.load());
    if child_tgid != tgid
        && target.flags & target_flag::FOLLOW != 0
        && maps::TARGETS.insert(&child_tgid, &target, 0).is_err()
    {
        warn!(&ctx, "child {} of {} is not followed: too many targets", child_tgid, tgid);
    }
    send::<Fork>(family::PROCESS, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe { *record = Fork { header: header(kind::PROCESS_FORK, 0, now_ns()), child_tgid, child_tid } };
    });
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("process_exec") });
    let (tgid, tid) = current();
    if thread::target(tgid).is_none() {
        if globals::ANNOUNCE_EXECS.load() != 0 {
            send_exec(exec_flag::STRANGER);
        }
        return 0;
    }
    // The thread that is left has the leader's tid: whatever state that had was about the old program's loop.
    if let Some(state) = thread::lookup(tid) {
        thread::forget_program(state);
    }
    send_exec(0);
    0
}

#[inline(always)]
fn send_exec(flags: u32) {
    send::<Exec>(family::PROCESS, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe { *record = Exec { header: header(kind::PROCESS_EXEC, flags, now_ns()), comm: comm() } };
    });
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    emit::count_hit(const { slot("process_exit") });
    let (tgid, tid) = current();
    let state = thread::lookup(tid).filter(|state| state.tgid == tgid);
    // A thread may get here after the last one to be counted out: the process is no target any more, but its time was.
    if state.is_none() && thread::target(tgid).is_none() {
        return 0;
    }
    // SAFETY: the helper takes nothing; the pointer is only read through checked reads.
    let task = unsafe { aya_ebpf::helpers::generated::bpf_get_current_task() };
    let signal_at = (task + u64::from(globals::TASK_SIGNAL.load())) as *const u64;
    // SAFETY: the helper checks the address itself.
    let signal = unsafe { bpf_probe_read_kernel(signal_at) }.unwrap_or(0);
    let last = signal != 0 && read_u32(signal, globals::SIGNAL_LIVE.load()) == 0;
    let now = now_ns();
    let (first_ns, state_flags, ledger) = match state {
        Some(state) => {
            if let Some(switches) = thread::switches()
                && state.switches_epoch != switches.epoch
            {
                thread::meet_again(state, switches, now);
            }
            thread::charge(state, now);
            (state.first_ns, u64::from(state.flags), &raw const state.ledger)
        }
        None => (0, 0, core::ptr::null()),
    };
    send::<Exit>(family::PROCESS, |record| {
        // SAFETY: `record` is a reservation of exactly this type; `ledger` is a map value or null.
        unsafe {
            (*record).header = header(kind::PROCESS_EXIT, if last { exit_flag::PROCESS } else { 0 }, now);
            (*record).status = read_u32(task, globals::TASK_EXIT_CODE.load());
            (*record).reserved = 0;
            (*record).comm = comm();
            (*record).first_ns = first_ns;
            (*record).state_flags = state_flags;
            (*record).ledger = if ledger.is_null() { Ledger::ZERO } else { *ledger };
        }
    });
    let _ = maps::THREADS.remove(&tid);
    if last {
        let _ = maps::TARGETS.remove(&tgid);
    }
    0
}

#[inline(always)]
fn comm() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or([0; 16])
}
