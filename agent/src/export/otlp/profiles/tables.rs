//! The tables of a request, as they fill: each item once.

use std::{collections::HashMap, hash::Hash};

use super::{
    super::proto::AnyValue,
    proto::{Dictionary, Function, KeyValueAndUnit, Line, Link, Location, Mapping, Stack, ValueType},
};
use crate::report::{
    flame::{Kind, function},
    model::Frame,
};

/// A value of an attribute, which can be looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    Text(String),
    Number(u32),
    Flag(bool),
}

/// Items by index; the first is empty.
#[derive(Debug)]
struct Table<T> {
    items: Vec<T>,
    known: HashMap<T, i32>,
}

impl<T: Clone + Default + Eq + Hash> Default for Table<T> {
    fn default() -> Self {
        Self { items: vec![T::default()], known: HashMap::from([(T::default(), 0)]) }
    }
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn index(&mut self, item: T) -> i32 {
        if let Some(known) = self.known.get(&item) {
            return *known;
        }
        let index = next(self.items.len());
        self.items.push(item.clone());
        self.known.insert(item, index);
        index
    }
}

#[derive(Debug, Default)]
pub struct Tables {
    strings: Table<String>,
    functions: Table<Function>,
    mappings: Table<Mapping>,
    locations: Table<Location>,
    stacks: Table<Stack>,
    attributes: Vec<KeyValueAndUnit>,
    known_attributes: HashMap<(&'static str, Value), i32>,
}

impl Tables {
    fn text(&mut self, text: &str) -> i32 {
        match self.strings.known.get(text) {
            Some(known) => *known,
            None => self.strings.index(text.to_owned()),
        }
    }

    pub fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { type_strindex: self.text(kind), unit_strindex: self.text(unit) }
    }

    pub fn attribute(&mut self, key: &'static str, value: Value) -> i32 {
        if let Some(known) = self.known_attributes.get(&(key, value.clone())) {
            return *known;
        }
        // After the empty one, which is put in at the end.
        let index = next(self.attributes.len() + 1);
        let any = match value.clone() {
            Value::Text(text) => AnyValue::from(text),
            Value::Number(n) => n.into(),
            Value::Flag(flag) => flag.into(),
        };
        let key_strindex = self.text(key);
        self.attributes.push(KeyValueAndUnit { key_strindex, value: Some(any) });
        self.known_attributes.insert((key, value), index);
        index
    }

    pub fn stack(&mut self, location_indices: Vec<i32>) -> i32 {
        self.stacks.index(Stack { location_indices })
    }

    /// No frame: something that the reader has to know.
    pub fn note(&mut self, text: &str) -> i32 {
        let function_index = self.function(text, "", "", 0);
        let lines = vec![Line { function_index, ..Line::default() }];
        self.locations.index(Location { lines, ..Location::default() })
    }

    /// A frame and those that are inlined into it, innermost first.
    pub fn location(&mut self, frames: &[&Frame]) -> i32 {
        let lines = frames.iter().map(|frame| self.line(frame)).collect();
        let Some(host) = frames.last() else { return 0 };
        let (called, _) = function(host);
        let mapping_index = match host.module.as_deref() {
            Some(module) => {
                let filename_strindex = self.text(module);
                self.mappings.index(Mapping { filename_strindex })
            }
            None => 0,
        };
        let kind = frame_type(called.kind);
        let kind = kind.map(|kind| self.attribute("profile.frame.type", Value::Text(kind.to_owned())));
        self.locations.index(Location { mapping_index, lines, attribute_indices: kind.into_iter().collect() })
    }

    fn line(&mut self, frame: &Frame) -> Line {
        let (called, at) = function(frame);
        let whole = if frame.name == called.name || called.kind != Kind::Native { "" } else { &frame.name };
        let name = if called.name.is_empty() { "?" } else { &called.name };
        let function_index =
            self.function(name, whole, called.file.as_deref().unwrap_or(""), called.line.unwrap_or(0).into());
        // Of a function that is only known by where it begins, the column is that of its beginning.
        let column = frame.column.filter(|_| at.is_some()).unwrap_or(0);
        Line { function_index, line: at.or(called.line).unwrap_or(0).into(), column: column.into() }
    }

    fn function(&mut self, name: &str, whole: &str, file: &str, start_line: i64) -> i32 {
        let function = Function {
            name_strindex: self.text(name),
            system_name_strindex: self.text(whole),
            filename_strindex: self.text(file),
            start_line,
        };
        self.functions.index(function)
    }

    #[must_use]
    pub fn finish(self) -> Dictionary {
        let mut attribute_table = vec![KeyValueAndUnit::default()];
        attribute_table.extend(self.attributes);
        Dictionary {
            mapping_table: self.mappings.items,
            location_table: self.locations.items,
            function_table: self.functions.items,
            link_table: vec![Link::default()],
            string_table: self.strings.items,
            attribute_table,
            stack_table: self.stacks.items,
        }
    }
}

/// `profile.frame.type` of the conventions: where no value of theirs fits, there is none.
const fn frame_type(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Kernel => Some("kernel"),
        Kind::Native => Some("native"),
        Kind::Builtin
        | Kind::Js
        | Kind::Interpreted
        | Kind::Baseline
        | Kind::Optimized
        | Kind::Inlined
        | Kind::Wasm => Some("v8js"),
        Kind::Process | Kind::Thread | Kind::State | Kind::Async | Kind::Unknown | Kind::Note => None,
    }
}

/// The index of what comes next.
fn next(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}
