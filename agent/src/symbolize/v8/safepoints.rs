//! Where Maglev's code calls others: the table of safepoints behind its instructions (`src/codegen/maglev-safepoint-table.h`).
//!
//! A head says how many entries there are and how many bytes each of their parts has. An entry has the offset that a call returns to
//! and, where the code may have to be left after it, the row of that in the deoptimisation data plus one and the offset of the exit
//! plus one; then what the collector needs.

use super::{
    code::Code,
    heap::{Heap, Refusal},
};
use crate::{limits::V8_TABLE_BYTES_MAX, target::memory::Memory, units::UserAddr};

/// A call after which the code may be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Safepoint {
    /// Offsets in the code: of the instruction behind the call, and of the exit that is taken in its place.
    pub returns: u32,
    pub exit: u32,
    /// In the deoptimisation data.
    pub row: u32,
}

/// How a table is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    entries: usize,
    pc_bytes: usize,
    row_bytes: usize,
    entry_bytes: usize,
}

/// Where in the head the number of entries may be: since 13.x that of stack slots comes before it.
const STARTS: [usize; 2] = [4, 0];
const HEAD_BYTES: u16 = 16;

impl Shape {
    /// `None` if these words cannot be a head.
    fn read(head: &[u8], start: usize) -> Option<Self> {
        let word = |at: usize| head.get(start + at..)?.first_chunk().copied().map(u32::from_le_bytes);
        let (entries, shape) = (word(0)?, word(4)?);
        let part = |shift: u32| usize::try_from(shape >> shift & 7).ok();
        let (has_rows, registers, pc_bytes, row_bytes) = (shape & 1 == 1, part(1)?, part(4)?, part(7)?);
        let sizes = 1..=4;
        let is_shape = has_rows && shape >> 10 == 0 && sizes.contains(&pc_bytes) && sizes.contains(&row_bytes);
        is_shape.then_some(Self {
            entries: usize::try_from(entries).ok()?,
            pc_bytes,
            row_bytes,
            // A byte tells how many registers were pushed.
            entry_bytes: 2 * pc_bytes + row_bytes + 1 + registers,
        })
    }

    fn entry(self, bytes: &[u8]) -> Option<Safepoint> {
        let (returns, rest) = bytes.split_at_checked(self.pc_bytes)?;
        let (row, rest) = rest.split_at_checked(self.row_bytes)?;
        let exit = rest.get(..self.pc_bytes)?;
        let [returns, row, exit] = [returns, row, exit]
            .map(|bytes| bytes.iter().rev().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)));
        Some(Safepoint { returns, row: row.checked_sub(1)?, exit: exit.checked_sub(1)? })
    }
}

impl<M: Memory> Heap<M> {
    /// The call that returns to an offset in code of Maglev's, or to whose exit that belongs.
    pub fn safepoint(&self, code: &Code, back: u32) -> Result<Safepoint, Refusal> {
        let head = self.bytes(UserAddr(code.end), HEAD_BYTES.into(), V8_TABLE_BYTES_MAX)?;
        let begin = code.end.checked_add(HEAD_BYTES.into()).ok_or(Refusal::OutOfRange)?;
        for shape in STARTS.into_iter().filter_map(|start| Shape::read(&head, start)) {
            let count = shape.entries.checked_mul(shape.entry_bytes).ok_or(Refusal::OutOfRange)?;
            let Ok(bytes) = self.bytes(UserAddr(begin), count, V8_TABLE_BYTES_MAX) else { continue };
            let mut entries = bytes.chunks_exact(shape.entry_bytes).filter_map(|entry| shape.entry(entry));
            if let Some(found) = entries.find(|entry| entry.returns == back || entry.exit == back) {
                return Ok(found);
            }
        }
        Err(Refusal::Absent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two bytes an offset, one a row, two of registers.
    const SHAPE: u32 = 1 | 2 << 1 | 2 << 4 | 1 << 7;

    #[test]
    fn parts_are_as_long_as_the_head_says() {
        let head: Vec<u8> = [5, 3, SHAPE, 6].into_iter().flat_map(u32::to_le_bytes).collect();
        let shape = Shape::read(&head, 4);
        assert_eq!(shape.map(|shape| (shape.entries, shape.entry_bytes)), Some((3, 8)));
        let entry = |bytes| shape.and_then(|shape| shape.entry(bytes));
        let found = Safepoint { returns: 297, row: 5, exit: 832 };
        assert_eq!(entry(&[0x29, 0x01, 6, 0x41, 0x03, 0, 0, 0]), Some(found));
        assert_eq!(entry(&[0x29, 0x01, 0, 0, 0, 0, 0, 0]), None, "a call after which nothing is left");
        assert_eq!(entry(&[0x29, 0x01, 6, 0x41]), None);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let read = |words: [u32; 2]| Shape::read(&words.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>(), 0);
        assert!(read([3, SHAPE]).is_some());
        assert_eq!(read([3, SHAPE & !1]), None, "without rows");
        assert_eq!(read([3, SHAPE | 1 << 10]), None, "with more than there is");
        assert_eq!(read([3, SHAPE | 7 << 4]), None, "offsets of seven bytes");
        assert_eq!(Shape::read(&[0; 7], 0), None);
    }
}
