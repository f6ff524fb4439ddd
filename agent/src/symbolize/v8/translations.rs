//! Which functions, and which bytecode of each, a place in optimised code stands for: what V8 itself reads when it lists a stack or
//! leaves the code (`src/deoptimizer/frame-translation-builder.cc`).
//!
//! A translation is a sequence of operations, a byte each with its operands behind it. It begins with how far before it the one is that
//! it is like, and how many frames there are; a frame says its bytecode and which literal its function is, and is followed by where
//! each of its values is. In place of operations that are the same as in the other translation there is how many of them are.

use super::{heap::Refusal, positions::Vlq};
use crate::limits::{V8_INLINING_DEPTH_MAX, V8_TABLE_BYTES_MAX};

/// How many operands each operation has, of 13.6 to 14.6.
pub const OPERANDS: [u8; 45] = [
    6, 4, 3, 3, 2, 1, 3, 4, 3, 3, 3, 1, 0, 0, 3, 3, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0,
    1, 1, 1, 1, 1, 2, 1,
];
/// `INTERPRETED_FRAME_WITH_RETURN` and `INTERPRETED_FRAME_WITHOUT_RETURN`, then those of builtins that go on in JavaScript.
const INTERPRETED: [u8; 2] = [0, 1];
const JAVASCRIPT: [u8; 4] = [0, 1, 2, 3];
/// `BEGIN_WITHOUT_FEEDBACK` and `BEGIN_WITH_FEEDBACK`.
const BEGIN: [u8; 2] = [14, 15];
/// `MATCH_PREVIOUS_TRANSLATION`; as often as may be without operand, as the difference to the number of operations.
const MATCH_PREVIOUS: u8 = 44;

/// A function that would have a frame of its own in code that is not optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Negative (`None`) before the first one.
    pub bytecode_offset: Option<u32>,
    /// Its `SharedFunctionInfo` among the code's literals.
    pub function: u32,
    /// It is a builtin, which has no bytecode.
    pub is_builtin: bool,
}

/// The frames of the translation that begins there, outermost first.
pub fn translated(table: &[u8], begin: u32) -> Result<Vec<Translated>, Refusal> {
    let mut reader = Reader::at(table, usize::try_from(begin).map_err(|_| Refusal::OutOfRange)?);
    if !BEGIN.contains(&reader.operation()?) {
        return Err(Refusal::Damaged);
    }
    // How far back the other is.
    reader.operand()?;
    let _all = reader.operand()?;
    let count = usize::try_from(reader.operand()? >> 1).map_err(|_| Refusal::OutOfRange)?;
    if count > V8_INLINING_DEPTH_MAX {
        return Err(Refusal::TooLarge);
    }
    let mut frames = Vec::with_capacity(count);
    for _ in 0..V8_TABLE_BYTES_MAX {
        if frames.len() == count {
            return Ok(frames);
        }
        let operation = reader.operation()?;
        if !JAVASCRIPT.contains(&operation) {
            if BEGIN.contains(&operation) {
                return Err(Refusal::Damaged);
            }
            reader.skip(operands_of(operation)?)?;
            continue;
        }
        let (bytecode, function) = (reader.operand()?, reader.operand()?);
        // The sign is the lowest bit.
        let unsigned = |operand: u64| (operand & 1 == 0).then(|| u32::try_from(operand >> 1).ok()).flatten();
        frames.push(Translated {
            bytecode_offset: unsigned(bytecode),
            function: unsigned(function).ok_or(Refusal::OutOfRange)?,
            is_builtin: !INTERPRETED.contains(&operation),
        });
        reader.skip(operands_of(operation)?.saturating_sub(2))?;
    }
    Err(Refusal::TooLarge)
}

fn operands_of(operation: u8) -> Result<u8, Refusal> {
    OPERANDS.get(usize::from(operation)).copied().ok_or(Refusal::Damaged)
}

/// Reads operations, from the other translation where they are the same.
struct Reader<'a> {
    table: &'a [u8],
    rest: Vlq<'a>,
    other: Vlq<'a>,
    /// Operations yet to be read from the other.
    same: u64,
    /// Operations of the other that were not read, as this one has its own.
    passed: usize,
}

impl<'a> Reader<'a> {
    fn at(table: &'a [u8], begin: usize) -> Self {
        let rest = Vlq(table.get(begin..).unwrap_or_default());
        Self { table, rest, other: Vlq(&[]), same: 0, passed: 0 }
    }

