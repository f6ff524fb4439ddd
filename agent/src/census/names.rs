//! What objects are called: after the function that constructs them.
//!
//! A Map leads back over the Maps that it was made of to its first one, and that to a constructor. Of a class that extends
//! another that is the base; but the function whose `prototype_or_initial_map` the first Map is, is the class itself.

use super::shapes::{Class, Shapes};
use crate::{
    symbolize::v8::{
        function::Functions,
        heap::{Heap, Tagged},
    },
    target::{address_map::AddressMap, memory::Memory},
};

/// Maps that lead back to the first one: V8 allows a thousand fields.
const STEPS_MAX: usize = 2048;

/// Prototypes of prototypes.
const PROTOTYPES_MAX: usize = 8;

/// A name, and where the function of that name is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constructor {
    pub name: String,
    pub place: Option<String>,
}

/// Names Maps.
pub struct Names<'a, M> {
    heap: &'a Heap<M>,
    /// Where a function has its `SharedFunctionInfo`.
    shared: u32,
    by_initial_map: AddressMap<u64, u64>,
    by_prototype: AddressMap<u64, u64>,
    known: AddressMap<u64, Option<Constructor>>,
    functions: Functions,
}

impl<'a, M: Memory> Names<'a, M> {
    /// `functions` by what may be their initial maps.
    #[must_use]
    pub fn new(heap: &'a Heap<M>, shared: u32, functions: AddressMap<u64, u64>, shapes: &mut Shapes) -> Self {
        let mut by_initial_map = functions;
        let mut by_prototype = AddressMap::default();
        by_initial_map.retain(|map, function| {
            let shape = shapes.of(*map, &heap.memory).and_then(|shape| shapes.all.get(shape));
            if let Some(shape) = shape {
                // What several share, as they do `Object.prototype`, is nobody's own.
                let owner = by_prototype.entry(shape.prototype).or_insert(*function);
                *owner = if *owner == *function { *function } else { 0 };
            }
            shape.is_some()
        });
        Self {
            heap,
            shared,
            by_initial_map,
            by_prototype,
            known: AddressMap::default(),
            functions: Functions::default(),
        }
    }

    /// The name of the objects of a Map.
    pub fn of(&mut self, shapes: &mut Shapes, shape: usize) -> Constructor {
        let Some(own) = shapes.all.get(shape) else { return Constructor::default() };
        let (class, prototype, is_of_base) = (own.class, own.prototype, own.is_of_base);
        if class != Class::Object {
            return Constructor { name: class.name().to_owned(), place: None };
        }
        let (first, constructor) = self.first(shapes, shape);
        let is_telling = |named: &Constructor| !matches!(&*named.name, "" | "Object");
        if let Some(function) = self.by_initial_map.get(&first).copied()
            && let Some(named) = self.function(function).filter(is_telling)
        {
            return named;
        }
        let constructed = self.function(constructor).filter(is_telling);
        if let Some(named) = constructed.clone().filter(|_| is_of_base) {
            return named;
        }
        let inherited = self.inherited(shapes, prototype).filter(is_telling);
        inherited.or(constructed).unwrap_or(Constructor { name: "Object".to_owned(), place: None })
    }

    /// The first of the Maps before, and what it says of the constructor.
    fn first(&self, shapes: &mut Shapes, shape: usize) -> (u64, u64) {
        let mut at = shape;
        for _ in 0..STEPS_MAX {
            let Some((map, parent)) = shapes.all.get(at).map(|shape| (shape.map, shape.parent)) else { break };
            match shapes.of(parent, &self.heap.memory) {
                Some(before) if before != at => at = before,
                _ => return (map, parent),
            }
        }
        (0, 0)
    }

    /// What the first prototype that belongs to a function is called.
    fn inherited(&mut self, shapes: &mut Shapes, mut prototype: u64) -> Option<Constructor> {
        for _ in 0..PROTOTYPES_MAX {
            if let Some(function) = self.by_prototype.get(&prototype).copied() {
                return self.function(function);
            }
            self.heap.begin();
            let map = self.heap.word(Tagged(prototype).object().ok()?.0).ok()?;
            let shape = shapes.of(map, &self.heap.memory)?;
            prototype = shapes.all.get(shape)?.prototype;
        }
        None
    }

    fn function(&mut self, function: u64) -> Option<Constructor> {
        if let Some(known) = self.known.get(&function) {
            return known.clone();
        }
        let named = self.read(function);
        self.known.insert(function, named.clone());
        named
    }

    fn read(&mut self, function: u64) -> Option<Constructor> {
        self.heap.begin();
        let info = self.heap.object(Tagged(function).object().ok()?, self.shared).ok()?;
        let function = self.heap.function(info, &mut self.functions, 0).ok()?;
        let script = function.script.as_deref();
        let place = script.and_then(|script| {
            let file = script.file.as_deref()?;
            let line = function.start.and_then(|start| script.place(start)).map(|place| place.line);
            Some(line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}")))
        });
        Some(Constructor { name: function.name.clone(), place })
    }
}
