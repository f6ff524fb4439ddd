//! Taking a stack, and sending it once.

use agent_ebpf::{
    abi::{
        family, kind,
        stack::{FRAMES_MAX, Stack, space},
    },
    state::{ThreadState, counter},
};
use aya_ebpf::{EbpfContext, bindings::BPF_F_USER_STACK, helpers::generated::bpf_get_stack};

use super::{
    emit::{count, header, send_bytes},
    maps,
};

/// Stacks that a thread may take at once, and the time in which it earns one: 4000 a second,
/// which cost about one percent of a core where stacks are 20 frames deep.
const TOKENS_MAX: u64 = 256;
const TOKEN_NS: u64 = 250_000;

/// Tokens that a stack costs: one where the thread waits for something, more where it was merely preempted, as that
/// happens more often and tells less.
pub const PRICE_BLOCKED: u64 = 1;
pub const PRICE_PREEMPTED: u64 = 16;

/// Takes the price of a stack from the thread's tokens.
#[inline(always)]
pub fn pay(state: &mut ThreadState, now: u64, price: u64) -> bool {
    let earned = now.wrapping_sub(state.stack_filled_ns) / TOKEN_NS;
    if earned > 0 {
        let tokens = state.stack_tokens + earned;
        state.stack_tokens = if tokens > TOKENS_MAX { TOKENS_MAX } else { tokens };
        state.stack_filled_ns = now;
    }
    if state.stack_tokens < price {
        count(counter::STACK_OVER_BUDGET);
        return false;
    }
    state.stack_tokens -= price;
    true
}

/// The id of the running thread's stack in user space or the kernel; 0 if there is none.
#[inline(always)]
pub fn capture<C: EbpfContext>(ctx: &C, space: u32, now: u64) -> u64 {
    let Some(buffer) = maps::SCRATCH.get_ptr_mut(0) else { return 0 };
    let flags = if space == space::USER { u64::from(BPF_F_USER_STACK) } else { 0 };
    // SAFETY: a per-CPU buffer of exactly this size, and scheduler programs do not nest on a CPU.
    let bytes =
        unsafe { bpf_get_stack(ctx.as_ptr(), (&raw mut (*buffer).frames).cast(), (FRAMES_MAX * 8) as u32, flags) };
    if bytes <= 0 {
        // A kernel thread, or one that has not been to user space yet.
        if space == space::KERNEL {
            count(counter::STACK_FAILED);
        }
        return 0;
    }
    let depth = (bytes as usize) >> 3;
    // SAFETY: see above; `hash` and `send_bytes` stay below FRAMES_MAX frames.
    unsafe {
        let head = header(kind::STACK, space, now);
        let id = hash(&(*buffer).frames, depth, if space == space::USER { head.tgid } else { 0 });
        if maps::SEEN.get_ptr(&id).is_some() {
            return id;
        }
        (*buffer).head = Stack { header: head, id, depth: depth as u32, reserved: 0 };
        let len = core::mem::size_of::<Stack>() + (depth & 127) * 8;
        if send_bytes(family::STACK, buffer.cast(), len as u64) {
            // Only now: a stack that was dropped is sent again next time.
            let _ = maps::SEEN.insert(&id, &1, 0);
        }
        id
    }
}

#[inline(always)]
fn hash(frames: &[u64; FRAMES_MAX], depth: usize, tgid: u32) -> u64 {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = MULTIPLIER ^ u64::from(tgid);
    let mut i = 0;
    while i < FRAMES_MAX {
        if i >= depth {
            break;
        }
        hash = (hash ^ frames[i]).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 32;
        i += 1;
    }
    hash | 1
}
