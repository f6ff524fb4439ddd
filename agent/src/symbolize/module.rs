//! The functions of one mapped file.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use blazesym::symbolize::Symbolizer;
use log::debug;

use super::{
    demangle,
    lines::{Lines, Place},
};
use crate::{
    limits::FUNCTION_NAMES_MAX,
    report::model::{Frame, FrameKind},
    target::{
        elf::{ElfFile, FileAddr, SymbolRange},
        procfs::{self, Mapping},
    },
    units::{Pid, UserAddr},
};

/// Prefix of V8's builtins in the symbol table: functions of the language, compiled ahead of time.
const BUILTIN: &str = "Builtins_";

/// A file, its functions, and where it is mapped.
pub struct Module {
    name: String,
    elf: ElfFile,
    lines: Option<Arc<Lines>>,
    /// What functions are called, by where they begin: an innermost frame is hardly ever at the same address twice, and often in the
    /// same function. To read and to demangle a name takes tens of microseconds.
    named: RefCell<HashMap<FileAddr, Frame>>,
}

impl Module {
    /// Reads the table of a mapped file; `None` if it cannot be opened or is not ELF.
    pub fn open(pid: Pid, mapping: &Mapping) -> Option<Self> {
        let (file, path) = procfs::open_mapped(pid, mapping).map_err(|error| debug!("{error}")).ok()?;
        let kept = file.try_clone().map_err(|error| debug!("{error}")).ok()?;
        let elf = ElfFile::from_file(file, &path).map_err(|error| debug!("{error}")).ok()?;
        let name = super::file_name(mapping).unwrap_or_default();
        let lines = Lines::of(&elf, &kept);
        Some(Self { name, elf, lines, named: RefCell::default() })
    }

    /// Bytes of memory that its symbols take, and by what to tell those: files that hold the same share them.
    pub fn held(&self) -> Option<(usize, usize)> {
        self.elf.symbols_held()
    }

    /// Names the code at a file offset: the functions inlined there, innermost first, and the one that holds them.
    ///
    /// By offset and not by address, as V8 maps its builtins a second time elsewhere.
    pub fn frames(&self, offset: u64, symbolizer: &Symbolizer, frames: &mut Vec<Frame>) {
        let Some(addr) = self.elf.addr_of_offset(offset) else { return };
        let places = self.lines.as_ref().map(|lines| lines.places(addr, symbolizer)).unwrap_or_default();
        if let Some((last, inlined)) = places.split_last() {
            frames.extend(inlined.iter().map(|place| Frame { inlined: true, ..self.frame_at(place) }));
            frames.push(self.frame_at(last));
            return;
        }
        let Some(function) = self.function(addr) else { return };
        let mut named = self.named.borrow_mut();
        if let Some(known) = named.get(&function.addr) {
            frames.push(known.clone());
            return;
        }
        let Some(name) = self.elf.name_of(function) else { return };
        let frame = self.frame(&name);
        if named.len() >= FUNCTION_NAMES_MAX {
            named.clear();
        }
        named.insert(function.addr, frame.clone());
        frames.push(frame);
    }

    fn frame(&self, name: &str) -> Frame {
        let (name, kind) = match name.strip_prefix(BUILTIN) {
            Some(builtin) => (builtin.to_owned(), FrameKind::Builtin),
            None => (demangle::readable(name), FrameKind::Native),
        };
        Frame { name, kind, module: Some(self.name.clone()), ..Frame::default() }
    }

    fn function(&self, addr: FileAddr) -> Option<&SymbolRange> {
        let functions = self.elf.functions();
        let next = functions.partition_point(|function| function.addr <= addr);
        let function = functions.get(next.checked_sub(1)?)?;
        // Hand-written assembly has no size: there, up to the next function.
        let within = addr.0 - function.addr.0;
        (function.size == 0 || within < u64::from(function.size)).then_some(function)
    }

    /// How far behind the begin of its function a file offset is.
    pub fn bytes_into_function(&self, offset: u64) -> Option<u64> {
        let addr = self.elf.addr_of_offset(offset)?;
        addr.0.checked_sub(self.function(addr)?.addr.0)
    }

    fn frame_at(&self, Place { name, file, line }: &Place) -> Frame {
        Frame { file: file.clone(), line: *line, ..self.frame(name) }
    }

    /// The class whose vtable an address lies in, if it is in the data that belong to this mapping.
    pub fn class_of_vptr(&self, mapping: &Mapping, vptr: UserAddr) -> Option<String> {
        let bias = self.elf.bias(mapping.start.0, mapping.offset)?;
        let class = self.elf.class_of_vptr(FileAddr(vptr.0.wrapping_sub(bias)))?;
        demangle::whole(&format!("_ZTV{class}"))
    }
}
