//! Probes in libuv, V8 and Node.js, told apart by the attach cookie: one program for those that are attached as a trace begins, and one
//! for those that take stacks of who makes what, which the kernel takes long to verify and which few traces need.

use agent_ebpf::{
    abi::{
        event_loop::phase,
        family, kind,
        thread_pool::{Work, function, source},
        v8::{GcPause, GcStep, HeapLimit, collector, limit},
    },
    spec::id,
    state::{ThreadState, WorkKey, WorkState, counter, flag, site},
};
use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_probe_read_user, generated::bpf_get_attach_cookie},
    macros::{uprobe, uretprobe},
    programs::{ProbeContext, RetProbeContext},
};

use crate::kernel::{
    emit::{self, count, current, header, now_ns, send},
    maps, sites, thread, turn,
};

/// Offsets in libuv's structures: the same from 1.43 to 1.52.
mod offset {
    pub const LOOP_BACKEND_FD: u64 = 64;
    pub const LOOP_WQ_ASYNC: u64 = 176;
    /// `uv_work_t::work_req`.
    pub const WORK_REQ: u64 = 88;
    /// `struct uv__work::loop`.
    pub const WORK_LOOP: u64 = 16;
    /// From `uv_fs_t::work_req` back to `uv_fs_t::fs_type`.
    pub const FS_TYPE_BACK: u64 = 336 - 64;
    /// `llhttp_t::type`: the same from llhttp 6 to 9.
    pub const PARSER_TYPE: u64 = 72;
    /// `GlobalHandles::NodeSpace::first_free_`: where the next node will be.
    pub const FIRST_FREE: u64 = 24;
    /// `HandleScopeImplementer::blocks_`: its data and its size.
    pub const BLOCKS_DATA: u64 = 8;
    pub const BLOCKS_SIZE: u64 = 24;
}

/// Bytes of a block of handles: `kHandleBlockSize` is 1022, so that a block with the allocator's own words fills two pages.
const BLOCK_BYTES: u64 = 1022 * 8;

/// `HTTP_REQUEST`: what a server parses.
const REQUEST: u8 = 1;

/// Attached over `uprobe_multi` links (6.6 and newer).
#[uprobe(multi)]
pub fn probe_multi(ctx: ProbeContext) -> u32 {
    probe(&ctx)
}

/// The same, attached probe by probe through perf events.
#[uprobe]
pub fn probe_single(ctx: ProbeContext) -> u32 {
    probe(&ctx)
}

/// Who makes what, and what goes: attached over `uprobe_multi` links.
#[uprobe(multi)]
pub fn site_multi(ctx: ProbeContext) -> u32 {
    site(&ctx)
}

/// The same, attached probe by probe through perf events.
#[uprobe]
pub fn site_single(ctx: ProbeContext) -> u32 {
    site(&ctx)
}

/// Where a function returns, attached over `uprobe_multi` links.
#[uretprobe(multi)]
pub fn returned_multi(ctx: RetProbeContext) -> u32 {
    returned(&ctx)
}

/// The same, attached probe by probe through perf events.
#[uretprobe]
pub fn returned_single(ctx: RetProbeContext) -> u32 {
    returned(&ctx)
}

#[inline(always)]
fn returned(ctx: &RetProbeContext) -> u32 {
    // SAFETY: the context is the one that the kernel passed in.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    emit::count_hit((cookie & 63) as u32);
    let Some(state) = thread::current_state() else { return 0 };
    if let Some(target) = thread::target(state.tgid) {
        sites::allocated(ctx, state, &target, ctx.ret::<u64>());
    }
    0
}

