//! Threads that sleep when a trace begins.
//!
//! The kernel half comes to know a thread when it is switched out or in. A loop that waits for its next request may not be for
//! a long time: without this, an idle process would have no loop, and one that wakes late no idle time before that.

use agent_ebpf::{
    abi::sched::reason,
    state::{ThreadState, flag},
};
use zerocopy::FromZeros;

use crate::{
    target::procfs::{self, SystemCall, Thread},
    units::{MonoNs, Pid},
};

/// What the kernel half would know of the process's sleeping threads, had it seen them go to sleep at `since`.
#[must_use]
pub fn states(pid: Pid, since: MonoNs) -> Vec<ThreadState> {
    let threads = procfs::threads(pid).unwrap_or_default();
    threads.into_iter().filter_map(|thread| state(pid, &thread, since)).collect()
}

fn state(pid: Pid, thread: &Thread, since: MonoNs) -> Option<ThreadState> {
    let out_reason = match thread.state {
        'S' | 'D' => reason::BLOCKED,
        'T' | 't' => reason::STOPPED,
        // It runs, or waits for a CPU: it will be seen.
        _ => return None,
    };
    let mut state = ThreadState::new_zeroed();
    state.tgid = pid.0;
    state.tid = thread.tid.0;
    state.flags = flag::OFF_CPU;
    state.first_ns = since.0;
    state.mark_ns = since.0;
    state.out_ns = since.0;
    state.out_reason = out_reason;
    state.poll_fd = -1;
    if let Some(descriptor) = procfs::system_call(pid, thread.tid).and_then(blocking_poll) {
        state.flags |= flag::IN_POLL | flag::POLL_MAY_BLOCK;
        state.poll_entered_ns = since.0;
        state.polled_ns = since.0;
        // Other threads poll, too, that run no JavaScript: they are loops when they turn.
        if thread.tid.0 == pid.0 {
            state.flags |= flag::LOOP;
            state.poll_fd = descriptor;
        }
    }
    Some(state)
}

/// The descriptor, if this is a poll that may block.
fn blocking_poll(call: SystemCall) -> Option<i32> {
    let [descriptor, _, _, timeout_ms, _, _] = call.arguments;
    let polls = call.number == libc::SYS_epoll_wait || call.number == libc::SYS_epoll_pwait;
    // The register holds an int, whatever its upper half says.
    (polls && timeout_ms & u64::from(u32::MAX) != 0).then_some(i32::try_from(descriptor).ok()).flatten()
}
