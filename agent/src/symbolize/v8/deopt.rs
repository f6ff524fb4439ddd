//! Functions that were inlined into optimised code, and where it calls others.
//!
//! A position in optimised code says which inlining it is in; each inlining has a position in the function around it and the
//! index of its own `SharedFunctionInfo` among the code's literals (`DeoptimizationData`, `src/objects/deoptimization-data.h`).
//!
//! The same data have a row for each call after which the code may have to be left, with the bytecode of the call and where its
//! translation begins. Positions that Maglev notes of calls in loops are those of the loop at times, and may lack what was inlined
//! there; bytecode and translation never lie. And once code is to be left, V8 has its callees return to an exit at its end, one for
//! each such call: of those, too, the row tells where the call was.

use super::{
    code::{Code, Kind},
    function::Body,
    heap::{Heap, Object, Refusal, Tagged},
    layout::fixed,
    positions::{Position, position_at},
    translations::{Translated, translated},
};
use crate::{
    limits::{V8_INLINING_DEPTH_MAX, V8_TABLE_BYTES_MAX},
    report::model::Tier,
    target::memory::Memory,
};

/// A function that is at some place, inlined or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub function: Object,
    /// `None` where the code does not say.
    pub position: Option<u32>,
}

/// A call in optimised code.
#[derive(Clone, Copy, Debug)]
struct Call {
    /// Within the instruction.
    pc: u64,
    /// In the innermost function there.
    bytecode_offset: Option<u32>,
    translation: u32,
}

/// Where translations are among the data; always the first.
const DEOPT_TRANSLATIONS: u32 = 0;

/// Of `Deoptimizer::kEagerDeoptExitSize` and `kLazyDeoptExitSize`, on x64.
const EXIT_BYTES: u32 = 4;

/// After which call the code may be left, and its bytecode; where is the place that the call returns to, or of Maglev the exit.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Negative before the first one.
    bytecode_offset: Option<u32>,
    translation: u32,
    at: u32,
}

struct Rows {
    eager: u32,
    lazy: Vec<Row>,
    /// Where in the code the exits of these begin.
    lazy_exits: u32,
}

impl<M: Memory> Heap<M> {
    /// The functions at an address in optimised code, innermost first: all but the last are inlined.
    pub fn optimised(&self, code: &Code, pc: u64) -> Result<Vec<At>, Refusal> {
        let data = self.deopt_data(code)?;
        let outer = self.function_of_code(data)?;
        let call = self.call_at(data, code, pc).ok();
        if let Some(all) = call.and_then(|call| self.translated(data, outer, call).ok()) {
            return Ok(all);
        }
        let Ok(mut position) = self.position_in_code(code, call.map_or(pc, |call| call.pc)) else {
            return Ok(vec![At { function: outer, position: None }]);
        };
        let mut all = Vec::new();
        while let Some(inlining) = position.inlining() {
            if all.len() >= V8_INLINING_DEPTH_MAX {
                return Err(Refusal::TooLarge);
            }
            let (around, function) = self.inlining(data, inlining)?;
            // A function without one is the code's own, called by itself.
            all.push(At { function: function.unwrap_or(outer), position: position.offset() });
            position = around;
        }
        // A row's bytecode is that of the innermost function.
        let exact = call.filter(|_| all.is_empty()).and_then(|call| self.position_of_call(outer, call.bytecode_offset));
        all.push(At { function: outer, position: exact.or(position.offset()) });
        Ok(all)
    }

    fn deopt_data(&self, code: &Code) -> Result<Object, Refusal> {
        Tagged(code.words.get(self.layout.code.deopt as usize / 8).copied().unwrap_or(0)).object()
    }

    /// The function that optimised code is of.
    pub fn function_of(&self, code: &Code) -> Result<Object, Refusal> {
        self.function_of_code(self.deopt_data(code)?)
    }

    /// The functions that a call's translation names, innermost first, if that fits all else that is known of it.
    fn translated(&self, data: Object, outer: Object, call: Call) -> Result<Vec<At>, Refusal> {
        if !self.layout.deopt.are_translations_known {
            return Err(Refusal::Absent);
        }
        let table = self.byte_array(self.element(data, DEOPT_TRANSLATIONS)?.object()?, V8_TABLE_BYTES_MAX)?;
        let frames = translated(&table, call.translation)?;
        if frames.last().is_none_or(|innermost| innermost.bytecode_offset != call.bytecode_offset) {
            return Err(Refusal::Damaged);
        }
        let at = |frame: &Translated| {
            let function = self.literal(data, frame.function)?;
            Ok(At { function, position: self.position_of_call(function, frame.bytecode_offset) })
        };
        let frames = frames.iter().rev().filter(|frame| !frame.is_builtin);
        let all: Vec<At> = frames.map(at).collect::<Result<_, _>>()?;
        if all.last().is_some_and(|last| last.function == outer) { Ok(all) } else { Err(Refusal::Damaged) }
    }

    fn position_of_call(&self, function: Object, bytecode_offset: Option<u32>) -> Option<u32> {
        let Ok(Body::Bytecode(bytecode)) = self.body(function) else { return None };
        self.position_in_bytecode(bytecode, bytecode_offset?).ok()?.offset()
    }

