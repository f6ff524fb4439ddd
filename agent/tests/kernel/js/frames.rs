//! Stacks as the records have them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::records::{Records, list, text};

/// A frame of a `stack` record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub name: String,
    pub kind: String,
    pub file: Option<String>,
    pub line: Option<u64>,
    /// The line is where the function begins.
    pub start_line: bool,
    pub inlined: bool,
    pub tier: Option<String>,
}

impl Frame {
    fn read(frame: &Value) -> Self {
        let word = |key: &str| frame.get(key).and_then(Value::as_str).map(str::to_owned);
        let flag = |key: &str| frame.get(key).and_then(Value::as_bool).unwrap_or_default();
        Self {
            name: text(frame, "name").to_owned(),
            kind: text(frame, "kind").to_owned(),
            file: word("file"),
            line: frame.get("line").and_then(Value::as_u64),
            start_line: flag("start_line"),
            inlined: flag("inlined"),
            tier: word("tier"),
        }
    }

    pub fn is_js(&self) -> bool {
        self.kind == "js"
    }

    /// Nothing is claimed of it, but that JavaScript ran there.
    pub fn is_unknown(&self) -> bool {
        self.is_js() && self.file.is_none() && self.name.starts_with('[')
    }
}

/// Innermost first.
#[derive(Clone, Debug)]
pub struct Stack {
    pub frames: Vec<Frame>,
    pub truncated: Option<String>,
}

impl Stack {
    /// JavaScript that was on the stack.
    pub fn js(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().take_while(|frame| frame.kind != "async").filter(|frame| frame.is_js())
    }

    /// JavaScript that awaits what was on it.
    pub fn awaiting(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().skip_while(|frame| frame.kind != "async").filter(|frame| frame.is_js())
    }

    pub fn has(&self, name: &str) -> bool {
        self.frames.iter().any(|frame| frame.name.contains(name))
    }
}

/// Every user stack of a trace, by its id.
pub fn stacks(records: &Records) -> BTreeMap<String, Stack> {
    let user = records.of_type("stack").filter(|record| text(record, "space") == "user");
    user.map(|record| {
        let frames = list(record, "frames").iter().map(Frame::read).collect();
        let truncated = record.get("truncated").and_then(Value::as_str).map(str::to_owned);
        (text(record, "id").to_owned(), Stack { frames, truncated })
    })
    .collect()
}
