//! What a kept name rests on: a few words of the heap that must still be there.

use super::{
    code::Code,
    function::WORDS,
    heap::Object,
    layout::{Layout, fixed},
};
use crate::{
    target::memory::{PART_BYTES, Part},
    units::UserAddr,
};

/// The number of a function literal lies above the flags.
pub const LITERAL_ID: u64 = 0xffff_ffff_0000_0000;

/// The words at an address, and which bits of them count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    pub at: UserAddr,
    words: [u64; WORDS],
    masks: [u64; WORDS],
}

impl Proof {
    /// A function is the same while its map, name, script and number within the script are; what it runs may change. With the
    /// script's own number ([`Self::of_script`]) no two are alike: addresses alone come back, as an allocator that is asked for the
    /// same again gives the same again.
    #[must_use]
    pub fn of_function(at: Object, words: [u64; WORDS], layout: &Layout) -> Self {
        let mut masks = [0; WORDS];
        for (offset, bits) in [
            (0, u64::MAX),
            (layout.function_info.name, u64::MAX),
            (layout.function_info.script, u64::MAX),
            (layout.function_info.flags, LITERAL_ID),
        ] {
            if let Some(mask) = masks.get_mut(offset as usize / 8) {
                *mask |= bits;
            }
        }
        Self { at: at.0, words, masks }
    }

    /// A script is the same while its number is: V8 counts them.
    #[must_use]
    pub fn of_script(at: Object, id: u64) -> Option<Self> {
        let mut words = [0; WORDS];
        let mut masks = [0; WORDS];
        *words.first_mut()? = id;
        *masks.first_mut()? = u64::MAX;
        Some(Self { at: at.field(fixed::SCRIPT_ID).ok()?, words, masks })
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
    #[must_use]
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
