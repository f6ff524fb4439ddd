//! Functions: what a `SharedFunctionInfo` says of its name, script and bytecode.
//!
//! The name is the first that is not empty of: the function's own; the one in its `ScopeInfo`; the one that V8 inferred from what
//! the function was assigned to; and, as newer versions forget that, what stands before the function's begin in the source.

use std::{collections::HashMap, sync::Arc};

use super::{
    heap::{Heap, Object, Refusal, Tagged},
    layout::fixed,
    positions::{Position, position_at},
    script::Script,
};
use crate::{
    limits::{V8_FUNCTIONS_MAX, V8_LINES_KEPT_MAX, V8_NAME_UNITS_MAX, V8_SCRIPTS_MAX, V8_TABLE_BYTES_MAX},
    symbolize::memory::Memory,
};

/// Words of a `SharedFunctionInfo` that are read.
pub const WORDS: usize = 8;

/// What is known of a function; it does not change.
#[derive(Debug)]
pub struct Function {
    /// Empty if it has none.
    pub name: String,
    pub script: Option<Arc<Script>>,
    /// Where its parameters begin in the script.
    pub start: Option<u32>,
}

/// Functions and scripts that were read.
#[derive(Debug, Default)]
pub struct Functions {
    functions: HashMap<Object, ([u64; 2], Arc<Function>)>,
    scripts: HashMap<Object, Arc<Script>>,
    lines: usize,
}

impl Functions {
    pub fn script(&self, at: Object) -> Option<Arc<Script>> {
        self.scripts.get(&at).cloned()
    }

    pub fn keep_script(&mut self, at: Object, script: &Arc<Script>) {
        if self.scripts.len() >= V8_SCRIPTS_MAX || self.lines >= V8_LINES_KEPT_MAX {
            self.scripts.clear();
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(script.lines());
        self.scripts.insert(at, Arc::clone(script));
    }
}

/// What a function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Bytecode(Object),
    /// A function of the language, by the number of its builtin.
    Builtin,
    /// Not compiled, or of WebAssembly, or of an embedder.
    Other,
}

impl<M: Memory> Heap<M> {
    /// The words of a function by which it is told from others: name and script.
    pub fn identity(&self, words: &[u64; WORDS]) -> [u64; 2] {
        let field = |offset: u32| words.get(offset as usize / 8).copied().unwrap_or(0);
        [field(self.layout.function_info.name), field(self.layout.function_info.script)]
    }

    /// The function at an address: the one that is known, if it is still the same.
    pub fn function(&self, at: Object, functions: &mut Functions, depth: usize) -> Result<Arc<Function>, Refusal> {
        let words = self.words::<WORDS>(at)?;
        let [map, ..] = words;
        if self.type_of_map(map)? != self.layout.types.function_info {
            return Err(Refusal::OtherType);
        }
        let identity = self.identity(&words);
        if let Some((known, function)) = functions.functions.get(&at)
            && *known == identity
        {
            return Ok(Arc::clone(function));
        }
        let [name, script] = identity.map(Tagged);
        let script = self.script_of(script, functions, depth)?;
        let (mut text, mut start) = self.name(name)?;
        if let Ok(data) = self.uncompiled(&words) {
            start = start.or(self.u32(data.field(fixed::UNCOMPILED_START)?).ok());
            if text.is_empty() {
                let inferred = self.object(data, fixed::UNCOMPILED_INFERRED_NAME)?;
                text = self.text(inferred, V8_NAME_UNITS_MAX).unwrap_or_default();
            }
        }
        if text.is_empty()
            && let (Some(script), Some(start)) = (&script, start)
        {
            text = self.assigned_name(script, start).unwrap_or_default();
        }
        let function = Arc::new(Function { name: text, script, start });
        if functions.functions.len() >= V8_FUNCTIONS_MAX {
            functions.functions.clear();
        }
        functions.functions.insert(at, (identity, Arc::clone(&function)));
        Ok(function)
    }

