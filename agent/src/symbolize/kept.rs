//! Names of frames that were worked out before, and when they may be used again.
//!
//! A name that rests on the heap of a V8 is used again only if the words that it rests on are still there: the collector moves functions
//! and code, and puts others in their place. How many full collections there were by then, where that is counted, says which names
//! can be right at all:
//!
//! | when the stack was taken | now | what may be used |
//! |---|---|---|
//! | between collections | no other has begun | anything whose words are there; what is not known may be read |
//! | between collections | one has begun | what was read under the same count; what was read before, and whose words are there |
//! | within one | whatever | what was read before, and whose words are there |
//! | not counted | not counted | anything whose words are there; what is not known may be read |
//!
//! What was there before and is there after was there in between: an object and the two that it points to do not all move away and
//! back.
//!
//! Of a process that has ended, or a worker, no word is there any more: names that were right under the same count are right still.

use std::sync::Arc;

use super::v8::{frames::Seen, proof::Proof};
use crate::{
    decode::UserFrame,
    limits::{FRAMES_KEPT_MAX, OWN_NAMES_MAX},
    report::model::Frame,
    target::{
        address_map::AddressMap,
        memory::{Memory, Part},
    },
    units::UserAddr,
};

/// A frame to be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    pub seen: Seen,
    /// It has called the frame above; otherwise it is the innermost, and was interrupted or has called the kernel.
    pub has_called: bool,
}

impl Entry {
    fn judge(&self, trust: Trust) -> Verdict {
        // Counts go up by one or two a collection, and the difference of two that are near tells their order.
        let is_before = |taken: u32| self.read.is_some_and(|read| taken.wrapping_sub(read) < 1 << 31);
        match trust {
            _ if self.proofs.is_empty() => Verdict::Right,
            Trust::Heap { .. } => Verdict::IfThere,
            Trust::Past { majors } if self.was_right_under(majors) => Verdict::Right,
            Trust::Past { majors } | Trust::Within { majors } if is_before(majors) => Verdict::IfThere,
            Trust::Past { .. } | Trust::Within { .. } => Verdict::Unknown,
        }
    }

    fn was_right_under(&self, majors: u32) -> bool {
        self.read == Some(majors) || self.seen == Some(majors)
    }
}

impl Asked {
    /// A frame that is known to be there, and nothing else of it.
    pub const LOST: Self =
        Self { seen: Seen { pc: u64::MAX, object: 0, bytecode_offset: 0, live: None, name: 0 }, has_called: true };

    /// A function that is not on the stack.
    #[must_use]
    pub fn suspended(UserFrame { object, bytecode_offset, .. }: UserFrame) -> Self {
        Self { seen: Seen { pc: 0, object, bytecode_offset, live: None, name: 0 }, has_called: true }
    }

    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.seen.pc == 0
    }
}

/// Frames that share their names.
pub type Frames = Arc<[Arc<Frame>]>;

/// Which names can be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The heap is as it was when the stack was taken; the count of collections, where there is one.
    Heap { majors: Option<u32> },
    /// The heap has changed since: only what was read under this count, or before.
    Past { majors: u32 },
    /// The stack was taken while the heap changed, at this count: only what was read before.
    Within { majors: u32 },
}

impl Trust {
    /// By the counts when the stack was taken, and now.
    #[must_use]
    pub fn new(taken: u32, now: Option<u32>) -> Self {
        let Some(now) = now else { return Self::Heap { majors: None } };
        if taken % 2 == 1 {
            Self::Within { majors: taken }
        } else if taken == now {
            Self::Heap { majors: Some(now) }
        } else {
            Self::Past { majors: taken }
        }
    }

    #[must_use]
    pub fn may_read(self) -> bool {
        matches!(self, Self::Heap { .. })
    }
}

/// Whether a name can be right.
enum Verdict {
    Right,
    /// If the words are there that it rests on.
    IfThere,
    Unknown,
}

/// What has become of the words that a name rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    There,
    Changed,
    /// None of them can be read.
    Gone,
}

struct Entry {
    frames: Frames,
    /// None for a frame that does not rest on a heap.
    proofs: Box<[Proof]>,
    /// Under which counts it was read first, and seen last.
    read: Option<u32>,
    seen: Option<u32>,
    /// In which search its words were looked at last, and what became of them.
    search: u64,
    words: Words,
}

