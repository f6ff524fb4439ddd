//! Stacks on one line, innermost frame first.

use super::format::safe;
use crate::report::{
    model::{Class, Frame, FrameKind, OffReason, StackId},
    summary::Summary,
};

/// Frames of the kernel's half that are shown: what blocks is at the inner end.
const KERNEL_SHOWN: usize = 2;
/// Frames of the user's half that are shown.
const USER_SHOWN: usize = 8;

/// Inner frames that every stay off CPU has, and outer ones that every system call has.
const NOISE: &[&str] = &[
    "__schedule",
    "schedule",
    "preempt_schedule",
    "preempt_schedule_common",
    "preempt_schedule_irq",
    "schedule_preempt_disabled",
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

/// The way from the program's start to its loop, and from C++ into JavaScript and back: the same in every stack.
const GLUE: &[&str] = &[
    "main",
    "node::LoadEnvironment",
    "node::NodeMainInstance::Run",
    "node::SpinEventLoop",
    "node::SpinEventLoopInternal",
    "node::SpinEventLoopWithoutCleanup",
    "node::Start",
    "node::worker::Worker::Run",
    "uv_run",
    "v8::Function::Call",
    "v8::internal::Builtin_HandleApiCall",
    "v8::internal::Execution::Call",
    "v8::internal::FunctionCallbackArguments::Call",
    "v8::internal::HandleApiCallHelper",
    "v8::internal::Invoke",
];

/// Frames that say nothing about why the thread stopped here.
fn is_noise(frame: &Frame) -> bool {
    match frame.kind {
        // BPF programs, and what calls them, are on the stack that they look at.
        FrameKind::Kernel => {
            NOISE.contains(&frame.name.as_str())
                || ["bpf_", "__bpf_", "__traceiter_"].iter().any(|head| frame.name.starts_with(head))
        }
        FrameKind::Builtin => true,
        FrameKind::Native => GLUE.contains(&short_name(&frame.name).as_str()),
        FrameKind::Js | FrameKind::Wasm | FrameKind::Async | FrameKind::Unknown => false,
    }
}

/// The kernel's frames and the user's, innermost first.
#[must_use]
pub fn folded(summary: &Summary, user: Option<StackId>, kernel: Option<StackId>) -> String {
    let mut shown = Vec::new();
    part(&mut shown, summary, kernel, KERNEL_SHOWN);
    if part(&mut shown, summary, user, USER_SHOWN) {
        shown.push("…".to_owned());
    }
    if shown.is_empty() { "no stack".to_owned() } else { shown.join(" ← ") }
}

/// True if there are more frames.
fn part(shown: &mut Vec<String>, summary: &Summary, id: Option<StackId>, at_most: usize) -> bool {
    let Some(id) = id else { return false };
    let Some(stack) = summary.stacks.get(&id) else {
        shown.push(format!("stack {}", String::from(id)));
        return false;
    };
    let mut last = String::new();
    let mut n = 0;
    for frame in stack.frames.iter().filter(|frame| !is_noise(frame)) {
        let name = name(frame);
        // A run of frames without names is one.
        if name == last {
            continue;
        }
        last.clone_from(&name);
        if n == at_most {
            return true;
        }
        n += 1;
        shown.push(name);
    }
    false
}

fn name(frame: &Frame) -> String {
    match frame.kind {
        FrameKind::Kernel => format!("{}_[k]", safe(&frame.name)),
        FrameKind::Js if frame.name.is_empty() || frame.name == "[js]" => "[js]".to_owned(),
        FrameKind::Js => format!("{}{}", safe(&frame.name), place(frame)),
        FrameKind::Wasm => format!("[wasm] {}", safe(&frame.name)),
        FrameKind::Async => "(awaited by)".to_owned(),
        FrameKind::Builtin | FrameKind::Native => safe(&short_name(&frame.name)),
        FrameKind::Unknown if frame.name.is_empty() => {
            let module = frame.module.as_deref().and_then(|module| module.rsplit('/').next()).unwrap_or("?");
            format!("[{}]", safe(module))
        }
        FrameKind::Unknown => safe(&frame.name),
    }
}

/// The script's last part and the line.
fn place(frame: &Frame) -> String {
    let Some(file) = frame.file.as_deref() else { return String::new() };
    let short = if file.starts_with("node:") { file } else { file.rsplit('/').next().unwrap_or(file) };
    match frame.line {
        Some(line) => format!(" ({}:{line})", safe(short)),
        None => format!(" ({})", safe(short)),
    }
}

/// A demangled name without parameters, template arguments and return type:
/// `void node::StreamBase::JSMethod<&node::StreamBase::Writev>(v8::FunctionCallbackInfo<v8::Value> const&)` is
/// `node::StreamBase::JSMethod`.
fn short_name(name: &str) -> String {
    if name.contains("operator") {
        // Its brackets are part of the name.
        return name.to_owned();
    }
    // `{virtual override thunk({offset(-56)}, node::Parser::OnStreamRead(long))}`
    let inner = name.strip_prefix('{').and_then(|inner| inner.split_once("}, ")).map_or(name, |(_, inner)| inner);
    let mut short = String::with_capacity(inner.len());
    let mut depth = 0u32;
    for c in inner.replace("(anonymous namespace)::", "").chars() {
        match c {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => short.push(c),
            _ => {}
        }
    }
    let short = short.replace(" const", "");
    let short = short.trim_end_matches('}').trim();
    let short = short.rsplit(' ').next().unwrap_or(short);
    if short.is_empty() { name.to_owned() } else { short.to_owned() }
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
    fn names_are_short() {
        let check = |name, short: &str| assert_eq!(short_name(name), short);
        check("node::fs::Read(v8::FunctionCallbackInfo<v8::Value> const&)", "node::fs::Read");
        check("node::(anonymous namespace)::Run(int)", "node::Run");
        check("uv__io_poll", "uv__io_poll");
        check("v8::internal::Heap::Size(int) const", "v8::internal::Heap::Size");
        check("a::operator()(int)", "a::operator()(int)");
        check("(deleted)", "(deleted)");
        check(
            "void node::StreamBase::JSMethod<&node::StreamBase::Writev>(v8::Value const&)",
            "node::StreamBase::JSMethod",
        );
        check(
            "{virtual override thunk({offset(-56)}, node::Parser::OnStreamRead(long, uv_buf_t const&))}",
            "node::Parser::OnStreamRead",
        );
        check("node::Flush(std::unique_ptr<v8::Task, std::default_delete<v8::Task> >) [clone .part.0]", "node::Flush");
        check(
            "v8::Maybe<v8::Object> v8::internal::(anonymous namespace)::Helper<false>(v8::Isolate*)",
            "v8::internal::Helper",
        );
    }
}
