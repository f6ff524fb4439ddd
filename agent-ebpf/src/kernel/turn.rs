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

use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};

use super::{
    emit::{header, now_ns, send},
    thread::{charge, polls_epoch, polls_unseen},
};

/// Longest stretch between an empty poll and the next one that can still be the same turn's: libuv does a handful of
/// comparisons there. Only used where no phase probe tells.
const REPOLL_GAP_NS: u64 = 50_000;

/// Numbers of `epoll_wait` and `epoll_pwait`, and where the kernel keeps the registers that say what was called (`struct pt_regs`).
const CALLS: [u64; 2] = [232, 281];
const CALL: usize = 120;
const FIRST_ARG: usize = 112;
const FOURTH_ARG: usize = 56;

/// Sees the poll that the thread is switched out in, if it is in one: all that is to be known of polls where nobody asks for turns.
#[inline(always)]
pub fn see_poll(state: &mut ThreadState, is_blocked: bool) {
    state.flags &= !(flag::IN_POLL | flag::POLL_MAY_BLOCK);
    if !is_blocked {
        return;
    }
    // SAFETY: helpers that take the running task, and tell the verifier what it is that they return; it checks the offsets.
    let register = unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf()) as usize;
        move |offset: usize| core::ptr::read_volatile((regs + offset) as *const u64)
    };
    let call = register(CALL);
    if call != CALLS[0] && call != CALLS[1] {
        return;
    }
    let fd = register(FIRST_ARG) as i32;
    if state.poll_fd < 0 {
        state.poll_fd = fd;
        state.flags |= flag::LOOP;
    } else if state.poll_fd != fd {
        return;
    }
    state.flags |= flag::IN_POLL;
    if register(FOURTH_ARG) as i32 != 0 {
        state.flags |= flag::POLL_MAY_BLOCK;
    }
}

/// The thread enters `epoll_wait` or `epoll_pwait`; `polls_by` is the flag that says which.
#[inline(always)]
pub fn enter_poll(state: &mut ThreadState, fd: i32, timeout_ms: i32, polls_by: u32) {
    if state.poll_fd < 0 {
        state.poll_fd = fd;
        state.flags |= flag::LOOP;
    } else if state.poll_fd != fd {
        return;
    }
    let now = now_ns();
    charge(state, now);
    let epoch = polls_epoch();
    if epoch & 1 == 1 {
        // The last ones before the tracepoint is gone.
        return;
    }
    if state.polls_epoch != epoch {
        // Nobody knows how many turns there were since the last poll that was seen.
        state.polls_epoch = epoch;
        state.phase = phase::UNSPLIT;
        state.flags &= !(flag::IN_TURN | flag::POLL_WAS_EMPTY | flag::PHASES | flag::SPLIT);
    }
    let mut same_turn = false;
    if state.flags & flag::POLL_WAS_EMPTY != 0 {
        same_turn = timeout_ms != 0
            && state.flags & flag::PHASES == 0
            && now.wrapping_sub(state.poll_returned_ns) < REPOLL_GAP_NS;
        if !same_turn {
            let end = &raw const state.poll_base;
            end_turn(state, state.poll_returned_ns, end);
        }
    }
    if !same_turn {
        state.polled_ns = now;
    }
    state.poll_entered_ns = now;
    state.flags &= !(flag::POLL_WAS_EMPTY | flag::POLL_MAY_BLOCK);
    state.flags |= flag::IN_POLL | polls_by;
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
    if polls_unseen(state) {
        // It was entered unseen, or is left so.
        state.flags &= !(flag::IN_POLL | flag::POLL_MAY_BLOCK);
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
        let end = &raw const state.ledger;
        end_turn(state, now, end);
    }
}

/// Ends a turn; `end` is one of the state's own ledgers. They are read where they are: a copy of each on the BPF stack would
/// be most of what a turn costs.
#[inline(always)]
fn end_turn(state: &mut ThreadState, at: u64, end: *const Ledger) {
    let base = &raw mut state.turn_base;
    if state.flags & flag::IN_TURN != 0 {
        let state = &*state;
        send::<Turn>(family::EVENT_LOOP, |turn| {
            // SAFETY: `turn` is a reservation of exactly this type; both ledgers are parts of a map value.
            unsafe {
                (*turn).header = header(kind::TURN, 0, at);
                (*turn).loop_addr = state.loop_addr;
                (*turn).started_ns = state.turn_started_ns;
                (*turn).polled_ns = state.polled_ns;
                (*turn).reserved = 0;
                since(&raw mut (*turn).ledger, end, base);
            }
        });
    }
    state.turn_started_ns = at;
    // SAFETY: two different parts of a map value.
    unsafe { *base = *end }
    state.turns += 1;
    state.flags |= flag::IN_TURN;
}

/// [`Ledger::since`], word by word and in place.
#[inline(always)]
unsafe fn since(into: *mut Ledger, end: *const Ledger, base: *const Ledger) {
    const WORDS: usize = size_of::<Ledger>() / size_of::<u64>();
    let (into, end, base) = (into.cast::<u64>(), end.cast::<u64>(), base.cast::<u64>());
    let mut word = 0;
    while word < WORDS {
        // SAFETY: a ledger is words and nothing else; the caller's pointers are to ledgers.
        unsafe { *into.add(word) = (*end.add(word)).wrapping_sub(*base.add(word)) }
        word += 1;
    }
}

/// The thread passes from one phase of its turn to the next.
#[inline(always)]
pub fn enter_phase(state: &mut ThreadState, phase: u32) {
    charge(state, now_ns());
    state.phase = phase;
    state.flags |= if phase == phase::POLL { flag::SPLIT } else { flag::PHASES };
}