#[inline(always)]
fn probe(ctx: &ProbeContext) -> u32 {
    // SAFETY: the context is the one that the kernel passed in.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    emit::count_hit((cookie & 63) as u32);
    let Some(state) = thread::current_state() else { return 0 };
    match cookie {
        id::RUN_TIMERS => enter_phase(ctx, state, phase::TIMERS),
        id::TIMERS_DONE => turn::enter_phase(state, phase::PENDING),
        id::RUN_IDLE | id::RUN_PREPARE => enter_phase(ctx, state, phase::PREPARE),
        id::IO_POLL => enter_phase(ctx, state, phase::POLL),
        id::RUN_CHECK => enter_phase(ctx, state, phase::CHECK),
        id::CHECK_DONE => turn::enter_phase(state, phase::CLOSING),

        id::WORK_SUBMIT => submit(arg(ctx, 1), source::INTERNAL, arg(ctx, 3)),
        id::QUEUE_WORK => submit(arg(ctx, 1) + offset::WORK_REQ, source::QUEUE_WORK, arg(ctx, 2)),
        id::FS_WORK => start(state, arg(ctx, 0), function::FS),
        id::GETADDRINFO_WORK => start(state, arg(ctx, 0), function::GETADDRINFO),
        id::GETNAMEINFO_WORK => start(state, arg(ctx, 0), function::GETNAMEINFO),
        id::RANDOM_WORK => start(state, arg(ctx, 0), function::RANDOM),
        id::NODE_WORK => start(state, arg(ctx, 0) + offset::WORK_REQ, function::NODE),
        id::ASYNC_SEND => end(state, arg(ctx, 0)),
        id::FS_DONE => done(ctx, function::FS),
        id::GETADDRINFO_DONE => done(ctx, function::GETADDRINFO),
        id::GETNAMEINFO_DONE => done(ctx, function::GETNAMEINFO),
        id::RANDOM_DONE => done(ctx, function::RANDOM),
        id::QUEUE_DONE => done(ctx, function::QUEUE_WORK),

        id::MESSAGE_DONE => {
            // Attaching and detaching take a while: those count that come in between.
            let counts = maps::COUNT_REQUESTS.get(0).is_some_and(|counts| *counts != 0);
            if counts && read_user::<u8>(arg(ctx, 0) + offset::PARSER_TYPE) == REQUEST {
                state.ledger.requests += 1;
            }
        }
        id::GC_START => {
            state.gc_started_ns = now_ns();
            state.gc_heap = arg(ctx, 0);
            state.gc_space = arg(ctx, 1) as u32;
            state.gc_reason = arg(ctx, 2) as u32;
            state.gc_collectors = 0;
            thread::count_collection(state.tgid, false);
        }
        id::GC_SCAVENGE => state.gc_collectors |= collector::SCAVENGE,
        id::GC_MARK_COMPACT => {
            state.gc_collectors |= collector::MARK_COMPACT;
            // Also of one whose begin was not seen: a count too many costs a second look, one too few a wrong name.
            thread::count_collection(state.tgid, true);
        }
        id::GC_MINOR_MARK_SWEEP => state.gc_collectors |= collector::MINOR_MARK_SWEEP,
        id::GC_END => gc_end(state),
        id::GC_STEP_START => state.gc_step_started_ns = now_ns(),
        id::GC_STEP_END => gc_step_end(state),
        id::GC_MARKING_JOB..=id::GC_POINTERS_JOB => enter_job(state, flag::GC_JOB),
        id::COMPILE_JOB => enter_job(state, 0),
        id::HEAP_LIMIT_NEAR => heap_limit(arg(ctx, 0), limit::NEAR),
        id::OUT_OF_MEMORY => heap_limit(0, limit::OUT_OF_MEMORY),
        _ => {}
    }
    0
}

#[inline(always)]
fn site(ctx: &ProbeContext) -> u32 {
    // SAFETY: the context is the one that the kernel passed in.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    emit::count_hit((cookie & 63) as u32);
    let Some(state) = thread::current_state() else { return 0 };
    match cookie {
        id::HANDLE_CREATE => create_handle(ctx, state),
        id::HANDLE_DESTROY | id::HANDLE_RELEASE => sites::gone_handle(state.tgid, arg(ctx, 0)),
        id::FREE | id::REALLOC_OLD => sites::freed(state.tgid, arg(ctx, 0)),
        id::SCOPE_EXTEND => extend_scope(ctx, state),
        id::HEAP_ALLOCATE => {
            if let Some(target) = thread::target(state.tgid) {
                sites::made(ctx, state, &target, site::HEAP_AREA, 1);
            }
        }
        _ => {}
    }
    0
}

