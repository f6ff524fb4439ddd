//! Stacks as the records have them.

use std::{collections::BTreeMap, fmt};

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

    /// Of a program that V8 runs, not of V8 itself, as far as is known.
    pub fn is_js(&self) -> bool {
        matches!(self.kind.as_str(), "js" | "wasm") || self.is_nowhere()
    }

    /// Nothing is claimed of it, but that JavaScript may have run there.
    pub fn is_unknown(&self) -> bool {
        self.kind == "js" && self.file.is_none() && self.name.starts_with('[') || self.is_nowhere()
    }

    /// An address in no mapping any more, of code that is gone; or a frame that is known to be missing.
    fn is_nowhere(&self) -> bool {
        self.kind == "unknown" && (self.name.starts_with("0x") || self.name == "[unknown]")
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

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, tier) = (self.file.as_deref().unwrap_or("?"), self.tier.as_deref().unwrap_or(&self.kind));
        let how = if self.inlined { "inlined" } else { tier };
        let begins = if self.start_line { "from " } else { "" };
        let file = file.rsplit('/').next().unwrap_or_default();
        write!(f, "{} {file}:{begins}{} ({how})", self.name, self.line.unwrap_or(0))
    }
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames: Vec<String> = self.frames.iter().map(ToString::to_string).collect();
        f.write_str(&frames.join(" < "))
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
