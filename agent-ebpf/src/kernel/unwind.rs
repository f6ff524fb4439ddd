//! Walking the running thread's user stack, with what V8's frames hold besides.
//!
//! Node.js, V8 and what V8 compiles keep frame pointers; libc, most addons and PostgreSQL do not, and are unwound by table.
//!
//! A V8 frame, from its frame pointer down: context or type marker, function, argument count, bytecode array, bytecode
//! offset. The function is looked through to its `SharedFunctionInfo` here and now, as the collector moves functions all the
//! time and those hardly ever. What is read is not believed: user space checks it against the code that the frame runs.

use core::{
    ffi::{c_long, c_void},
    mem::size_of,
};

use agent_ebpf::{
    abi::{
        kind,
        stack::{FunctionName, Leaf, NAMES_MAX, USER_FRAMES_MAX, UserFrame, UserStack, end, user_flag},
    },
    state::{AwaitLayout, Regions, STACK_URGENT_NS, Target, UnwindRow, cfa, counter, target_flag},
};
use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, pt_regs},
    helpers::generated::{
        bpf_get_current_task_btf, bpf_get_stack, bpf_loop, bpf_probe_read_kernel, bpf_probe_read_user, bpf_task_pt_regs,
    },
};

use super::{
    awaits,
    emit::{Urgency, count_n, current, header},
    function::{FUNCTION_MAPS, append_names, look_through, look_through_word_by_word, read_words},
    globals, maps,
    stack::{Buffer, mix, send_once},
    tables::{self, KNOWN_ROWS, KnownRow},
};

/// Bytes below a frame pointer that are read, and words: down to the bytecode offset's neighbour, up to the return address.
const BELOW: u64 = 48;
pub const WORDS: usize = 8;

/// Indices of those words.
mod word {
    pub const BYTECODE_OFFSET: usize = 1;
    pub const BYTECODE_ARRAY: usize = 2;
    pub const FUNCTION: usize = 4;
    pub const CONTEXT: usize = 5;
    pub const CALLER_FP: usize = 6;
    pub const RETURN_PC: usize = 7;
}

/// Above any type of V8's stub frames, doubled as the frame holds it.
const MARKER_MAX: u64 = 128;

/// Larger than any bytecode array.
const BYTECODE_OFFSET_MAX: u64 = 1 << 28;

/// A user stack on its way to its ring, and the state of the walk.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UserBuffer {
    pub head: UserStack,
    pub frames: [UserFrame; USER_FRAMES_MAX],
    pub words: [u64; WORDS],
    /// The first words of a frame's function.
    pub function: [u64; WORDS],
    regs: pt_regs,
    fp: u64,
    /// What is above it has not been unwound yet: each frame must lie above the one before.
    sp: u64,
    pc: u64,
    pub hash: u64,
    pub function_shared: u64,
    /// Those that were seen to be of functions in this walk, in which nothing moves.
    pub function_maps: [u64; FUNCTION_MAPS],
    /// Where the function that was read last has a property in itself; 0 if it has none.
    pub property: u64,
    pub names: u32,
    pub named: [FunctionName; NAMES_MAX],
    rows: [KnownRow; KNOWN_ROWS],
    pub function_type_first: u16,
    pub function_type_last: u16,
    pub awaits: u32,
    pub layout: AwaitLayout,
    /// The function of the frame above, if it is one without bytecode.
    callee: u64,
    /// The async function that was resumed on this stack.
    pub generator: u64,
    pub promise: u64,
}

/// A stack that was taken.
#[derive(Clone, Copy)]
pub struct Walked {
    /// 0 if there is none.
    pub id: u64,
    pub depth: u64,
}

impl Walked {
    const NONE: Self = Self { id: 0, depth: 0 };
}

