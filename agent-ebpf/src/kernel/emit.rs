//! Sending a record: reserve, fill, submit, and count what did not fit.

use agent_ebpf::{
    abi::{Header, family},
    state::{FULL_WAKEUP_NS, STACK_WAKEUP_NS, Tally},
};
use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    maps::RingBuf,
};

use super::maps;

#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing and reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// (tgid, tid) of the running thread.
#[inline(always)]
pub fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

#[inline(always)]
pub fn header(kind: u32, flags: u32, time_ns: u64) -> Header {
    let (tgid, tid) = current();
    Header { kind, tgid, tid, flags, time_ns }
}

/// This CPU's tallies.
#[inline(always)]
fn tally() -> Option<&'static mut Tally> {
    let tally = maps::TALLY.get_ptr_mut(0)?;
    // SAFETY: a per-CPU value that only this CPU writes; a program that interrupts another's addition costs one count at worst.
    Some(unsafe { &mut *tally })
}

#[inline(always)]
pub fn count_family(family: u32, dropped: bool) {
    if let Some(counters) = tally().and_then(|tally| tally.families.get_mut(family as usize)) {
        counters.emitted += 1;
        if dropped {
            counters.dropped += 1;
        }
    }
}

#[inline(always)]
pub fn count(counter: u32) {
    count_n(counter, 1);
}

#[inline(always)]
pub fn count_n(counter: u32, n: u64) {
    if let Some(value) = tally().and_then(|tally| tally.counters.get_mut(counter as usize)) {
        *value += n;
    }
}

/// Counts a hit of a program on this CPU, and says how many there were.
#[inline(always)]
pub fn count_hit(slot: u32) -> u64 {
    let Some(value) = tally().and_then(|tally| tally.hits.get_mut(slot as usize)) else { return 0 };
    *value += 1;
    *value
}

/// A ring with so much in it wakes its reader, who else comes by at his own pace.
const WAKEUP_BYTES: u64 = 64 << 10;

/// How soon a record is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// When the reader comes by.
    None,
    /// At once: the collector moves what the frames of a user stack point at.
    Moving,
}

/// Waking the reader costs more than the record: do it when enough lies there, else let the reader come by itself.
#[inline(always)]
fn wakeup(urgency: Urgency, ring: &RingBuf) -> u64 {
    let wakes = urgency == Urgency::Moving && !woken_within(STACK_WAKEUP_NS)
        || ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= WAKEUP_BYTES && !woken_within(FULL_WAKEUP_NS);
    u64::from(if wakes { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// This CPU woke the reader a moment ago, who will look again by himself; else he counts as woken from now on.
#[inline(always)]
fn woken_within(ns: u64) -> bool {
    let Some(last) = maps::READER_WOKEN_NS.get_ptr_mut(0) else { return false };
    let now = now_ns();
    // SAFETY: a per-CPU word; a program that interrupts another here wakes once more at worst.
    unsafe {
        if now.wrapping_sub(*last) < ns {
            return true;
        }
        *last = now;
    }
    false
}

/// Sends a record that `fill` writes in place.
#[inline(always)]
pub fn send<T: Copy + 'static>(family: u32, fill: impl FnOnce(*mut T)) {
    let ring = ring(family);
    let Some(mut entry) = ring.reserve::<T>(0) else {
        count_family(family, true);
        return;
    };
    fill(entry.as_mut_ptr());
    entry.submit(wakeup(Urgency::None, ring));
    count_family(family, false);
}

/// Sends bytes that are already in memory; false if there was no room. What is urgent wakes the reader, if that was not just woken.
#[inline(always)]
pub fn send_bytes(family: u32, bytes: *const u8, len: u64, urgency: Urgency) -> bool {
    let ring = ring(family);
    // SAFETY: the callers pass a map value and a length that they bounded by its size; the verifier checks it again.
    let status = unsafe {
        aya_ebpf::helpers::generated::bpf_ringbuf_output(
            core::ptr::from_ref(ring).cast_mut().cast(),
            bytes.cast_mut().cast(),
            len,
            wakeup(urgency, ring),
        )
    };
    count_family(family, status != 0);
    status == 0
}

#[inline(always)]
fn ring(family: u32) -> &'static RingBuf {
    match family {
        family::EVENT_LOOP => &maps::EVENT_LOOP,
        family::THREAD_POOL => &maps::THREAD_POOL,
        family::V8 => &maps::V8,
        family::SCHED => &maps::SCHED,
        family::STACK => &maps::STACK,
        family::SAMPLE => &maps::SAMPLE,
        family::POSTGRES => &maps::POSTGRES,
        _ => &maps::PROCESS,
    }
}
