//! File work that libuv gives to `io_uring` instead of its thread pool.

use agent_ebpf::{
    abi::{
        family, kind,
        thread_pool::{Work, source},
    },
    spec::slot,
    state::{WorkKey, WorkState, counter},
};
use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

use crate::kernel::{
    emit::{self, count, current, header, now_ns, send},
    globals, maps, thread,
};

/// `IORING_OP_EPOLL_CTL`: libuv batches changes of its interest list this way; no work of the program's.
const OP_EPOLL_CTL: u8 = 29;

#[tracepoint]
pub fn io_uring_submit(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("io_uring_submit") });
    let (tgid, _) = current();
    if thread::target(tgid).is_none() {
        return 0;
    }
    let data_at = globals::URING_SUBMIT_DATA.load();
    if data_at == 0 {
        return 0;
    }
    // SAFETY: offsets from the running kernel's own description of the record; the helper checks the address.
    let (data, op) = unsafe {
        (
            ctx.read_at::<u64>(data_at as usize).unwrap_or(0),
            ctx.read_at::<u8>(globals::URING_SUBMIT_OPCODE.load() as usize).unwrap_or(OP_EPOLL_CTL),
        )
    };
    if op == OP_EPOLL_CTL || data == 0 {
        return 0;
    }
    let now = now_ns();
    let state = WorkState {
        submitted_ns: now,
        started_ns: now,
        ended_ns: 0,
        callback: 0,
        vtable: 0,
        pool_tid: 0,
        source: source::IO_URING,
        function: 0,
        op: u32::from(op),
        reserved: 0,
    };
    if maps::WORKS.insert(&WorkKey { work: data, tgid, reserved: 0 }, &state, 0).is_err() {
        count(counter::WORKS_FULL);
    }
    0
}

#[tracepoint]
pub fn io_uring_complete(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("io_uring_complete") });
    let (tgid, _) = current();
    let data_at = globals::URING_COMPLETE_DATA.load();
    if data_at == 0 || thread::target(tgid).is_none() {
        return 0;
    }
    // SAFETY: as above.
    let (data, result) = unsafe {
        (
            ctx.read_at::<u64>(data_at as usize).unwrap_or(0),
            ctx.read_at::<i32>(globals::URING_COMPLETE_RESULT.load() as usize).unwrap_or(0),
        )
    };
    let key = WorkKey { work: data, tgid, reserved: 0 };
    let Some(item) = maps::WORKS.get_ptr(&key) else { return 0 };
    let now = now_ns();
    send::<Work>(family::THREAD_POOL, |record| {
        // SAFETY: `record` is a reservation of exactly this type; `item` is a value of a preallocated map.
        unsafe {
            *record = Work {
                header: header(kind::WORK, 0, now),
                work: data,
                submitted_ns: (*item).submitted_ns,
                started_ns: (*item).started_ns,
                ended_ns: now,
                callback: 0,
                vtable: 0,
                pool_tid: 0,
                source: source::IO_URING,
                function: 0,
                op: (*item).op,
                status: if result < 0 { result } else { 0 },
                reserved: 0,
            };
        }
    });
    let _ = maps::WORKS.remove(&key);
    0
}
