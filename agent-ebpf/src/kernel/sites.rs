//! Places in the program that make things which may never go away: what each made, and what of that is gone.
//!
//! Watched for seconds at a time, when something is known to grow: user space counts by other, cheaper means.

use agent_ebpf::state::{
    ALLOCATION_STEP, AliveKey, Scrutiny, SiteKey, SiteState, Switches, Target, ThreadState, counter, site,
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_prandom_u32, bpf_probe_read_user},
};

use super::{
    emit::{count, now_ns},
    maps,
    stack::{self, Buffer, PRICE_BLOCKED},
    unwind,
};

/// Takes the stack of the running thread from within a probe; 0 if there is none.
///
/// Unlike a program on the scheduler or a clock, one on a uprobe may be preempted, and the next thread on this CPU may hit a probe
/// too: the second one goes without.
#[inline(always)]
fn stack_of<C: EbpfContext>(ctx: &C, state: &mut ThreadState, target: &Target, price: u64, buffer: Buffer) -> u64 {
    let now = now_ns();
    if !stack::pay(state, now, price, Switches::STACK_TOKEN_NS) {
        return 0;
    }
    let Some(busy) = maps::PROBE_BUSY.get_ptr_mut(0) else { return 0 };
    // SAFETY: an aligned word of a map value.
    let walked = unsafe {
        if fetch_add(busy, 1) != 0 {
            fetch_add(busy, u64::MAX);
            count(counter::STACK_BUSY);
            return 0;
        }
        let walked = unwind::user(ctx, target, buffer, now);
        fetch_add(busy, u64::MAX);
        walked
    };
    stack::pay_for_depth(state, walked.depth);
    walked.id
}

/// # Safety
///
/// `at` must be an aligned word of a map value.
#[inline(always)]
unsafe fn fetch_add(at: *mut u64, n: u64) -> u64 {
    let mut value = n;
    // SAFETY: the caller's word; the target has no atomic types of its own.
    unsafe {
        core::arch::asm!("{value} = atomic_fetch_add((u64 *)({at} + 0), {value})", at = in(reg) at, value = inout(reg) value)
    }
    value
}

/// What is looked at in a process on suspicion.
#[inline(always)]
pub fn scrutiny(tgid: u32) -> Option<Scrutiny> {
    // SAFETY: a value of a preallocated map: one that is replaced meanwhile is the old or the new one, word by word.
    maps::SCRUTINY.get_ptr(&tgid).map(|scrutiny| unsafe { *scrutiny })
}

#[inline(always)]
fn add(key: &SiteKey, made: u64, gone: u64) {
    if let Some(known) = maps::SITES.get_ptr_mut(key) {
        // SAFETY: aligned words of a map value.
        unsafe {
            if made != 0 {
                fetch_add(&raw mut (*known).made, made);
            }
            if gone != 0 {
                fetch_add(&raw mut (*known).gone, gone);
            }
        }
    } else if maps::SITES.insert(key, &SiteState { made, gone }, 0).is_err() {
        count(counter::SITES_FULL);
    }
}

/// So much of this kind is made here.
#[inline(always)]
pub fn made<C: EbpfContext>(ctx: &C, state: &mut ThreadState, target: &Target, kind: u32, count: u64) {
    let tgid = state.tgid;
    // Pages and areas of the heap are many while it churns, and a few of them tell as much.
    let price = if kind == site::PAGE || kind == site::HEAP_AREA { Switches::PREEMPTED_TOKENS } else { PRICE_BLOCKED };
    let stack = stack_of(ctx, state, target, price, Buffer::Probe);
    if stack != 0 {
        add(&SiteKey { stack, tgid, kind }, count, 0);
    }
}

/// A global handle is made here, in this slot.
#[inline(always)]
pub fn made_handle<C: EbpfContext>(ctx: &C, state: &mut ThreadState, target: &Target, slot: u64) {
    let tgid = state.tgid;
    let stack = stack_of(ctx, state, target, PRICE_BLOCKED, Buffer::Probe);
    if stack == 0 {
        return;
    }
    // What cannot be watched until it goes must not be counted as if it stayed.
    if maps::ALIVE.insert(&AliveKey { at: slot, tgid, kind: site::GLOBAL_HANDLE }, &stack, 0).is_err() {
        count(counter::SITES_FULL);
        return;
    }
    add(&SiteKey { stack, tgid, kind: site::GLOBAL_HANDLE }, 1, 0);
}

/// The handle in this slot is gone.
#[inline(always)]
pub fn gone_handle(tgid: u32, slot: u64) {
    gone(AliveKey { at: slot, tgid, kind: site::GLOBAL_HANDLE }, 1);
}

#[inline(always)]
fn gone(key: AliveKey, much: u64) {
    let Some(stack) = maps::ALIVE.get_ptr(&key) else { return };
    // SAFETY: a value of a preallocated map.
    let stack = unsafe { *stack };
    add(&SiteKey { stack, tgid: key.tgid, kind: key.kind }, 0, much);
    let _ = maps::ALIVE.remove(&key);
}

/// Bytes of a chunk of glibc's, whose size is in the word before it, beside three flags; 0 if it is none.
#[inline(always)]
fn chunk_bytes(at: u64) -> u64 {
    const BYTES_MAX: u64 = 1 << 40;
    if at < 16 {
        return 0;
    }
    // SAFETY: the helper checks the address itself and fails on a bad one.
    let size = unsafe { bpf_probe_read_user((at - 8) as *const u64) }.unwrap_or(0) & !7;
    if size > BYTES_MAX { 0 } else { size }
}

/// Bytes that a watched chunk of this size stands for.
#[inline(always)]
fn weight(bytes: u64) -> u64 {
    if bytes < ALLOCATION_STEP { ALLOCATION_STEP } else { bytes }
}

/// Native memory was handed out, here.
#[inline(always)]
pub fn allocated<C: EbpfContext>(ctx: &C, state: &mut ThreadState, target: &Target, at: u64) {
    let bytes = chunk_bytes(at);
    // SAFETY: a helper without arguments.
    if bytes == 0 || u64::from(unsafe { bpf_get_prandom_u32() }) & (ALLOCATION_STEP - 1) >= bytes {
        return;
    }
    let tgid = state.tgid;
    let stack = stack_of(ctx, state, target, PRICE_BLOCKED, Buffer::Returned);
    if stack == 0 {
        return;
    }
    if maps::ALIVE.insert(&AliveKey { at, tgid, kind: site::ALLOCATION }, &stack, 0).is_err() {
        count(counter::SITES_FULL);
        return;
    }
    add(&SiteKey { stack, tgid, kind: site::ALLOCATION }, weight(bytes), 0);
}

/// Native memory is about to be taken back.
#[inline(always)]
pub fn freed(tgid: u32, at: u64) {
    let key = AliveKey { at, tgid, kind: site::ALLOCATION };
    if maps::ALIVE.get_ptr(&key).is_some() {
        gone(key, weight(chunk_bytes(at)));
    }
}
