//! What a kept name rests on: a few words of the heap that must still be there.

use super::{code::Code, function::WORDS, heap::Object, layout::Layout};
use crate::{
    symbolize::memory::{PART_BYTES, Part},
    units::UserAddr,
};

/// The words at an address, and which bits of them count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    pub at: UserAddr,
    words: [u64; WORDS],
    masks: [u64; WORDS],
}

impl Proof {
    /// A function is the same while its map, name and script are; what it runs may change.
    pub fn of_function(at: Object, words: [u64; WORDS], layout: &Layout) -> Self {
        let mut masks = [0; WORDS];
        for offset in [0, layout.function_info.name, layout.function_info.script] {
            if let Some(mask) = masks.get_mut(offset as usize / 8) {
                *mask = u64::MAX;
            }
        }
        Self { at: at.0, words, masks }
    }

    /// Code is the same while all words of it are, but for flags that say what will become of it.
    pub fn of_code(code: &Code, layout: &Layout, into: &mut Vec<Self>) {
        let mut masks = [u64::MAX; WORDS];
        if let Some(mask) = masks.get_mut(layout.code.flags as usize / 8) {
            *mask = if layout.code.flags & 4 == 0 { !0xffff_fff0 } else { 0xf_ffff_ffff };
        }
        into.push(Self { at: code.object.0, words: code.words, masks });
        if code.stream != code.object {
            let mut words = [0; WORDS];
            let mut masks = [0; WORDS];
            for ((word, mask), of_stream) in words.iter_mut().zip(&mut masks).zip(code.stream_words) {
                (*word, *mask) = (of_stream, u64::MAX);
            }
            into.push(Self { at: code.stream.0, words, masks });
        }
    }

    /// All of these words, as they are.
    #[cfg(test)]
    pub fn of_words(at: UserAddr, words: [u64; WORDS]) -> Self {
        Self { at, words, masks: [u64::MAX; WORDS] }
    }

    #[must_use]
    pub fn part(&self) -> Part {
        Part::new(self.at)
    }

    /// What was read just now agrees.
    #[must_use]
    pub fn holds(&self, part: &Part) -> bool {
        const { assert!(WORDS * 8 == PART_BYTES) };
        let now = part.bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let pairs = now.zip(self.words).zip(self.masks);
        part.read && part.at == self.at && pairs.into_iter().all(|((now, then), mask)| (now ^ then) & mask == 0)
    }
}