#[inline(always)]
fn arg(ctx: &ProbeContext, n: usize) -> u64 {
    ctx.arg::<u64>(n).unwrap_or(0)
}

/// Reads a word of the target's memory; 0 if it cannot be read.
#[inline(always)]
fn read_user<T: Default>(at: u64) -> T {
    // SAFETY: the helper checks the address itself and fails on a bad one.
    unsafe { bpf_probe_read_user(at as *const T) }.unwrap_or_default()
}

#[inline(always)]
fn enter_phase(ctx: &ProbeContext, state: &mut ThreadState, phase: u32) {
    let loop_addr = arg(ctx, 0);
    if state.loop_addr != loop_addr {
        // A loop that the thread has not turned before: from now on only its own descriptor's polls count.
        if state.loop_addr == 0 {
            state.loop_addr = loop_addr;
            state.poll_fd = read_user::<i32>(loop_addr + offset::LOOP_BACKEND_FD);
            state.flags |= flag::LOOP;
        } else {
            // A nested or a second loop (node runs one at exit): leave the first one's books alone.
            return;
        }
    }
    turn::enter_phase(state, phase);
}

/// The slot that it will return is the first free one; where there is none, a new block is made, once in 256 times.
#[inline(always)]
fn create_handle(ctx: &ProbeContext, state: &mut ThreadState) {
    let Some(target) = thread::target(state.tgid) else { return };
    if target.handle_space == 0 {
        return;
    }
    let space = read_user::<u64>(arg(ctx, 0) + u64::from(target.handle_space));
    let slot = read_user::<u64>(space + offset::FIRST_FREE);
    if slot == 0 {
        return;
    }
    sites::made_handle(ctx, state, &target, slot);
}

/// V8 comes here at the first handle of each callback, as the scope around the loop is sealed, and mostly finds room in the last
/// block. Only where that is full, another is made.
#[inline(always)]
fn extend_scope(ctx: &ProbeContext, state: &mut ThreadState) {
    let Some(target) = thread::target(state.tgid) else { return };
    let Some(scrutiny) = sites::scrutiny(state.tgid) else { return };
    if scrutiny.scope_implementer == 0 {
        return;
    }
    let isolate = arg(ctx, 0);
    let implementer = read_user::<u64>(isolate + u64::from(scrutiny.scope_implementer));
    let blocks = read_user::<u64>(implementer + offset::BLOCKS_SIZE);
    let next = read_user::<u64>(isolate + u64::from(scrutiny.scope_next));
    if blocks == 0 || blocks > 1 << 32 {
        return;
    }
    let data = read_user::<u64>(implementer + offset::BLOCKS_DATA);
    let last = read_user::<u64>(data + (blocks - 1) * 8);
    if next == last + BLOCK_BYTES {
        sites::made(ctx, state, &target, site::SCOPE_BLOCK, 1);
    }
}

#[inline(always)]
fn submit(work: u64, source: u32, callback: u64) {
    let (tgid, _) = current();
    let item = WorkState {
        submitted_ns: now_ns(),
        started_ns: 0,
        ended_ns: 0,
        callback,
        vtable: 0,
        pool_tid: 0,
        source,
        function: function::UNKNOWN,
        op: 0,
        reserved: 0,
    };
    if maps::WORKS.insert(&WorkKey { work, tgid, reserved: 0 }, &item, 0).is_err() {
        count(counter::WORKS_FULL);
    }
}

#[inline(always)]
fn start(state: &mut ThreadState, work: u64, function: u32) {
    let key = WorkKey { work, tgid: state.tgid, reserved: 0 };
    let Some(item) = maps::WORKS.get_ptr_mut(&key) else {
        // No submission: a synchronous call on the loop thread, or an item that was queued before we came.
        if state.flags & flag::LOOP != 0 || state.tid == state.tgid {
            state.ledger.sync_fs += 1;
        } else {
            count(counter::WORK_UNSEEN);
        }
        return;
    };
    // SAFETY: a value of a preallocated map; until the item is done, this thread is the only one to write it.
    unsafe {
        (*item).started_ns = now_ns();
        (*item).pool_tid = state.tid;
        (*item).function = function;
        if function == function::FS {
            (*item).op = read_user::<u32>(work - offset::FS_TYPE_BACK);
        } else if function == function::NODE
            && let Some(target) = thread::target(state.tgid)
            && target.vtable_back != 0
        {
            (*item).vtable = read_user::<u64>(work - offset::WORK_REQ - u64::from(target.vtable_back));
        }
    }
    state.work = work;
    state.flags |= flag::POOL;
}

