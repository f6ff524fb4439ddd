//! The event loop's poll, seen from the system call: works on any libuv, with symbols or without.

use agent_ebpf::spec::slot;
use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

use crate::kernel::{emit, thread, turn};

/// Offsets in the records of the system call tracepoints: fixed since they exist.
const ARG_FD: usize = 16;
const ARG_TIMEOUT: usize = 40;
const RESULT: usize = 16;

#[tracepoint]
pub fn enter_epoll_wait(ctx: TracePointContext) -> u32 {
    enter(&ctx, const { slot("enter_epoll_wait") })
}

#[tracepoint]
pub fn enter_epoll_pwait(ctx: TracePointContext) -> u32 {
    enter(&ctx, const { slot("enter_epoll_pwait") })
}

#[tracepoint]
pub fn exit_epoll_wait(ctx: TracePointContext) -> u32 {
    exit(&ctx, const { slot("exit_epoll_wait") })
}

#[tracepoint]
pub fn exit_epoll_pwait(ctx: TracePointContext) -> u32 {
    exit(&ctx, const { slot("exit_epoll_pwait") })
}

#[inline(always)]
fn enter(ctx: &TracePointContext, slot: u32) -> u32 {
    emit::count_hit(slot);
    if let Some(state) = thread::current_state() {
        // SAFETY: both fields lie within the tracepoint's record.
        let (fd, timeout) = unsafe { (ctx.read_at::<i64>(ARG_FD), ctx.read_at::<i64>(ARG_TIMEOUT)) };
        if let (Ok(fd), Ok(timeout)) = (fd, timeout) {
            turn::enter_poll(state, fd as i32, timeout as i32);
        }
    }
    0
}

#[inline(always)]
fn exit(ctx: &TracePointContext, slot: u32) -> u32 {
    emit::count_hit(slot);
    if let Some(state) = thread::current_state() {
        // SAFETY: the field lies within the tracepoint's record.
        let events = unsafe { ctx.read_at::<i64>(RESULT) };
        turn::leave_poll(state, events.unwrap_or(0));
    }
    0
}