    fn operation(&mut self) -> Result<u8, Refusal> {
        self.same = self.same.saturating_sub(1);
        if self.same > 0 {
            return self.other.byte();
        }
        let begin = self.table.len() - self.rest.0.len();
        let operation = self.rest.byte()?;
        let same = match usize::from(operation).checked_sub(OPERANDS.len()) {
            Some(same) => same as u64,
            None if operation == MATCH_PREVIOUS => self.rest.unsigned()?,
            None => {
                if BEGIN.contains(&operation) {
                    let back = usize::try_from(Vlq(self.rest.0).unsigned()?).map_err(|_| Refusal::OutOfRange)?;
                    let other = begin.checked_sub(back).ok_or(Refusal::OutOfRange)?;
                    self.other = Vlq(self.table.get(other..begin).unwrap_or_default());
                }
                self.passed += 1;
                return Ok(operation);
            }
        };
        self.same = same;
        for _ in 0..std::mem::take(&mut self.passed) {
            let passed = self.other.byte()?;
            for _ in 0..operands_of(passed)? {
                self.other.unsigned()?;
            }
        }
        self.other.byte()
    }

    /// An operand as it stands; most have their sign in the lowest bit.
    fn operand(&mut self) -> Result<u64, Refusal> {
        if self.same > 0 { self.other.unsigned() } else { self.rest.unsigned() }
    }

    fn skip(&mut self, operands: u8) -> Result<(), Refusal> {
        (0..operands).try_for_each(|_| self.operand().map(|_| ()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LITERAL: u8 = 38;
    const REGISTER: u8 = 39;
    const OPTIMIZED_OUT: u8 = 37;

    /// Two frames; the second translation has another bytecode in the first one, and the same from there.
    const TABLE: [u8; 38] = [
        15,
        0,
        4,
        4, // begin, like none, two frames, two of JavaScript
        43,
        2,
        4, // feedback
        1,
        10,
        2,
        0,
        3, // function 1 at bytecode 5
        LITERAL,
        2,
        REGISTER,
        4,
        OPTIMIZED_OUT, //
        0,
        0x80,
        0x02,
        6,
        0,
        1,
        2,
        2, // function 3 at bytecode 128
        LITERAL,
        8, // the end of the first, 27 bytes
        15,
        27,
        4,
        4,      // begin, like the one before
        45 + 1, // feedback
        1,
        18,
        2,
        0,
        3, // function 1 at bytecode 9
        45 + 5,
    ];

    fn frame(bytecode: u32, function: u32) -> Translated {
        Translated { bytecode_offset: Some(bytecode), function, is_builtin: false }
    }

    #[test]
    fn frames_are_read_outermost_first() {
        assert_eq!(translated(&TABLE, 0), Ok(vec![frame(5, 1), frame(128, 3)]));
    }

    #[test]
    fn what_is_the_same_as_before_is_read_there() {
        assert_eq!(translated(&TABLE, 27), Ok(vec![frame(9, 1), frame(128, 3)]));
    }

    #[test]
    fn a_builtin_and_what_has_not_begun_are_told() {
        let table = [14, 0, 4, 4, 1, 3, 2, 0, 3, 2, 8, 4, 0];
        let builtin = Translated { bytecode_offset: Some(4), function: 2, is_builtin: true };
        let before = Translated { bytecode_offset: None, ..frame(0, 1) };
        assert_eq!(translated(&table, 0), Ok(vec![before, builtin]));
    }

    #[test]
    fn what_is_no_translation_is_refused() {
        assert_eq!(translated(&TABLE, 7), Err(Refusal::Damaged), "no begin");
        assert_eq!(translated(&TABLE[..12], 0), Err(Refusal::Damaged), "cut off");
        assert_eq!(translated(&TABLE, 1000), Err(Refusal::Damaged), "beyond the end");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(0_u8..60, 0..200), begin in 0_u32..220) {
            let _ = translated(&bytes, begin);
        }

        #[test]
        fn of_a_begin_too(bytes in proptest::collection::vec(any::<u8>(), 0..200), like in 0_u8..8) {
            let table = [&[14, 0, 2, 2, 1, 2, 2, 2, 2][..], &[14, like, 8, 8], &bytes].concat();
            let _ = translated(&table, 9);
        }
    }
}
