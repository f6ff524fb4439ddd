//! Scripts: what they are called, and where their lines begin.
//!
//! V8 fills a script's line ends only when somebody asks for a line, so they are made here from the source, once a script. Positions
//! are in UTF-16 units, as V8 counts them. Code of `eval` and `new Function` has no name: V8 says where it was made, as
//! `eval at NAME (FILE:LINE:COLUMN)`.

use std::sync::Arc;

use super::{
    function::Functions,
    heap::{Heap, Object, Refusal, Tagged},
    layout::fixed,
    positions::Position,
};
use crate::{
    limits::{V8_EVAL_DEPTH_MAX, V8_LINES_MAX, V8_NAME_UNITS_MAX, V8_SOURCE_UNITS_MAX},
    target::memory::Memory,
};

/// Words of a `Script` that are read: up to its source mapping's URL.
const WORDS: usize = 17;

/// Words that say which script it is: source, name, id, and where it was evaluated.
const IDENTITY: [usize; 5] = [1, 2, 8, 9, 10];

/// What is known of a script; it does not change.
#[derive(Debug, Default)]
pub struct Script {
    /// A path, a URL, or where it was evaluated; `None` if V8 does not say.
    pub file: Option<String>,
    /// Where the source is, as of when the script was read.
    pub source: Option<Object>,
    pub source_units: u32,
    /// It was made by `eval` or `new Function`.
    pub is_evaluated: bool,
    /// Where it is, and its number as V8 keeps it.
    pub at: Option<Object>,
    pub id: u64,
    identity: [u64; IDENTITY.len()],
    /// The first unit of each line.
    lines: Vec<u32>,
    line_offset: u32,
    column_offset: u32,
}

/// A place in a script, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: u32,
    pub column: u32,
}

impl Script {
    /// A module of WebAssembly stands for a script, and has such a name.
    #[must_use]
    pub fn is_wasm(&self) -> bool {
        self.file.as_deref().is_some_and(|file| file.starts_with("wasm:"))
    }

    /// The line and column of a position; `None` where the source could not be read.
    #[must_use]
    pub fn place(&self, position: u32) -> Option<Place> {
        if position > self.source_units {
            return None;
        }
        let line = self.lines.partition_point(|start| *start <= position);
        let start = *self.lines.get(line.checked_sub(1)?)?;
        let column = position.checked_sub(start)?.checked_add(1)?;
        let column = if line == 1 { column.checked_add(self.column_offset)? } else { column };
        Some(Place { line: u32::try_from(line).ok()?.checked_add(self.line_offset)?, column })
    }

    /// Bytes that its lines take.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines.len()
    }
}

impl<M: Memory> Heap<M> {
    /// The script at an address: the one that is known, if it is still the same.
    pub fn script(&self, at: Object, functions: &mut Functions, depth: usize) -> Result<Arc<Script>, Refusal> {
        self.expect(at, self.layout.types.script)?;
        let words = self.first_words::<WORDS>(at.0)?;
        let identity = IDENTITY.map(|index| words.get(index).copied().unwrap_or(0));
        if let Some(known) = functions.script(at).filter(|known| known.identity == identity) {
            return Ok(known);
        }
        let id = words.get(fixed::SCRIPT_ID as usize / 8).copied().unwrap_or(0);
        let script = Arc::new(Script { at: Some(at), id, identity, ..self.read_script(at, &words, functions, depth)? });
        functions.keep_script(at, &script);
        Ok(script)
    }

