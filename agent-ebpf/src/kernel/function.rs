//! From a `JSFunction` to what identifies it for good, and the objects of V8 on the way.

use core::ffi::c_void;

use agent_ebpf::abi::stack::{FunctionName, NAMES_MAX, USER_FRAMES_MAX, UserFrame};
use aya_ebpf::helpers::generated::bpf_probe_read_user;

use super::{
    stack::mix,
    unwind::{UserBuffer, WORDS},
};

/// `Map::instance_type` from a map's untagged address.
const INSTANCE_TYPE: u64 = 12;

/// From there on: how many words an object has, in which of them its first property of its own lies, two bytes more, and then the type.
const SIZES_AND_TYPE: u64 = 8;
const TYPE_SHIFT: u64 = 8 * (INSTANCE_TYPE - SIZES_AND_TYPE);

/// Above any address of a process: there a map that is remembered has the offset of such a property.
const PROPERTY_SHIFT: u64 = 48;

/// Maps of functions that are remembered within a walk, a power of two: a program has some ten of them, and most functions one.
pub const FUNCTION_MAPS: usize = 4;

/// Reads that many bytes of the target's stack.
#[inline(always)]
pub fn read_words(into: *mut [u64; WORDS], at: u64, bytes: u32) -> bool {
    // SAFETY: the helper checks the address; callers ask for no more than the buffer holds.
    unsafe { bpf_probe_read_user(into.cast(), bytes, at as *const c_void) == 0 }
}

/// The instance type of a tagged object; 0 where it cannot be read, which is that of a string.
#[inline(always)]
pub fn type_of(object: u64) -> u16 {
    if object & 3 != 1 {
        return 0;
    }
    let map = read_u64(object - 1);
    if map & 3 != 1 {
        return 0;
    }
    read_u64(map - 1 + INSTANCE_TYPE) as u16
}

/// Goes from a function to its `SharedFunctionInfo`; where the function is now, or 0 if it is none.
#[inline(always)]
pub fn look_through(walk: &mut UserBuffer, frame: &mut UserFrame, mut function: u64, i: u32) -> u64 {
    if !read_function(walk, function) {
        // Just being moved: its first word is the new address then, without a tag.
        let moved = walk.function[0];
        function = moved | 1;
        if moved & 3 != 0 || !read_function(walk, function) {
            return 0;
        }
    }
    frame.object = walk.function[(walk.function_shared >> 3) as usize & (WORDS - 1)];
    if walk.property != 0 {
        take_name(walk, function, i);
    }
    function
}

/// The same without memory of what was seen, which is too much for a verifier that goes through the loop turn by turn.
#[inline(always)]
pub fn look_through_word_by_word(walk: &UserBuffer, frame: &mut UserFrame, mut function: u64) -> u64 {
    if !is_function(walk, function) {
        let moved = read_u64(function - 1);
        function = moved | 1;
        if moved & 3 != 0 || !is_function(walk, function) {
            return 0;
        }
    }
    frame.object = read_u64(function - 1 + walk.function_shared);
    function
}

/// Reads an object up to where a function has its `SharedFunctionInfo`, at once; false if it is none.
#[inline(always)]
fn read_function(walk: &mut UserBuffer, object: u64) -> bool {
    let bytes = (walk.function_shared as u32 & 56) + 8;
    if !read_words(&raw mut walk.function, object - 1, bytes) {
        walk.function[0] = 1;
        return false;
    }
    let map = walk.function[0];
    if map & 3 != 1 {
        return false;
    }
    let slot = (map >> 4) as usize & (FUNCTION_MAPS - 1);
    let known = walk.function_maps[slot];
    if known & ((1 << PROPERTY_SHIFT) - 1) == map {
        walk.property = known >> PROPERTY_SHIFT;
        return true;
    }
    let described = read_u64(map - 1 + SIZES_AND_TYPE);
    if !is_function_type(walk, (described >> TYPE_SHIFT) as u16) {
        return false;
    }
    let (words, first) = (described & 0xff, described >> 8 & 0xff);
    walk.property = if first < words { first * 8 } else { 0 };
    walk.function_maps[slot] = map | walk.property << PROPERTY_SHIFT;
    true
}

/// Takes the name along that a function has as a property of its own, which is where V8 keeps it when the source does not say it.
#[inline(always)]
fn take_name(walk: &mut UserBuffer, function: u64, i: u32) {
    // The compiler knows that the masks do nothing, the verifier does not.
    let at = core::hint::black_box(walk.names) as usize;
    if at >= NAMES_MAX {
        return;
    }
    let name = read_u64(function - 1 + walk.property);
    if name & 3 != 1 {
        return;
    }
    let name_words = &raw mut walk.named[at & (NAMES_MAX - 1)].words;
    // SAFETY: the helper checks the address and writes as many bytes as there are.
    if unsafe { bpf_probe_read_user(name_words.cast(), 40, (name - 1) as *const c_void) } != 0 {
        return;
    }
    let named = &mut walk.named[at & (NAMES_MAX - 1)];
    named.frame = u64::from(i);
    let [_, length, one, two, three] = named.words;
    walk.hash = mix(mix(mix(mix(walk.hash, length), one), two), three);
    walk.names += 1;
}

/// Puts the names behind the frames.
#[inline(always)]
pub fn append_names(walk: &mut UserBuffer) {
    let mut i = 0;
    while i < NAMES_MAX as u32 {
        if i >= walk.names {
            break;
        }
        let at = walk.head.depth + walk.awaits + 2 * i;
        if at + 1 >= USER_FRAMES_MAX as u32 {
            walk.names = i;
            break;
        }
        let FunctionName { frame, words: [a, b, c, d, e] } = walk.named[i as usize & (NAMES_MAX - 1)];
        // The compiler knows that these masks do nothing, the verifier does not.
        let slot = core::hint::black_box(at) as usize & (USER_FRAMES_MAX - 1);
        walk.frames[slot] = UserFrame { pc: frame, object: a, bytecode_offset: b };
        let slot = core::hint::black_box(at + 1) as usize & (USER_FRAMES_MAX - 1);
        walk.frames[slot] = UserFrame { pc: c, object: d, bytecode_offset: e };
        i += 1;
    }
}

/// The object is a function.
#[inline(always)]
pub fn is_function(walk: &UserBuffer, object: u64) -> bool {
    is_function_type(walk, type_of(object))
}

#[inline(always)]
fn is_function_type(walk: &UserBuffer, instance_type: u16) -> bool {
    instance_type >= walk.function_type_first && instance_type <= walk.function_type_last
}

/// A word of the target's memory; 0 if it cannot be read.
#[inline(always)]
pub fn read_u64(at: u64) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper checks the address and writes 8 bytes.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, at as *const c_void) };
    word
}
