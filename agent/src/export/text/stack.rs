//! Stacks on one line, innermost frame first.

use super::format::safe;
use crate::report::{
    model::{Class, Frame, FrameKind, OffReason, StackId},
    summary::Summary,
};

/// Frames of the kernel's half that are shown: what blocks is near the inner end.
const KERNEL_SHOWN: usize = 4;
/// Frames of the user's half that are shown.
const USER_SHOWN: usize = 8;

/// Inner frames that every stay off CPU has, and outer ones that every system call has.
const NOISE: &[&str] = &[
    "__schedule",
    "schedule",
    "preempt_schedule",
    "preempt_schedule_common",
    "preempt_schedule_irq",
    "schedule_timeout",
    "schedule_hrtimeout_range",
    "schedule_hrtimeout_range_clock",
    "do_syscall_64",
    "x64_sys_call",
    "entry_SYSCALL_64_after_hwframe",
    "asm_exc_page_fault",
    "asm_sysvec_apic_timer_interrupt",
    "irqentry_exit",
    "irqentry_exit_to_user_mode",
    "exit_to_user_mode_loop",
];

/// Frames of BPF programs and of the trampolines that call them.
fn is_noise(frame: &Frame) -> bool {
    frame.kind == FrameKind::Kernel
        && (NOISE.contains(&frame.name.as_str())
            || frame.name.starts_with("bpf_")
            || frame.name.starts_with("__bpf_")
            || frame.name.starts_with("__traceiter_"))
}

/// The kernel's frames and the user's, innermost first.
#[must_use]
pub fn folded(summary: &Summary, user: Option<StackId>, kernel: Option<StackId>) -> String {
    let mut shown = Vec::new();
    part(&mut shown, summary, kernel, KERNEL_SHOWN);
    part(&mut shown, summary, user, USER_SHOWN);
    if shown.is_empty() { "no stack".to_owned() } else { shown.join(" ← ") }
}

fn part(shown: &mut Vec<String>, summary: &Summary, id: Option<StackId>, at_most: usize) {
    let Some(id) = id else { return };
    let Some(stack) = summary.stacks.get(&id) else {
        shown.push(format!("stack {}", String::from(id)));
        return;
    };
    let mut last = String::new();
    let mut more = 0;
    let mut n = 0;
    for frame in stack.frames.iter().filter(|frame| !is_noise(frame)) {
        let name = name(frame);
        // A run of frames without names is one.
        if name == last {
            continue;
        }
        last.clone_from(&name);
        if n == at_most {
            more += 1;
            continue;
        }
        n += 1;
        shown.push(name);
    }
    if more != 0 {
        shown.push("…".to_owned());
    }
}

fn name(frame: &Frame) -> String {
    let name = without_parameters(&frame.name);
    match frame.kind {
        FrameKind::Kernel => format!("{}_[k]", safe(name)),
        FrameKind::Js => format!(
            "[js]{}",
            if name.is_empty() || name == "[js]" { String::new() } else { format!(" {}", safe(name)) }
        ),
        FrameKind::Builtin | FrameKind::Native => safe(name),
        FrameKind::Unknown => {
            let module = frame.module.as_deref().and_then(|module| module.rsplit('/').next()).unwrap_or("?");
            if name.is_empty() { format!("[{}]", safe(module)) } else { safe(name) }
        }
    }
}

/// `node::fs::Read(v8::FunctionCallbackInfo<v8::Value> const&)` is `node::fs::Read`.
fn without_parameters(name: &str) -> &str {
    // An operator's or an anonymous namespace's parentheses are part of the name.
    match name.char_indices().find(|&(at, c)| {
        c == '('
            && at != 0
            && !name.get(at..).is_some_and(|rest| rest.starts_with("(anonymous"))
            && !name.get(..at).is_some_and(|head| head.ends_with("operator"))
    }) {
        Some((at, _)) => name.get(..at).unwrap_or(name),
        None => name,
    }
}

#[must_use]
pub fn reason(reason: OffReason) -> &'static str {
    match reason {
        OffReason::Blocked => "blocked",
        OffReason::Preempted => "preempted",
        OffReason::Stopped => "stopped",
        OffReason::Unknown => "off CPU",
    }
}

#[must_use]
pub fn class(class: Class) -> &'static str {
    match class {
        Class::EventLoop => "event loop",
        Class::ThreadPool => "thread pool",
        Class::Other => "other threads",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_left_out() {
        let check = |name, short| assert_eq!(without_parameters(name), short);
        check("node::fs::Read(v8::FunctionCallbackInfo<v8::Value> const&)", "node::fs::Read");
        check("node::(anonymous namespace)::Run(int)", "node::(anonymous namespace)::Run");
        check("uv__io_poll", "uv__io_poll");
        check("a::operator()(int)", "a::operator()");
        check("(deleted)", "(deleted)");
    }
}
