//! Stacks on one line, innermost frame first.

use super::format::safe;
use crate::report::{
    flame::{Fold, fold, short_file},
    model::{Class, Frame, FrameKind, OffReason, StackId},
    names,
    summary::Summary,
};

/// Frames of the kernel's half that are shown: what blocks is at the inner end.
const KERNEL_SHOWN: usize = 2;
/// Frames of the user's half that are shown.
const USER_SHOWN: usize = 8;

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

/// A native function, by its short name, that is on every stack.
#[must_use]
pub fn is_glue(name: &str) -> bool {
    GLUE.contains(&name)
}

/// Frames that say nothing about why the thread stopped here.
fn is_noise(frame: &Frame) -> bool {
    match frame.kind {
        FrameKind::Kernel => names::is_kernel_noise(&frame.name),
        FrameKind::Builtin => true,
        FrameKind::Native => is_glue(&names::short(&frame.name)),
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
    let mut names: Vec<String> =
        stack.frames.iter().filter(|frame| !is_noise(frame)).map(|frame| name(frame)).collect();
    // A run of frames without names is one.
    names.dedup_by(|a, b| a == b && a == names::UNNAMED_JS);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut left = at_most;
    for Fold { items, times } in fold(&names) {
        if left == 0 {
            return true;
        }
        if times == 1 {
            shown.extend(items.iter().take(left).map(|name| (*name).to_owned()));
            if items.len() > left {
                return true;
            }
            left -= items.len();
        } else {
            shown.push(match items.as_slice() {
                [one] => format!("{one} × {times}"),
                cycle => format!("({}) × {times}", cycle.join(" ← ")),
            });
            left = left.saturating_sub(items.len());
        }
    }
    false
}

fn name(frame: &Frame) -> String {
    match frame.kind {
        FrameKind::Kernel => format!("{}_[k]", safe(&frame.name)),
        FrameKind::Js if frame.name.is_empty() || frame.name == names::UNNAMED_JS => names::UNNAMED_JS.to_owned(),
        FrameKind::Js => format!("{}{}", safe(&frame.name), place(frame)),
        FrameKind::Wasm => format!("[wasm] {}", safe(&frame.name)),
        FrameKind::Async => "(awaited by)".to_owned(),
        FrameKind::Builtin | FrameKind::Native => safe(&names::short(&frame.name)),
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
    let short = short_file(file);
    match frame.line {
        Some(line) => format!(" ({}:{line})", safe(short)),
        None => format!(" ({})", safe(short)),
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
