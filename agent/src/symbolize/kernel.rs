//! Names of kernel functions, from `/proc/kallsyms`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    thread::JoinHandle,
};

use log::warn;

use crate::{
    limits::KERNEL_SYMBOLS_MAX,
    report::model::{Frame, FrameKind},
};

/// Functions by address, and their names one after the other.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    /// Address, and where the name begins.
    functions: Vec<(u64, u32)>,
    names: String,
}

impl KernelSymbols {
    /// Of the running kernel; empty where it hides its addresses.
    pub fn read() -> Self {
        match File::open("/proc/kallsyms") {
            Ok(file) => {
                let symbols = parse(BufReader::new(file));
                if symbols.functions.is_empty() {
                    warn!(
                        "kernel frames have no names: /proc/kallsyms hides addresses (CAP_SYSLOG, kernel.kptr_restrict)"
                    );
                }
                symbols
            }
            Err(error) => {
                warn!("kernel frames have no names: /proc/kallsyms: {error}");
                Self::default()
            }
        }
    }

    pub fn frame(&self, addr: u64) -> Frame {
        let name = self.name(addr).map_or_else(|| format!("{addr:#x}"), str::to_owned);
        Frame { name, kind: FrameKind::Kernel, ..Frame::default() }
    }

    #[must_use]
    pub fn name(&self, addr: u64) -> Option<&str> {
        let next = self.functions.partition_point(|(start, _)| *start <= addr);
        let (_, begin) = self.functions.get(next.checked_sub(1)?)?;
        self.names.get(*begin as usize..)?.split('\n').next()
    }
}

/// Those of the running kernel, read while something else is done: the kernel takes some 40 ms to write its list.
pub struct KernelAhead(Option<JoinHandle<KernelSymbols>>);

impl KernelAhead {
    #[must_use]
    pub fn read() -> Self {
        Self(std::thread::Builder::new().name("agent-kernel".into()).spawn(KernelSymbols::read).ok())
    }

    pub fn take(self) -> KernelSymbols {
        self.0.and_then(|reader| reader.join().ok()).unwrap_or_else(KernelSymbols::read)
    }
}

/// Lines of `address type name [module]`; only text, and only where addresses are not hidden.
pub fn parse(mut from: impl BufRead) -> KernelSymbols {
    let mut symbols = KernelSymbols::default();
    let mut line = String::new();
    while symbols.functions.len() < KERNEL_SYMBOLS_MAX {
        line.clear();
        if !matches!(from.read_line(&mut line), Ok(bytes) if bytes > 0) {
            break;
        }
        let mut fields = line.split_ascii_whitespace();
        let (Some(addr), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let Ok(addr) = u64::from_str_radix(addr, 16) else { continue };
        if addr == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            continue;
        }
        let Ok(begin) = u32::try_from(symbols.names.len()) else { break };
        symbols.functions.push((addr, begin));
        symbols.names.push_str(name);
        symbols.names.push('\n');
    }
    symbols.functions.sort_unstable();
    symbols.functions.dedup_by_key(|(addr, _)| *addr);
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let text = "ffffffff81000000 T _text\nffffffff81000100 t schedule\nffffffff81000200 D jiffies\nbad\n\
                    ffffffffc0000000 t probe\t[module]\n0000000000000000 T hidden\n";
        let symbols = parse(text.as_bytes());
        assert_eq!(symbols.name(0xffff_ffff_8100_0150), Some("schedule"));
        assert_eq!(symbols.name(0xffff_ffff_c000_0010), Some("probe"));
        assert_eq!(symbols.name(0x1000), None);
    }

    #[test]
    fn the_running_kernel_has_a_scheduler() {
        let symbols = KernelSymbols::read();
        let schedule = symbols.functions.iter().find(|(addr, _)| symbols.name(*addr) == Some("__schedule"));
        assert!(schedule.is_some());
    }
}