/// A pool thread tells the loop that its item is ready.
#[inline(always)]
fn end(state: &mut ThreadState, handle: u64) {
    if state.work == 0 {
        return;
    }
    let work = state.work;
    // The work itself may send other handles' signals: only the loop's own queue handle ends it.
    if read_user::<u64>(work + offset::WORK_LOOP) + offset::LOOP_WQ_ASYNC != handle {
        return;
    }
    if let Some(item) = maps::WORKS.get_ptr_mut(&WorkKey { work, tgid: state.tgid, reserved: 0 }) {
        // SAFETY: as in `start`; the loop takes the item up only after this signal.
        unsafe { (*item).ended_ns = now_ns() }
    }
    state.work = 0;
}

#[inline(always)]
fn done(ctx: &ProbeContext, done_function: u32) {
    let (tgid, _) = current();
    let work = arg(ctx, 0);
    let key = WorkKey { work, tgid, reserved: 0 };
    let Some(item) = maps::WORKS.get_ptr(&key) else {
        count(counter::WORK_UNSEEN);
        return;
    };
    let status = arg(ctx, 1) as i32;
    send::<Work>(family::THREAD_POOL, |record| {
        // SAFETY: `record` is a reservation of exactly this type; `item` is a value of a preallocated map.
        unsafe {
            *record = Work {
                header: header(kind::WORK, 0, now_ns()),
                work,
                submitted_ns: (*item).submitted_ns,
                started_ns: (*item).started_ns,
                ended_ns: (*item).ended_ns,
                callback: (*item).callback,
                vtable: (*item).vtable,
                pool_tid: (*item).pool_tid,
                source: (*item).source,
                function: if (*item).function == function::UNKNOWN { done_function } else { (*item).function },
                op: (*item).op,
                status,
                reserved: 0,
            };
        }
    });
    let _ = maps::WORKS.remove(&key);
}

/// One of V8's own threads takes up a job, for the collector or not. Threads that run JavaScript take part in jobs too, but
/// within pauses, which are counted as such.
#[inline(always)]
fn enter_job(state: &mut ThreadState, gc_job: u32) {
    if state.flags & flag::LOOP != 0 || state.tid == state.tgid {
        return;
    }
    thread::charge(state, now_ns());
    state.flags = state.flags & !flag::GC_JOB | gc_job;
}

#[inline(always)]
fn gc_end(state: &mut ThreadState) {
    thread::count_collection(state.tgid, state.gc_collectors & collector::MARK_COMPACT != 0);
    if state.gc_started_ns == 0 {
        state.gc_collectors = 0;
        return;
    }
    let now = now_ns();
    state.ledger.gc_ns += now.wrapping_sub(state.gc_started_ns);
    let state = &*state;
    send::<GcPause>(family::V8, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe {
            *record = GcPause {
                header: header(kind::GC_PAUSE, 0, now),
                started_ns: state.gc_started_ns,
                heap: state.gc_heap,
                space: state.gc_space,
                reason: state.gc_reason,
                collectors: state.gc_collectors,
                reserved: 0,
            };
        }
    });
    if let Some(state) = thread::lookup(state.tid) {
        state.gc_started_ns = 0;
    }
}

#[inline(always)]
fn gc_step_end(state: &mut ThreadState) {
    let started_ns = state.gc_step_started_ns;
    if started_ns == 0 {
        return;
    }
    state.gc_step_started_ns = 0;
    send::<GcStep>(family::V8, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe { *record = GcStep { header: header(kind::GC_STEP, 0, now_ns()), started_ns } };
    });
}

#[inline(always)]
fn heap_limit(heap: u64, limit: u32) {
    send::<HeapLimit>(family::V8, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe { *record = HeapLimit { header: header(kind::HEAP_LIMIT, 0, now_ns()), heap, limit, reserved: 0 } };
    });
}
