//! What a process's scripts say of where they were made from.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Symbolizer, v8::V8};
use crate::{
    limits::{SOURCE_MAPPED_SCRIPTS_MAX, V8_SOURCE_MAP_UNITS_MAX},
    report::model::{Frame, FrameKind},
    symbolize::v8::{
        heap::{Object, Refusal, Tagged},
        layout::fixed,
    },
    target::memory::Memory,
    units::Pid,
};

/// A script's `sourceMappingURL`; a `data:` URL is as long as its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// See [`Frame::file`].
    pub file: String,
    pub url: String,
}

/// What scripts refer to, each read once.
#[derive(Debug, Default)]
pub struct References {
    asked: HashMap<Pid, HashSet<String>>,
    count: usize,
}

impl References {
    /// A process has gone: another one of its id has scripts of its own.
    pub fn forget(&mut self, pid: Pid) {
        if let Some(asked) = self.asked.remove(&pid) {
            self.count -= asked.len();
        }
    }

    /// Of the scripts of these frames that were not asked before.
    pub fn of_new(&mut self, symbolizer: &mut Symbolizer, pid: Pid, frames: &[Arc<Frame>]) -> Vec<Reference> {
        let mut references = Vec::new();
        for frame in frames.iter().filter(|frame| frame.kind == FrameKind::Js) {
            let Some(file) = frame.file.as_deref().filter(|file| !file.starts_with("node:")) else { continue };
            if self.asked.get(&pid).is_some_and(|asked| asked.contains(file)) {
                continue;
            }
            if self.count >= SOURCE_MAPPED_SCRIPTS_MAX {
                *self = Self::default();
            }
            self.asked.entry(pid).or_default().insert(file.to_owned());
            self.count += 1;
            let url = symbolizer.v8(pid).and_then(|v8| v8.source_map_url(file).ok());
            references.extend(url.filter(|url| !url.is_empty()).map(|url| Reference { file: file.to_owned(), url }));
        }
        references
    }
}

impl<M: Memory> V8<M> {
    fn source_map_url(&self, file: &str) -> Result<String, Refusal> {
        self.of_script(file, |at| {
            let url = self.heap.object(at, self.heap.layout.script_source_url + 8)?;
            self.heap.text(url, V8_SOURCE_MAP_UNITS_MAX)
        })
    }

    /// Reads something of a script that must be there before and after.
    fn of_script(&self, file: &str, read: impl FnOnce(Object) -> Result<String, Refusal>) -> Result<String, Refusal> {
        self.heap.begin();
        self.heap.forget();
        let script = self.functions.script_of_file(file).ok_or(Refusal::Absent)?;
        let at = script.at.ok_or(Refusal::Absent)?;
        let is_there = || {
            let same = self.heap.expect(at, self.heap.layout.types.script).is_ok()
                && self.heap.tagged(at, fixed::SCRIPT_ID) == Ok(Tagged(script.id));
            same.then_some(()).ok_or(Refusal::Changed)
        };
        is_there()?;
        let text = read(at)?;
        is_there()?;
        Ok(text)
    }
}
