//! Off CPU and on again.

use agent_ebpf::{
    abi::{
        family, kind,
        sched::{OffCpu, class, flag as record_flag, reason},
    },
    histogram,
    spec::slot,
    state::{RunQueueOctave, RunQueueOctaveKey, Switches, ThreadState, counter, flag},
};
use aya_ebpf::{
    EbpfContext,
    helpers::bpf_probe_read_kernel,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};

use crate::kernel::{
    emit::{self, count, current, now_ns, send},
    globals, maps,
    stack::{self, Buffer},
    thread::{self, charge},
    turn, unwind,
};

/// From `linux/bpf.h`: fail where the key is there.
const BPF_NOEXIST: u64 = 1;

/// `TASK_STOPPED | TASK_TRACED`.
const STATE_STOPPED: u32 = 0x4 | 0x8;
/// `TASK_DEAD`.
const STATE_DEAD: u32 = 0x80;
/// In the tracepoint's record: `EXIT_DEAD | EXIT_ZOMBIE`, and `TASK_REPORT_MAX` for a preempted task.
const RECORD_DEAD: u64 = 0x10 | 0x20;
const RECORD_PREEMPTED: u64 = 0x100;

/// Reads a 32-bit field of a kernel structure.
#[inline(always)]
pub fn read_u32(base: u64, offset: u32) -> u32 {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const u32) }.unwrap_or(0)
}

/// Reads a 32-bit field of a kernel structure that a tracepoint with types passes: a load and no helper.
#[inline(always)]
pub fn load_u32(base: u64, offset: u32) -> u32 {
    // SAFETY: the verifier knows what the address is of, as it comes straight from the context, and checks that the field is one.
    unsafe { core::ptr::read_volatile((base + u64::from(offset)) as *const u32) }
}

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    emit::count_hit(const { slot("sched_switch") });
    switch(&ctx, tid_if_ours(ctx.arg(2)), || {
        let task_state = if globals::SWITCH_HAS_STATE.load() != 0 {
            ctx.arg::<u64>(3) as u32
        } else {
            load_u32(ctx.arg(1), globals::TASK_STATE.load())
        };
        if task_state & STATE_DEAD != 0 {
            Left::Dead
        } else if ctx.arg::<u64>(0) & 1 != 0 || task_state == 0 {
            Left::Because(reason::PREEMPTED)
        } else if task_state & STATE_STOPPED != 0 {
            Left::Because(reason::STOPPED)
        } else {
            Left::Because(reason::BLOCKED)
        }
    });
    0
}

/// The same without knowledge of the kernel's structures, from the tracepoint's record: costs a little more a switch.
#[tracepoint]
pub fn sched_switch_record(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("sched_switch_record") });
    // SAFETY: both fields lie within the tracepoint's record, at offsets that have not changed since 2.6.
    let (task_state, next) = unsafe { (ctx.read_at::<u64>(32), ctx.read_at::<u32>(56)) };
    let (Ok(task_state), Ok(next)) = (task_state, next) else { return 0 };
    switch(&ctx, next, || {
        if task_state & RECORD_DEAD != 0 {
            Left::Dead
        } else if task_state == 0 || task_state & RECORD_PREEMPTED != 0 {
            Left::Because(reason::PREEMPTED)
        } else if task_state & u64::from(STATE_STOPPED) != 0 {
            Left::Because(reason::STOPPED)
        } else {
            Left::Because(reason::BLOCKED)
        }
    });
    0
}

/// How the previous task left the CPU.
enum Left {
    Dead,
    /// One of [`reason`].
    Because(u32),
}

/// The thread that a `task_struct` is of; 0 if it cannot be one of a target.
#[inline(always)]
fn tid_if_ours(task: u64) -> u32 {
    let tgid = load_u32(task, globals::TASK_TGID.load());
    if thread::may_be_target(tgid) { load_u32(task, globals::TASK_PID.load()) } else { 0 }
}

/// Most switches of a machine are between threads of no target: those pay for two looks at a filter and nothing else.
#[inline(always)]
fn switch<C: EbpfContext>(ctx: &C, next: u32, left: impl FnOnce() -> Left) {
    let (tgid, tid) = current();
    let previous_may_be_ours = thread::may_be_target(tgid);
    if !previous_may_be_ours && next == 0 {
        return;
    }
    let Some(switches) = thread::switches() else { return };
    if switches.epoch & 1 == 1 || switches.quiet != 0 {
        // The last ones before the tracepoint is gone, or the first ones.
        return;
    }
    let now = now_ns();
    if previous_may_be_ours {
        switch_out(ctx, (tgid, tid), left(), switches, now);
    }
    if next != 0
        && let Some(state) = thread::lookup(next)
    {
        if state.switches_epoch != switches.epoch {
            thread::meet_again(state, switches, now);
        }
        switch_in(state, now);
    }
}

