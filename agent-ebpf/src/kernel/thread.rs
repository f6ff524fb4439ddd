//! The state of a thread, and the charging of its time.

use agent_ebpf::{
    abi::{event_loop::phase, sched},
    state::{Switches, TARGET_BITS, Target, ThreadState, counter, flag},
};

use super::{
    emit::{count, current, now_ns},
    maps,
    probes::sched::{catch_up, charge_stay},
};

/// The target that a process is, if it is one.
#[inline(always)]
pub fn target(tgid: u32) -> Option<Target> {
    let target = maps::TARGETS.get_ptr(&tgid)?;
    // SAFETY: the value lives in a preallocated map; a copy torn by a removal is harmless.
    Some(unsafe { *target })
}

/// A collection of one of the process's isolates begins or ends: from here on, addresses in its heap may mean something else.
#[inline(always)]
pub fn count_collection(tgid: u32, major: bool) {
    let Some(target) = maps::TARGETS.get_ptr_mut(&tgid) else { return };
    // SAFETY: aligned words in a map value; threads of several isolates add to them, each in one instruction.
    unsafe {
        add_one(&raw mut (*target).gcs);
        if major {
            add_one(&raw mut (*target).major_gcs);
            (*target).major_gc_ns = now_ns();
        }
    }
}

/// # Safety
///
/// `at` must be an aligned word of a map value.
#[inline(always)]
unsafe fn add_one(at: *mut u32) {
    // SAFETY: the caller's word; the target has no atomic types of its own.
    unsafe { core::arch::asm!("lock *(u32 *)({at} + 0) += {one}", at = in(reg) at, one = in(reg) 1u64) }
}

/// Whether a process can be a target at all: most are not, and this is cheaper than to look for it.
#[inline(always)]
pub fn may_be_target(tgid: u32) -> bool {
    let bit = tgid % TARGET_BITS;
    tgid != 0 && maps::MAYBE_TARGETS.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
}

/// The state of the running thread, if it is one of a target; inserted at first sight.
#[inline(always)]
pub fn current_state() -> Option<&'static mut ThreadState> {
    let (tgid, tid) = current();
    if !may_be_target(tgid) {
        return None;
    }
    let state = of_process(tgid, tid)?;
    let switches = switches()?;
    if switches.quiet != 0 {
        return None;
    }
    if state.switches_epoch != switches.epoch {
        meet_again(state, switches, now_ns());
    } else if state.flags & flag::OFF_CPU != 0 {
        catch_up(state, now_ns());
    }
    Some(state)
}

/// The state of a thread of a process, if that is a target; inserted at first sight. A target whose threads have states need not be
/// looked for.
#[inline(always)]
pub fn of_process(tgid: u32, tid: u32) -> Option<&'static mut ThreadState> {
    if let Some(state) = lookup(tid)
        && state.tgid == tgid
    {
        return Some(state);
    }
    maps::TARGETS.get_ptr(&tgid)?;
    insert(tgid, tid)
}

/// What user space says of switches.
#[inline(always)]
pub fn switches() -> Option<&'static Switches> {
    maps::SWITCHES.get(0)
}

/// Brings a state up to date that is of a time when switches were watched, or were not, as they are not now, or are. Up to the end of
/// that time it holds; what the thread did from then to now is nobody's.
#[inline(always)]
pub fn meet_again(state: &mut ThreadState, switches: &Switches, now: u64) {
    let until = switches.until(state.switches_epoch);
    if state.flags & flag::OFF_CPU == 0 {
        charge(state, until);
    } else if until > state.out_ns {
        let _ = charge_stay(state, until);
    }
    state.flags &= !(flag::OFF_CPU | flag::GC_JOB);
    state.mark_ns = now;
    state.switches_epoch = switches.epoch;
}

/// The state of a thread of a target; inserted at first sight.
#[inline(always)]
pub fn of_target(tgid: u32, tid: u32) -> Option<&'static mut ThreadState> {
    // Another process's thread may have had that id.
    if let Some(state) = lookup(tid)
        && state.tgid == tgid
    {
        return Some(state);
    }
    insert(tgid, tid)
}

