//! What is found out about the bytes of a file, once for all files that hold the same: containers of one image each have a file of their own
//! as far as the kernel says.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{Arc, OnceLock, Weak},
};

/// What a part of a file holds: a hash with a key of this run, so that nobody who makes files can aim at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Content(u64);

impl Content {
    #[must_use]
    pub fn of(value: impl Hash) -> Self {
        let mut parts = Parts::default();
        value.hash(&mut parts.0);
        parts.end()
    }
}

/// A content that is read a piece at a time.
#[derive(Clone, Debug)]
pub struct Parts(DefaultHasher);

impl Default for Parts {
    fn default() -> Self {
        static KEY: OnceLock<RandomState> = OnceLock::new();
        Self(KEY.get_or_init(RandomState::new).build_hasher())
    }
}

impl Parts {
    /// Where pieces begin and end does not count.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    #[must_use]
    pub fn end(self) -> Content {
        Content(self.0.finish())
    }
}

/// What somebody has of each key at the moment.
#[derive(Debug)]
pub struct Shared<K, T> {
    all: Vec<(K, Weak<T>)>,
}

impl<K: PartialEq, T> Shared<K, T> {
    pub const EMPTY: Self = Self { all: Vec::new() };

    /// What there is of a key already, or something new.
    pub fn get(&mut self, key: K, make: impl FnOnce() -> T) -> Arc<T> {
        self.all.retain(|(_, thing)| thing.strong_count() > 0);
        let known = self.all.iter().find(|(known, _)| *known == key).and_then(|(_, thing)| thing.upgrade());
        known.unwrap_or_else(|| {
            let thing = Arc::new(make());
            self.all.push((key, Arc::downgrade(&thing)));
            thing
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_is_the_same_in_whatever_pieces_it_is_read() {
        let of = |pieces: &[&[u8]]| {
            let mut parts = Parts::default();
            for piece in pieces {
                parts.add(piece);
            }
            parts.end()
        };
        assert_eq!(of(&[b"symbols"]), of(&[b"sym", b"", b"bols"]));
        assert_ne!(of(&[b"symbols"]), of(&[b"symbol"]));
    }

    #[test]
    fn what_nobody_has_is_forgotten() {
        let mut shared = Shared::EMPTY;
        let one = shared.get("one", || 1);
        assert_eq!(*shared.get("one", || 2), 1);
        assert_eq!(*shared.get("other", || 2), 2);
        drop(one);
        assert_eq!(*shared.get("one", || 3), 3);
    }
}
