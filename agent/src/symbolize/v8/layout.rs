//! Where a V8 keeps what: offsets, instance types and encodings, by its version.
//!
//! A row holds what the `v8dbg_*` constants of a file do not say, or do not say in each version; what they do say overrides it.
//! Between two rows the older one holds; a V8 that is newer than all rows gets the newest: each
//! object's type is checked before it is read, so that a row that does not fit gives no names rather than wrong ones.
//!
//! Offsets count from an object's untagged address. All are of builds for x86-64 without pointer compression, as Node.js is built;
//! each number was read off the binaries or taken from the sources of that version (`src/objects/*.tq`, `*.h`).
//!
//! To add a version: compare its constants (`nm -D node | grep v8dbg_`) and its sources with the row before.

use std::collections::BTreeMap;

use super::{builtins::combinators, rows::ROWS};
use crate::target::{elf::ElfFile, v8};

/// `Version::{major,minor,build}_`.
pub type V8Version = [u32; 3];

/// Instance types by which objects are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    /// Strings lie below.
    pub first_nonstring: u16,
    pub map: u16,
    pub oddball: u16,
    pub function_info: u16,
    pub script: u16,
    pub scope_info: u16,
    pub debug_info: u16,
    pub bytecode_array: u16,
    pub interpreter_data: u16,
    /// Baseline code and bytecode together, until 9.x.
    pub baseline_data: Option<u16>,
    pub code: u16,
    /// Where machine code lies beside its `Code`; until 10.x it lies in the `Code` itself.
    pub instruction_stream: Option<u16>,
    /// `UncompiledData*`, both ends included.
    pub uncompiled: (u16, u16),
    /// What the function of optimised code is wrapped in, since 13.x.
    pub function_info_wrapper: Option<u16>,
}

/// `SharedFunctionInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    pub data: u32,
    /// Since 13.x data that the sandbox does not trust has a word of its own: builtin ids and `UncompiledData`.
    pub untrusted_data: Option<u32>,
    pub name: u32,
    pub script: u32,
    /// The number of the function's literal follows.
    pub flags: u32,
}

/// `Code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeObject {
    /// Deoptimisation data of optimised code, the bytecode of baseline code.
    pub deopt: u32,
    /// Source positions of optimised code, the lengths of bytecodes' code of baseline code.
    pub positions: u32,
    /// The address of the instructions; or where they begin, if they lie in the object.
    pub start: u32,
    pub flags: u32,
    pub size: u32,
    /// `CodeKind`s, the lowest bits of `flags`.
    pub baseline: u32,
    pub maglev: Option<u32>,
    pub turbofan: u32,
}

/// Indices in `DeoptimizationData`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deopt {
    pub literals: u32,
    pub function: u32,
    pub inlining: u32,
    /// Operations of [`translations`](super::translations) are those that are known.
    pub are_translations_known: bool,
}

/// `ScopeInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeInfo {
    /// Words before the names of variables.
    pub first_vars: u32,
    /// Start and end position lie before the names (since 12.8), not after them.
    pub positions_first: bool,
    /// From this many variables on their names are in a hash table; they always lie in the object before 9.8.
    pub hashed_from: Option<u32>,
    /// First and last `FunctionKind` of the functions that set up a class's fields; above are those of its static ones.
    pub members_initializer_kinds: (u64, u64),
    /// A word about the receiver lies before the name, until 9.x.
    pub has_receiver: bool,
}

/// `frametype_*`, as far as they have names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameTypes {
    pub entry: u32,
    pub construct_entry: u32,
    pub exit: u32,
    pub builtin_exit: u32,
    pub construct: u32,
    pub internal: u32,
    pub wasm: u32,
    pub js_to_wasm: u32,
    pub wasm_to_js: u32,
}

/// How source position tables are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PositionsEncoding {
    /// Code offsets are zigzag, their sign says whether a statement begins.
    Signed,
    /// Code offsets are shifted by two flags (since 14.1).
    Flagged,
}

/// All that the decoder must know of a V8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub version: V8Version,
    pub types: Types,
    pub function_info: FunctionInfo,
    pub code: CodeObject,
    pub bytecode_data: u32,
    pub bytecode_positions: u32,
    pub deopt: Deopt,
    pub scope_info: ScopeInfo,
    pub frames: FrameTypes,
    pub encoding: PositionsEncoding,
    /// `Script::source_url`; the mapping's follows.
    pub script_source_url: u32,
    /// Lengths of bytecodes by operand scale: three tables of the same length.
    pub bytecode_sizes: Vec<u8>,
    /// Builtins that wait for several promises, by number.
    pub combinators: Vec<(u32, &'static str)>,
}

