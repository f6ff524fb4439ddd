//! From the frames of a stack to functions.

use std::sync::Arc;

use super::{Function, Kind};
use crate::report::{
    model::{Frame, FrameKind, StackId, Tier},
    names,
    summary::Summary,
};

/// Frames of a stack, innermost first.
pub fn frames(summary: &Summary, id: Option<StackId>) -> std::slice::Iter<'_, Arc<Frame>> {
    id.and_then(|id| summary.stacks.get(&id)).map_or(&[][..], |stack| stack.frames.as_slice()).iter()
}

/// Outermost first. Where a stack is continued by those that await it, they come first, and the machinery that woke the function up
/// has no place between it and them.
#[must_use]
pub fn as_called(frames: &[Arc<Frame>]) -> Vec<&Frame> {
    let is_async = |frame: &&Arc<Frame>| frame.kind == FrameKind::Async;
    let Some(marker) = frames.iter().position(|frame| is_async(&frame)) else {
        return frames.iter().rev().map(AsRef::as_ref).collect();
    };
    let (ran, awaiting) = frames.split_at_checked(marker).unwrap_or((frames, &[]));
    let last = ran.iter().rposition(|frame| matches!(frame.kind, FrameKind::Js | FrameKind::Wasm));
    let ran = last.and_then(|last| ran.get(..=last)).unwrap_or(ran);
    awaiting.iter().rev().chain(ran.iter().rev()).map(AsRef::as_ref).collect()
}

pub fn plain(kind: Kind, name: &str) -> Function {
    Function { kind, name: name.to_owned(), file: None, line: None, column: None, module: None }
}

/// What a frame is part of, and the line that ran.
#[must_use]
pub fn function(frame: &Frame) -> (Function, Option<u32>) {
    let kind = match frame.kind {
        FrameKind::Kernel => Kind::Kernel,
        FrameKind::Native => Kind::Native,
        FrameKind::Builtin => Kind::Builtin,
        FrameKind::Wasm => Kind::Wasm,
        FrameKind::Async => Kind::Async,
        FrameKind::Unknown => Kind::Unknown,
        FrameKind::Js if frame.inlined => Kind::Inlined,
        FrameKind::Js => match frame.tier {
            None => Kind::Js,
            Some(Tier::Interpreted) => Kind::Interpreted,
            Some(Tier::Baseline) => Kind::Baseline,
            Some(Tier::Maglev | Tier::Turbofan) => Kind::Optimized,
        },
    };
    let name = match frame.kind {
        FrameKind::Native => names::short(&frame.name),
        FrameKind::Async => "(awaits)".to_owned(),
        FrameKind::Js if frame.name.is_empty() => names::UNNAMED_JS.to_owned(),
        FrameKind::Kernel | FrameKind::Js | FrameKind::Builtin | FrameKind::Wasm | FrameKind::Unknown => {
            frame.name.clone()
        }
    };
    let is_javascript = frame.kind == FrameKind::Js;
    let function = Function {
        kind,
        name,
        file: frame.file.clone().filter(|_| is_javascript),
        line: frame.function_line.or(frame.line).filter(|_| is_javascript),
        // Of a line that ran, the column is of no function.
        column: if frame.start_line { frame.column } else { frame.function_column }.filter(|_| is_javascript),
        module: frame.module.clone(),
    };
    (function, frame.line.filter(|_| !frame.start_line))
}
