//! The event loop's poll, seen from the system call: works on any libuv, with symbols or without.

use agent_ebpf::{spec::slot, state::flag};
use aya_ebpf::{EbpfContext, macros::tracepoint, programs::TracePointContext};

use crate::kernel::{emit, thread, turn};

/// Offsets in the records of the system call tracepoints: fixed since they exist.
const ARG_FD: usize = 16;
const ARG_TIMEOUT: usize = 40;
const RESULT: usize = 16;

#[tracepoint]
pub fn enter_epoll_wait(ctx: TracePointContext) -> u32 {
    enter(&ctx, const { slot("enter_epoll_wait") }, flag::POLLS_BY_WAIT)
}

#[tracepoint]
pub fn enter_epoll_pwait(ctx: TracePointContext) -> u32 {
    enter(&ctx, const { slot("enter_epoll_pwait") }, flag::POLLS_BY_PWAIT)
}

#[tracepoint]
pub fn exit_epoll_wait(ctx: TracePointContext) -> u32 {
    exit(&ctx, const { slot("exit_epoll_wait") })
}

#[tracepoint]
pub fn exit_epoll_pwait(ctx: TracePointContext) -> u32 {
    exit(&ctx, const { slot("exit_epoll_pwait") })
}

/// A field of the record. Loaded straight from it: the helper that copies costs as much as a map look-up.
#[inline(always)]
fn field(ctx: &TracePointContext, offset: usize) -> i64 {
    // SAFETY: the callers' offsets lie within the tracepoint's record, at which the context points; the verifier checks it again.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u8>().add(offset).cast()) }
}

#[inline(always)]
fn enter(ctx: &TracePointContext, slot: u32, polls_by: u32) -> u32 {
    let (fd, timeout) = (field(ctx, ARG_FD), field(ctx, ARG_TIMEOUT));
    emit::count_hit(slot);
    if let Some(state) = thread::current_state() {
        turn::enter_poll(state, fd as i32, timeout as i32, polls_by);
    }
    0
}

#[inline(always)]
fn exit(ctx: &TracePointContext, slot: u32) -> u32 {
    let events = field(ctx, RESULT);
    emit::count_hit(slot);
    if let Some(state) = thread::current_state() {
        turn::leave_poll(state, events);
    }
    0
}