/// Walks the running thread's user stack.
#[inline(always)]
pub fn user<C: EbpfContext>(ctx: &C, target: &Target, buffer: Buffer, now: u64) -> Walked {
    let moment = buffer;
    let Some(buffer) = maps::USER_SCRATCH.get_ptr_mut(buffer as u32) else { return Walked::NONE };
    // SAFETY: a per-CPU value, and the same program does not nest on a CPU.
    let walk = unsafe { &mut *buffer };
    walk.head.depth = 0;
    walk.head.end = end::DEEP;
    walk.awaits = 0;
    walk.names = 0;
    walk.callee = 0;
    walk.generator = 0;
    walk.layout = target.awaits;
    walk.hash = u64::from(target.major_gcs) << 32 ^ now >> EPOCH_SHIFT;
    let mut flags = 0;
    if globals::HAS_TASK_REGS.load() != 0 {
        let Some(interrupted) = begin(walk, target, moment) else { return Walked::NONE };
        flags = interrupted;
        let tgid = current().0;
        let Some(regions) = maps::REGIONS.get_ptr(&tgid).or_else(|| maps::NO_REGIONS.get_ptr(0)) else {
            return Walked::NONE;
        };
        // SAFETY: values that stay for as long as a program may see them.
        run(walk, unsafe { &*regions });
        if walk.generator != 0 {
            awaits::follow(walk);
        }
    } else if !addresses(ctx, walk) {
        return Walked::NONE;
    }
    let depth = u64::from(walk.head.depth);
    if depth == 0 || depth > USER_FRAMES_MAX as u64 {
        return Walked::NONE;
    }
    count_n(counter::STACKS_WALKED, 1);
    count_n(counter::FRAMES_WALKED, depth);
    let head = header(kind::USER_STACK, flags, now);
    let id = mix(walk.hash, u64::from(head.tgid)) | 1;
    if maps::SEEN.get_ptr(&id).is_none() {
        walk.head.header = head;
        walk.head.id = id;
        walk.head.major_gcs = target.major_gcs;
        walk.head.gcs = target.gcs;
        append_names(walk);
        walk.head.awaits = walk.awaits;
        walk.head.names = walk.names;
        let frames = depth + u64::from(walk.awaits) + 2 * u64::from(walk.names);
        if frames > USER_FRAMES_MAX as u64 {
            return Walked::NONE;
        }
        let len = size_of::<UserStack>() as u64 + frames * size_of::<UserFrame>() as u64;
        send_once(id, buffer.cast(), len, urgency(target, now));
    }
    Walked { id, depth }
}

/// Where a full collection is near the stack cannot wait until the reader comes by.
#[inline(always)]
fn urgency(target: &Target, now: u64) -> Urgency {
    let counts = target.flags & target_flag::COUNTS_GCS != 0;
    // A collection may have been seen on another CPU, whose clock was read later.
    let is_near = !counts || now < target.major_gc_ns.saturating_add(STACK_URGENT_NS);
    if target.function_shared != 0 && is_near { Urgency::Moving } else { Urgency::None }
}

/// Ids hold for 2^34 ns, 17 s, at most: where collections are not seen, what is freed may yet be used again.
const EPOCH_SHIFT: u32 = 34;

/// Reads the registers with which the thread left user space; the flags of the record.
#[inline(always)]
fn begin(walk: &mut UserBuffer, target: &Target, moment: Buffer) -> Option<u32> {
    // SAFETY: helpers that take the running task and check what they read; `regs` has the size that is passed.
    let status = unsafe {
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf());
        bpf_probe_read_kernel((&raw mut walk.regs).cast(), size_of::<pt_regs>() as u32, regs as *const c_void)
    };
    // A kernel thread has no such registers, or ones of zeroes.
    if status != 0 || walk.regs.rip == 0 {
        return None;
    }
    walk.fp = walk.regs.rbp;
    walk.pc = walk.regs.rip;
    walk.sp = walk.regs.rsp;
    walk.function_shared = u64::from(target.function_shared);
    walk.function_maps = [0; FUNCTION_MAPS];
    walk.function_type_first = target.function_type_first;
    walk.function_type_last = target.function_type_last;
    walk.head.leaf = Leaf { rsp: 0, rbp: 0, r9: 0, r12: 0, words: [0; 4] };
    // System calls leave their number there, interrupts and exceptions -1.
    if walk.regs.orig_rax != u64::MAX {
        return Some(0);
    }
    let rsp = walk.regs.rsp;
    walk.head.leaf.rsp = rsp;
    walk.head.leaf.rbp = walk.regs.rbp;
    walk.head.leaf.r9 = walk.regs.r9;
    walk.head.leaf.r12 = walk.regs.r12;
    // SAFETY: the helper checks the address, and leaves zeroes where it cannot read.
    unsafe { bpf_probe_read_user((&raw mut walk.head.leaf.words).cast(), 32, rsp as *const c_void) };
    walk.hash = match moment {
        // At a function's entry only the return address matters: the same path shall have the same id each time.
        Buffer::Probe => mix(walk.hash, walk.head.leaf.words[0]),
        // The frames are all that there is to it.
        Buffer::Returned => walk.hash,
        Buffer::Scheduler | Buffer::Sampler => mix(mix(walk.hash, rsp), walk.regs.r9),
    };
    Some(user_flag::INTERRUPTED)
}

