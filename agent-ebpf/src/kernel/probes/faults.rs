//! Pages that a target touches for the first time: where its memory grows.

use agent_ebpf::{spec::slot, state::site};
use aya_ebpf::{macros::tracepoint, programs::TracePointContext};

use crate::kernel::{emit, sites, thread};

#[tracepoint]
pub fn page_fault(ctx: TracePointContext) -> u32 {
    emit::count_hit(const { slot("page_fault") });
    let (tgid, tid) = emit::current();
    let Some(target) = thread::target(tgid) else { return 0 };
    let Some(state) = thread::of_target(tgid, tid) else { return 0 };
    sites::made(&ctx, state, &target, site::PAGE);
    0
}
