//! Taking a kernel stack, sending stacks once, and the budget that a thread has for them.

use agent_ebpf::{
    abi::{
        family, kind,
        stack::{KERNEL_FRAMES_MAX, KernelStack},
    },
    state::{Switches, ThreadState, counter},
};
use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_stack};

use super::{
    emit::{Urgency, count, header, send_bytes},
    maps,
};

/// Stacks that a thread may take at once.
const TOKENS_MAX: u64 = 256;

/// Tokens that a stack costs where the thread waits for something. One of a thread that was merely preempted, which happens more often
/// and tells less, or of a thread that serves others, costs more: see [`Switches`].
pub const PRICE_BLOCKED: u64 = 1;

/// Frames of a user stack that each cost one more token.
const FRAMES_A_TOKEN: u64 = 32;

/// Takes the price of a stack from the thread's tokens, of which it earns one in so many nanoseconds.
#[inline(always)]
pub fn pay(state: &mut ThreadState, now: u64, price: u64, token_ns: u64) -> bool {
    let token_ns = if token_ns == 0 { Switches::STACK_TOKEN_NS } else { token_ns };
    let earned = now.wrapping_sub(state.stack_filled_ns) / token_ns;
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

/// Takes what a deep stack costs beyond its price.
#[inline(always)]
pub fn pay_for_depth(state: &mut ThreadState, depth: u64) {
    state.stack_tokens = state.stack_tokens.saturating_sub(depth / FRAMES_A_TOKEN);
}

/// Which buffer a program takes its stacks in: one program may interrupt the other on the same CPU.
#[derive(Clone, Copy)]
pub enum Buffer {
    Scheduler = 0,
    Sampler = 1,
    /// Probes, which may be preempted while they take one: see [`super::sites`].
    Probe = 2,
    /// The same where a function has returned.
    Returned = 3,
}

pub const BUFFERS: u32 = 4;

/// The id of the running thread's stack in the kernel; 0 if there is none.
#[inline(always)]
pub fn kernel<C: EbpfContext>(ctx: &C, buffer: Buffer, now: u64) -> u64 {
    let Some(buffer) = maps::KERNEL_SCRATCH.get_ptr_mut(buffer as u32) else { return 0 };
    // SAFETY: a per-CPU buffer of exactly this size, and the same program does not nest on a CPU.
    let bytes =
        unsafe { bpf_get_stack(ctx.as_ptr(), (&raw mut (*buffer).frames).cast(), (KERNEL_FRAMES_MAX * 8) as u32, 0) };
    if bytes <= 0 {
        count(counter::STACK_FAILED);
        return 0;
    }
    let depth = (bytes as usize) >> 3;
    // SAFETY: see above; `hash` and `send_bytes` stay below KERNEL_FRAMES_MAX frames.
    unsafe {
        let id = hash(&(*buffer).frames, depth);
        if maps::SEEN.get_ptr(&id).is_some() {
            return id;
        }
        (*buffer).head =
            KernelStack { header: header(kind::KERNEL_STACK, 0, now), id, depth: depth as u32, reserved: 0 };
        let len = core::mem::size_of::<KernelStack>() + (depth & 127) * 8;
        send_once(id, buffer.cast(), len as u64, Urgency::None);
        id
    }
}

/// Sends a stack, and remembers that it went out; one that was dropped is sent again next time.
#[inline(always)]
pub fn send_once(id: u64, bytes: *const u8, len: u64, urgency: Urgency) {
    if send_bytes(family::STACK, bytes, len, urgency) {
        let _ = maps::SEEN.insert(&id, &1, 0);
    }
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Takes one more word into a hash.
#[inline(always)]
pub fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 32)
}

#[inline(always)]
fn hash(frames: &[u64; KERNEL_FRAMES_MAX], depth: usize) -> u64 {
    let mut hash = MULTIPLIER;
    let mut i = 0;
    while i < KERNEL_FRAMES_MAX {
        if i >= depth {
            break;
        }
        hash = mix(hash, frames[i]);
        i += 1;
    }
    hash | 1
}
