//! What a process's scripts say of where they were made from.

use super::{Symbolizer, v8::V8};
use crate::{
    limits::{V8_SOURCE_MAP_UNITS_MAX, V8_SOURCE_TAIL_UNITS_MAX},
    symbolize::v8::{
        heap::{Object, Refusal, Tagged},
        layout::fixed,
        script::Script,
    },
    target::memory::Memory,
    units::Pid,
};

impl Symbolizer {
    /// The `sourceMappingURL` of a script that a frame of this process was in, by [`crate::report::model::Frame::file`]; a `data:` URL
    /// is as long as its map.
    pub fn source_map_url(&mut self, pid: Pid, file: &str) -> Option<String> {
        self.v8(pid)?.source_map_url(file).ok()
    }

    /// The last units of a script's source, at most `units` of them: where a comment about its map stands that V8 did not take.
    pub fn source_tail(&mut self, pid: Pid, file: &str, units: u32) -> Option<String> {
        self.v8(pid)?.source_tail(file, units).ok()
    }
}

impl<M: Memory> V8<M> {
    fn source_map_url(&self, file: &str) -> Result<String, Refusal> {
        self.of_script(file, |at, _| {
            let url = self.heap.object(at, self.heap.layout.script_source_url + 8)?;
            self.heap.text(url, V8_SOURCE_MAP_UNITS_MAX)
        })
    }

    fn source_tail(&self, file: &str, units: u32) -> Result<String, Refusal> {
        self.of_script(file, |at, script| {
            let units = units.min(V8_SOURCE_TAIL_UNITS_MAX).min(script.source_units);
            let source = self.heap.object(at, fixed::SCRIPT_SOURCE)?;
            self.heap.text_of(source, script.source_units - units, units)
        })
    }

    /// Reads something of a script that must be there before and after.
    fn of_script(
        &self,
        file: &str,
        read: impl FnOnce(Object, &Script) -> Result<String, Refusal>,
    ) -> Result<String, Refusal> {
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
        let text = read(at, &script)?;
        is_there()?;
        Ok(text)
    }
}
