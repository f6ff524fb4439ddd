//! What a Map says of its objects: how large they are, which of their words lead on, and what they are.

use crate::{
    limits::CENSUS_MAPS_MAX,
    symbolize::v8::layout::fixed,
    target::{address_map::AddressMap, elf::ElfFile, memory::Memory, v8},
    units::UserAddr,
};

/// Instance types that are told apart; what a V8 does not have, or does not name, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Types {
    pub map: u16,
    pub first_nonstring: u16,
    /// Above it are objects that scripts can hold.
    pub first_js: u16,
    /// Functions, both ends included.
    pub functions: (u16, u16),
    /// Functions of other kinds: bound ones.
    pub other_functions: Vec<u16>,
    pub contexts: Option<(u16, u16)>,
    /// Their words after the length are no pointers: bytes, doubles.
    pub raw: Vec<u16>,
    pub doubles: Option<u16>,
    /// Machine code, of which the first words are pointers.
    pub code: Vec<u16>,
    /// Of what functions are, besides.
    pub function_parts: Vec<u16>,
    pub scope_info: Option<u16>,
    pub arrays: Vec<u16>,
    pub property_array: Option<u16>,
    pub weak_list: Option<u16>,
    /// Of what Maps are, besides.
    pub map_parts: Vec<u16>,
    pub descriptors: Vec<u16>,
    pub feedback_vector: Option<u16>,
    pub weak_cell: Option<u16>,
    pub weak_ref: Option<u16>,
    pub weak_collections: Vec<u16>,
    pub regexp: Option<u16>,
    pub symbol: Option<u16>,
    pub number: Option<u16>,
}