#[inline(always)]
fn insert(tgid: u32, tid: u32) -> Option<&'static mut ThreadState> {
    let blank = maps::BLANK.get_ptr(0)?;
    // SAFETY: BLANK is never written: its one value is zeroes.
    if maps::THREADS.insert(&tid, unsafe { &*blank }, 0).is_err() {
        count(counter::THREADS_FULL);
        return None;
    }
    let state = lookup(tid)?;
    let now = now_ns();
    state.tgid = tgid;
    state.tid = tid;
    state.poll_fd = -1;
    state.phase = phase::UNSPLIT;
    state.first_ns = now;
    state.mark_ns = now;
    state.polls_epoch = polls_epoch();
    state.switches_epoch = switches()?.epoch;
    if tid == tgid
        && let Some(main) = maps::MAIN_LOOPS.get_ptr(&tgid)
    {
        // SAFETY: only user space writes it, and before the process is a target.
        unsafe {
            state.loop_addr = (*main).loop_addr;
            state.poll_fd = (*main).poll_fd;
        }
        state.flags |= flag::LOOP;
    }
    Some(state)
}

#[inline(always)]
pub fn lookup(tid: u32) -> Option<&'static mut ThreadState> {
    let state = maps::THREADS.get_ptr_mut(&tid)?;
    // SAFETY: the map is preallocated, so the memory stays; each field but `woken_ns` is written by the thread itself.
    Some(unsafe { &mut *state })
}

/// Forgets what was known of the program that a thread ran; its times stay.
#[inline(always)]
pub fn forget_program(state: &mut ThreadState) {
    state.flags &= flag::OFF_CPU;
    state.phase = phase::UNSPLIT;
    state.poll_fd = -1;
    state.loop_addr = 0;
    state.work = 0;
    state.gc_started_ns = 0;
    state.gc_step_started_ns = 0;
    state.poll_entered_ns = 0;
}

/// Charges the time on CPU since the last charge to the phase that the thread is in.
#[inline(always)]
pub fn charge(state: &mut ThreadState, now: u64) {
    // A probe can be preempted between reading the clock and getting here: time never runs backwards in the ledger.
    if now <= state.mark_ns {
        return;
    }
    let spent = now - state.mark_ns;
    state.mark_ns = now;
    if state.switches_epoch & 1 == 1 {
        // It may have been anywhere.
        return;
    }
    if state.flags & flag::GC_JOB != 0 {
        state.ledger.gc_ns += spent;
    }
    // Between polls that are not watched, nothing tells of phases either.
    let phase =
        if state.flags & flag::LOOP != 0 && polls_unseen(state) { phase::UNSPLIT } else { state.phase } as usize;
    if phase < phase::COUNT {
        state.ledger.on_cpu_ns[phase] += spent;
    }
}

/// What is known of the thread.
#[inline(always)]
pub fn class(state: &ThreadState) -> u32 {
    if state.flags & flag::LOOP != 0 {
        sched::class::EVENT_LOOP
    } else if state.flags & flag::POOL != 0 {
        sched::class::THREAD_POOL
    } else {
        sched::class::OTHER
    }
}

/// How often it has changed whether polls are watched.
#[inline(always)]
pub fn polls_epoch() -> u32 {
    maps::POLLS.get(0).copied().unwrap_or(0)
}

/// The thread's polls are not watched, or it has not polled yet since they are again.
#[inline(always)]
pub fn polls_unseen(state: &ThreadState) -> bool {
    let epoch = polls_epoch();
    epoch & 1 == 1 || epoch != state.polls_epoch
}

/// Waits for work as it should: in poll, or on the pool's queue. Its stack says nothing. While its polls are not watched, a loop is taken
/// to wait for the next event.
#[inline(always)]
pub fn is_idle(state: &ThreadState) -> bool {
    const BLOCKING_POLL: u32 = flag::IN_POLL | flag::POLL_MAY_BLOCK;
    if state.flags & flag::LOOP != 0 && polls_unseen(state) {
        return true;
    }
    state.flags & BLOCKING_POLL == BLOCKING_POLL || (state.flags & flag::POOL != 0 && state.work == 0)
}
