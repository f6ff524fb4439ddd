//! Functions that were inlined into optimised code.
//!
//! A position in optimised code says which inlining it is in; each inlining has a position in the function around it and the
//! index of its own `SharedFunctionInfo` among the code's literals (`DeoptimizationData`, `src/objects/deoptimization-data.h`).

use super::{
    code::Code,
    heap::{Heap, Object, Refusal, Tagged},
    positions::{Position, position_at},
};
use crate::{
    limits::{V8_INLINING_DEPTH_MAX, V8_TABLE_BYTES_MAX},
    target::memory::Memory,
};

/// A function that is at some place, inlined or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub function: Object,
    /// `None` where the code does not say.
    pub position: Option<u32>,
}

impl<M: Memory> Heap<M> {
    /// The functions at an address in optimised code, innermost first: all but the last are inlined.
    pub fn optimised(&self, code: &Code, pc: u64) -> Result<Vec<At>, Refusal> {
        let data = Tagged(code.words.get(self.layout.code.deopt as usize / 8).copied().unwrap_or(0)).object()?;
        let outer = self.function_of_code(data)?;
        let Ok(mut position) = self.position_in_code(code, pc) else {
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
        all.push(At { function: outer, position: position.offset() });
        Ok(all)
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
        let literals = self.element(data, self.layout.deopt.literals)?.object()?;
        let function = self.element(literals, function)?.object()?;
        Ok((around, Some(self.expect(function, self.layout.types.function_info)?)))
    }
}