struct Context {
    walk: *mut UserBuffer,
    regions: *const Regions,
}

/// Frames of a stack where the kernel has no `bpf_loop`: the verifier goes through the loop turn by turn, within a million
/// instructions and its own bounds on branches, and has no room for tables.
const BOUNDED_FRAMES_MAX: u32 = 128;

/// Takes frame after frame, over `bpf_loop` where the kernel has it.
#[inline(always)]
fn run(walk: &mut UserBuffer, regions: &Regions) {
    if globals::HAS_BPF_LOOP.load() != 0 {
        let mut context = Context { walk, regions };
        // SAFETY: the callback and its context are of the types that `step_of` has.
        unsafe {
            bpf_loop(USER_FRAMES_MAX as u32, step_of as *mut c_void, (&raw mut context).cast(), 0);
        }
    } else {
        let mut i = 0;
        while i < BOUNDED_FRAMES_MAX {
            if step(walk, None, i) {
                break;
            }
            i += 1;
        }
    }
}

unsafe extern "C" fn step_of(i: u32, context: *mut c_void) -> c_long {
    // SAFETY: `run` passes its own context, which outlives the loop.
    let (walk, regions) = unsafe {
        let context = &*context.cast::<Context>();
        (&mut *context.walk, &*context.regions)
    };
    c_long::from(step(walk, Some(regions), i))
}

/// Takes one frame; true if it was the last.
#[inline(always)]
fn step(walk: &mut UserBuffer, regions: Option<&Regions>, i: u32) -> bool {
    if walk.pc == 0 {
        walk.head.end = end::OUTERMOST;
        return true;
    }
    let mut frame = UserFrame { pc: walk.pc, object: 0, bytecode_offset: 0 };
    // A return address may lie behind the function that called.
    let at = if i == 0 { walk.pc } else { walk.pc - 1 };
    let row = regions.and_then(|regions| tables::known_row(&mut walk.rows, regions, at));
    let ended = match row {
        Some(row) => by_row(walk, row, i),
        None => by_frame_pointer(walk, &mut frame, i),
    };
    walk.hash = mix(mix(mix(walk.hash, frame.pc), frame.object), frame.bytecode_offset);
    walk.frames[i as usize & (USER_FRAMES_MAX - 1)] = frame;
    walk.head.depth = i + 1;
    match ended {
        Ok(()) => false,
        Err(ended) => {
            walk.head.end = ended;
            true
        }
    }
}

/// Goes to the caller as a row says; else, one of [`end`].
#[inline(always)]
fn by_row(walk: &mut UserBuffer, row: UnwindRow, i: u32) -> Result<(), u32> {
    let words = u64::from(row.cfa >> cfa::BITS);
    let cfa = match row.cfa & ((1 << cfa::BITS) - 1) {
        cfa::SP => walk.sp.wrapping_add(words * 8),
        cfa::FP => walk.fp.wrapping_add(words * 8),
        cfa::OUTERMOST => return Err(end::OUTERMOST),
        cfa::SAVED_SP => {
            let words = i64::from(row.cfa.cast_signed() >> cfa::BITS);
            if !read_words(&raw mut walk.words, walk.sp.wrapping_add_signed(words * 8), 8) {
                return Err(end::UNREADABLE);
            }
            walk.words[0].wrapping_add(8)
        }
        cfa::REGISTER if keeps_registers(walk, i) => {
            register(walk, words).wrapping_add((words >> cfa::REGISTER_BITS) * 8)
        }
        _ => return Err(end::UNREADABLE),
    };
    if cfa <= walk.sp {
        return Err(end::NOT_ABOVE);
    }
    if !read_words(&raw mut walk.words, cfa.wrapping_sub(8), 8) {
        return Err(end::UNREADABLE);
    }
    walk.pc = walk.words[0];
    if row.fp != 0 {
        if !read_words(&raw mut walk.words, cfa.wrapping_add_signed(i64::from(row.fp) * 8), 8) {
            return Err(end::UNREADABLE);
        }
        walk.fp = walk.words[0];
    }
    walk.sp = cfa;
    Ok(())
}