impl Types {
    /// `None` where the file does not name the types without which nothing can be counted.
    #[must_use]
    pub fn read(elf: &ElfFile, version: [u32; 4]) -> Option<Self> {
        const NAMES: [&str; 36] = [
            "type_Map__MAP_TYPE",
            "FirstNonstringType",
            "type_JSProxy__JS_PROXY_TYPE",
            "FirstContextType",
            "LastContextType",
            "type_ByteArray__BYTE_ARRAY_TYPE",
            "type_TrustedByteArray__TRUSTED_BYTE_ARRAY_TYPE",
            "type_BytecodeArray__BYTECODE_ARRAY_TYPE",
            "type_FixedDoubleArray__FIXED_DOUBLE_ARRAY_TYPE",
            "type_Code__CODE_TYPE",
            "type_InstructionStream__INSTRUCTION_STREAM_TYPE",
            "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE",
            "type_ScopeInfo__SCOPE_INFO_TYPE",
            "type_FeedbackCell__FEEDBACK_CELL_TYPE",
            "type_FixedArray__FIXED_ARRAY_TYPE",
            "type_PropertyArray__PROPERTY_ARRAY_TYPE",
            "type_WeakArrayList__WEAK_ARRAY_LIST_TYPE",
            "type_DescriptorArray__DESCRIPTOR_ARRAY_TYPE",
            "type_StrongDescriptorArray__STRONG_DESCRIPTOR_ARRAY_TYPE",
            "type_PropertyCell__PROPERTY_CELL_TYPE",
            "type_PrototypeInfo__PROTOTYPE_INFO_TYPE",
            "type_EnumCache__ENUM_CACHE_TYPE",
            "type_FeedbackVector__FEEDBACK_VECTOR_TYPE",
            "type_WeakCell__WEAK_CELL_TYPE",
            "type_JSWeakRef__JS_WEAK_REF_TYPE",
            "type_JSWeakMap__JS_WEAK_MAP_TYPE",
            "type_JSWeakSet__JS_WEAK_SET_TYPE",
            "type_JSRegExp__JS_REG_EXP_TYPE",
            "type_Symbol__SYMBOL_TYPE",
            "type_HeapNumber__HEAP_NUMBER_TYPE",
            "type_CoverageInfo__COVERAGE_INFO_TYPE",
            "type_PreparseData__PREPARSE_DATA_TYPE",
            "type_WeakFixedArray__WEAK_FIXED_ARRAY_TYPE",
            "type_Script__SCRIPT_TYPE",
            "type_JSBoundFunction__JS_BOUND_FUNCTION_TYPE",
            "type_JSWrappedFunction__JS_WRAPPED_FUNCTION_TYPE",
        ];
        let constants = v8::constants(elf, &NAMES);
        let get = |name: &str| constants.get(name).and_then(|value| u16::try_from(*value).ok());
        let all = |names: &[&str]| names.iter().filter_map(|name| get(name)).collect();
        // Types are numbered in the order of their names: FeedbackMetadata, FeedbackVector, Filler, FreeSpace. The first has no name in
        // any version, the last none since 13.x.
        let feedback_vector = get("type_FeedbackVector__FEEDBACK_VECTOR_TYPE");
        let around = feedback_vector.map(|of| [of.wrapping_sub(1), of.wrapping_add(1), of.wrapping_add(2)]);
        let mut raw: Vec<u16> = all(&[
            "type_ByteArray__BYTE_ARRAY_TYPE",
            "type_TrustedByteArray__TRUSTED_BYTE_ARRAY_TYPE",
            "type_CoverageInfo__COVERAGE_INFO_TYPE",
            "type_PreparseData__PREPARSE_DATA_TYPE",
        ]);
        raw.extend(around.into_iter().flatten());
        Some(Self {
            map: get("type_Map__MAP_TYPE")?,
            first_nonstring: get("FirstNonstringType")?,
            first_js: get("type_JSProxy__JS_PROXY_TYPE")?,
            functions: v8::FunctionLayout::read(elf, version)?.types,
            other_functions: all(&[
                "type_JSBoundFunction__JS_BOUND_FUNCTION_TYPE",
                "type_JSWrappedFunction__JS_WRAPPED_FUNCTION_TYPE",
            ]),
            contexts: get("FirstContextType").zip(get("LastContextType")),
            raw,
            doubles: get("type_FixedDoubleArray__FIXED_DOUBLE_ARRAY_TYPE"),
            code: all(&[
                "type_Code__CODE_TYPE",
                "type_InstructionStream__INSTRUCTION_STREAM_TYPE",
                "type_BytecodeArray__BYTECODE_ARRAY_TYPE",
            ]),
            function_parts: all(&[
                "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE",
                "type_FeedbackCell__FEEDBACK_CELL_TYPE",
                "type_Script__SCRIPT_TYPE",
            ]),
            scope_info: get("type_ScopeInfo__SCOPE_INFO_TYPE"),
            arrays: all(&["type_FixedArray__FIXED_ARRAY_TYPE", "type_WeakFixedArray__WEAK_FIXED_ARRAY_TYPE"]),
            property_array: get("type_PropertyArray__PROPERTY_ARRAY_TYPE"),
            weak_list: get("type_WeakArrayList__WEAK_ARRAY_LIST_TYPE"),
            map_parts: all(&[
                "type_Map__MAP_TYPE",
                "type_PropertyCell__PROPERTY_CELL_TYPE",
                "type_PrototypeInfo__PROTOTYPE_INFO_TYPE",
                "type_EnumCache__ENUM_CACHE_TYPE",
            ]),
            descriptors: all(&[
                "type_DescriptorArray__DESCRIPTOR_ARRAY_TYPE",
                "type_StrongDescriptorArray__STRONG_DESCRIPTOR_ARRAY_TYPE",
            ]),
            feedback_vector,
            weak_cell: get("type_WeakCell__WEAK_CELL_TYPE"),
            weak_ref: get("type_JSWeakRef__JS_WEAK_REF_TYPE"),
            weak_collections: all(&["type_JSWeakMap__JS_WEAK_MAP_TYPE", "type_JSWeakSet__JS_WEAK_SET_TYPE"]),
            regexp: get("type_JSRegExp__JS_REG_EXP_TYPE"),
            symbol: get("type_Symbol__SYMBOL_TYPE"),
            number: get("type_HeapNumber__HEAP_NUMBER_TYPE"),
        })
    }
}