    fn read_script(
        &self,
        at: Object,
        words: &[u64; WORDS],
        functions: &mut Functions,
        depth: usize,
    ) -> Result<Script, Refusal> {
        let field = |offset: u32| Tagged(words.get(offset as usize / 8).copied().unwrap_or(0));
        let text = |offset: u32| self.text(field(offset).object().ok()?, V8_NAME_UNITS_MAX).ok();
        let url_at = self.layout.script_source_url;
        let file = text(url_at).filter(|url| !url.is_empty()).or_else(|| text(fixed::SCRIPT_NAME));
        let is_evaluated = field(fixed::SCRIPT_EVAL_FROM_SHARED).object().and_then(|from| self.type_of(from))
            == Ok(self.layout.types.function_info);
        let file = file.or_else(|| self.eval_origin(at, functions, depth).ok());
        let offset = |at: u32| field(at).smi().and_then(|smi| u32::try_from(smi).ok()).unwrap_or(0);
        let source = field(fixed::SCRIPT_SOURCE).object().ok().filter(|source| self.is_string(*source));
        let mut script = Script {
            file,
            source,
            is_evaluated,
            line_offset: offset(fixed::SCRIPT_LINE_OFFSET),
            column_offset: offset(fixed::SCRIPT_COLUMN_OFFSET),
            ..Script::default()
        };
        if let Some(source) = source {
            let units = self.string_units(source)?;
            if let Ok(lines) = self.lines_of(source, units) {
                (script.lines, script.source_units) = (lines, units);
            }
        }
        Ok(script)
    }

    /// The first unit of each line, by what ECMAScript takes for the end of one.
    fn lines_of(&self, source: Object, units: u32) -> Result<Vec<u32>, Refusal> {
        if units > V8_SOURCE_UNITS_MAX {
            return Err(Refusal::TooLarge);
        }
        let mut lines = vec![0];
        let (mut at, mut after_return) = (0_u32, false);
        self.each_unit(source, 0, units, &mut |unit| {
            const LINE_FEED: u16 = 0x0a;
            const RETURN: u16 = 0x0d;
            // A return ends a line unless a line feed follows, which then does.
            if after_return && unit != LINE_FEED {
                lines.push(at);
            }
            at = at.saturating_add(1);
            after_return = unit == RETURN;
            if matches!(unit, LINE_FEED | 0x2028 | 0x2029) && lines.len() < V8_LINES_MAX {
                lines.push(at);
            }
        })?;
        Ok(lines)
    }

    /// `eval at NAME (PLACE)`, of a script that was evaluated.
    fn eval_origin(&self, script: Object, functions: &mut Functions, depth: usize) -> Result<String, Refusal> {
        if depth >= V8_EVAL_DEPTH_MAX {
            return Err(Refusal::TooLarge);
        }
        let from = self.object(script, fixed::SCRIPT_EVAL_FROM_SHARED)?;
        let function = self.function(from, functions, depth + 1)?;
        let position = self.tagged(script, fixed::SCRIPT_EVAL_FROM_POSITION)?.smi().ok_or(Refusal::OutOfRange)?;
        // A negative one is an offset in the bytecode: V8 translates it when it must.
        let position = match u32::try_from(position) {
            Ok(position) => Some(position),
            Err(_) => self.bytecode_position(from, position.unsigned_abs()).ok().and_then(Position::offset),
        };
        let name = if function.name.is_empty() { "<anonymous>" } else { &function.name };
        let within = function.script.as_ref();
        let file = within.and_then(|script| script.file.as_deref()).ok_or(Refusal::Absent)?;
        // Evaluated code that evaluates: V8 gives no place in the outer one.
        if within.is_some_and(|script| script.is_evaluated) {
            return Ok(format!("eval at {name} ({file})"));
        }
        let place = position.and_then(|position| within?.place(position));
        Ok(match place {
            Some(Place { line, column }) => format!("eval at {name} ({file}:{line}:{column})"),
            None => format!("eval at {name} ({file})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_a_script_shift_its_places() {
        let script =
            Script { lines: vec![0, 10, 20], source_units: 25, line_offset: 4, column_offset: 7, ..Script::default() };
        assert_eq!(script.place(0), Some(Place { line: 5, column: 8 }));
        assert_eq!(script.place(9), Some(Place { line: 5, column: 17 }));
        assert_eq!(script.place(10), Some(Place { line: 6, column: 1 }));
        assert_eq!(script.place(25), Some(Place { line: 7, column: 6 }));
        assert_eq!(script.place(26), None);
    }
}
