//! Who makes what stays: the stacks of makers, those of the same path together.

use std::collections::BTreeMap;

use super::history::Process;
use crate::report::model::{Evidence, Frame, FrameKind, Site, SiteKind, StackId};

/// Frames by which two stacks are the same path.
const PATH_FRAMES: usize = 8;

/// A path and what it made.
#[derive(Clone, Debug)]
pub struct Maker {
    pub stack: StackId,
    pub made: u64,
    pub kept: u64,
    pub strong: u64,
    pub weak: u64,
}

/// Those of a kind, the one that kept most first.
#[must_use]
pub fn makers(process: &Process, kind: SiteKind) -> Vec<Maker> {
    let last =
        process.windows.iter().rev().filter_map(|point| point.memory.as_ref()).find(|memory| !memory.sites.is_empty());
    let mut paths = BTreeMap::<Vec<String>, Maker>::new();
    for site in last.iter().flat_map(|memory| &memory.sites).filter(|site| site.kind == kind) {
        let &Site { kind: _, stack, made, gone, strong, weak } = site;
        let path = process.stacks.get(&stack).map_or_else(|| vec![String::from(stack)], |stack| path(&stack.frames));
        let maker = paths.entry(path).or_insert(Maker { stack, made: 0, kept: 0, strong: 0, weak: 0 });
        maker.made += made;
        maker.kept += made.saturating_sub(gone);
        maker.strong += strong;
        maker.weak += weak;
    }
    let mut makers: Vec<_> = paths.into_values().collect();
    makers.sort_by_key(|maker| std::cmp::Reverse((maker.kept, maker.made)));
    makers
}

/// What is done, by the names of who does it. How JavaScript is run and calls out changes as it gets hot; what it does, does not.
fn path(frames: &[std::sync::Arc<Frame>]) -> Vec<String> {
    // Where nothing is known of a frame, the walk went astray: what follows says nothing.
    let known = frames.iter().take_while(|frame| frame.kind != FrameKind::Unknown || frame.module.is_some());
    let known = known.filter(|frame| frame.kind != FrameKind::Builtin);
    // What V8 itself does is that; later on it only stands between a caller and whom he calls.
    let mut is_within = true;
    let told = known.filter(|frame| {
        let is_of_v8 = frame.kind == FrameKind::Native && frame.name.starts_with("v8::internal::");
        is_within &= is_of_v8;
        is_within || !is_of_v8
    });
    told.take(PATH_FRAMES).map(|frame| frame.name.clone()).collect()
}

/// The function outside of Node.js that is nearest to the top: whose code it is.
#[must_use]
pub fn culprit(process: &Process, stack: StackId) -> Option<&Frame> {
    let stack = process.stacks.get(&stack)?;
    stack.frames.iter().map(AsRef::as_ref).find(|frame| match frame.kind {
        FrameKind::Native => frame.module.as_deref().is_some_and(|module| !is_runtime(module)),
        FrameKind::Js => frame.file.as_deref().is_some_and(|file| !file.starts_with("node:")),
        FrameKind::Kernel | FrameKind::Builtin | FrameKind::Wasm | FrameKind::Async | FrameKind::Unknown => false,
    })
}

fn is_runtime(module: &str) -> bool {
    let name = module.rsplit('/').next().unwrap_or(module);
    let libraries =
        ["libnode.so", "libuv.so", "libc.so", "libstdc++.so", "libpthread", "libm.so", "ld-linux", "[vdso]"];
    name == "node" || name == "nodejs" || libraries.iter().any(|library| name.starts_with(library))
}

/// `keep in handles.node`, `handler (server.js:14)`.
#[must_use]
pub fn name_of(frame: &Frame) -> String {
    let last = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    match (frame.kind, frame.file.as_deref(), frame.module.as_deref()) {
        (FrameKind::Js, Some(file), _) => match frame.line {
            Some(line) => format!("{} ({}:{line})", frame.name, last(file)),
            None => format!("{} ({})", frame.name, last(file)),
        },
        (_, _, Some(module)) => format!("{} in {}", frame.name, last(module)),
        _ => frame.name.clone(),
    }
}

