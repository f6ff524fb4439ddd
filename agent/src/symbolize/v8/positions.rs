//! Tables that V8 keeps as variable-length integers: source positions, and where bytecodes begin in baseline code.
//!
//! A source position table holds pairs, each by its difference from the one before: an offset in the code, and a position in the
//! source. Until 14.0 the first number is a zigzag integer whose sign tells statements from expressions; since then it is
//! unsigned and two flags lie below it. The second is a zigzag integer over 64 bits of which bits 1 to 30 are the offset in the
//! source plus one, and bits 31 to 46 the number of the inlining plus one (`SourcePosition`, `src/codegen/source-position.h`).
//!
//! Baseline code keeps, for each of its bytecodes, how many bytes of machine code it became, unsigned.

use super::{
    heap::Refusal,
    layout::{Layout, PositionsEncoding, Scale},
};

/// A place in a source, and which inlined function it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(u64);

impl Position {
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Units from the script's begin; `None` if it is not known, or one of code that no script has.
    #[must_use]
    pub fn offset(self) -> Option<u32> {
        const OFFSET_MASK: u64 = (1 << 30) - 1;
        let is_external = self.0 & 1 == 1;
        let biased = u32::try_from(self.0 >> 1 & OFFSET_MASK).unwrap_or(0);
        if is_external { None } else { biased.checked_sub(1) }
    }

    /// Index among the inlined functions; `None` in the function itself.
    #[must_use]
    pub fn inlining(self) -> Option<u32> {
        const INLINING_SHIFT: u64 = 31;
        u32::try_from(self.0 >> INLINING_SHIFT & 0xffff).unwrap_or(0).checked_sub(1)
    }
}

/// Reads integers off a table.
#[derive(Clone, Copy, Debug)]
pub struct Vlq<'a>(pub &'a [u8]);

