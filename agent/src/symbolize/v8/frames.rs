//! What a frame is, and the names of it.
//!
//! The frame pointer walk hands over, for each frame, an address in code and what lay in the frame where V8 keeps its function. The
//! address is judged first, as frames of C++ hold anything there:
//!
//! - **V8's own code** (the embedded blob): with a type marker a stub or an entry; with a function of the language, that; with a
//!   function that has bytecode, the interpreter, or a builtin without a frame of its own that this function's code has called.
//! - **code made at run time**: the `Code` around the address says what it is of. Optimised code knows its function and what was
//!   inlined; baseline code knows its bytecode, and the frame the function.
//! - **anything else** is native, and not for here.
//!
//! What each name rests on is returned with it, so that it can be kept and checked later with one small read.

use super::{
    V8,
    code::{Code, Kind},
    deopt::At,
    function::{Body, Function},
    heap::{Object, Refusal, Tagged},
    layout::fixed,
    positions::bytecode_at,
    proof::Proof,
};
use crate::{
    limits::{PROLOGUE_LOOKED_AT_BYTES, V8_BYTECODES_MAX, V8_TABLE_BYTES_MAX},
    report::model::{Frame, FrameKind, Tier},
    target::memory::Memory,
    units::UserAddr,
};

/// A frame as the walk saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Within the instruction that runs, or within the call.
    pub pc: u64,
    /// See [`crate::decode::UserFrame::object`].
    pub object: u64,
    /// See [`crate::decode::UserFrame::bytecode_offset`].
    pub bytecode_offset: u64,
    /// Of the innermost frame, where it was interrupted.
    pub live: Option<Live>,
    /// Which name the function has as a property of its own, by a number that whoever asks gave it; 0 is none.
    pub name: u32,
}

/// Where the interpreter keeps its place while one of its handlers runs; the frame has that of the last call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Live {
    pub offset: u64,
    /// The tagged address of the bytecode array.
    pub array: u64,
}

impl Seen {
    /// The frame's type, where it is one of V8's stubs.
    fn marker(self) -> Option<u32> {
        (self.object != 0 && self.object & 1 == 0).then(|| u32::try_from(self.object >> 1).unwrap_or(u32::MAX))
    }

    fn function(self) -> Result<Object, Refusal> {
        Tagged(self.object).object()
    }
}

/// Names of one frame, innermost first, and what they rest on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    pub frames: Vec<Frame>,
    pub proofs: Vec<Proof>,
}

impl<M: Memory> V8<M> {
    /// Names a frame whose address is in V8's own code, which its symbol table calls `symbol`.
    pub fn builtin(&mut self, seen: Seen, symbol: Frame) -> Result<Decoded, Refusal> {
        self.heap.begin();
        if let Some(marker) = seen.marker() {
            return Ok(Decoded { frames: vec![self.stub(marker, symbol)], proofs: Vec::new() });
        }
        let Ok(function) = seen.function() else {
            return Ok(Decoded { frames: vec![symbol], proofs: Vec::new() });
        };
        let mut decoded = Decoded::default();
        let named = self.describe(function, &mut decoded.proofs)?;
        match self.heap.body(function)? {
            // It lost its script while it was looked at.
            Body::Bytecode(_) if named.script.is_none() => return Err(Refusal::Changed),
            Body::Bytecode(bytecode) => {
                let interpreted = self.interpreter_offset(seen, bytecode, &symbol.name);
                if interpreted.is_none() || !is_interpreter(&symbol.name) {
                    decoded.frames.push(symbol);
                }
                let tier = if interpreted.is_some() { Some(Tier::Interpreted) } else { None };
                let position = interpreted
                    .and_then(|offset| self.heap.position_in_bytecode(bytecode, offset).ok())
                    .and_then(super::positions::Position::offset);
                decoded.frames.push(frame_of(&named, position, tier));
            }
            Body::Builtin(_) | Body::Other => {
                let name = if symbol.kind == FrameKind::Builtin || named.name.is_empty() {
                    symbol.name
                } else {
                    named.name.clone()
                };
                decoded.frames.push(Frame {
                    name,
                    kind: FrameKind::Builtin,
                    module: symbol.module,
                    ..Frame::default()
                });
            }
        }
        Ok(decoded)
    }

    fn stub(&self, marker: u32, symbol: Frame) -> Frame {
        if self.is_wasm(marker) { Frame { kind: FrameKind::Wasm, ..symbol } } else { symbol }
    }

    /// WebAssembly, or what goes between it and JavaScript.
    fn is_wasm(&self, marker: u32) -> bool {
        let types = self.heap.layout.frames;
        [types.wasm, types.js_to_wasm, types.wasm_to_js].contains(&marker)
    }

    /// The offset in the bytecode, where the frame is one of the interpreter's.
    fn interpreter_offset(&self, seen: Seen, bytecode: Object, symbol: &str) -> Option<u32> {
        let live = seen.live.filter(|live| symbol.ends_with("Handler") && Tagged(live.array).object() == Ok(bytecode));
        let offset = live.map_or(seen.bytecode_offset, |live| live.offset);
        // It counts from the tagged array.
        let before = u64::from(self.heap.layout.bytecode_data) - 1;
        u32::try_from(offset.checked_sub(before)?).ok()
    }