/// What has not moved in any version.
pub mod fixed {
    pub const MAP_INSTANCE_TYPE: u32 = 12;
    pub const STRING_LENGTH: u32 = 12;
    pub const STRING_CHARS: u32 = 16;
    /// Of a cons string the first half, of a thin one the actual string, of a sliced one the parent.
    pub const STRING_FIRST: u32 = 16;
    /// Of a cons string the second half, of a sliced one the offset.
    pub const STRING_SECOND: u32 = 24;
    /// `ExternalString::resource_data`: a cache of where the characters are.
    pub const STRING_RESOURCE_DATA: u32 = 24;
    pub const ARRAY_LENGTH: u32 = 8;
    pub const ARRAY_DATA: u32 = 16;
    pub const SCRIPT_SOURCE: u32 = 8;
    pub const SCRIPT_NAME: u32 = 16;
    pub const SCRIPT_LINE_OFFSET: u32 = 24;
    pub const SCRIPT_COLUMN_OFFSET: u32 = 32;
    pub const SCRIPT_ID: u32 = 64;
    pub const SCRIPT_EVAL_FROM_SHARED: u32 = 72;
    pub const SCRIPT_EVAL_FROM_POSITION: u32 = 80;
    /// `DebugInfo::script`, in the place of a function's script while it is debugged; its function lies before it.
    pub const DEBUG_INFO_SCRIPT: u32 = 16;
    pub const INTERPRETER_DATA_BYTECODE: u32 = 8;
    pub const BASELINE_DATA_CODE: u32 = 8;
    pub const BASELINE_DATA_DATA: u32 = 16;
    pub const UNCOMPILED_INFERRED_NAME: u32 = 8;
    pub const UNCOMPILED_START: u32 = 16;
    pub const WRAPPER_FUNCTION_INFO: u32 = 8;
    /// From an `InstructionStream` to its `Code`.
    pub const STREAM_CODE: u32 = 8;
    pub const SCOPE_INFO_FLAGS: u32 = 8;
    pub const CODE_KIND_MASK: u32 = 15;
}

/// `Bytecodes::kBytecodeSizes`.
const BYTECODE_SIZES: &str = "_ZN2v88internal11interpreter9Bytecodes14kBytecodeSizesE";

/// More than three tables of as many bytecodes as a byte can number.
const BYTECODE_SIZES_MAX: u64 = 3 * 256;

/// Why there is no layout for a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLayout {
    #[error("V8 {}.{}.{} is older than 9.4, the oldest whose heap is known", .0[0], .0[1], .0[2])]
    TooOld(V8Version),
    #[error("the file does not say which V8 it holds")]
    NoVersion,
}

impl Layout {
    /// The row for a version, overridden by what the file itself says.
    pub fn of_file(version: V8Version, elf: &ElfFile) -> Result<Self, NoLayout> {
        let mut layout = Self::row(version)?;
        let names: Vec<&str> = overrides(&mut layout).into_iter().flat_map(|one| one.names.iter().copied()).collect();
        let constants = v8::constants(elf, &names);
        layout.apply(&constants);
        let sizes = elf.lookup([BYTECODE_SIZES]).ok().and_then(|found| found.get(BYTECODE_SIZES)?.symbol());
        if let Some(sizes) = sizes.filter(|symbol| symbol.size % 3 == 0 && symbol.size <= BYTECODE_SIZES_MAX) {
            layout.bytecode_sizes = elf.bytes_at(sizes.addr, sizes.size);
        }
        layout.combinators = combinators(elf);
        Ok(layout)
    }

    /// What is known of a version without its file.
    pub fn row(version: V8Version) -> Result<Self, NoLayout> {
        let row = ROWS.iter().rev().find(|row| row.version <= version).ok_or(NoLayout::TooOld(version))?;
        let mut layout = Self { version, ..row.clone() };
        layout.settle();
        Ok(layout)
    }

    /// What changed between two rows.
    fn settle(&mut self) {
        if self.version >= [12, 3, 97] {
            self.bytecode_positions = 24;
        }
        if self.version >= [12, 8, 44] {
            self.scope_info.positions_first = true;
            self.scope_info.first_vars = 5;
        }
        if self.version >= [14, 1, 0] {
            self.encoding = PositionsEncoding::Flagged;
        }
    }

    /// How many of the numbers that a file may say itself it does say, of how many.
    #[must_use]
    pub fn stated(&self, elf: &ElfFile) -> (usize, usize) {
        let mut layout = self.clone();
        let all: Vec<_> = overrides(&mut layout).into_iter().map(|one| one.names).collect();
        let names: Vec<&str> = all.iter().flat_map(|names| names.iter().copied()).collect();
        let constants = v8::constants(elf, &names);
        (all.iter().filter(|names| names.iter().any(|name| constants.contains_key(name))).count(), all.len())
    }

    /// The version of the row that a version is laid out as.
    #[must_use]
    pub fn row_of(version: V8Version) -> Option<V8Version> {
        ROWS.iter().rev().find(|row| row.version <= version).map(|row| row.version)
    }

    fn apply(&mut self, constants: &BTreeMap<&str, i32>) {
        for one in overrides(self) {
            let Some(value) = one.names.iter().find_map(|name| constants.get(name)) else { continue };
            match one.place {
                Place::Type(place) => *place = u16::try_from(*value).unwrap_or(*place),
                Place::Offset(place) => *place = u32::try_from(*value).unwrap_or(*place),
            }
        }
    }