/// How the words of an object are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// As many words as the Map says, all of them tagged.
    Fixed,
    /// A length in units of this many bytes, and no pointers.
    Text {
        unit_bytes: u64,
    },
    /// The same of an array.
    Raw {
        unit_bytes: u64,
    },
    /// A length and as many tagged words, or what looks like it.
    Array,
    /// Of a `ScopeInfo`: names and numbers, and nothing that scripts made.
    Scope,
    /// The length shares its word with a hash.
    Properties,
    /// A capacity, a length, and tagged words.
    WeakList,
    /// Counts, then three words each.
    Descriptors,
    /// A length in bits of its own, then words.
    Feedback,
    /// Some tagged words, and then machine code.
    Code,
    /// Of a `WeakRef`: the properties alone lead on.
    WeakRef,
    /// Of a `WeakCell`: the target and its token do not lead on.
    WeakCell,
    /// A `WeakMap` or `WeakSet`, whose table holds values only as long as something else holds the keys.
    WeakCollection,
    Function,
}

/// What an object is called if not after its constructor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// After its constructor.
    Object,
    Closure,
    String,
    ConsString,
    SlicedString,
    Array,
    RegExp,
    Number,
    Symbol,
    Code,
    Shape,
    Context,
    System,
}

impl Class {
    /// As heap snapshots and Chrome's tools call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "Object",
            Self::Closure => "(closure)",
            Self::String => "(string)",
            Self::ConsString => "(concatenated string)",
            Self::SlicedString => "(sliced string)",
            Self::Array => "(array)",
            Self::RegExp => "(regexp)",
            Self::Number => "(number)",
            Self::Symbol => "(symbol)",
            Self::Code => "(code)",
            Self::Shape => "(object shape)",
            Self::Context => "system / Context",
            Self::System => "(system)",
        }
    }
}

/// A Map, and what was counted of it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its tagged address.
    pub map: u64,
    pub class: Class,
    pub body: Body,
    /// Bytes of an object; 0 if they differ.
    pub bytes: u64,
    /// Constructor or the Map before.
    pub parent: u64,
    pub prototype: u64,
    /// Its objects were made by the constructor itself, not by a class that extends it.
    pub is_of_base: bool,
    pub live: u64,
    pub live_bytes: u64,
}

/// The Maps of a process.
#[derive(Debug)]
pub struct Shapes {
    types: Types,
    pub all: Vec<Shape>,
    /// Also words that are no Map.
    by_map: AddressMap<u64, Option<u32>>,
    last: (u64, Option<u32>),
}

/// Words of a Map that are read.
const MAP_WORDS: usize = 5;

impl Shapes {
    #[must_use]
    pub fn new(types: Types) -> Self {
        Self { types, all: Vec::new(), by_map: AddressMap::default(), last: (0, None) }
    }

    /// The shape of the Map that a tagged word points to.
    pub fn of(&mut self, map: u64, memory: &impl Memory) -> Option<usize> {
        if map == self.last.0 {
            return self.last.1.map(|number| number as usize);
        }
        if map & 7 != 1 {
            return None;
        }
        let known = self.by_map.get(&map).copied();
        if known.is_none() && self.by_map.len() >= CENSUS_MAPS_MAX {
            return None;
        }
        let number = known.unwrap_or_else(|| {
            let shape = self.read(map, memory);
            let number = shape.and_then(|shape| {
                self.all.push(shape);
                u32::try_from(self.all.len() - 1).ok()
            });
            self.by_map.insert(map, number);
            number
        });
        self.last = (map, number);
        number.map(|number| number as usize)
    }

    fn read(&self, map: u64, memory: &impl Memory) -> Option<Shape> {
        let [meta, sizes, _, prototype, parent] = map_words(map, memory)?;
        // The Map of a Map is one, and so is that one's.
        let [above, of_meta, ..] = map_words(meta, memory)?;
        let [_, of_above, ..] = if above == meta { [0, of_meta, 0, 0, 0] } else { map_words(above, memory)? };
        if type_of(of_meta) != self.types.map || type_of(of_above) != self.types.map {
            return None;
        }
        let instance_type = type_of(sizes);
        // `instance_size_in_words` is the first of its bytes, `bit_field2` the last.
        let [words, .., bits] = sizes.to_le_bytes();
        let bytes = u64::from(words) * 8;
        let (class, body) = self.kind(instance_type, bytes);
        Some(Shape { map, class, body, bytes, parent, prototype, is_of_base: bits & 1 == 1, live: 0, live_bytes: 0 })
    }