/// Frames that are named together, by what may be used for them.
#[derive(Debug)]
pub struct Stack {
    pub frames: Vec<Asked>,
    pub trust: Trust,
}

/// The names of one process's frames.
#[derive(Default)]
pub struct Kept {
    places: AddressMap<Asked, usize>,
    entries: Vec<Entry>,
    searches: u64,
    /// What is read in a search, each place once: many frames rest on one script.
    parts: Vec<Part>,
    read_at: AddressMap<UserAddr, usize>,
    /// Entries whose words are looked at, and for each proof of each in turn, which of the parts it is about.
    looked_at: Vec<usize>,
    parts_of: Vec<usize>,
}

impl Kept {
    /// The names of stacks' frames, as far as they are known and can be right; one batch of small reads at most.
    pub fn find(&mut self, stacks: &[Stack], memory: Option<&impl Memory>) -> Vec<Vec<Option<Frames>>> {
        self.searches += 1;
        let places_of = |stack: &Stack| stack.frames.iter().map(|one| self.places.get(one).copied()).collect();
        let places: Vec<Vec<Option<usize>>> = stacks.iter().map(places_of).collect();
        for (stack, places) in stacks.iter().zip(&places) {
            for place in places.iter().flatten() {
                self.note(*place, stack.trust);
            }
        }
        self.look(memory);
        let named = stacks.iter().zip(places);
        named
            .map(|(stack, places)| places.into_iter().map(|place| self.checked(place?, stack.trust)).collect())
            .collect()
    }

    /// Has an entry's words looked at, if it matters whether they are there.
    fn note(&mut self, place: usize, trust: Trust) {
        let Some(entry) = self.entries.get_mut(place).filter(|entry| entry.search != self.searches) else { return };
        if !matches!(entry.judge(trust), Verdict::IfThere) {
            return;
        }
        entry.search = self.searches;
        self.looked_at.push(place);
        self.parts_of.extend(entry.proofs.iter().map(|proof| {
            *self.read_at.entry(proof.at).or_insert_with(|| {
                self.parts.push(proof.part());
                self.parts.len() - 1
            })
        }));
    }

    fn look(&mut self, memory: Option<&impl Memory>) {
        if let Some(memory) = memory {
            memory.read_parts(&mut self.parts);
        }
        let mut parts_of = self.parts_of.drain(..).map(|part| self.parts.get(part));
        for place in self.looked_at.drain(..) {
            let Some(entry) = self.entries.get_mut(place) else { continue };
            let (mut are_there, mut is_gone) = (true, true);
            for (proof, part) in entry.proofs.iter().zip(&mut parts_of) {
                are_there &= part.is_some_and(|part| proof.holds(part));
                is_gone &= part.is_none_or(|part| !part.read);
            }
            entry.words = match (are_there, is_gone) {
                (true, _) => Words::There,
                (_, true) => Words::Gone,
                _ => Words::Changed,
            };
        }
        drop(parts_of);
        self.parts.clear();
        self.read_at.clear();
    }

    fn checked(&mut self, place: usize, trust: Trust) -> Option<Frames> {
        let entry = self.entries.get_mut(place)?;
        let holds = match (entry.judge(trust), entry.words, trust) {
            (Verdict::Right, ..) => true,
            (Verdict::Unknown, ..) | (_, Words::Changed, _) => false,
            (_, Words::There, Trust::Heap { majors }) => {
                entry.seen = majors;
                true
            }
            (_, Words::There, _) => true,
            (_, Words::Gone, Trust::Heap { majors: Some(majors) }) => entry.was_right_under(majors),
            (_, Words::Gone, _) => false,
        };
        holds.then(|| Arc::clone(&entry.frames))
    }

    pub fn keep(&mut self, asked: Asked, frames: &Frames, proofs: Vec<Proof>, majors: Option<u32>) {
        if self.entries.len() >= FRAMES_KEPT_MAX {
            self.clear();
        }
        let entry = Entry {
            frames: Arc::clone(frames),
            proofs: proofs.into(),
            read: majors,
            seen: majors,
            search: 0,
            words: Words::Changed,
        };
        if let Some(known) = self.places.get(&asked).and_then(|place| self.entries.get_mut(*place)) {
            *known = entry;
        } else {
            self.places.insert(asked, self.entries.len());
            self.entries.push(entry);
        }
    }