    /// Names a frame whose address is in code made at run time, in a mapping that begins at `mapped`.
    pub fn run_time(&mut self, seen: Seen, mapped: UserAddr) -> Result<Decoded, Refusal> {
        self.heap.begin();
        if seen.marker().is_some_and(|marker| self.is_wasm(marker)) {
            return Ok(Decoded { frames: vec![wasm_frame()], proofs: Vec::new() });
        }
        let code = self.heap.code_at(seen.pc, mapped, &mut self.codes)?;
        let mut decoded = Decoded::default();
        Proof::of_code(&code, &self.heap.layout, &mut decoded.proofs);
        match code.kind {
            Kind::Baseline => self.baseline(seen, &code, &mut decoded)?,
            Kind::Optimised(tier) => {
                for (depth, At { function, position }) in self.heap.optimised(&code, seen.pc)?.iter().rev().enumerate()
                {
                    let named = self.describe(*function, &mut decoded.proofs)?;
                    let frame = frame_of(&named, *position, Some(tier));
                    decoded.frames.insert(0, Frame { inlined: depth > 0, ..frame });
                }
            }
            Kind::Other => {
                // A function of a program runs there, so the code was another then. Wrappers of WebAssembly have functions, too.
                let named = seen.function().and_then(|function| self.describe(function, &mut decoded.proofs));
                if named.is_ok_and(|named| named.script.as_ref().is_some_and(|script| !script.is_wasm())) {
                    return Err(Refusal::Changed);
                }
                let name = "[generated]".to_owned();
                decoded.frames.push(Frame { name, kind: FrameKind::Builtin, ..Frame::default() });
            }
        }
        Ok(decoded)
    }

    /// Baseline code knows its bytecode but not its function; the frame's function must have this very bytecode.
    fn baseline(&mut self, seen: Seen, code: &Code, decoded: &mut Decoded) -> Result<(), Refusal> {
        let heap = &self.heap;
        let field = |offset: u32| Tagged(code.words.get(offset as usize / 8).copied().unwrap_or(0)).object();
        let function = seen.function()?;
        let bytecode = self.baseline_bytecode(function, code)?;
        let count = usize::try_from(heap.count(bytecode, fixed::ARRAY_LENGTH)?).unwrap_or(usize::MAX);
        let bytecodes = heap.bytes(bytecode.field(heap.layout.bytecode_data)?, count, V8_BYTECODES_MAX)?;
        let table = heap.byte_array(field(heap.layout.code.positions)?, V8_TABLE_BYTES_MAX)?;
        let position = bytecode_at(&table, &bytecodes, &heap.layout, seen.pc.saturating_sub(code.start))
            .and_then(|offset| heap.position_in_bytecode(bytecode, offset));
        let position = position.ok().and_then(super::positions::Position::offset);
        let named = self.describe(function, &mut decoded.proofs)?;
        decoded.frames.push(frame_of(&named, position, Some(Tier::Baseline)));
        Ok(())
    }

    /// The bytecode of a function, if its baseline code is this one.
    fn baseline_bytecode(&self, function: Object, code: &Code) -> Result<Object, Refusal> {
        let heap = &self.heap;
        let Body::Bytecode(bytecode) = heap.body(function)? else { return Err(Refusal::Changed) };
        if heap.layout.types.baseline_data.is_some() {
            // Until 9.x code does not know its bytecode, but the function both.
            let data = heap.object(function, heap.layout.function_info.data)?;
            return (heap.object(data, fixed::BASELINE_DATA_CODE)? == code.object)
                .then_some(bytecode)
                .ok_or(Refusal::Changed);
        }
        let deopt = code.words.get(heap.layout.code.deopt as usize / 8).copied().unwrap_or(0);
        let mut own = Tagged(deopt).object()?;
        if heap.type_of(own)? == heap.layout.types.interpreter_data {
            own = heap.object(own, fixed::INTERPRETER_DATA_BYTECODE)?;
        }
        (own == bytecode).then_some(bytecode).ok_or(Refusal::Changed)
    }

    /// Where the code begins that holds an address.
    pub fn code_start(&mut self, pc: u64, mapped: UserAddr) -> Option<u64> {
        self.heap.begin();
        self.heap.code_at(pc, mapped, &mut self.codes).ok().map(|code| code.start)
    }

    /// The address is in code of the frame's function.
    pub fn is_code_of(&mut self, seen: Seen, mapped: UserAddr) -> bool {
        self.heap.begin();
        let Ok(function) = seen.function() else { return false };
        let Ok(code) = self.heap.code_at(seen.pc, mapped, &mut self.codes) else { return false };
        match code.kind {
            Kind::Baseline => self.baseline_bytecode(function, &code).is_ok(),
            Kind::Optimised(_) => self
                .heap
                .optimised(&code, seen.pc)
                .is_ok_and(|all| all.last().is_some_and(|at| at.function == function)),
            Kind::Other => false,
        }
    }