/// Stays of so many nanoseconds or more are events of their own.
#[inline(always)]
fn threshold_ns(class: u32) -> u64 {
    if class == class::EVENT_LOOP { globals::LOOP_OFF_CPU_MIN_NS.load() } else { globals::OTHER_OFF_CPU_MIN_NS.load() }
}

#[inline(always)]
fn switch_out<C: EbpfContext>(ctx: &C, (tgid, tid): (u32, u32), left: Left, switches: &Switches, now: u64) {
    let Left::Because(out_reason) = left else {
        let _ = maps::THREADS.remove(&tid);
        return;
    };
    let Some(state) = thread::of_process(tgid, tid) else { return };
    if state.switches_epoch != switches.epoch {
        thread::meet_again(state, switches, now);
    }
    catch_up(state, now);
    charge(state, now);
    state.out_reason = out_reason;
    state.out_ns = now;
    state.woken_ns = 0;
    state.ledger.switches += 1;
    state.user_stack = 0;
    state.kernel_stack = 0;
    state.flags &= !flag::STACK_OVER_BUDGET;
    state.flags |= flag::OFF_CPU;
    if out_reason == reason::BLOCKED {
        state.flags &= !flag::GC_JOB;
    }
    if globals::POLLS_AT_SWITCHES.load() != 0 {
        turn::see_poll(state, out_reason == reason::BLOCKED);
    }
    // Where no stay is an event, nobody asks for its stack.
    let class = thread::class(state);
    if thread::is_idle(state) || threshold_ns(class) == u64::MAX {
        return;
    }
    let price = if out_reason == reason::PREEMPTED { switches.preempted_tokens } else { stack::PRICE_BLOCKED };
    let serves = class != class::EVENT_LOOP && state.work == 0;
    let price = if serves && price < switches.other_tokens { switches.other_tokens } else { price };
    if stack::pay(state, now, price, switches.stack_token_ns) {
        if let Some(target) = thread::target(tgid) {
            let walked = unwind::user(ctx, &target, Buffer::Scheduler, now);
            stack::pay_for_depth(state, walked.depth);
            state.user_stack = walked.id;
        }
        state.kernel_stack = stack::kernel(ctx, Buffer::Scheduler, now);
    } else {
        state.flags |= flag::STACK_OVER_BUDGET;
    }
}

#[inline(always)]
fn switch_in(state: &mut ThreadState, now: u64) {
    if state.flags & flag::OFF_CPU == 0 {
        return;
    }
    let runnable = come_back(state, now);
    if state.out_reason == reason::PREEMPTED || state.woken_ns != 0 {
        count_run_queue(state.tgid, thread::class(state), runnable);
    }
}

/// The running thread is one that was not seen to be switched in: not every kernel tells of every switch (6.18 in some virtual
/// machines does not of those out of a CPU's idle task). A CPU that idled takes a thread the moment that it is woken, and so
/// it is booked. How long it really waited for a CPU is not known, so that this is no entry in the run queue's histogram.
#[inline(always)]
pub fn catch_up(state: &mut ThreadState, now: u64) {
    if state.flags & flag::OFF_CPU == 0 {
        return;
    }
    count(counter::SWITCH_IN_UNSEEN);
    let back = match state.out_reason {
        reason::PREEMPTED => state.out_ns,
        _ if state.woken_ns == 0 => now,
        _ => woken_after(state),
    };
    come_back(state, back);
}

/// The waker's clock may be read before the switch ends: a wake-up is never earlier than the switch.
#[inline(always)]
fn woken_after(state: &ThreadState) -> u64 {
    if state.woken_ns != 0 && state.woken_ns < state.out_ns { state.out_ns } else { state.woken_ns }
}

/// Books a stay off CPU that ended then; returns how much of it the thread waited for a CPU.
#[inline(always)]
fn come_back(state: &mut ThreadState, back: u64) -> u64 {
    let idle = thread::is_idle(state);
    let (away, runnable) = charge_stay(state, back);
    state.mark_ns = back;
    state.flags &= !flag::OFF_CPU;

    let class = thread::class(state);
    let threshold = threshold_ns(class);
    // Idling is no event, unless the thread sat there stopped or waiting for a CPU.
    if away >= threshold && !(idle && state.out_reason == reason::BLOCKED) {
        emit_off_cpu(state, back, woken_after(state), class);
    }
    runnable
}

