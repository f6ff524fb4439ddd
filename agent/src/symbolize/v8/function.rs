//! Functions: what a `SharedFunctionInfo` says of its name, script and bytecode.
//!
//! The name is the first that is not empty of: the function's own; the one in its `ScopeInfo`; the one that V8 inferred from what
//! the function was assigned to; and, as newer versions forget that, what stands before the function's begin in the source.

use std::sync::Arc;

use super::{
    heap::{Heap, Object, Refusal, Tagged},
    layout::fixed,
    positions::{Position, position_at},
    proof::LITERAL_ID,
    script::Script,
};
use crate::{
    limits::{V8_FUNCTIONS_MAX, V8_LINES_KEPT_MAX, V8_NAME_UNITS_MAX, V8_SCRIPTS_MAX, V8_TABLE_BYTES_MAX},
    target::{address_map::AddressMap, memory::Memory},
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
    by_address: AddressMap<Object, ([u64; 3], Arc<Function>)>,
    scripts: AddressMap<Object, Arc<Script>>,
    lines: usize,
}

impl Functions {
    #[must_use]
    pub fn script(&self, at: Object) -> Option<Arc<Script>> {
        self.scripts.get(&at).cloned()
    }

    /// The script that frames call by this name; of several the one that was loaded last.
    #[must_use]
    pub fn script_of_file(&self, file: &str) -> Option<Arc<Script>> {
        let named = self.scripts.values().filter(|script| script.file.as_deref() == Some(file));
        named.max_by_key(|script| script.id).cloned()
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

/// Where a name is from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// What the function calls itself.
    Own(String),
    /// What it was assigned to, as V8 understood it; empty if it did not.
    Inferred(String),
}

/// What a function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Bytecode(Object),
    /// A function of the language, by the number of its builtin.
    Builtin(Option<u32>),
    /// Not compiled, or of WebAssembly, or of an embedder.
    Other,
}

impl<M: Memory> Heap<M> {
    /// What of a function tells it from others, within its script.
    fn identity(&self, words: &[u64; WORDS]) -> [u64; 3] {
        let field = |offset: u32| words.get(offset as usize / 8).copied().unwrap_or(0);
        let info = self.layout.function_info;
        [field(info.name), field(info.script), field(info.flags) & LITERAL_ID]
    }

