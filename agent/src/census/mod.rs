//! A census of a heap: how many objects of which constructor are alive, read from the memory of a process that runs on.
//!
//! ```text
//! regions ─ pages: V8's chunks of 256 KiB ─┐
//!         └ roots: all other memory ───────┴ mark: what they lead to ─ shapes: counted by Map ─ names: by constructor
//! ```
//!
//! [`pages`] finds V8's memory by the headers of its chunks, [`roots`] looks through all other memory for words that point there,
//! [`mark`] goes on from these as the collector would, [`shapes`] knows from Maps how large an object is and which of its words lead on,
//! and [`names`] names the Maps.
//!
//! # What can be trusted
//!
//! The process is not stopped, so its collector may move an object between the look at what leads to it and the look at itself.
//! What leads to no object any more is counted ([`mark::Tally::strays`]), and where that is much the census is made again. Dead
//! objects that a stale word on a stack still leads to count as alive. Nothing that is read is believed without a check: an
//! object is what has a Map, a Map is what has the Map of Maps, and no loop is longer than the memory that it walks over.

pub mod fixture;
pub mod mark;
pub mod names;
pub mod pages;
pub mod roots;
pub mod shapes;

use std::collections::HashMap;

use mark::{Marker, Reach, Tally};
use names::{Constructor, Names};
use roots::{Present, Region};
use shapes::{Shapes, Types};

use crate::{symbolize::v8::heap::Heap, target::memory::Memory};

/// Objects of one constructor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub objects: u64,
    /// Of the objects themselves, without what they lead to.
    pub bytes: u64,
}

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Census {
    pub by_constructor: HashMap<Constructor, Count>,
    pub tally: Tally,
    /// Bytes of V8's pages, whether used or not.
    pub heap_bytes: u64,
    pub pages: usize,
}

impl Census {
    /// The share of looked-at words that led to no object.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share that is shown with two digits")]
    pub fn stray_share(&self) -> f64 {
        let Tally { objects, strays, unreadable, .. } = self.tally;
        let lost = strays + unreadable;
        if lost == 0 { 0.0 } else { lost as f64 / (lost + objects) as f64 }
    }
}

/// What is known of the process's V8.
pub struct Subject<'a, M> {
    pub heap: &'a Heap<M>,
    pub types: Types,
    /// Where a `JSFunction` has its `SharedFunctionInfo`.
    pub shared: u32,
    pub regions: Vec<Region>,
    pub present: Box<Present<'a>>,
}

/// Counts; `go_on` is asked now and then.
pub fn take<M: Memory>(subject: &Subject<'_, M>, go_on: &mut dyn FnMut(&Tally) -> bool) -> Census {
    let memory = &subject.heap.memory;
    let pages = roots::pages(memory, &subject.regions, &*subject.present);
    let (heap_bytes, count) = (pages.bytes(), pages.pages.len());
    let mut reach = Reach::new(pages);
    let mut tally = Tally::default();
    roots::follow(memory, &subject.regions, &*subject.present, &mut reach, &mut tally);
    let mut marker = Marker::new(memory, reach, Shapes::new(subject.types.clone()));
    marker.tally = tally;
    marker.run(go_on);
    let Marker { mut shapes, tally, functions, .. } = marker;
    let mut names = Names::new(subject.heap, subject.shared, functions, &mut shapes);
    let mut by_constructor: HashMap<Constructor, Count> = HashMap::new();
    for shape in 0..shapes.all.len() {
        let Some((objects, bytes)) = shapes.all.get(shape).map(|shape| (shape.live, shape.live_bytes)) else { break };
        if objects > 0 {
            let count = by_constructor.entry(names.of(&mut shapes, shape)).or_default();
            count.objects += objects;
            count.bytes += bytes;
        }
    }
    Census { by_constructor, tally, heap_bytes, pages: count }
}

#[cfg(test)]
mod tests;
