//! What a server waits for: where its processes say it, and what it calls it.
//!
//! Numbers of wait events change with nearly every version, and extensions add their own locks. So the server is asked: the function by
//! which it names them for `pg_stat_activity` is run over its memory (see [`crate::target::emulate`]).

use std::collections::BTreeSet;

use super::ElfFile;
use crate::{
    limits::{PG_WAIT_EVENT_NAME_BYTES_MAX, PG_WAIT_EVENTS_MAX},
    postgres::WaitEvent,
    target::{
        emulate::{Known, Machine, UNKNOWN},
        memory::LiveMemory,
        procfs::Memory,
    },
    units::{Pid, UserAddr},
};

/// A pointer to the word (version 14 and newer).
const POINTER: &str = "my_wait_event_info";
/// `const char *pgstat_get_wait_event(uint32)`.
const NAMER: &str = "pgstat_get_wait_event";

#[derive(Debug, Default)]
pub struct WaitEvents {
    pointer: Option<UserAddr>,
    namer: Option<UserAddr>,
    asked: BTreeSet<WaitEvent>,
    known: Known,
}

impl WaitEvents {
    pub fn of_program(elf: &ElfFile, bias: u64) -> Self {
        let found = elf.lookup_exported([POINTER, NAMER]).unwrap_or_default();
        let live = |name| Some(UserAddr(found.get(name)?.symbol()?.addr.0.wrapping_add(bias)));
        Self { pointer: live(POINTER), namer: live(NAMER), ..Self::default() }
    }

    /// Address of the pointer to the word in which a process says what it waits for: the same in all of them.
    #[must_use]
    pub fn pointer(&self) -> Option<UserAddr> {
        self.pointer
    }

    #[must_use]
    pub fn has_names(&self) -> bool {
        self.namer.is_some()
    }

    /// What a process waits for, 0 for nothing.
    #[must_use]
    pub fn of_process(&self, pid: Pid) -> Option<WaitEvent> {
        let memory = Memory::open(pid)?;
        memory.u32(UserAddr(memory.u64(self.pointer?)?)).map(WaitEvent)
    }

    /// What the server calls those events that were not asked for yet.
    pub fn names(&mut self, postmaster: Pid, events: impl IntoIterator<Item = WaitEvent>) -> Vec<(WaitEvent, String)> {
        let Some(function) = self.namer else { return Vec::new() };
        let mut names = Vec::new();
        for event in events {
            if self.asked.len() >= PG_WAIT_EVENTS_MAX || !self.asked.insert(event) {
                continue;
            }
            let memory = LiveMemory::of(postmaster);
            let at = Machine::new(&memory, &mut self.known).call(function, [u64::from(event.0), 0]);
            if let Err(fault) = &at {
                log::debug!("pid={postmaster} wait event {:#x}: {fault}", event.0);
            }
            let at = at.ok().filter(|at| *at != 0 && *at != UNKNOWN);
            let text = at.and_then(|at| Memory::open(postmaster)?.text(UserAddr(at), PG_WAIT_EVENT_NAME_BYTES_MAX));
            names.extend(text.filter(|text| is_name(text)).map(|text| (event, text)));
        }
        names
    }
}

/// What identifiers are made of: the rest is no name, as `unknown wait event` is none.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'))
}
