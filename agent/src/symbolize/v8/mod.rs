//! Names of JavaScript frames, from V8's own heap and without its help.
//!
//! # A field guide
//!
//! A frame's `SharedFunctionInfo` has the function's name (directly, or in its `ScopeInfo`), its `Script` (name and source) and its
//! `BytecodeArray` (a table of source positions). Code that V8 compiles at run time lies in an `InstructionStream`, described by a
//! `Code`, which leads to its own table of positions and to the functions inlined into it.
//!
//! ```text
//! pc in the blob    frame: SharedFunctionInfo ─ Script ─ source ─ lines
//!                          │                └ BytecodeArray ─ positions
//! pc in code made   InstructionStream ─ Code ┬ baseline: BytecodeArray, lengths of code by bytecode
//! at run time                                └ optimised: positions, DeoptimizationData ─ SharedFunctionInfos
//! ```
//!
//! [`layout`] says where a version keeps all that; [`heap`] and [`strings`] read words and text; [`script`], [`function`], [`code`],
//! [`positions`], [`deopt`] and `safepoints` know one kind of object each; [`frames`] puts them together.
//!
//! # What can be trusted
//!
//! Nothing. The process runs on while it is read, its collector moves and frees objects, and a corrupt heap may say anything. Each read
//! is bounded, each object's type is looked at before its fields are, and a doubt ends the decoding of that frame alone: a name may be
//! missing, never wrong.

mod builtins;
pub mod code;
pub mod deopt;
pub mod fixture;
pub mod frames;
pub mod function;
pub mod heap;
pub mod layout;
pub mod positions;
pub mod proof;
mod rows;
mod safepoints;
pub mod script;
pub mod strings;
pub mod suspended;
pub mod translations;
pub mod trial;

use code::Codes;
use function::Functions;
use heap::Heap;
use layout::Layout;

use crate::target::memory::Memory;

/// The V8 of one process.
pub struct V8<M> {
    pub heap: Heap<M>,
    pub(super) functions: Functions,
    codes: Codes,
}

impl<M: Memory> V8<M> {
    #[must_use]
    pub fn new(memory: M, layout: Layout) -> Self {
        Self { heap: Heap::new(memory, layout), functions: Functions::default(), codes: Codes::default() }
    }
}