    /// Forgets all: what was mapped there is not any more.
    pub fn clear(&mut self) {
        self.places.clear();
        self.entries.clear();
    }
}

/// Names that functions have as properties of their own, by number: a frame is asked for with that.
#[derive(Default)]
pub struct OwnNames(Vec<String>);

impl OwnNames {
    /// 0 if there are too many: a number that was given is not given again, as names are kept by it.
    pub fn number(&mut self, text: String) -> u32 {
        let known = self.0.iter().position(|name| *name == text);
        let at = known.unwrap_or(self.0.len());
        if at >= OWN_NAMES_MAX {
            return 0;
        }
        if known.is_none() {
            self.0.push(text);
        }
        u32::try_from(at + 1).unwrap_or(0)
    }

    #[must_use]
    pub fn get(&self, number: u32) -> Option<&str> {
        self.0.get(usize::try_from(number).ok()?.checked_sub(1)?).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::Fixture;

    const AT: UserAddr = UserAddr(0x1000);

    fn asked() -> Asked {
        Asked { seen: Seen { pc: 1, object: 3, bytecode_offset: 0, live: None, name: 0 }, has_called: true }
    }

    fn stack(frames: usize, taken: u32, now: Option<u32>) -> Stack {
        Stack { frames: vec![asked(); frames], trust: Trust::new(taken, now) }
    }

    fn are_known(found: &[Vec<Option<Frames>>]) -> Vec<Vec<bool>> {
        found.iter().map(|stack| stack.iter().map(Option::is_some).collect()).collect()
    }

    /// A name that was read under two collections' counts, and rests on eight words.
    fn kept() -> (Kept, Fixture) {
        let mut memory = Fixture::default();
        memory.map(AT, vec![7; 64]);
        let mut kept = Kept::default();
        kept.keep(asked(), &Frames::default(), vec![Proof::of_words(AT, [0x0707_0707_0707_0707; 8])], Some(2));
        (kept, memory)
    }

    #[track_caller]
    fn check(taken: u32, now: Option<u32>, changed: bool, expected: bool) {
        let (mut kept, mut memory) = kept();
        if changed {
            memory.write(UserAddr(AT.0 + 8), &[1]);
        }
        let found = kept.find(&[stack(2, taken, now)], Some(&memory));
        assert_eq!(are_known(&found), [[expected; 2]]);
    }

    #[test]
    fn a_name_is_used_while_its_words_are_there() {
        check(2, Some(2), false, true);
        check(2, Some(2), true, false);
        check(2, None, false, true);
        check(2, None, true, false);
        check(4, Some(4), false, true);
    }

    #[test]
    fn of_a_stack_that_is_older_than_a_collection_only_old_names_are_right() {
        check(2, Some(3), true, true);
        check(4, Some(5), false, true);
        check(4, Some(5), true, false);
        check(0, Some(1), false, false);
    }

    #[test]
    fn of_a_process_that_has_ended_names_are_right_that_were_under_the_same_count() {
        let check = |taken, now, expected: bool| {
            let (mut kept, _) = kept();
            let found = kept.find(&[stack(1, taken, now)], Some(&Fixture::default()));
            assert_eq!(are_known(&found), [[expected]]);
        };
        check(2, Some(2), true);
        check(4, Some(4), false);
        check(3, Some(3), false);
        check(2, None, false);
    }

    #[test]
    fn of_a_stack_within_a_collection_what_has_not_moved_is_right() {
        check(3, Some(3), false, true);
        check(3, Some(4), false, true);
        check(3, Some(3), true, false);
        check(5, Some(5), false, true);
        check(1, Some(5), false, false);
    }

    #[test]
    fn each_of_several_stacks_is_judged_by_when_it_was_taken() {
        let (mut kept, mut memory) = kept();
        let stacks = [stack(1, 2, Some(4)), stack(1, 4, Some(4)), stack(1, 3, Some(4)), stack(1, 1, Some(4))];
        assert_eq!(are_known(&kept.find(&stacks, Some(&memory))), [[true], [true], [true], [false]]);
        memory.write(AT, &[1]);
        assert_eq!(are_known(&kept.find(&stacks, Some(&memory))), [[true], [false], [false], [false]]);
    }
}
