//! Who awaits the function that runs: V8's chain of promises, followed while the thread stands still.
//!
//! An async function that was resumed runs below a builtin, the closure that its promise called; the closure's context holds the
//! function's generator object, that its own promise, and that the reaction of whoever awaits it: again such a closure, or that of
//! `Promise.all`, or another promise. V8 goes the same way to write `at async` into `Error.stack`, and like it this stops where a
//! promise has more than one reaction, or is settled already.
//!
//! Later would be too late: all these objects are young, and the next scavenge moves them.

use core::ffi::{c_long, c_void};

use agent_ebpf::abi::stack::{AWAITS_MAX, USER_FRAMES_MAX, UserFrame};
use aya_ebpf::helpers::generated::bpf_loop;

use super::{
    function::{is_function, read_u64, read_words, type_of},
    globals,
    unwind::UserBuffer,
};

/// Offsets from an object's untagged address that are the same in each V8 from 9.4 to 14.6.
mod offset {
    /// `JSGeneratorObject`.
    pub const FUNCTION: u64 = 24;
    pub const DEBUG_POSITION: u64 = 48;
    pub const CONTINUATION: u64 = 64;
    /// Of an async function its promise, of an async generator its first request.
    pub const PROMISE_OR_QUEUE: u64 = 80;
    /// `AsyncGeneratorRequest`.
    pub const REQUEST_PROMISE: u64 = 32;
    /// `JSPromise`; the status is the lowest two bits of its flags, and 0 while it is pending.
    pub const REACTIONS: u64 = 24;
    pub const FLAGS: u64 = 32;
    /// `PromiseCapability`.
    pub const CAPABILITY_PROMISE: u64 = 8;
    /// The first two slots of a context of a builtin's own: generator or promise; capability.
    pub const CONTEXT_FIRST: u64 = 32;
    pub const CONTEXT_SECOND: u64 = 40;
}

/// Words of a reaction, from the next one on.
mod reaction {
    pub const NEXT: usize = 0;
    pub const REJECT: usize = 1;
    pub const FULFILL: usize = 2;
    pub const SETTLES: usize = 3;
}

const SMI_SHIFT: u64 = 32;
const NEGATIVE: u64 = 1 << 63;

/// The generator object of the async function that this function has resumed; 0 if it is no such closure.
#[inline(always)]
pub fn resumed(walk: &UserBuffer, function: u64) -> u64 {
    if walk.layout.function_context == 0 || builtin(walk, function) == 0 {
        return 0;
    }
    let generator = read_u64(context(walk, function) + offset::CONTEXT_FIRST);
    if is_generator(walk, type_of(generator)) { generator } else { 0 }
}

/// Appends the functions that await the one that was resumed.
#[inline(always)]
pub fn follow(walk: &mut UserBuffer) {
    walk.promise = promise_of(walk, walk.generator);
    if globals::HAS_BPF_LOOP.load() != 0 {
        // SAFETY: the callback takes the very pointer that is passed, and the buffer outlives the loop.
        unsafe {
            let mut context = Context { walk };
            bpf_loop(AWAITS_MAX as u32, hop_of as *mut c_void, (&raw mut context).cast(), 0);
        }
    }
}

struct Context {
    walk: *mut UserBuffer,
}

unsafe extern "C" fn hop_of(_: u32, context: *mut c_void) -> c_long {
    // SAFETY: `follow` passes its own context, which outlives the loop.
    let walk = unsafe { &mut *(*context.cast::<Context>()).walk };
    c_long::from(!hop(walk))
}

