//! Finds libuv's hidden functions in a file without `.symtab`, as distributions ship it.
//!
//! The exported functions around them are known by name, and the layout of `uv_loop_t` and `uv_work_t` has not moved from libuv 1.43
//! to 1.52. So a hidden function is found through the calls of an exported one, and taken only if it begins where
//! the unwind table says that a function begins and touches the fields that it must touch. What fails that is not guessed.

use std::collections::BTreeMap;

use iced_x86::Register;
use thiserror::Error;

use super::{
    disasm::Function,
    elf::{ElfError, ElfFile, FileAddr, Lookup, Symbol, Via},
};
use crate::limits::FUNCTION_BYTES_MAX;

/// Why a hidden function stays unknown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotRecovered {
    #[error("{exported} is not exported or cannot be decoded")]
    NoExport { exported: &'static str },
    #[error("no function that {exported} calls has the fields of it")]
    NoCandidate { exported: &'static str },
    #[error("{count} functions that {exported} calls have the fields of it")]
    Candidates { exported: &'static str, count: usize },
    #[error("{exported} does not hand it to uv__work_submit as expected")]
    NotHandedOver { exported: &'static str },
}

/// Offsets in `uv_loop_t`.
mod loop_field {
    pub const BACKEND_FD: i64 = 64;
    pub const WATCHERS: i64 = 104;
    pub const NWATCHERS: i64 = 112;
    pub const PREPARE_HANDLES: i64 = 0x180;
    pub const CHECK_HANDLES: i64 = 0x190;
    pub const IDLE_HANDLES: i64 = 0x1a0;
    pub const TIMER_HEAP: i64 = 520;
}

/// Offsets in `uv_work_t` from its `work_req`, which is what the pool's functions are handed.
mod work_field {
    pub const LOOP: i64 = 64 - 88;
    pub const WORK_CB: i64 = 72 - 88;
    pub const AFTER_WORK_CB: i64 = 80 - 88;
}

/// Offsets in `struct uv__work`.
mod uv_work {
    pub const DONE: i64 = 8;
    pub const LOOP: i64 = 16;
}

/// `uv__io_poll` keeps the answer of `epoll_pwait` on its stack: 1024 events of 12 bytes.
const EVENTS_BYTES: u64 = 1024 * 12;

type Recovered = BTreeMap<&'static str, Result<Symbol, NotRecovered>>;

const EXPORTED: [&str; 7] =
    ["uv_run", "uv_fs_read", "uv_fs_open", "uv_getaddrinfo", "uv_getnameinfo", "uv_random", "uv_queue_work"];

/// Every hidden function that probes want, found or not.
pub fn recover(elf: &ElfFile) -> Result<Recovered, ElfError> {
    let libuv = Libuv { elf, exported: elf.lookup(EXPORTED)? };
    let mut recovered = Recovered::new();
    libuv.recover_loop(&mut recovered);
    libuv.recover_pool(&mut recovered);
    Ok(recovered)
}

struct Libuv<'a> {
    elf: &'a ElfFile,
    exported: BTreeMap<&'static str, Lookup>,
}

impl Libuv<'_> {
    /// Runs `with` on the decoded function at `addr`, if there is one.
    fn at<T>(&self, addr: FileAddr, with: impl FnOnce(&Function<'_>) -> T) -> Option<T> {
        let bytes = self.elf.function_bytes(addr).filter(|bytes| *bytes <= FUNCTION_BYTES_MAX)?;
        let code = self.elf.bytes_at(addr, bytes);
        Function::decode(addr, &code).ok().map(|function| with(&function))
    }

    fn export<T>(&self, name: &'static str, with: impl FnOnce(&Function<'_>) -> T) -> Result<T, NotRecovered> {
        self.exported
            .get(name)
            .and_then(Lookup::symbol)
            .and_then(|symbol| self.at(symbol.addr, with))
            .ok_or(NotRecovered::NoExport { exported: name })
    }

    fn symbol(&self, addr: FileAddr) -> Symbol {
        Symbol { addr, size: self.elf.function_bytes(addr).unwrap_or(0), via: Via::Recovered }
    }

    /// Functions in this file that `name` calls directly; not those that it reaches over the procedure linkage table.
    fn callees(&self, name: &'static str) -> Result<Vec<FileAddr>, NotRecovered> {
        let mut callees: Vec<FileAddr> = self.export(name, |function| function.callees().collect())?;
        callees.sort();
        callees.dedup();
        callees.retain(|addr| self.elf.function_bytes(*addr).is_some());
        Ok(callees)
    }

    fn recover_loop(&self, recovered: &mut Recovered) {
        let mut add = |name, is_it: &dyn Fn(&Function<'_>) -> bool| {
            recovered.insert(name, self.only_callee("uv_run", is_it));
        };
        let walks = |handles| move |function: &Function<'_>| function.first_field_of_rdi() == Some(handles);
        add("uv__run_idle", &walks(loop_field::IDLE_HANDLES));
        add("uv__run_prepare", &walks(loop_field::PREPARE_HANDLES));
        add("uv__run_check", &walks(loop_field::CHECK_HANDLES));
        // The next timeout is computed from the same heap, but calls nobody.
        add("uv__run_timers", &|function| {
            function.fields().contains(&loop_field::TIMER_HEAP) && function.calls_indirectly()
        });
        add("uv__io_poll", &|function| {
            let fields = function.fields();
            [loop_field::BACKEND_FD, loop_field::WATCHERS, loop_field::NWATCHERS]
                .iter()
                .all(|field| fields.contains(field))
                && function.calls_indirectly()
                && function.stack_bytes() >= EVENTS_BYTES
        });
    }

    fn only_callee(
        &self,
        exported: &'static str,
        is_it: &dyn Fn(&Function<'_>) -> bool,
    ) -> Result<Symbol, NotRecovered> {
        let mut callees = self.callees(exported)?;
        callees.retain(|addr| self.at(*addr, is_it) == Some(true));
        self.only(exported, &callees)
    }

    fn only(&self, exported: &'static str, candidates: &[FileAddr]) -> Result<Symbol, NotRecovered> {
        match candidates {
            [] => Err(NotRecovered::NoCandidate { exported }),
            [one] => Ok(self.symbol(*one)),
            several => Err(NotRecovered::Candidates { exported, count: several.len() }),
        }
    }

    fn recover_pool(&self, recovered: &mut Recovered) {
        let submit = self.work_submit();
        recovered.insert("uv__work_submit", submit.clone());
        let rows = [
            ("uv_fs_open", "uv__fs_work", "uv__fs_done"),
            ("uv_getaddrinfo", "uv__getaddrinfo_work", "uv__getaddrinfo_done"),
            ("uv_getnameinfo", "uv__getnameinfo_work", "uv__getnameinfo_done"),
            ("uv_random", "uv__random_work", "uv__random_done"),
        ];
        for (exported, work, done) in rows {
            for (name, register) in [(work, Register::RCX), (done, Register::R8)] {
                let found = submit.clone().and_then(|submit| self.handed_over(exported, submit.addr, register));
                recovered.insert(name, found);
            }
        }
        if let (Some(Ok(fs_work)), Ok(open)) = (recovered.get("uv__fs_work"), self.callees("uv_fs_open"))
            && !open.contains(&fs_work.addr)
        {
            // Synchronous requests call it directly, so this was another function.
            recovered.insert("uv__fs_work", Err(NotRecovered::NotHandedOver { exported: "uv_fs_open" }));
        }
        recovered.insert("uv__queue_done", self.queue_done());
    }

    /// What all submitters call, and what fills in a `struct uv__work`.
    fn work_submit(&self) -> Result<Symbol, NotRecovered> {
        let mut common = self.callees("uv_fs_read")?;
        for exported in ["uv_fs_open", "uv_getaddrinfo", "uv_getnameinfo"] {
            let callees = self.callees(exported)?;
            common.retain(|addr| callees.contains(addr));
        }
        common.retain(|addr| {
            self.at(*addr, |function| {
                let fields = function.fields();
                fields.contains(&uv_work::DONE) && fields.contains(&uv_work::LOOP)
            }) == Some(true)
        });
        self.only("uv_fs_read", &common)
    }

    /// The function whose address `exported` passes to `uv__work_submit` in `register`, the same at each call.
    fn handed_over(
        &self,
        exported: &'static str,
        submit: FileAddr,
        register: Register,
    ) -> Result<Symbol, NotRecovered> {
        let mut loaded = self.export(exported, |function| function.loaded_before_calls(submit, register))?;
        loaded.dedup();
        match loaded.as_slice() {
            [Some(addr)] if self.elf.function_bytes(*addr).is_some() => Ok(self.symbol(*addr)),
            _ => Err(NotRecovered::NotHandedOver { exported }),
        }
    }

    /// `uv_queue_work` stores the addresses of `uv__queue_work` and `uv__queue_done`; the latter calls what follows the work.
    fn queue_done(&self) -> Result<Symbol, NotRecovered> {
        let exported = "uv_queue_work";
        // Compilers store the two addresses one by one, or as one vector of which a half may lie among the constants.
        let mut stored: Vec<FileAddr> = self.export(exported, |function| {
            function.addresses().chain(function.constants().filter_map(|at| self.elf.address_at(at))).collect()
        })?;
        stored.sort();
        stored.dedup();
        stored.retain(|addr| {
            self.at(*addr, |function| {
                let fields = function.fields();
                fields.contains(&work_field::AFTER_WORK_CB)
                    && fields.contains(&work_field::LOOP)
                    && !fields.contains(&work_field::WORK_CB)
            }) == Some(true)
        });
        self.only(exported, &stored)
    }
}