    /// The address is in optimised code of another function than the frame's, behind the instructions that set a frame up: among them,
    /// the function's place in the frame is not written yet.
    pub fn is_code_of_another(&mut self, seen: Seen, mapped: UserAddr) -> bool {
        self.heap.begin();
        let Ok(function) = seen.function() else { return false };
        if self.heap.type_of(function).ok() != Some(self.heap.layout.types.function_info) {
            return false;
        }
        let Ok(code) = self.heap.code_at(seen.pc, mapped, &mut self.codes) else { return false };
        matches!(code.kind, Kind::Optimised(_))
            && seen.pc.saturating_sub(code.start) > PROLOGUE_LOOKED_AT_BYTES as u64
            && self.heap.function_of(&code).is_ok_and(|of_code| of_code != function)
    }

    /// The function of a frame that is set up, where nothing more is known of it.
    pub fn function_only(&mut self, seen: Seen) -> Result<Decoded, Refusal> {
        self.heap.begin();
        let mut decoded = Decoded::default();
        let named = self.describe(seen.function()?, &mut decoded.proofs)?;
        // V8's own functions have none, and what runs for them is not known.
        if named.script.is_none() {
            return Err(Refusal::Absent);
        }
        decoded.frames.push(frame_of(&named, None, None));
        Ok(decoded)
    }

    /// Names a function that awaits, at the place where it does.
    pub fn suspended(&mut self, seen: Seen) -> Result<Decoded, Refusal> {
        self.heap.begin();
        let function = seen.function()?;
        let mut decoded = Decoded::default();
        let named = self.describe(function, &mut decoded.proofs)?;
        let frame = match self.heap.body(function)? {
            Body::Bytecode(bytecode) => {
                let before = u64::from(self.heap.layout.bytecode_data) - 1;
                let offset = seen.bytecode_offset.checked_sub(before).and_then(|offset| u32::try_from(offset).ok());
                let position = offset.and_then(|offset| self.heap.position_in_bytecode(bytecode, offset).ok());
                frame_of(&named, position.and_then(super::positions::Position::offset), None)
            }
            Body::Builtin(number) => {
                let known = self.heap.layout.combinators.iter().find(|(known, _)| Some(*known) == number);
                let name = known.map_or(COMBINATOR, |(_, name)| name).to_owned();
                Frame { name, kind: FrameKind::Builtin, ..Frame::default() }
            }
            Body::Other => frame_of(&named, None, None),
        };
        decoded.frames.push(frame);
        Ok(decoded)
    }

    fn describe(&mut self, function: Object, proofs: &mut Vec<Proof>) -> Result<std::sync::Arc<Function>, Refusal> {
        let words = self.heap.first_words(function.0)?;
        proofs.push(Proof::of_function(function, words, &self.heap.layout));
        let named = self.heap.function(function, &mut self.functions, 0)?;
        if let Some(script) = &named.script {
            proofs.extend(script.at.and_then(|at| Proof::of_script(at, script.id)));
        }
        Ok(named)
    }
}

/// A name for functions that have none, as Chrome has it.
pub const ANONYMOUS: &str = "(anonymous)";

/// `Promise.all`, `Promise.allSettled`, where the file does not say which has what number.
const COMBINATOR: &str = "Promise combinator";

/// And for those in evaluated code, as V8 has it.
const EVALUATED: &str = "eval";

fn frame_of(function: &Function, position: Option<u32>, tier: Option<Tier>) -> Frame {
    let script = function.script.as_deref();
    let place = |position: u32| script?.place(position);
    let (known, begin) = (position.and_then(place), function.start.and_then(place));
    let place = known.or(begin);
    let begin = begin.filter(|_| known.is_some());
    let unnamed = if script.is_some_and(|script| script.is_evaluated) { EVALUATED } else { ANONYMOUS };
    Frame {
        name: if function.name.is_empty() { unnamed.to_owned() } else { function.name.clone() },
        kind: FrameKind::Js,
        file: script.and_then(|script| script.file.clone()),
        line: place.map(|place| place.line),
        column: place.map(|place| place.column),
        start_line: known.is_none() && place.is_some(),
        function_line: begin.map(|begin| begin.line),
        function_column: begin.map(|begin| begin.column),
        tier,
        ..Frame::default()
    }
}

fn wasm_frame() -> Frame {
    Frame { name: "[wasm]".to_owned(), kind: FrameKind::Wasm, ..Frame::default() }
}

/// Code of the interpreter itself: it says nothing beside the function that it runs.
#[must_use]
pub fn is_interpreter(builtin: &str) -> bool {
    builtin.ends_with("Handler") || is_interpreters_entry(builtin)
}

/// Of it, what calls the code of each bytecode: there returns to it what a function calls.
#[must_use]
pub fn is_interpreters_entry(builtin: &str) -> bool {
    builtin.starts_with("InterpreterEntryTrampoline") || builtin.starts_with("InterpreterEnterAt")
}
