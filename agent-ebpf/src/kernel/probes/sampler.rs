//! What runs on each CPU, at a steady pace.

use agent_ebpf::{
    abi::{
        family, kind,
        sample::{Sample, flag},
    },
    spec::slot,
};
use aya_ebpf::{EbpfContext, bindings::bpf_perf_event_data, macros::perf_event, programs::PerfEventContext};

use crate::kernel::{
    emit::{self, current, header, now_ns, send},
    globals,
    stack::{self, Buffer},
    thread, unwind,
};

/// The low bits of the code segment: the privilege that the processor ran with.
const USER_MODE: u64 = 3;

#[perf_event]
pub fn sample_cpu(ctx: PerfEventContext) -> u32 {
    let ticks = emit::count_hit(const { slot("sample_cpu") });
    let step = thread::switches().map_or(1, |said| said.sample_step.max(1));
    // Where samples are to be rarer, each tick that is taken stands for those before it.
    if ticks % u64::from(step) != 0 {
        return 0;
    }
    let (tgid, tid) = current();
    if tgid == 0 {
        return 0;
    }
    let Some(target) = thread::target(tgid) else { return 0 };
    let Some(state) = thread::of_target(tgid, tid) else { return 0 };
    let now = now_ns();
    let in_gc = state.gc_started_ns != 0;
    let class = thread::class(state);
    let user_stack = unwind::user(&ctx, &target, Buffer::Sampler, now).id;
    let data: *const bpf_perf_event_data = ctx.as_ptr().cast();
    // SAFETY: the context is the one that the kernel passed in.
    let code_segment = unsafe { (*data).regs.cs };
    let kernel_stack = if code_segment & USER_MODE == 0 { stack::kernel(&ctx, Buffer::Sampler, now) } else { 0 };
    send::<Sample>(family::SAMPLE, |record| {
        // SAFETY: `record` is a reservation of exactly this type.
        unsafe {
            *record = Sample {
                header: header(kind::SAMPLE, if in_gc { flag::IN_GC } else { 0 }, now),
                user_stack,
                kernel_stack,
                class,
                weight: step,
                period_ns: globals::SAMPLE_PERIOD_NS.load(),
            };
        }
    });
    0
}