    /// What objects of a type are.
    fn kind(&self, of: u16, bytes: u64) -> (Class, Body) {
        let types = &self.types;
        let is = |one: Option<u16>| one == Some(of);
        let known = if bytes == 0 { Body::Array } else { Body::Fixed };
        if of < types.first_nonstring {
            return string(of, known);
        }
        if of >= types.first_js {
            return self.js(of, known);
        }
        if types.contexts.is_some_and(|(first, last)| (first..=last).contains(&of)) {
            (Class::Context, Body::Array)
        } else if types.raw.contains(&of) {
            (Class::Array, Body::Raw { unit_bytes: 1 })
        } else if is(types.doubles) {
            (Class::Array, Body::Raw { unit_bytes: 8 })
        } else if types.code.contains(&of) {
            (Class::Code, Body::Code)
        } else if types.function_parts.contains(&of) {
            (Class::Code, known)
        } else if is(types.scope_info) {
            (Class::Code, Body::Scope)
        } else if is(types.feedback_vector) {
            (Class::Code, Body::Feedback)
        } else if types.map_parts.contains(&of) {
            (Class::Shape, known)
        } else if types.descriptors.contains(&of) {
            (Class::Shape, Body::Descriptors)
        } else if is(types.property_array) {
            (Class::Array, Body::Properties)
        } else if is(types.weak_list) {
            (Class::Array, Body::WeakList)
        } else if types.arrays.contains(&of) {
            (Class::Array, Body::Array)
        } else if is(types.weak_cell) {
            (Class::System, Body::WeakCell)
        } else if is(types.symbol) {
            (Class::Symbol, known)
        } else if is(types.number) {
            (Class::Number, Body::Raw { unit_bytes: 8 })
        } else {
            // Hash tables and lists have types of their own, and the form of arrays.
            (if bytes == 0 { Class::Array } else { Class::System }, known)
        }
    }

    fn js(&self, of: u16, known: Body) -> (Class, Body) {
        let types = &self.types;
        let (first, last) = types.functions;
        if (first..=last).contains(&of) {
            (Class::Closure, Body::Function)
        } else if types.other_functions.contains(&of) {
            (Class::Closure, known)
        } else if types.regexp == Some(of) {
            (Class::RegExp, known)
        } else if types.weak_ref == Some(of) {
            (Class::Object, Body::WeakRef)
        } else if types.weak_collections.contains(&of) {
            (Class::Object, Body::WeakCollection)
        } else {
            (Class::Object, known)
        }
    }
}

fn string(of: u16, known: Body) -> (Class, Body) {
    const ONE_BYTE: u16 = 8;
    const REPRESENTATION: u16 = 7;
    let unit_bytes = if of & ONE_BYTE == 0 { 2 } else { 1 };
    match of & REPRESENTATION {
        0 => (Class::String, Body::Text { unit_bytes }),
        1 => (Class::ConsString, known),
        3 => (Class::SlicedString, known),
        _ => (Class::String, known),
    }
}

/// The instance type in the word of a Map that holds it.
fn type_of(sizes: u64) -> u16 {
    u16::try_from(sizes >> ((fixed::MAP_INSTANCE_TYPE - 8) * 8) & 0xffff).unwrap_or(0)
}

fn map_words(map: u64, memory: &impl Memory) -> Option<[u64; MAP_WORDS]> {
    if map & 7 != 1 {
        return None;
    }
    let mut bytes = [[0; 8]; MAP_WORDS];
    memory.read_at(UserAddr(map - 1), bytes.as_flattened_mut()).ok()?;
    Some(bytes.map(u64::from_le_bytes))
}