    /// The call that an address lies in, or that leads to the exit that it lies before.
    fn call_at(&self, data: Object, code: &Code, pc: u64) -> Result<Call, Refusal> {
        let back = pc.checked_sub(code.start).and_then(|offset| u32::try_from(offset + 1).ok());
        let back = back.ok_or(Refusal::OutOfRange)?;
        let rows = self.rows(data)?;
        let (row, returns) = if code.kind == Kind::Optimised(Tier::Maglev) {
            // Its rows have the exits in place of the calls.
            let safepoint = self.safepoint(code, back)?;
            let row = rows.lazy.get(safepoint.row.checked_sub(rows.eager).ok_or(Refusal::Damaged)? as usize);
            (row.filter(|row| row.at == safepoint.exit), safepoint.returns)
        } else {
            let row = match back.checked_sub(rows.lazy_exits) {
                Some(within) => rows.lazy.get((within / EXIT_BYTES) as usize),
                None => rows.lazy.iter().find(|row| row.at == back),
            };
            (row, row.map_or(0, |row| row.at))
        };
        let row = row.ok_or(Refusal::Absent)?;
        let pc = code.start + u64::from(returns.checked_sub(1).ok_or(Refusal::OutOfRange)?);
        Ok(Call { pc, bytecode_offset: row.bytecode_offset, translation: row.translation })
    }

    /// The rows of calls; of those that leave the code where it stands there is only the number.
    fn rows(&self, data: Object) -> Result<Rows, Refusal> {
        /// Bytecode, translation, place.
        const ROW_WORDS: u32 = 3;
        /// Where the exits begin, and how many of each kind there are.
        const HEAD_WORDS: u32 = 3;
        let head = self.layout.deopt.inlining + 1;
        let exits = self.small(data, head)?;
        let (eager, lazy) = (self.small(data, head + 1)?, self.small(data, head + 2)?);
        let words = |rows: u32| rows.checked_mul(ROW_WORDS).ok_or(Refusal::OutOfRange);
        let begin = words(eager)?.checked_add(head + HEAD_WORDS).ok_or(Refusal::OutOfRange)?;
        let end = words(lazy)?.checked_add(begin).ok_or(Refusal::OutOfRange)?;
        // They are the last in there.
        if self.count(data, fixed::ARRAY_LENGTH)? != end {
            return Err(Refusal::Damaged);
        }
        let at = begin.checked_mul(8).and_then(|bytes| bytes.checked_add(fixed::ARRAY_DATA));
        let bytes =
            self.bytes(data.field(at.ok_or(Refusal::OutOfRange)?)?, (end - begin) as usize * 8, V8_TABLE_BYTES_MAX)?;
        let small = |word: &[u8; 8]| Tagged(u64::from_le_bytes(*word)).smi().and_then(|smi| u32::try_from(smi).ok());
        let rows = bytes.as_chunks::<8>().0.as_chunks::<{ ROW_WORDS as usize }>().0.iter();
        let lazy = rows.map(|[bytecode, translation, at]| {
            Some(Row { bytecode_offset: small(bytecode), translation: small(translation)?, at: small(at)? })
        });
        let lazy_exits = eager.checked_mul(EXIT_BYTES).and_then(|bytes| exits.checked_add(bytes));
        Ok(Rows {
            eager,
            lazy: lazy.collect::<Option<_>>().ok_or(Refusal::OutOfRange)?,
            lazy_exits: lazy_exits.ok_or(Refusal::OutOfRange)?,
        })
    }

    fn small(&self, array: Object, index: u32) -> Result<u32, Refusal> {
        let smi = self.element(array, index)?.smi().ok_or(Refusal::OutOfRange)?;
        u32::try_from(smi).map_err(|_| Refusal::OutOfRange)
    }

    fn position_in_code(&self, code: &Code, pc: u64) -> Result<Position, Refusal> {
        let table = Tagged(code.words.get(self.layout.code.positions as usize / 8).copied().unwrap_or(0)).object()?;
        let table = self.byte_array(table, V8_TABLE_BYTES_MAX)?;
        let offset = pc.checked_sub(code.start).ok_or(Refusal::OutOfRange)?;
        position_at(&table, self.layout.encoding, offset, code.end - code.start)?.ok_or(Refusal::Absent)
    }

    /// The function that the code is of.
    fn function_of_code(&self, data: Object) -> Result<Object, Refusal> {
        let types = &self.layout.types;
        let function = self.element(data, self.layout.deopt.function)?.object()?;
        let instance_type = self.type_of(function)?;
        if instance_type == types.function_info {
            return Ok(function);
        }
        if Some(instance_type) == types.function_info_wrapper {
            let function = self.object(function, super::layout::fixed::WRAPPER_FUNCTION_INFO)?;
            return self.expect(function, types.function_info);
        }
        Err(Refusal::OtherType)
    }

    /// An entry of the table of inlinings: where around it, and which function.
    fn inlining(&self, data: Object, index: u32) -> Result<(Position, Option<Object>), Refusal> {
        const ENTRY_BYTES: usize = 16;
        let table = self.element(data, self.layout.deopt.inlining)?.object()?;
        let table = self.byte_array(table, V8_TABLE_BYTES_MAX)?;
        let entry = usize::try_from(index).ok().and_then(|index| table.as_chunks::<ENTRY_BYTES>().0.get(index));
        let entry = u128::from_le_bytes(*entry.ok_or(Refusal::OutOfRange)?);
        let around = Position::from_raw(u64::try_from(entry & u128::from(u64::MAX)).unwrap_or(0));
        let function = u32::try_from(entry >> 64 & u128::from(u32::MAX)).unwrap_or(0).cast_signed();
        let Ok(function) = u32::try_from(function) else { return Ok((around, None)) };
        Ok((around, Some(self.literal(data, function)?)))
    }

    /// A function among the code's literals.
    fn literal(&self, data: Object, index: u32) -> Result<Object, Refusal> {
        let literals = self.element(data, self.layout.deopt.literals)?.object()?;
        let function = self.element(literals, index)?.object()?;
        self.expect(function, self.layout.types.function_info)
    }
}
