//! V8's strings, of all representations.
//!
//! A string's type says how it is kept: in the object itself, as the sum of two, as a part of another one, as a mere pointer to
//! another one, or outside of the heap; and whether its units have one byte (Latin-1) or two (UTF-16). The type of an internalised
//! string of two-byte units is 0.

use super::{
    heap::{Heap, Object, Refusal},
    layout::fixed,
};
use crate::{
    limits::{V8_NAME_UNITS_MAX, V8_STRING_NODES_MAX, V8_STRING_UNITS_CHUNK},
    target::memory::Memory,
    units::UserAddr,
};

/// Bits of a string's instance type.
mod bits {
    pub const REPRESENTATION: u16 = 7;
    pub const ONE_BYTE: u16 = 8;
    pub const NOT_INTERNALIZED: u16 = 32;
    /// Of an external string: it does not keep the address of its characters.
    pub const UNCACHED: u16 = 16;
    pub const SEQUENTIAL: u16 = 0;
    pub const CONS: u16 = 1;
    pub const EXTERNAL: u16 = 2;
    pub const SLICED: u16 = 3;
    pub const THIN: u16 = 5;
}

/// A stretch of units that lie one after the other in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    at: UserAddr,
    units: u32,
    one_byte: bool,
}

/// A part of a string that is still to be looked at.
#[derive(Clone, Copy)]
struct Part {
    string: Object,
    /// The first unit that is wanted, and how many.
    from: u32,
    units: u32,
}

impl<M: Memory> Heap<M> {
    pub fn is_string(&self, object: Object) -> bool {
        self.type_of(object).is_ok_and(|instance_type| instance_type < self.layout.types.first_nonstring)
    }

    /// Units of a string.
    pub fn string_units(&self, string: Object) -> Result<u32, Refusal> {
        if !self.is_string(string) {
            return Err(Refusal::OtherType);
        }
        self.u32(string.field(fixed::STRING_LENGTH)?)
    }

    /// The text of a string of at most `most` units.
    pub fn text(&self, string: Object, most: u32) -> Result<String, Refusal> {
        let units = self.string_units(string)?;
        if units > most {
            return Err(Refusal::TooLarge);
        }
        self.text_of(string, 0, units)
    }

    /// The text of a string of which the first words were read elsewhere: where they hold all of it, or lead to another string. That
    /// is one of those that V8 keeps once, which do not move with the young.
    pub fn text_of_words(&self, words: [u64; 5]) -> Result<String, Refusal> {
        let [map, length, first, second, third] = words;
        let instance_type = self.type_of_map(map)?;
        if instance_type >= self.layout.types.first_nonstring {
            return Err(Refusal::OtherType);
        }
        let units = usize::try_from(length >> 32).map_err(|_| Refusal::OutOfRange)?;
        let bytes = [first, second, third].map(u64::to_le_bytes);
        let bytes = bytes.as_flattened();
        match (instance_type & bits::REPRESENTATION, instance_type & bits::ONE_BYTE != 0) {
            (bits::SEQUENTIAL, true) => {
                let text = bytes.get(..units).ok_or(Refusal::TooLarge)?;
                Ok(text.iter().map(|byte| char::from(*byte)).collect())
            }
            (bits::SEQUENTIAL, false) => {
                let units = bytes.as_chunks::<2>().0.get(..units).ok_or(Refusal::TooLarge)?;
                Ok(String::from_utf16_lossy(&units.iter().map(|unit| u16::from_le_bytes(*unit)).collect::<Vec<_>>()))
            }
            (bits::THIN, _) => {
                let string = super::heap::Tagged(first).object()?;
                let is_alike =
                    self.type_of(string)? & bits::NOT_INTERNALIZED == 0 && self.string_units(string)? as usize == units;
                if is_alike { self.text(string, V8_NAME_UNITS_MAX) } else { Err(Refusal::Changed) }
            }
            _ => Err(Refusal::OtherType),
        }
    }

    /// A part of a string's text.
    pub fn text_of(&self, string: Object, from: u32, units: u32) -> Result<String, Refusal> {
        let mut all = Vec::new();
        self.each_unit(string, from, units, &mut |unit| all.push(unit))?;
        Ok(String::from_utf16_lossy(&all))
    }