    /// Functions of the language have no script.
    fn script_of(&self, word: Tagged, functions: &mut Functions, depth: usize) -> Result<Option<Arc<Script>>, Refusal> {
        let types = &self.layout.types;
        let Ok(mut script) = word.object() else { return Ok(None) };
        let mut instance_type = self.type_of(script)?;
        if instance_type == types.debug_info {
            script = self.object(script, fixed::DEBUG_INFO_SCRIPT)?;
            instance_type = self.type_of(script)?;
        }
        if instance_type == types.oddball {
            return Ok(None);
        }
        self.script(script, functions, depth).map(Some)
    }

    /// The name and the start position in a function's `name_or_scope_info`.
    fn name(&self, word: Tagged) -> Result<(String, Option<u32>), Refusal> {
        let Ok(object) = word.object() else { return Ok((String::new(), None)) };
        let instance_type = self.type_of(object)?;
        if instance_type < self.layout.types.first_nonstring {
            return Ok((self.text(object, V8_NAME_UNITS_MAX)?, None));
        }
        if instance_type == self.layout.types.scope_info {
            return self.scope_info(object);
        }
        Err(Refusal::OtherType)
    }

    /// A `ScopeInfo`: flags, counts, names and properties of variables; then, each if there is one, the function's name and its
    /// slot, the inferred name, and, before 12.8, the function's start and end. No other strings lie there.
    fn scope_info(&self, at: Object) -> Result<(String, Option<u32>), Refusal> {
        const VARIABLES: usize = 3;
        const START: usize = 4;
        /// A word for a class variable, two for the name, one for the inferred one, and two for the positions.
        const TAIL: usize = 6;
        let layout = self.layout.scope_info;
        let head = self.words::<6>(at)?;
        let variables = head.get(VARIABLES).and_then(|word| Tagged(*word).smi());
        let variables = variables.and_then(|count| u32::try_from(count).ok()).ok_or(Refusal::OutOfRange)?;
        if variables > V8_NAME_UNITS_MAX {
            return Err(Refusal::TooLarge);
        }
        let hashed = layout.hashed_from.is_some_and(|from| variables >= from);
        let words = if hashed { variables + 1 } else { variables * 2 };
        let tail_at = (1 + layout.first_vars + words) * 8;
        let tail = self.bytes(at.field(tail_at)?, TAIL * 8, TAIL * 8)?;
        let mut names = Vec::new();
        let mut before = None;
        let mut start = None;
        if layout.positions_first {
            start = head.get(START).and_then(|word| Tagged(*word).smi()).and_then(|start| u32::try_from(start).ok());
        }
        for word in tail.as_chunks::<8>().0.iter().map(|word| Tagged(u64::from_le_bytes(*word))) {
            let smi = word.smi().and_then(|smi| u32::try_from(smi).ok());
            if let (None, Some(begin), Some(end)) = (start, before, smi)
                && begin < end
                && !layout.positions_first
            {
                start = Some(begin);
                break;
            }
            before = smi;
            if smi.is_some() {
                continue;
            }
            // Undefined stands for a name that is not known; anything else is behind the names.
            let Ok(object) = word.object() else { break };
            match self.type_of(object) {
                Ok(string) if string < self.layout.types.first_nonstring => names.push(object),
                Ok(oddball) if oddball == self.layout.types.oddball => {}
                _ => break,
            }
        }
        let mut texts = names.iter().filter_map(|name| self.text(*name, V8_NAME_UNITS_MAX).ok());
        Ok((texts.find(|text| !text.is_empty()).unwrap_or_default(), start))
    }

    /// What a function is assigned to, by the text before its parameters: `a.b = function`, `a = async`, `a =`.
    fn assigned_name(&self, script: &Script, start: u32) -> Option<String> {
        const BEFORE: u32 = 160;
        let from = start.saturating_sub(BEFORE);
        let text = self.text_of(script.source?, from, start.checked_sub(from)?).ok()?;
        name_before(&text).map(str::to_owned)
    }

