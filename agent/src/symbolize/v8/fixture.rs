//! A heap that is made up, for tests and for fuzzing: what it says is as hostile as its bytes, but it has maps.
//!
//! Random words hardly ever make an object. So each word whose lowest byte is `MAP` becomes the address of a map, and each whose lowest
//! byte is odd the address of a place in the heap itself.

use super::layout::Layout;
use crate::{target::memory::Fixture, units::UserAddr};

/// Where the heap begins.
pub const BASE: u64 = 0x10_0000;

/// Where the maps are: the first is that of all maps, the others one a type.
const MAPS: u64 = 0x8_0000;
const MAP_BYTES: u64 = 32;
const MAP: u8 = 0xff;

/// The heap that these bytes are.
#[must_use]
pub fn heap(layout: &Layout, bytes: &[u8]) -> Fixture {
    let types = types(layout);
    let mut maps = Vec::new();
    for instance_type in std::iter::once(layout.types.map).chain(types.iter().copied()) {
        maps.extend((MAPS + 1).to_le_bytes());
        maps.extend((u64::from(instance_type) << 32).to_le_bytes());
        maps.extend([0; 16]);
    }
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    let length = bytes.len().max(8) as u64;
    let heap = words.flat_map(|word| {
        let [low, which, ..] = word.to_le_bytes();
        let made = if low == MAP {
            MAPS + MAP_BYTES * (1 + u64::from(which) % types.len().max(1) as u64) + 1
        } else if low % 2 == 1 {
            BASE + (((word >> 8) % length) & !7) + 1
        } else {
            word
        };
        made.to_le_bytes()
    });
    let mut memory = Fixture::default();
    memory.map(UserAddr(BASE), heap.collect());
    memory.map(UserAddr(MAPS), maps);
    memory
}

/// Types that the decoder knows, strings of all representations among them.
fn types(layout: &Layout) -> Vec<u16> {
    let of = &layout.types;
    let mut types: Vec<u16> = [0, 1, 2, 3, 5].iter().flat_map(|kind| [*kind, kind | 8, kind | 16 | 8]).collect();
    types.extend([
        of.oddball,
        of.function_info,
        of.script,
        of.scope_info,
        of.debug_info,
        of.bytecode_array,
        of.interpreter_data,
        of.code,
        of.uncompiled.0,
        of.first_nonstring,
    ]);
    types.extend([of.instruction_stream, of.function_info_wrapper, of.baseline_data].into_iter().flatten());
    types
}