/// Charges a stay off CPU up to then; returns how long it was, and how much of it the thread waited for a CPU.
#[inline(always)]
pub fn charge_stay(state: &mut ThreadState, back: u64) -> (u64, u64) {
    let away = back.wrapping_sub(state.out_ns);
    let woken = woken_after(state);
    let idle = thread::is_idle(state);
    let runnable = match state.out_reason {
        reason::PREEMPTED => away,
        // Nobody was seen to wake it: all of it was the wait.
        _ if woken == 0 => 0,
        _ => back.wrapping_sub(woken),
    };
    let runnable = if runnable > away { away } else { runnable };
    let waited = away - runnable;
    state.ledger.runnable_ns += runnable;
    if state.out_reason == reason::STOPPED {
        state.ledger.stopped_ns += waited;
    } else if idle {
        state.ledger.idle_ns += waited;
    } else {
        state.ledger.blocked_ns += waited;
    }
    (away, runnable)
}

#[inline(always)]
fn emit_off_cpu(state: &ThreadState, now: u64, woken: u64, class: u32) {
    send::<OffCpu>(family::SCHED, |record| {
        let mut header = emit::header(kind::OFF_CPU, 0, now);
        header.tgid = state.tgid;
        header.tid = state.tid;
        if state.flags & flag::STACK_OVER_BUDGET != 0 {
            header.flags = record_flag::STACK_OVER_BUDGET;
        }
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe {
            *record = OffCpu {
                header,
                out_ns: state.out_ns,
                woken_ns: woken,
                user_stack: state.user_stack,
                kernel_stack: state.kernel_stack,
                reason: state.out_reason,
                class,
            };
        }
    });
}

#[inline(always)]
fn count_run_queue(tgid: u32, class: u32, latency_ns: u64) {
    let bucket = histogram::index(latency_ns);
    let key = RunQueueOctaveKey { tgid, class: class as u16, octave: (bucket / histogram::PER_OCTAVE) as u16 };
    let Some(octave) = octave(&key) else { return count(counter::RUN_QUEUE_FULL) };
    // SAFETY: inside of the octave, and aligned; several CPUs add to it, each in one instruction.
    unsafe {
        let at = (&raw mut (*octave).counts).cast::<u64>().add((bucket % histogram::PER_OCTAVE) as usize);
        core::arch::asm!("lock *(u64 *)({at} + 0) += {one}", at = in(reg) at, one = in(reg) 1u64);
    }
}

#[inline(always)]
fn octave(key: &RunQueueOctaveKey) -> Option<*mut RunQueueOctave> {
    let known = maps::RUN_QUEUE.get_ptr_mut(key);
    if known.is_some() {
        return known;
    }
    let blank = maps::BLANK_OCTAVE.get_ptr(0)?;
    // Another CPU may have been first: its counts stay.
    // SAFETY: BLANK_OCTAVE is never written: its one value is zeroes.
    let _ = maps::RUN_QUEUE.insert(key, unsafe { &*blank }, BPF_NOEXIST);
    maps::RUN_QUEUE.get_ptr_mut(key)
}

#[btf_tracepoint(function = "sched_wakeup")]
pub fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    emit::count_hit(const { slot("sched_wakeup") });
    wake(tid_if_ours(ctx.arg(0)));
    0
}

#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    emit::count_hit(const { slot("sched_wakeup_new") });
    wake(tid_if_ours(ctx.arg(0)));
    0
}

/// Both wake-ups, without knowledge of the kernel's structures.
#[tracepoint]
pub fn sched_wakeup_record(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("sched_wakeup_record") });
    // SAFETY: the field lies within the tracepoint's record.
    if let Ok(tid) = unsafe { ctx.read_at::<u32>(24) } {
        wake(tid);
    }
    0
}

#[inline(always)]
fn wake(tid: u32) {
    if tid != 0
        && let Some(state) = thread::lookup(tid)
        && state.flags & flag::OFF_CPU != 0
        && state.woken_ns == 0
        && thread::switches().is_some_and(|switches| switches.epoch == state.switches_epoch)
    {
        state.woken_ns = now_ns();
    }
}
