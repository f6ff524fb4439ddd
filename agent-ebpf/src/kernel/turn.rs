//! Turns: where one ends and the next begins.
//!
//! A turn ends when a poll returns. With idle-time metrics on, as Node.js has them, libuv 1.45 and newer polls twice in a turn
//! that may block: first without waiting, then, if nothing was ready, for as long as it may. The second poll
//! belongs to the same turn. It is told apart by what lies between: nothing, where a turn of its own would have
//! run callbacks or at least passed through the loop's phases.

use agent_ebpf::{
    abi::{
        event_loop::{Ledger, Turn, phase},
        family, kind,
    },
    state::{ThreadState, flag},
};

use super::{
    emit::{header, now_ns, send},
    thread::charge,
};

/// Longest stretch between an empty poll and the next one that can still be the same turn's: libuv does a handful of
/// comparisons there. Only used where no phase probe tells.
const REPOLL_GAP_NS: u64 = 50_000;

/// The thread enters `epoll_wait` or `epoll_pwait`.
#[inline(always)]
pub fn enter_poll(state: &mut ThreadState, fd: i32, timeout_ms: i32) {
    if state.poll_fd < 0 {
        state.poll_fd = fd;
        state.flags |= flag::LOOP;
    } else if state.poll_fd != fd {
        return;
    }
    let now = now_ns();
    charge(state, now);
    let mut same_turn = false;
    if state.flags & flag::POLL_WAS_EMPTY != 0 {
        same_turn = timeout_ms != 0
            && state.flags & flag::PHASES == 0
            && now.wrapping_sub(state.poll_returned_ns) < REPOLL_GAP_NS;
        if !same_turn {
            let base = state.poll_base;
            end_turn(state, state.poll_returned_ns, &base);
        }
    }
    if !same_turn {
        state.polled_ns = now;
    }
    state.poll_entered_ns = now;
    state.flags &= !(flag::POLL_WAS_EMPTY | flag::POLL_MAY_BLOCK);
    state.flags |= flag::IN_POLL;
    if timeout_ms != 0 {
        state.flags |= flag::POLL_MAY_BLOCK;
    }
}

/// The thread returns from it.
#[inline(always)]
pub fn leave_poll(state: &mut ThreadState, events: i64) {
    if state.flags & flag::IN_POLL == 0 {
        return;
    }
    let now = now_ns();
    charge(state, now);
    let may_block = state.flags & flag::POLL_MAY_BLOCK != 0;
    if may_block {
        state.ledger.poll_ns += now.wrapping_sub(state.poll_entered_ns);
    }
    if events > 0 {
        state.ledger.events += events as u64;
    }
    state.phase = if state.flags & flag::SPLIT != 0 { phase::POLL } else { phase::UNSPLIT };
    state.flags &= !(flag::IN_POLL | flag::POLL_MAY_BLOCK | flag::PHASES | flag::SPLIT);
    state.poll_returned_ns = now;
    if events == 0 && !may_block {
        state.poll_base = state.ledger;
        state.flags |= flag::POLL_WAS_EMPTY;
    } else {
        let base = state.ledger;
        end_turn(state, now, &base);
    }
}

#[inline(always)]
fn end_turn(state: &mut ThreadState, at: u64, end: &Ledger) {
    if state.flags & flag::IN_TURN != 0 {
        let state = &*state;
        send::<Turn>(family::EVENT_LOOP, |turn| {
            // SAFETY: `turn` is a reservation of exactly this type.
            unsafe {
                (*turn).header = header(kind::TURN, 0, at);
                (*turn).loop_addr = state.loop_addr;
                (*turn).started_ns = state.turn_started_ns;
                (*turn).polled_ns = state.polled_ns;
                (*turn).reserved = 0;
                (*turn).ledger = end.since(&state.turn_base);
            }
        });
    }
    state.turn_started_ns = at;
    state.turn_base = *end;
    state.turns += 1;
    state.flags |= flag::IN_TURN;
}

/// The thread passes from one phase of its turn to the next.
#[inline(always)]
pub fn enter_phase(state: &mut ThreadState, phase: u32) {
    charge(state, now_ns());
    state.phase = phase;
    state.flags |= if phase == phase::POLL { flag::SPLIT } else { flag::PHASES };
}
