//! The memory of a live process, read without stopping it.

use super::emulate::Source;
use crate::units::{Pid, UserAddr};

/// By `process_vm_readv(2)`.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    pub pid: Pid,
}

impl ProcessMemory {
    /// A word; `None` if it cannot be read.
    #[must_use]
    pub fn word(&self, at: UserAddr) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

impl Source for ProcessMemory {
    fn read(&self, at: UserAddr, into: &mut [u8]) -> bool {
        let Ok(pid) = libc::pid_t::try_from(self.pid.0) else { return false };
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let Ok(base) = usize::try_from(at.0) else { return false };
        let remote = libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(base), iov_len: into.len() };
        // SAFETY: `local` is all of `into`, which nobody else writes; the kernel checks `remote` against the other process.
        let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        usize::try_from(read).is_ok_and(|read| read == into.len())
    }
}
