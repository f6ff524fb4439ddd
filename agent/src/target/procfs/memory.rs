//! Memory of a process, read while it runs.

use std::{fs::File, os::unix::fs::FileExt};

use super::path_of;
use crate::units::{Pid, UserAddr};

/// The memory of a process, for as long as that lives.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    #[must_use]
    pub fn open(pid: Pid) -> Option<Self> {
        File::open(path_of(pid, "mem")).ok().map(Self)
    }

    pub fn read(&self, at: UserAddr, into: &mut [u8]) -> Option<()> {
        self.0.read_exact_at(into, at.0).ok()
    }

    #[must_use]
    pub fn array<const N: usize>(&self, at: UserAddr) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes).map(|()| bytes)
    }

    #[must_use]
    pub fn u32(&self, at: UserAddr) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    #[must_use]
    pub fn u64(&self, at: UserAddr) -> Option<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }

    /// The string at an address, up to its NUL and at most so many bytes.
    #[must_use]
    pub fn text(&self, at: UserAddr, most: u32) -> Option<String> {
        let mut bytes = vec![0; most as usize];
        self.read(at, &mut bytes)?;
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// Four bytes of the process's memory.
#[must_use]
pub fn memory_u32(pid: Pid, at: UserAddr) -> Option<u32> {
    Memory::open(pid)?.u32(at)
}
