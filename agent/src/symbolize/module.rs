//! The functions of one mapped file.

use std::path::PathBuf;

use blazesym::symbolize::{
    Input, Sym, Symbolized, Symbolizer as Lines,
    source::{Elf, Source},
};
use log::debug;

use super::demangle;
use crate::{
    report::model::{Frame, FrameKind},
    target::{
        elf::{ElfFile, FileAddr, FunctionSymbol},
        procfs::{self, Mapping},
    },
    units::Pid,
};

/// Prefix of V8's builtins in the symbol table: functions of the language, compiled ahead of time.
const BUILTIN: &str = "Builtins_";

/// A file, its functions, and where it is mapped.
pub struct Module {
    name: String,
    path: PathBuf,
    elf: ElfFile,
    functions: Vec<FunctionSymbol>,
    bias: u64,
}

impl Module {
    /// Reads the table of a mapped file; `None` if it cannot be opened or is not ELF.
    pub fn open(pid: Pid, mapping: &Mapping) -> Option<Self> {
        let (file, path) = procfs::open_mapped(pid, mapping).map_err(|error| debug!("{error}")).ok()?;
        let elf = ElfFile::from_file(file, &path).map_err(|error| debug!("{error}")).ok()?;
        let functions = elf.functions().map_err(|error| debug!("{error}")).unwrap_or_default();
        let name = super::file_name(mapping).unwrap_or_default();
        let bias = elf.bias(mapping.start.0, mapping.offset).unwrap_or(0);
        Some(Self { name, path, elf, functions, bias })
    }

    /// Names the code at a file offset: the functions inlined there, innermost first, and the one that holds them.
    ///
    /// By offset and not by address, as V8 maps its builtins a second time elsewhere.
    pub fn frames(&self, offset: u64, lines: &Lines, frames: &mut Vec<Frame>) {
        let Some(addr) = self.elf.addr_of_offset(offset) else { return };
        if self.elf.has_debug_info() && self.with_lines(addr, lines, frames) {
            return;
        }
        let Some(name) = self.function(addr).and_then(|function| self.elf.name_of(function)) else { return };
        frames.push(self.frame(&name));
    }

    fn frame(&self, name: &str) -> Frame {
        let (name, kind) = match name.strip_prefix(BUILTIN) {
            Some(builtin) => (builtin.to_owned(), FrameKind::Builtin),
            None => (demangle::readable(name), FrameKind::Native),
        };
        Frame { name, kind, module: Some(self.name.clone()), ..Frame::default() }
    }

    fn function(&self, addr: FileAddr) -> Option<&FunctionSymbol> {
        let next = self.functions.partition_point(|function| function.addr <= addr);
        let function = self.functions.get(next.checked_sub(1)?)?;
        // Hand-written assembly has no size: there, up to the next function.
        let within = addr.0 - function.addr.0;
        (function.size == 0 || within < u64::from(function.size)).then_some(function)
    }

    /// By line information; false if there is none for this address.
    fn with_lines(&self, addr: FileAddr, lines: &Lines, frames: &mut Vec<Frame>) -> bool {
        let source = Source::Elf(Elf::new(&self.path));
        let Ok(Symbolized::Sym(symbol)) = lines.symbolize_single(&source, Input::VirtOffset(addr.0)) else {
            return false;
        };
        let Sym { name, inlined, code_info, .. } = symbol;
        for inner in inlined.iter().rev() {
            let (file, line) = inner.code_info.as_ref().map_or((None, None), place);
            frames.push(Frame { inlined: true, file, line, ..self.frame(&inner.name) });
        }
        let (file, line) = code_info.as_deref().map_or((None, None), place);
        frames.push(Frame { file, line, ..self.frame(&name) });
        true
    }

    /// The class whose vtable an address lies in.
    pub fn class_of_vptr(&self, vptr: u64) -> Option<String> {
        let class = self.elf.class_of_vptr(FileAddr(vptr.wrapping_sub(self.bias)))?;
        demangle::whole(&format!("_ZTV{class}"))
    }
}

fn place(info: &blazesym::symbolize::CodeInfo<'_>) -> (Option<String>, Option<u32>) {
    (Some(info.to_path().display().to_string()), info.line)
}
