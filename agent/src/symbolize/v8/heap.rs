//! Words of a V8 heap: tagged values, objects, their maps and types.
//!
//! A tagged word ends in 0 if it is a small integer (31 or 32 bits in the upper half), in 01 if it points to an object, in 11 if
//! it does so weakly. An object's first word points to its map, and the map says the type. While the collector moves an
//! object, its first word is the new address, which is no tagged pointer: then there is no type, and the decoder gives up.

use std::cell::{Cell, RefCell};

use super::layout::{Layout, fixed};
use crate::{
    limits::{V8_MAPS_MAX, V8_READS_MAX},
    target::{address_map::AddressMap, memory::Memory},
    units::UserAddr,
};

/// Why something on the heap could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("memory that cannot be read")]
    Unreadable,
    #[error("no object where one was expected")]
    NoObject,
    #[error("an object of another type than was expected")]
    OtherType,
    #[error("a number out of its range")]
    OutOfRange,
    #[error("more than is read of one thing")]
    TooLarge,
    #[error("more reads than one frame is worth")]
    TooManyReads,
    #[error("a table that ends too early")]
    Damaged,
    #[error("it changed while it was read")]
    Changed,
    #[error("nothing there")]
    Absent,
}

/// A word as V8 tags it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged(pub u64);

impl Tagged {
    /// The integer, if it is one.
    #[must_use]
    pub fn smi(self) -> Option<i32> {
        // Only the upper half counts, and the lower is zero.
        (self.0.trailing_zeros() >= 32).then(|| u32::try_from(self.0 >> 32).unwrap_or(0).cast_signed())
    }

    /// The object that it points to, weakly or not.
    pub fn object(self) -> Result<Object, Refusal> {
        const TAG: u64 = 3;
        const USER_END: u64 = 1 << 47;
        let addr = self.0 & !TAG;
        // The first page is never mapped, and objects are aligned.
        let plausible = self.0 & 1 == 1 && addr.is_multiple_of(8) && (4096..USER_END).contains(&addr);
        plausible.then_some(Object(UserAddr(addr))).ok_or(Refusal::NoObject)
    }
}

/// The untagged address of an object, or of what should be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object(pub UserAddr);

impl Object {
    pub fn field(self, offset: u32) -> Result<UserAddr, Refusal> {
        self.0.0.checked_add(u64::from(offset)).map(UserAddr).ok_or(Refusal::OutOfRange)
    }
}

/// Reads a heap; what it has learnt of maps stays.
pub struct Heap<M> {
    pub memory: M,
    pub layout: Layout,
    types: RefCell<AddressMap<u64, u16>>,
    /// The map of all maps.
    meta: Cell<Option<u64>>,
    reads_left: Cell<u32>,
}

impl<M: Memory> Heap<M> {
    #[must_use]
    pub fn new(memory: M, layout: Layout) -> Self {
        Self { memory, layout, types: RefCell::default(), meta: Cell::new(None), reads_left: Cell::new(V8_READS_MAX) }
    }

    /// Forgets the types of maps: with a worker's heap its maps go, and others come to lie there.
    pub fn forget(&self) {
        self.types.borrow_mut().clear();
        self.meta.set(None);
    }

    /// Grants the reads that one frame is worth.
    pub fn begin(&self) {
        self.reads_left.set(V8_READS_MAX);
    }

