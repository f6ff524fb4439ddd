//! Threads that sleep when a trace begins.
//!
//! The kernel half comes to know a thread when it is switched out or in. A loop that waits for its next request may not be for
//! a long time: without this, an idle process would have no loop, and one that wakes late no idle time before that.

use agent_ebpf::{
    abi::sched::reason,
    state::{MainLoop, ThreadState, flag},
};
use zerocopy::FromZeros;

use crate::{
    target::procfs::{self, SystemCall, Thread},
    units::{MonoNs, Pid, UserAddr},
};

/// What the kernel half would know of the process's sleeping threads, had it seen them go to sleep at `since`. `main` is the main
/// thread's loop, where it is known.
#[must_use]
pub fn states(pid: Pid, since: MonoNs, main: Option<MainLoop>) -> Vec<ThreadState> {
    let threads = procfs::threads(pid).unwrap_or_default();
    threads.into_iter().filter_map(|thread| state(pid, &thread, since, main)).collect()
}

/// The loop at an address, if it has been set up.
#[must_use]
pub fn main_loop(pid: Pid, at: UserAddr) -> Option<MainLoop> {
    /// Of `backend_fd` in `uv_loop_t`.
    const BACKEND_FD: u64 = 64;
    let descriptor = procfs::memory_u32(pid, UserAddr(at.0.checked_add(BACKEND_FD)?))?;
    let poll_fd = i32::try_from(descriptor).ok()?;
    procfs::is_epoll(pid, poll_fd).then_some(MainLoop { loop_addr: at.0, poll_fd, reserved: 0 })
}

fn state(pid: Pid, thread: &Thread, since: MonoNs, main: Option<MainLoop>) -> Option<ThreadState> {
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
    let main = main.filter(|_| thread.tid.0 == pid.0);
    if let Some(main) = main {
        state.flags |= flag::LOOP;
        state.loop_addr = main.loop_addr;
        state.poll_fd = main.poll_fd;
    }
    let polled = procfs::system_call(pid, thread.tid).and_then(blocking_poll);
    // A wait for another loop's descriptor is no idleness: it holds up this one.
    if let Some(descriptor) = polled.filter(|polled| main.is_none_or(|main| main.poll_fd == *polled)) {
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