    /// The function at an address: the one that is known, if it is still the same.
    pub fn function(&self, at: Object, functions: &mut Functions, depth: usize) -> Result<Arc<Function>, Refusal> {
        let words = self.first_words::<WORDS>(at.0)?;
        let [map, ..] = words;
        if self.type_of_map(map)? != self.layout.types.function_info {
            return Err(Refusal::OtherType);
        }
        let identity = self.identity(&words);
        let [name, script, _] = identity.map(Tagged);
        let script = self.script_of(script, functions, depth)?;
        if let Some((known, function)) = functions.by_address.get(&at)
            && *known == identity
            && function.script.as_ref().map(Arc::as_ptr) == script.as_ref().map(Arc::as_ptr)
        {
            return Ok(Arc::clone(function));
        }
        let (mut name, mut start) = self.name(name)?;
        if let Ok(data) = self.uncompiled(&words) {
            start = start.or(self.u32(data.field(fixed::UNCOMPILED_START)?).ok());
            if name == Name::Inferred(String::new()) {
                let inferred = self.object(data, fixed::UNCOMPILED_INFERRED_NAME)?;
                name = Name::Inferred(self.text(inferred, V8_NAME_UNITS_MAX).unwrap_or_default());
            }
        }
        let text = match (name, &script, start) {
            (Name::Inferred(name), Some(script), Some(start)) => self.text_before(script, start).map_or_else(
                |_| name.clone(),
                |before| {
                    if is_computed(&before) { String::new() } else { or_else(name.clone(), || name_before(&before)) }
                },
            ),
            (Name::Own(name) | Name::Inferred(name), ..) => name,
        };
        let function = Arc::new(Function { name: text, script, start });
        if functions.by_address.len() >= V8_FUNCTIONS_MAX {
            functions.by_address.clear();
        }
        functions.by_address.insert(at, (identity, Arc::clone(&function)));
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
    fn name(&self, word: Tagged) -> Result<(Name, Option<u32>), Refusal> {
        let Ok(object) = word.object() else { return Ok((Name::Inferred(String::new()), None)) };
        let instance_type = self.type_of(object)?;
        if instance_type < self.layout.types.first_nonstring {
            let text = self.text(object, V8_NAME_UNITS_MAX)?;
            return Ok((if text.is_empty() { Name::Inferred(text) } else { Name::Own(text) }, None));
        }
        if instance_type == self.layout.types.scope_info {
            return self.scope_info(object);
        }
        Err(Refusal::OtherType)
    }

    /// A `ScopeInfo`: flags, counts, names and properties of variables; then, each if the flags say so, a word about a class
    /// variable, the function's name and its slot, the inferred name, and, before 12.8, the function's start and end.
    fn scope_info(&self, at: Object) -> Result<(Name, Option<u32>), Refusal> {
        const TAIL: usize = 7;
        let layout = self.layout.scope_info;
        let [_, flags, _, variables, start, _] = self.words::<6>(at)?;
        let flags = ScopeFlags::of(flags);
        let variables = unsigned(variables).filter(|count| *count <= V8_NAME_UNITS_MAX).ok_or(Refusal::OutOfRange)?;
        let hashed = layout.hashed_from.is_some_and(|from| variables >= from);
        let words = if hashed { variables + 1 } else { variables * 2 };
        let skipped = flags.class_variable() + if layout.has_receiver { flags.receiver() } else { 0 };
        let tail = self.first_words::<TAIL>(at.field((1 + layout.first_vars + words) * 8)?)?;
        let mut tail = tail.into_iter().skip(skipped);
        let (mut own, mut inferred) = (None, None);
        if flags.has_name() {
            own = self.name_text(tail.next().ok_or(Refusal::OutOfRange)?)?;
            tail.next();
        }
        if flags.has_inferred_name() {
            inferred = self.name_text(tail.next().ok_or(Refusal::OutOfRange)?)?;
        }
        let start = if layout.positions_first { Some(start) } else { tail.next() }.and_then(unsigned);
        if let Some(name) = initializer(flags.kind(), layout.members_initializer_kinds) {
            return Ok((Name::Own(name.to_owned()), start));
        }
        let own = own.filter(|own| !own.is_empty());
        Ok((own.map_or_else(|| Name::Inferred(inferred.unwrap_or_default()), Name::Own), start))
    }

    /// A name, where there may be none.
    fn name_text(&self, word: u64) -> Result<Option<String>, Refusal> {
        let word = Tagged(word);
        if word.smi() == Some(0) {
            return Ok(None);
        }
        let object = word.object()?;
        if self.type_of(object)? == self.layout.types.oddball {
            return Ok(None);
        }
        self.text(object, V8_NAME_UNITS_MAX).map(Some)
    }

    /// The text before a function's parameters.
    fn text_before(&self, script: &Script, start: u32) -> Result<String, Refusal> {
        const BEFORE: u32 = 160;
        let from = start.saturating_sub(BEFORE);
        self.text_of(script.source.ok_or(Refusal::Absent)?, from, start.saturating_sub(from))
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
        let words = self.first_words::<WORDS>(function.0)?;
        let field = |offset: u32| Tagged(words.get(offset as usize / 8).copied().unwrap_or(0));
        let number = field(info.untrusted_data.unwrap_or(info.data)).smi().and_then(|id| u32::try_from(id).ok());
        if info.untrusted_data.is_none()
            && let Some(number) = number
        {
            return Ok(Body::Builtin(Some(number)));
        }
        let Ok(mut data) = field(info.data).object() else {
            return Ok(if info.untrusted_data.is_some_and(|at| field(at).smi().is_some()) {
                Body::Builtin(number)
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

/// What a `ScopeInfo`'s flags say (`ScopeFlags`, `src/objects/scope-info.tq`); these have not moved.
#[derive(Clone, Copy)]
struct ScopeFlags(u64);

impl ScopeFlags {
    /// A small integer until 12.x, then 32 bits as they are.
    fn of(word: u64) -> Self {
        Self(if word.trailing_zeros() >= 32 { word >> 32 } else { word })
    }

    /// Words about a class variable.
    fn class_variable(self) -> usize {
        usize::from(self.0 >> 10 & 1 == 1)
    }

    /// Words about the receiver, which is on the stack or in the context.
    fn receiver(self) -> usize {
        usize::from(matches!(self.0 >> 7 & 3, 1 | 2))
    }

    fn has_name(self) -> bool {
        self.0 >> 12 & 3 != 0
    }

    fn has_inferred_name(self) -> bool {
        self.0 >> 14 & 1 == 1
    }

    /// `FunctionKind`.
    fn kind(self) -> u64 {
        self.0 >> 17 & 31
    }
}

/// What V8 calls functions that set up the fields of a class, whose own names are those of the class.
fn initializer(kind: u64, (first, last): (u64, u64)) -> Option<&'static str> {
    let is_static = kind > last;
    (kind >= first).then_some(if is_static { "<static_initializer>" } else { "<instance_members_initializer>" })
}

fn unsigned(word: u64) -> Option<u32> {
    Tagged(word).smi().and_then(|smi| u32::try_from(smi).ok())
}

fn or_else(name: String, other: impl FnOnce() -> Option<String>) -> String {
    if name.is_empty() { other().unwrap_or_default() } else { name }
}

/// The text before a function, without the words that begin one.
fn before_function(text: &str) -> &str {
    let mut text = text.trim_end();
    for word in ["*", "function", "async"] {
        text = text.strip_suffix(word).unwrap_or(text).trim_end();
    }
    text
}

/// The function is a property whose name is computed: V8 puts that into the function's object, where it is not seen from here, and
/// what it inferred is the name of something else.
fn is_computed(before: &str) -> bool {
    let before = before_function(before);
    before.strip_suffix(':').unwrap_or(before).trim_end().ends_with(']')
}

/// The name to which the function is assigned that begins after this text.
fn name_before(text: &str) -> Option<String> {
    let text = before_function(text).strip_suffix('=')?.trim_end();
    // No comparison and no arithmetic.
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '#');
    let name = text.trim_end_matches(is_part).len();
    let name = text.get(name..)?.trim_matches('.');
    let first = name.chars().next()?;
    // V8 leaves these two out.
    let parts = name.split('.').filter(|part| !matches!(*part, "prototype" | "this"));
    (!first.is_numeric()).then(|| parts.collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: &str, expected: Option<&str>) {
        assert_eq!(name_before(before).as_deref(), expected, "{before}");
    }

    #[test]
    fn a_function_is_named_after_what_it_is_assigned_to() {
        check("};\nModule.prototype._compile = function", Some("Module._compile"));
        check("const f =", Some("f"));
        check("x.y = async function* ", Some("x.y"));
        check("this.#a = async ", Some("#a"));
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