/// From a promise to whoever waits for it; false at the end.
#[inline(always)]
fn hop(walk: &mut UserBuffer) -> bool {
    const PENDING: u64 = 0;
    let layout = walk.layout;
    let promise = walk.promise;
    if type_of(promise) != layout.promise || read_u64(promise - 1 + offset::FLAGS) >> SMI_SHIFT & 3 != PENDING {
        return false;
    }
    let reactions = read_u64(promise - 1 + offset::REACTIONS);
    if type_of(reactions) != layout.reaction {
        return false;
    }
    let words = reactions - 1 + u64::from(layout.reaction_next);
    if !read_words(&raw mut walk.words, words, 32) || walk.words[reaction::NEXT] & 1 != 0 {
        return false;
    }
    let handler = walk.words[reaction::FULFILL];
    let on_reject = walk.words[reaction::REJECT];
    let settles = walk.words[reaction::SETTLES];
    if is_function(walk, handler) {
        let shared = builtin(walk, handler);
        if shared != 0 {
            let context = context(walk, handler);
            let first = read_u64(context + offset::CONTEXT_FIRST);
            let instance_type = type_of(first);
            if is_generator(walk, instance_type) {
                walk.promise = promise_of(walk, first);
                return push_generator(walk, first);
            }
            if instance_type == layout.promise {
                // `Promise.any` is fulfilled by the promise's own function: only what it does with a rejection tells that it is there.
                let shared = if is_function(walk, on_reject) { builtin(walk, on_reject) } else { 0 };
                if shared != 0 {
                    let context = self::context(walk, on_reject);
                    if type_of(read_u64(context + offset::CONTEXT_FIRST)) != layout.promise && combined(walk, context) {
                        return push(walk, shared, 0);
                    }
                }
                walk.promise = first;
                return true;
            }
            if combined(walk, context) {
                return push(walk, shared, 0);
            }
        }
    }
    let instance_type = type_of(settles);
    walk.promise = if instance_type == layout.promise {
        settles
    } else if instance_type == layout.capability {
        read_u64(settles - 1 + offset::CAPABILITY_PROMISE)
    } else {
        0
    };
    walk.promise != 0
}

/// Goes on to the promise that one of several settles, by the context of its closure; false if that has none.
#[inline(always)]
fn combined(walk: &mut UserBuffer, context: u64) -> bool {
    let capability = read_u64(context + offset::CONTEXT_SECOND);
    if type_of(capability) != walk.layout.capability {
        return false;
    }
    walk.promise = read_u64(capability - 1 + offset::CAPABILITY_PROMISE);
    true
}

#[inline(always)]
fn is_generator(walk: &UserBuffer, instance_type: u16) -> bool {
    instance_type == walk.layout.async_function || instance_type == walk.layout.async_generator
}

/// The function's `SharedFunctionInfo`, if it is a builtin: 0 otherwise.
#[inline(always)]
fn builtin(walk: &UserBuffer, function: u64) -> u64 {
    let shared = read_u64(function - 1 + walk.function_shared);
    if shared & 3 != 1 {
        return 0;
    }
    let data = read_u64(shared - 1 + u64::from(walk.layout.function_data));
    if data & 0xffff_ffff == 0 && data & NEGATIVE == 0 { shared } else { 0 }
}

/// The untagged address of a function's context.
#[inline(always)]
fn context(walk: &UserBuffer, function: u64) -> u64 {
    read_u64(function - 1 + u64::from(walk.layout.function_context)) & !3
}

/// The promise that settles when an async function ends or an async generator yields; 0 if there is none.
#[inline(always)]
fn promise_of(walk: &UserBuffer, generator: u64) -> u64 {
    let promise = read_u64(generator - 1 + offset::PROMISE_OR_QUEUE);
    if type_of(generator) == walk.layout.async_function {
        return promise;
    }
    if type_of(promise) != walk.layout.generator_request {
        return 0;
    }
    read_u64(promise - 1 + offset::REQUEST_PROMISE)
}

/// Appends a suspended function; false if there is no room.
#[inline(always)]
fn push_generator(walk: &mut UserBuffer, generator: u64) -> bool {
    let function = read_u64(generator - 1 + offset::FUNCTION);
    if function & 3 != 1 {
        return false;
    }
    let shared = read_u64(function - 1 + walk.function_shared);
    let position = read_u64(generator - 1 + offset::DEBUG_POSITION);
    let is_suspended = read_u64(generator - 1 + offset::CONTINUATION) & NEGATIVE == 0;
    let is_offset = position & 0xffff_ffff == 0 && position & NEGATIVE == 0;
    push(walk, shared, if is_suspended && is_offset { position >> SMI_SHIFT } else { 0 })
}

#[inline(always)]
fn push(walk: &mut UserBuffer, shared: u64, bytecode_offset: u64) -> bool {
    let at = walk.head.depth + walk.awaits;
    if at >= USER_FRAMES_MAX as u32 {
        return false;
    }
    // The compiler knows that this mask does nothing, the verifier does not.
    let slot = core::hint::black_box(at) as usize & (USER_FRAMES_MAX - 1);
    walk.frames[slot] = UserFrame { pc: 0, object: shared, bytecode_offset };
    walk.hash = super::stack::mix(super::stack::mix(walk.hash, shared), bytecode_offset);
    walk.awaits += 1;
    true
}