    fn uncompiled(&self, words: &[u64; WORDS]) -> Result<Object, Refusal> {
        let info = self.layout.function_info;
        let at = info.untrusted_data.unwrap_or(info.data);
        let data = Tagged(words.get(at as usize / 8).copied().unwrap_or(0)).object()?;
        let (first, last) = self.layout.types.uncompiled;
        (first..=last).contains(&self.type_of(data)?).then_some(data).ok_or(Refusal::OtherType)
    }

    /// What a function runs now.
    pub fn body(&self, function: Object) -> Result<Body, Refusal> {
        /// Code, interpreter data, bytecode: no chain is longer.
        const LINKS_MAX: usize = 3;
        let types = &self.layout.types;
        let info = self.layout.function_info;
        let words = self.words::<WORDS>(function)?;
        let field = |offset: u32| Tagged(words.get(offset as usize / 8).copied().unwrap_or(0));
        if field(info.untrusted_data.unwrap_or(info.data))
            .smi()
            .is_some_and(|id| id >= 0 && info.untrusted_data.is_none())
        {
            return Ok(Body::Builtin);
        }
        let Ok(mut data) = field(info.data).object() else {
            return Ok(if info.untrusted_data.is_some_and(|at| field(at).smi().is_some()) {
                Body::Builtin
            } else {
                Body::Other
            });
        };
        for _ in 0..LINKS_MAX {
            let instance_type = self.type_of(data)?;
            if instance_type == types.bytecode_array {
                return Ok(Body::Bytecode(data));
            }
            data = if instance_type == types.interpreter_data {
                self.object(data, fixed::INTERPRETER_DATA_BYTECODE)?
            } else if instance_type == types.code {
                self.object(data, self.layout.code.deopt)?
            } else if Some(instance_type) == types.baseline_data {
                self.object(data, fixed::BASELINE_DATA_DATA)?
            } else {
                break;
            };
        }
        Ok(Body::Other)
    }

    /// The source position of an offset in a function's bytecode.
    pub fn bytecode_position(&self, function: Object, offset: u32) -> Result<Position, Refusal> {
        let Body::Bytecode(bytecode) = self.body(function)? else { return Err(Refusal::Absent) };
        self.position_in_bytecode(bytecode, offset)
    }

    pub fn position_in_bytecode(&self, bytecode: Object, offset: u32) -> Result<Position, Refusal> {
        let bytes = self.count(bytecode, fixed::ARRAY_LENGTH)?;
        if offset >= bytes {
            return Err(Refusal::OutOfRange);
        }
        let table = self.byte_array(self.object(bytecode, self.layout.bytecode_positions)?, V8_TABLE_BYTES_MAX)?;
        position_at(&table, self.layout.encoding, u64::from(offset), u64::from(bytes))?.ok_or(Refusal::Absent)
    }
}

/// The name to which the function is assigned that begins after this text.
fn name_before(text: &str) -> Option<&str> {
    let mut text = text.trim_end();
    for word in ["*", "function", "async"] {
        text = text.strip_suffix(word).unwrap_or(text).trim_end();
    }
    let text = text.strip_suffix('=')?.trim_end();
    // No comparison and no arithmetic.
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '#');
    let name = text.trim_end_matches(is_part).len();
    let name = text.get(name..)?.trim_matches('.');
    let first = name.chars().next()?;
    (!first.is_numeric()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: &str, expected: Option<&str>) {
        assert_eq!(name_before(before), expected, "{before}");
    }

    #[test]
    fn a_function_is_named_after_what_it_is_assigned_to() {
        check("};\nModule.prototype._compile = function", Some("Module.prototype._compile"));
        check("const f =", Some("f"));
        check("x.y = async function* ", Some("x.y"));
        check("this.#a = async ", Some("this.#a"));
        check("a == ", None);
        check("a <= ", None);
        check("call(function", None);
        check("c ? b : function", None);
        check("a[0] = function", None);
        check("= ", None);
        check("", None);
        check("ünï = function ", Some("ünï"));
    }
}
