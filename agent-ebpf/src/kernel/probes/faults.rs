//! Pages that a target touches for the first time: where its memory grows.

use agent_ebpf::{
    spec::slot,
    state::{Scrutiny, site},
};
use aya_ebpf::{helpers::bpf_get_prandom_u32, macros::tracepoint, programs::TracePointContext};

use crate::kernel::{emit, sites, thread};

#[tracepoint]
pub fn page_fault(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("page_fault") });
    let (tgid, tid) = emit::current();
    let Some(Scrutiny { pages_a_stack: step, .. }) = sites::scrutiny(tgid) else { return 0 };
    // SAFETY: a helper without arguments.
    if step == 0 || unsafe { bpf_get_prandom_u32() } % step != 0 {
        return 0;
    }
    let Some(target) = thread::target(tgid) else { return 0 };
    let Some(state) = thread::of_target(tgid, tid) else { return 0 };
    sites::made(&ctx, state, &target, site::PAGE, u64::from(step));
    0
}