/// Registers that a call may change are those of this frame: it is the innermost, or has called a function that has nothing but the
/// address of its caller on the stack. That is assembly code, written together with its caller, which has its frame in such a register.
#[inline(always)]
fn keeps_registers(walk: &UserBuffer, i: u32) -> bool {
    i == 0 || i == 1 && walk.sp == walk.regs.rsp.wrapping_add(8)
}

/// A register by its place in `struct pt_regs`: the low bits of `number`.
#[inline(always)]
fn register(walk: &UserBuffer, number: u64) -> u64 {
    // The compiler knows that the mask does nothing, the verifier does not.
    let number = core::hint::black_box(number) as usize & ((1 << cfa::REGISTER_BITS) - 1);
    // SAFETY: the structure has more than so many registers, words all of them.
    unsafe { (&raw const walk.regs).cast::<u64>().add(number).read() }
}

/// Goes to the caller over the frame pointer, and takes down what a frame of V8's holds; else, one of [`end`].
#[inline(always)]
fn by_frame_pointer(walk: &mut UserBuffer, frame: &mut UserFrame, i: u32) -> Result<(), u32> {
    let fp = walk.fp;
    if fp == 0 {
        return Err(end::OUTERMOST);
    }
    if fp < walk.sp || fp & 7 != 0 {
        return Err(end::NOT_ABOVE);
    }
    if !read_words(&raw mut walk.words, fp.wrapping_sub(BELOW), (WORDS * 8) as u32) {
        return Err(end::UNREADABLE);
    }
    if walk.function_shared != 0 {
        describe(walk, frame, i);
    }
    walk.sp = fp.wrapping_add(16);
    walk.fp = walk.words[word::CALLER_FP];
    walk.pc = walk.words[word::RETURN_PC];
    Ok(())
}

/// What V8's part of a frame says.
#[inline(always)]
fn describe(walk: &mut UserBuffer, frame: &mut UserFrame, i: u32) {
    let context = walk.words[word::CONTEXT];
    if context & 1 == 0 {
        if context < MARKER_MAX {
            frame.object = context;
            // What resumes an async function is a builtin that V8's loop over microtasks calls.
            if walk.callee != 0 && walk.generator == 0 {
                walk.generator = awaits::resumed(walk, walk.callee);
            }
            walk.callee = 0;
        }
        return;
    }
    let function = walk.words[word::FUNCTION];
    if context & 3 != 1 || function & 3 != 1 {
        return;
    }
    let function = if globals::HAS_BPF_LOOP.load() != 0 {
        look_through(walk, frame, function, i)
    } else {
        look_through_word_by_word(walk, frame, function)
    };
    if function == 0 {
        return;
    }
    let offset = walk.words[word::BYTECODE_OFFSET];
    if offset & 0xffff_ffff == 0 && offset >> 32 < BYTECODE_OFFSET_MAX && walk.words[word::BYTECODE_ARRAY] & 3 == 1 {
        frame.bytecode_offset = offset >> 32;
    }
    walk.callee = if frame.bytecode_offset == 0 { function } else { 0 };
}

/// Return addresses alone, as the kernel walks them: where the registers cannot be had, for want of BTF.
#[inline(always)]
fn addresses<C: EbpfContext>(ctx: &C, walk: &mut UserBuffer) -> bool {
    const ADDRESSES_MAX: usize = 127;
    let Some(scratch) = maps::KERNEL_SCRATCH.get_ptr_mut(Buffer::Scheduler as u32) else { return false };
    // SAFETY: a per-CPU buffer of exactly this size.
    let (bytes, addresses) = unsafe {
        let to = (&raw mut (*scratch).frames).cast();
        let bytes = bpf_get_stack(ctx.as_ptr(), to, (ADDRESSES_MAX * 8) as u32, u64::from(BPF_F_USER_STACK));
        (bytes, &(*scratch).frames)
    };
    walk.head.leaf = Leaf { rsp: 0, rbp: 0, r9: 0, r12: 0, words: [0; 4] };
    walk.head.end = end::UNREADABLE;
    let mut i = 0;
    while i < ADDRESSES_MAX {
        if (i as i64) * 8 >= bytes {
            break;
        }
        walk.frames[i] = UserFrame { pc: addresses[i], object: 0, bytecode_offset: 0 };
        walk.hash = mix(walk.hash, addresses[i]);
        i += 1;
        walk.head.depth = i as u32;
    }
    bytes > 0
}