impl Vlq<'_> {
    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    pub fn unsigned(&mut self) -> Result<u64, Refusal> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Refusal::Damaged)
    }

    /// What is no integer.
    pub fn byte(&mut self) -> Result<u8, Refusal> {
        let (byte, rest) = self.0.split_first().ok_or(Refusal::Damaged)?;
        self.0 = rest;
        Ok(*byte)
    }

    pub fn zigzag(&mut self) -> Result<i64, Refusal> {
        let value = self.unsigned()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

/// The last position at or before an offset in the code, of a table whose offsets must stay within the code.
pub fn position_at(
    table: &[u8],
    encoding: PositionsEncoding,
    offset: u64,
    code_bytes: u64,
) -> Result<Option<Position>, Refusal> {
    let mut rest = Vlq(table);
    let (mut at, mut raw) = (-1_i64, 0_i64);
    let mut found = None;
    while !rest.0.is_empty() {
        let delta = match encoding {
            PositionsEncoding::Signed => {
                let delta = rest.zigzag()?;
                if delta >= 0 { delta } else { -(delta + 1) }
            }
            PositionsEncoding::Flagged => (rest.unsigned()? >> 2).cast_signed(),
        };
        raw = raw.wrapping_add(rest.zigzag()?);
        at = at.checked_add(delta).ok_or(Refusal::Damaged)?;
        // The entry of a function has a position of its own, before the first byte.
        if at < -1 || at > code_bytes.cast_signed() {
            return Err(Refusal::Damaged);
        }
        if at > offset.cast_signed() {
            break;
        }
        found = Some(Position(raw.cast_unsigned()));
    }
    Ok(found)
}

/// The offset of the bytecode whose machine code holds `offset`.
pub fn bytecode_at(table: &[u8], bytecodes: &[u8], layout: &Layout, offset: u64) -> Result<u32, Refusal> {
    let mut lengths = Vlq(table);
    // What sets up the frame comes first, and is of no bytecode.
    let (mut code, mut at) = (lengths.unsigned()?, 0_usize);
    if offset < code {
        return Ok(0);
    }
    while !lengths.0.is_empty() {
        code = code.checked_add(lengths.unsigned()?).ok_or(Refusal::Damaged)?;
        if code > offset {
            return u32::try_from(at).map_err(|_| Refusal::Damaged);
        }
        let next = at.checked_add(bytecode_bytes(bytecodes, at, layout)?).ok_or(Refusal::Damaged)?;
        // The epilogue has a length and no bytecode.
        if next >= bytecodes.len() {
            break;
        }
        at = next;
    }
    u32::try_from(at).map_err(|_| Refusal::Damaged)
}

/// Bytes of the bytecode at an index, its prefix included.
fn bytecode_bytes(bytecodes: &[u8], at: usize, layout: &Layout) -> Result<usize, Refusal> {
    let get = |at: usize| bytecodes.get(at).copied().ok_or(Refusal::Damaged);
    let first = get(at)?;
    // `Wide`, `ExtraWide` and the same for the debugger: the first four bytecodes.
    let scale = match first {
        0 | 2 => Scale::Double,
        1 | 3 => Scale::Quadruple,
        _ => return layout.bytecode_bytes(first, Scale::Single).map(usize::from).ok_or(Refusal::Damaged),
    };
    let second = get(at.checked_add(1).ok_or(Refusal::Damaged)?)?;
    layout.bytecode_bytes(second, scale).map(|bytes| usize::from(bytes) + 1).ok_or(Refusal::Damaged)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes an integer as V8 does.
    fn unsigned(mut value: u64, into: &mut Vec<u8>) {
        while value >= 0x80 {
            into.push(u8::try_from(value & 0x7f).unwrap_or(0) | 0x80);
            value >>= 7;
        }
        into.push(u8::try_from(value).unwrap_or(0));
    }

    fn zigzag(value: i64, into: &mut Vec<u8>) {
        unsigned((value << 1 ^ value >> 63).cast_unsigned(), into);
    }

    /// A table of code offsets (from -1), whether a statement begins, and raw positions.
    fn table(entries: &[(i64, bool, u64)], encoding: PositionsEncoding) -> Vec<u8> {
        let (mut bytes, mut at, mut raw) = (Vec::new(), -1, 0);
        for (offset, is_statement, position) in entries {
            let delta = offset - at;
            match encoding {
                PositionsEncoding::Signed => zigzag(if *is_statement { delta } else { -delta - 1 }, &mut bytes),
                PositionsEncoding::Flagged => {
                    unsigned(delta.cast_unsigned() << 2 | u64::from(*is_statement), &mut bytes);
                }
            }
            zigzag(position.cast_signed() - raw, &mut bytes);
            (at, raw) = (*offset, position.cast_signed());
        }
        bytes
    }

    fn at(offset: u32, inlining: Option<u32>) -> u64 {
        u64::from(offset + 1) << 1 | inlining.map_or(0, |id| u64::from(id + 1) << 31)
    }

    #[test]
    fn the_last_position_at_or_before_an_offset_counts() {
        let entries = [
            (-1, true, at(7, None)),
            (0, true, at(10, None)),
            (5, false, at(300_000, Some(2))),
            (9, true, at(0, None)),
        ];
        for encoding in [PositionsEncoding::Signed, PositionsEncoding::Flagged] {
            let table = table(&entries, encoding);
            let find =
                |offset| position_at(&table, encoding, offset, 20).unwrap().map(|at| (at.offset(), at.inlining()));
            assert_eq!(find(0), Some((Some(10), None)));
            assert_eq!(find(4), Some((Some(10), None)));
            assert_eq!(find(5), Some((Some(300_000), Some(2))));
            assert_eq!(find(100), Some((Some(0), None)));
            assert_eq!(position_at(&table, encoding, 100, 8), Err(Refusal::Damaged), "beyond the code");
        }
    }

    #[test]
    fn a_position_of_no_script_is_none() {
        assert_eq!(Position(1).offset(), None);
        assert_eq!(Position(0).offset(), None);
    }

    #[test]
    fn baseline_code_is_walked_bytecode_by_bytecode() {
        let mut layout = Layout::row([11, 3, 244]).unwrap();
        // Prefixes, then bytecodes of 2 bytes, of 3 where they are wide.
        layout.bytecode_sizes = [vec![1, 1, 1, 1], vec![2; 6], vec![0; 4], vec![3; 6], vec![0; 4], vec![5; 6]].concat();
        // A bytecode, a wide one, another.
        let bytecodes = [5, 0, 0, 6, 0, 0, 7, 0];
        let lengths = [20, 10, 30, 5];
        let at = |offset| bytecode_at(&lengths, &bytecodes, &layout, offset);
        assert_eq!([at(0), at(19), at(20), at(29)], [Ok(0); 4], "what sets up the frame, and the first");
        assert_eq!([at(30), at(59)], [Ok(2); 2]);
        assert_eq!([at(60), at(64)], [Ok(6); 2]);
        assert_eq!(bytecode_at(&[1, 1, 1], &[250, 0], &layout, 2), Err(Refusal::Damaged), "no bytecode");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            deltas in proptest::collection::vec((0_i64..5000, any::<bool>(), 0_u32..1 << 29, proptest::option::of(0_u32..60_000)), 1..40),
            wanted in 0_u64..100_000,
        ) {
            let mut offset = -1;
            let entries: Vec<(i64, bool, u64)> = deltas.iter().map(|(delta, is_statement, position, inlining)| {
                offset += delta;
                (offset, *is_statement, at(*position, *inlining))
            }).collect();
            let expected = entries.iter().rev().find(|(offset, ..)| *offset <= wanted.cast_signed()).map(|(.., raw)| *raw);
            for encoding in [PositionsEncoding::Signed, PositionsEncoding::Flagged] {
                let found = position_at(&table(&entries, encoding), encoding, wanted, 1 << 20);
                prop_assert_eq!(found, Ok(expected.map(Position)));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200), code in proptest::collection::vec(any::<u8>(), 0..64), offset: u64) {
            for version in [[9, 4, 146], [14, 6, 202]] {
                let mut layout = Layout::row(version).unwrap();
                layout.bytecode_sizes = vec![2; 600];
                let _ = position_at(&bytes, layout.encoding, offset, offset);
                let _ = bytecode_at(&bytes, &code, &layout, offset);
            }
        }

        #[test]
        fn integers_are_read_as_they_were_written(value: i64) {
            let mut bytes = Vec::new();
            zigzag(value, &mut bytes);
            prop_assert_eq!(Vlq(&bytes).zigzag(), Ok(value));
        }
    }
}
