//! A census of a heap as it is written: a line for the whole, then one for each constructor.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Of `agent/schema/heap.schema.json`; new keys do not raise it.
pub const SCHEMA_VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    HeapCensus(Whole),
    HeapConstructor(Constructor),
    HeapGrowth(Growth),
}

/// What is said of a census as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Whole {
    pub schema_version: u32,
    /// RFC 3339, when it was begun.
    pub time: String,
    pub pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_version: Option<String>,
    pub duration_ns: u64,
    /// Bytes of V8's pages, used or not.
    pub heap_bytes: u64,
    /// Bytes that were read, some of them several times.
    pub read_bytes: u64,
    pub objects: u64,
    pub object_bytes: u64,
    /// Pointers to what was no object any more, of all that were followed: from 0 to 1.
    pub stray_share: f64,
    /// Times it was taken, as too much was moved meanwhile.
    pub attempts: u32,
    /// All that can be reached was looked at.
    pub complete: bool,
}

/// Live objects of one constructor, or of a kind that has none, in brackets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constructor {
    pub name: String,
    /// File and line of the function, where it has a script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    pub objects: u64,
    /// Of the objects themselves, without what they hold.
    pub bytes: u64,
}

/// What a constructor's objects became between two censuses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    pub objects_before: u64,
    pub objects_after: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

impl Growth {
    #[must_use]
    pub fn bytes(&self) -> i64 {
        self.bytes_after.cast_signed().saturating_sub(self.bytes_before.cast_signed())
    }

    #[must_use]
    pub fn objects(&self) -> i64 {
        self.objects_after.cast_signed().saturating_sub(self.objects_before.cast_signed())
    }
}

/// A census: the whole, and its constructors, most bytes first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heap {
    pub whole: Whole,
    pub constructors: Vec<Constructor>,
}

impl Heap {
    #[must_use]
    pub fn new(whole: Whole, mut constructors: Vec<Constructor>) -> Self {
        constructors.sort_by(|a, b| {
            (b.bytes, b.objects).cmp(&(a.bytes, a.objects)).then_with(|| (&a.name, &a.place).cmp(&(&b.name, &b.place)))
        });
        Self { whole, constructors }
    }

    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let constructors = self.constructors.iter().cloned().map(Line::HeapConstructor);
        std::iter::once(Line::HeapCensus(self.whole.clone())).chain(constructors).collect()
    }
}

/// What differs, most growth first.
#[must_use]
pub fn diff(before: &Heap, after: &Heap) -> Vec<Growth> {
    let mut by_name: BTreeMap<(&str, Option<&str>), Growth> = BTreeMap::new();
    for (of, heap) in [before, after].into_iter().enumerate() {
        for Constructor { name, place, objects, bytes } in &heap.constructors {
            let growth = by_name.entry((name, place.as_deref())).or_insert_with(|| Growth {
                name: name.clone(),
                place: place.clone(),
                ..Growth::default()
            });
            let (in_objects, in_bytes) = if of == 0 {
                (&mut growth.objects_before, &mut growth.bytes_before)
            } else {
                (&mut growth.objects_after, &mut growth.bytes_after)
            };
            *in_objects = in_objects.saturating_add(*objects);
            *in_bytes = in_bytes.saturating_add(*bytes);
        }
    }
    let mut all: Vec<Growth> =
        by_name.into_values().filter(|growth| growth.bytes() != 0 || growth.objects() != 0).collect();
    all.sort_by_key(|growth| (std::cmp::Reverse(growth.bytes()), std::cmp::Reverse(growth.objects())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(of: &[(&str, Option<&str>, u64, u64)]) -> Heap {
        let one = |(name, place, objects, bytes): &(&str, Option<&str>, u64, u64)| Constructor {
            name: (*name).to_owned(),
            place: place.map(str::to_owned),
            objects: *objects,
            bytes: *bytes,
        };
        Heap::new(Whole::default(), of.iter().map(one).collect())
    }

    #[test]
    fn what_grew_comes_first_and_what_did_not_is_left_out() {
        let before = heap(&[
            ("Same", None, 1, 8),
            ("Less", None, 9, 90),
            ("More", Some("a.js:1"), 1, 10),
            ("More", None, 1, 10),
        ]);
        let after = heap(&[
            ("Same", None, 1, 8),
            ("Less", None, 1, 10),
            ("More", Some("a.js:1"), 3, 30),
            ("More", None, 1, 10),
            ("New", None, 1, 99),
        ]);
        let seen: Vec<_> = diff(&before, &after)
            .iter()
            .map(|growth| (growth.name.clone(), growth.place.is_some(), growth.objects(), growth.bytes()))
            .collect();
        let expected = [("New", false, 1, 99), ("More", true, 2, 20), ("Less", false, -8, -80)];
        assert_eq!(seen, expected.map(|(name, place, objects, bytes)| (name.to_owned(), place, objects, bytes)));
    }
}