    pub fn read(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Refusal> {
        let left = self.reads_left.get().checked_sub(1).ok_or(Refusal::TooManyReads)?;
        self.reads_left.set(left);
        self.memory.read_at(at, into).map_err(|_| Refusal::Unreadable)
    }

    /// The first words of an object that may have fewer.
    pub fn first_words<const N: usize>(&self, at: UserAddr) -> Result<[u64; N], Refusal> {
        let left = self.reads_left.get().checked_sub(1).ok_or(Refusal::TooManyReads)?;
        self.reads_left.set(left);
        let mut bytes = [[0; 8]; N];
        self.memory.read_object(at, bytes.as_flattened_mut()).map_err(|_| Refusal::Unreadable)?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    /// Bytes, of which there may be `most`.
    pub fn bytes(&self, at: UserAddr, count: usize, most: usize) -> Result<Vec<u8>, Refusal> {
        if count > most {
            return Err(Refusal::TooLarge);
        }
        let mut bytes = vec![0; count];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The first words of an object.
    pub fn words<const N: usize>(&self, object: Object) -> Result<[u64; N], Refusal> {
        let mut bytes = [[0; 8]; N];
        self.read(object.0, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    pub fn word(&self, at: UserAddr) -> Result<u64, Refusal> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub fn u32(&self, at: UserAddr) -> Result<u32, Refusal> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub fn tagged(&self, object: Object, offset: u32) -> Result<Tagged, Refusal> {
        self.word(object.field(offset)?).map(Tagged)
    }

    pub fn object(&self, object: Object, offset: u32) -> Result<Object, Refusal> {
        self.tagged(object, offset)?.object()
    }

    /// A small integer that counts something.
    pub fn count(&self, object: Object, offset: u32) -> Result<u32, Refusal> {
        let smi = self.tagged(object, offset)?.smi().ok_or(Refusal::OutOfRange)?;
        u32::try_from(smi).map_err(|_| Refusal::OutOfRange)
    }

    pub fn type_of(&self, object: Object) -> Result<u16, Refusal> {
        self.type_of_map(self.word(object.0)?)
    }

    /// The instance type that a map's tagged address stands for.
    pub fn type_of_map(&self, map: u64) -> Result<u16, Refusal> {
        if let Some(known) = self.types.borrow().get(&map) {
            return Ok(*known);
        }
        if map & 3 != 1 {
            return Err(Refusal::NoObject);
        }
        let map_words = self.words::<2>(Tagged(map).object()?)?;
        let [meta, sizes_and_type] = map_words;
        let instance_type = u16::try_from(sizes_and_type >> 32 & 0xffff).unwrap_or(0);
        if Some(meta) != self.meta.get() {
            self.check_meta(meta)?;
        }
        // Maps of objects that scripts make come and go; those of V8's own are there for good.
        if instance_type < Self::FIRST_JS_TYPE {
            let mut types = self.types.borrow_mut();
            if types.len() >= V8_MAPS_MAX {
                types.clear();
            }
            types.insert(map, instance_type);
        }
        Ok(instance_type)
    }

    /// `FIRST_JS_RECEIVER_TYPE` is above all others, wherever it lies.
    const FIRST_JS_TYPE: u16 = 320;

    /// The map of a map is a map, and its own one or, since 12.x, that of another context's maps.
    fn check_meta(&self, meta: u64) -> Result<(), Refusal> {
        if meta & 3 != 1 {
            return Err(Refusal::NoObject);
        }
        let [above, sizes_and_type] = self.words::<2>(Tagged(meta).object()?)?;
        let is_map = u16::try_from(sizes_and_type >> 32 & 0xffff) == Ok(self.layout.types.map);
        if !is_map {
            return Err(Refusal::OtherType);
        }
        if above == meta {
            self.meta.set(Some(meta));
        }
        Ok(())
    }

    pub fn expect(&self, object: Object, instance_type: u16) -> Result<Object, Refusal> {
        (self.type_of(object)? == instance_type).then_some(object).ok_or(Refusal::OtherType)
    }

    /// The bytes of an array of bytes, trusted or not: what it is for is checked by what it holds.
    pub fn byte_array(&self, array: Object, most: usize) -> Result<Vec<u8>, Refusal> {
        let types = &self.layout.types;
        let instance_type = self.type_of(array)?;
        if instance_type < types.first_nonstring || instance_type == types.oddball {
            return Err(Refusal::Absent);
        }
        let count = self.count(array, fixed::ARRAY_LENGTH)?;
        self.bytes(array.field(fixed::ARRAY_DATA)?, usize::try_from(count).unwrap_or(usize::MAX), most)
    }

    /// A word of an array.
    pub fn element(&self, array: Object, index: u32) -> Result<Tagged, Refusal> {
        if index >= self.count(array, fixed::ARRAY_LENGTH)? {
            return Err(Refusal::OutOfRange);
        }
        let offset = index.checked_mul(8).and_then(|bytes| bytes.checked_add(fixed::ARRAY_DATA));
        self.tagged(array, offset.ok_or(Refusal::OutOfRange)?)
    }
}