/// Lines about the makers that kept the most.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shares")]
pub fn evidence(makers: &[Maker], what: &str) -> Vec<Evidence> {
    const SHOWN: usize = 3;
    let all: u64 = makers.iter().map(|maker| maker.kept).sum();
    let mut lines = Vec::new();
    for maker in makers.iter().filter(|maker| maker.kept > 0).take(SHOWN) {
        let share = maker.kept as f64 / all.max(1) as f64;
        if share < 0.05 {
            break;
        }
        let text = format!(
            "{:.0} % of the {what} that stayed were made here ({} of {} made)",
            share * 100.0,
            maker.kept,
            maker.made
        );
        lines.push(Evidence {
            text,
            value: Some(maker.kept as f64),
            unit: Some(what.to_owned()),
            stack: Some(maker.stack),
        });
    }
    lines
}

/// Lines about the functions that use up areas of the heap, most first, and their names: what is kept is part of what is made.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shares")]
pub fn allocators(process: &Process, makers: &[Maker]) -> (Vec<Evidence>, Vec<String>) {
    const SHOWN: usize = 3;
    const SHARE_MIN: f64 = 0.1;
    let all: u64 = makers.iter().map(|maker| maker.made).sum();
    let mut functions = BTreeMap::<String, (u64, &Maker)>::new();
    // The path that made most comes first, and is the one that is shown.
    let mut by_made: Vec<&Maker> = makers.iter().collect();
    by_made.sort_by_key(|maker| std::cmp::Reverse(maker.made));
    for maker in by_made {
        let Some(frame) = culprit(process, maker.stack) else { continue };
        functions.entry(name_of(frame)).or_insert((0, maker)).0 += maker.made;
    }
    let mut functions: Vec<(String, (u64, &Maker))> = functions.into_iter().collect();
    functions.sort_by_key(|(_, (made, _))| std::cmp::Reverse(*made));
    functions.retain(|(_, (made, _))| *made as f64 >= SHARE_MIN * all.max(1) as f64);
    functions.truncate(SHOWN);
    let line = |(name, (made, maker)): &(String, (u64, &Maker))| Evidence {
        text: format!(
            "{:.0} % of what is made in the heap meanwhile is made in {name}",
            *made as f64 / all as f64 * 100.0
        ),
        value: Some(*made as f64),
        unit: Some("areas of the heap".to_owned()),
        stack: Some(maker.stack),
    };
    (functions.iter().map(line).collect(), functions.into_iter().map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn path_of(frames: &[(FrameKind, &str)]) -> Vec<String> {
        let frame =
            |(kind, name): &(FrameKind, &str)| Frame { name: (*name).to_owned(), kind: *kind, ..Frame::default() };
        path(&frames.iter().map(frame).map(Arc::new).collect::<Vec<_>>())
    }

    #[test]
    fn a_path_is_the_same_however_hot_it_is() {
        use FrameKind::{Builtin, Js, Native};
        let cold = path_of(&[
            (Native, "allocate"),
            (Native, "v8impl::FunctionCallbackWrapper::Invoke"),
            (Native, "v8::internal::FunctionCallbackArguments::Call"),
            (Native, "v8::internal::Builtin_HandleApiCall"),
            (Builtin, "CEntry_Return1_ArgvOnStack_BuiltinExit"),
            (Js, "handler"),
        ]);
        let hot = path_of(&[
            (Native, "allocate"),
            (Native, "v8impl::FunctionCallbackWrapper::Invoke"),
            (Builtin, "CallApiCallback"),
            (Js, "handler"),
        ]);
        assert_eq!(cold, hot);
        assert_eq!(cold.last().map(String::as_str), Some("handler"));
    }

    #[test]
    fn what_v8_itself_does_is_told_apart() {
        use FrameKind::{Js, Native};
        let [parses, compiles] = ["v8::internal::ParseInfo::ParseInfo", "v8::internal::Compiler::Compile"]
            .map(|name| path_of(&[(Native, name), (Native, "v8::internal::Runtime_X"), (Js, "load")]));
        assert_ne!(parses, compiles);
        assert_eq!(parses.len(), 3);
    }
}