/// Lets the whole decoder loose on a heap; it must come back.
pub fn decode(version: [u32; 3], bytes: &[u8]) {
    use super::{
        V8,
        frames::{Live, Seen},
        heap::Object,
    };
    use crate::report::model::{Frame, FrameKind};
    let Ok(mut layout) = Layout::row(version) else { return };
    layout.bytecode_sizes = vec![2; 600];
    let memory = heap(&layout, bytes);
    let mut v8 = V8::new(memory, layout);
    let symbol = Frame { name: "LdaZeroHandler".to_owned(), kind: FrameKind::Builtin, ..Frame::default() };
    for at in (0..bytes.len() as u64).step_by(64).take(16) {
        let object = BASE + at + 1;
        for bytecode_offset in [0, 60] {
            let live = Some(Live { offset: 61, array: BASE + 1 });
            let seen = Seen { pc: BASE + at + 40, object, bytecode_offset, live, name: 0 };
            let _ = v8.builtin(seen, symbol.clone());
            let _ = v8.run_time(seen, UserAddr(BASE));
            let _ = v8.suspended(seen);
            let _ = v8.function_only(seen);
            let _ = v8.is_code_of(seen, UserAddr(BASE));
            let _ = v8.heap.words(Object(UserAddr(BASE + at))).and_then(|words| v8.heap.text_of_words(words));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::symbolize::v8::heap::{Heap, Object, Refusal};

    const VERSIONS: [[u32; 3]; 6] = [[9, 4, 146], [10, 2, 154], [11, 3, 244], [12, 4, 254], [13, 6, 233], [14, 6, 202]];

    /// A heap of strings: each is its type, its length and its words.
    fn strings(all: &[(u16, u32, Vec<u64>)]) -> (Heap<Fixture>, Vec<Object>) {
        let layout = Layout::row([11, 3, 244]).unwrap();
        let (mut bytes, mut objects, mut maps) = (Vec::new(), Vec::new(), Vec::new());
        maps.extend((MAPS + 1).to_le_bytes());
        maps.extend((u64::from(layout.types.map) << 32).to_le_bytes());
        for (index, (instance_type, length, words)) in all.iter().enumerate() {
            let map = MAPS + 16 * (index as u64 + 1) + 1;
            maps.extend((MAPS + 1).to_le_bytes());
            maps.extend((u64::from(*instance_type) << 32).to_le_bytes());
            objects.push(Object(UserAddr(BASE + bytes.len() as u64)));
            for word in [map, u64::from(*length) << 32].iter().chain(words) {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.extend([0; 64]);
        let mut memory = Fixture::default();
        memory.map(UserAddr(BASE), bytes);
        memory.map(UserAddr(MAPS), maps);
        (Heap::new(memory, layout), objects)
    }

    /// The tagged address of what begins at a word.
    fn at(word: u64) -> u64 {
        BASE + word * 8 + 1
    }

    fn chars(text: [u8; 8]) -> u64 {
        u64::from_le_bytes(text)
    }

    #[test]
    fn strings_of_all_kinds_are_read() {
        let two_bytes = u64::from_le_bytes([0xe5, 0x65, 0x2c, 0x67, b'!', 0, 0, 0]);
        let (heap, objects) = strings(&[
            (8, 8, vec![chars(*b"one byte"), 0]),
            // Two bytes a unit, internalised: the type is 0.
            (0, 3, vec![two_bytes, 0]),
            // The sum of the two.
            (0x21, 11, vec![at(0), at(4)]),
            // Its middle.
            (0x23, 6, vec![at(8), 4 << 32]),
            // Just another.
            (0x25, 6, vec![at(12), 0]),
            // Outside, and where nobody knows.
            (0x2a, 3, vec![0, BASE + 16]),
            (0x3a, 3, vec![0, BASE + 16]),
        ]);
        let text = |index: usize| heap.text(objects[index], 100);
        assert_eq!(text(0).unwrap(), "one byte");
        assert_eq!(text(1).unwrap(), "日本!");
        assert_eq!(text(2).unwrap(), "one byte日本!");
        assert_eq!(text(3).unwrap(), "byte日本");
        assert_eq!(text(4).unwrap(), "byte日本");
        assert_eq!(text(5).unwrap(), "one");
        assert_eq!(text(6), Err(Refusal::Absent));
        assert_eq!(heap.text(objects[0], 7), Err(Refusal::TooLarge));
        assert_eq!(heap.text_of(objects[2], 7, 3).unwrap(), "e日本");
    }

    #[test]
    fn a_string_whose_first_words_are_known_is_all_there_or_leads_to_one_that_stays() {
        let two_bytes = u64::from_le_bytes([0xe5, 0x65, 0x2c, 0x67, b'!', 0, 0, 0]);
        let (heap, objects) = strings(&[
            (0x28, 8, vec![chars(*b"computed"), 0, 0]),
            (0x20, 3, vec![two_bytes, 0, 0]),
            (8, 8, vec![chars(*b"one byte"), 0, 0]),
            (0x25, 8, vec![at(10), 0, 0]),
            // What it leads to is young itself, or another one by now.
            (0x25, 8, vec![at(0), 0, 0]),
            (0x25, 7, vec![at(10), 0, 0]),
            (0x28, 25, vec![0, 0, 0]),
            (0x21, 11, vec![at(0), at(5), 0]),
        ]);
        let text = |index: usize| heap.text_of_words(heap.words(objects[index]).unwrap());
        assert_eq!(text(0).unwrap(), "computed");
        assert_eq!(text(1).unwrap(), "日本!");
        assert_eq!(text(3).unwrap(), "one byte");
        assert_eq!([text(4), text(5)], [Err(Refusal::Changed), Err(Refusal::Changed)]);
        assert_eq!([text(6), text(7)], [Err(Refusal::TooLarge), Err(Refusal::OtherType)]);
    }

    #[test]
    fn a_string_that_contains_itself_ends() {
        let (heap, objects) = strings(&[(0x21, 1000, vec![at(0), at(0)])]);
        assert!(heap.text(objects[0], 4000).is_err());
        let (heap, objects) = strings(&[(0x25, 1000, vec![at(0), 0])]);
        assert!(heap.text(objects[0], 4000).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_heap_is_survived(version in 0_usize..6, bytes in proptest::collection::vec(any::<u8>(), 64..4096)) {
            decode(VERSIONS[version], &bytes);
        }

        /// Words that are maps, pointers and small numbers more often than not.
        #[test]
        fn heaps_that_look_like_heaps_are_survived(
            version in 0_usize..6,
            words in proptest::collection::vec((0_u8..4, any::<u16>()), 64..512),
        ) {
            let bytes: Vec<u8> = words.iter().flat_map(|(kind, value)| {
                let value = u64::from(*value);
                match kind {
                    0 => value << 8 | 0xff,
                    1 => value << 8 | 1,
                    2 => value << 32,
                    _ => value << 1,
                }.to_le_bytes()
            }).collect();
            decode(VERSIONS[version], &bytes);
        }
    }
}