    /// Bytes of a bytecode with its operands; `None` if it is none. Prefixes widen the operands of what follows.
    #[must_use]
    pub fn bytecode_bytes(&self, bytecode: u8, scale: Scale) -> Option<u8> {
        let count = self.bytecode_sizes.len() / 3;
        let table = match scale {
            Scale::Single => 0,
            Scale::Double => count,
            Scale::Quadruple => count.checked_mul(2)?,
        };
        (usize::from(bytecode) < count).then_some(())?;
        self.bytecode_sizes.get(table.checked_add(usize::from(bytecode))?).copied().filter(|bytes| *bytes > 0)
    }
}

/// How wide a bytecode's operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Single,
    Double,
    Quadruple,
}

enum Place<'a> {
    Type(&'a mut u16),
    Offset(&'a mut u32),
}

/// A number that a file may say itself, under one of these names.
struct Override<'a> {
    names: &'static [&'static str],
    place: Place<'a>,
}

fn of_type<'a>(names: &'static [&'static str], place: &'a mut u16) -> Override<'a> {
    Override { names, place: Place::Type(place) }
}

fn of_offset<'a>(names: &'static [&'static str], place: &'a mut u32) -> Override<'a> {
    Override { names, place: Place::Offset(place) }
}

fn overrides(layout: &mut Layout) -> Vec<Override<'_>> {
    let Layout { types, function_info, code, bytecode_data, deopt, scope_info, frames, .. } = layout;
    let mut all = vec![
        of_type(&["FirstNonstringType"], &mut types.first_nonstring),
        of_type(&["type_Map__MAP_TYPE"], &mut types.map),
        of_type(&["type_Oddball__ODDBALL_TYPE"], &mut types.oddball),
        of_type(&["type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE"], &mut types.function_info),
        of_type(&["type_Script__SCRIPT_TYPE"], &mut types.script),
        of_type(&["type_ScopeInfo__SCOPE_INFO_TYPE"], &mut types.scope_info),
        of_type(&["type_DebugInfo__DEBUG_INFO_TYPE"], &mut types.debug_info),
        of_type(&["type_BytecodeArray__BYTECODE_ARRAY_TYPE"], &mut types.bytecode_array),
        of_type(&["type_InterpreterData__INTERPRETER_DATA_TYPE"], &mut types.interpreter_data),
        of_type(&["type_Code__CODE_TYPE"], &mut types.code),
        of_offset(
            &[
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_NameOrScopeInfoT_",
                "class_SharedFunctionInfo__name_or_scope_info__Tagged_Object_",
                "class_SharedFunctionInfo__name_or_scope_info__Object",
            ],
            &mut function_info.name,
        ),
        of_offset(
            &[
                "class_SharedFunctionInfo__script__Tagged_HeapObject_",
                "class_SharedFunctionInfo__script_or_debug_info__HeapObject",
            ],
            &mut function_info.script,
        ),
        of_offset(&["class_SharedFunctionInfo__function_data__Object"], &mut function_info.data),
        of_offset(&["class_SharedFunctionInfo__flags__int"], &mut function_info.flags),
        of_offset(&["class_Code__flags__uint32_t"], &mut code.flags),
        of_offset(&["class_Code__instruction_size__int"], &mut code.size),
        of_offset(
            &["class_Code__instruction_start__Address", "class_Code__instruction_start__uintptr_t"],
            &mut code.start,
        ),
        of_offset(&["CodeKindBaseline"], &mut code.baseline),
        of_offset(&["class_BytecodeArray__data__uintptr_t"], bytecode_data),
        of_offset(&["DeoptimizationDataLiteralArrayIndex"], &mut deopt.literals),
        of_offset(
            &["DeoptimizationDataWrappedSharedFunctionInfoIndex", "DeoptimizationDataSharedFunctionInfoIndex"],
            &mut deopt.function,
        ),
        of_offset(&["DeoptimizationDataInliningPositionsIndex"], &mut deopt.inlining),
        of_offset(&["scopeinfo_idx_first_vars"], &mut scope_info.first_vars),
        of_offset(&["frametype_EntryFrame"], &mut frames.entry),
        of_offset(&["frametype_ConstructEntryFrame"], &mut frames.construct_entry),
        of_offset(&["frametype_ExitFrame"], &mut frames.exit),
        of_offset(&["frametype_BuiltinExitFrame"], &mut frames.builtin_exit),
        of_offset(&["frametype_ConstructFrame"], &mut frames.construct),
        of_offset(&["frametype_InternalFrame"], &mut frames.internal),
        of_offset(&["frametype_WasmFrame"], &mut frames.wasm),
        of_offset(&["frametype_JsToWasmFrame"], &mut frames.js_to_wasm),
        of_offset(&["frametype_WasmToJsFrame"], &mut frames.wasm_to_js),
    ];
    if let Some(stream) = &mut types.instruction_stream {
        all.push(of_type(&["type_InstructionStream__INSTRUCTION_STREAM_TYPE"], stream));
    }
    if let Some(wrapper) = &mut types.function_info_wrapper {
        all.push(of_type(&["type_SharedFunctionInfoWrapper__SHARED_FUNCTION_INFO_WRAPPER_TYPE"], wrapper));
    }
    all
}