    /// Goes through a part of a string, unit by unit.
    pub fn each_unit(&self, string: Object, from: u32, units: u32, each: &mut dyn FnMut(u16)) -> Result<(), Refusal> {
        let mut left = vec![Part { string, from, units }];
        let mut nodes = 0;
        while let Some(part) = left.pop() {
            nodes += 1;
            if nodes > V8_STRING_NODES_MAX {
                return Err(Refusal::TooLarge);
            }
            if let Some(run) = self.resolve(part, &mut left)? {
                self.each_of_run(run, each)?;
            }
        }
        Ok(())
    }

    /// One step: either a run of units, or parts that make up this one.
    fn resolve(&self, part: Part, left: &mut Vec<Part>) -> Result<Option<Run>, Refusal> {
        let Part { string, from, units } = part;
        let [map, length, first, second] = self.first_words::<4>(string.0)?;
        let instance_type = self.type_of_map(map)?;
        if instance_type >= self.layout.types.first_nonstring {
            return Err(Refusal::OtherType);
        }
        let length = u32::try_from(length >> 32).unwrap_or(0);
        if from.checked_add(units).is_none_or(|end| end > length) {
            return Err(Refusal::OutOfRange);
        }
        if units == 0 {
            return Ok(None);
        }
        let one_byte = instance_type & bits::ONE_BYTE != 0;
        let run = |at: UserAddr| {
            let skip = u64::from(from) * if one_byte { 1 } else { 2 };
            at.0.checked_add(skip).map(|at| Some(Run { at: UserAddr(at), units, one_byte })).ok_or(Refusal::OutOfRange)
        };
        match instance_type & bits::REPRESENTATION {
            bits::SEQUENTIAL => run(string.field(fixed::STRING_CHARS)?),
            bits::EXTERNAL if instance_type & bits::UNCACHED == 0 && second != 0 => run(UserAddr(second)),
            bits::EXTERNAL => Err(Refusal::Absent),
            bits::THIN => {
                left.push(Part { string: super::heap::Tagged(first).object()?, from, units });
                Ok(None)
            }
            bits::SLICED => {
                let offset = super::heap::Tagged(second).smi().and_then(|offset| u32::try_from(offset).ok());
                let from = offset.and_then(|offset| offset.checked_add(from)).ok_or(Refusal::OutOfRange)?;
                left.push(Part { string: super::heap::Tagged(first).object()?, from, units });
                Ok(None)
            }
            bits::CONS => {
                let (first, second) = (super::heap::Tagged(first).object()?, super::heap::Tagged(second).object()?);
                let split = self.string_units(first)?;
                let of_first = split.saturating_sub(from).min(units);
                let of_second = units - of_first;
                // The last one in is looked at first.
                left.push(Part { string: second, from: from.saturating_sub(split), units: of_second });
                left.push(Part { string: first, from: from.min(split), units: of_first });
                Ok(None)
            }
            _ => Err(Refusal::OtherType),
        }
    }

    fn each_of_run(&self, run: Run, each: &mut dyn FnMut(u16)) -> Result<(), Refusal> {
        let width = if run.one_byte { 1 } else { 2 };
        let mut at = run.at;
        let mut left = usize::try_from(run.units).unwrap_or(usize::MAX);
        let mut chunk = vec![0; left.min(V8_STRING_UNITS_CHUNK) * width];
        while left > 0 {
            let units = left.min(V8_STRING_UNITS_CHUNK);
            let bytes = chunk.get_mut(..units * width).ok_or(Refusal::OutOfRange)?;
            self.read(at, bytes)?;
            if run.one_byte {
                for byte in bytes {
                    each(u16::from(*byte));
                }
            } else {
                bytes.as_chunks::<2>().0.iter().for_each(|unit| each(u16::from_le_bytes(*unit)));
            }
            left -= units;
            at = UserAddr(at.0.checked_add((units * width) as u64).ok_or(Refusal::OutOfRange)?);
        }
        Ok(())
    }
}
