//! A target's memory: of a live process, or of a fixture.
//!
//! Whatever is read is hostile: it may be half written, moved by the collector meanwhile, or made up. Those who read bound what
//! they read and check what they find; here, an address that is not there is an error and nothing else.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::main_stack::MainStack;
use crate::units::{Pid, UserAddr};

/// Bytes of one part of a batch.
pub const PART_BYTES: usize = 64;

/// Bytes of a page of the processor, the least that is mapped.
const PAGE_BYTES: u64 = 4096;

/// Parts of one system call: the kernel's `UIO_MAXIOV`.
const PARTS_MAX: usize = 1024;

/// The memory at an address cannot be read: it is not mapped, not resident in a core file, or the process has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory at {:#x} cannot be read", .0.0)]
pub struct Unreadable(pub UserAddr);

/// One of many small reads that are made at once.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub at: UserAddr,
    pub bytes: [u8; PART_BYTES],
    pub read: bool,
}

impl Part {
    #[must_use]
    pub fn new(at: UserAddr) -> Self {
        Self { at, bytes: [0; PART_BYTES], read: false }
    }
}

/// Bytes by address.
pub trait Memory {
    /// Fills all of `into`, or fails.
    fn read_at(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Unreadable>;

    /// The same of an object that may be smaller than what is read of it, and the last one that is mapped: what lies on the next page, and
    /// cannot be read, is 0.
    fn read_object(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Unreadable> {
        if self.read_at(at, into).is_ok() {
            return Ok(());
        }
        into.fill(0);
        let there = usize::try_from(PAGE_BYTES - at.0 % PAGE_BYTES).unwrap_or(usize::MAX);
        let (there, _) = into.split_at_mut_checked(there).ok_or(Unreadable(at))?;
        self.read_at(at, there)
    }

    /// A word.
    fn word_at(&self, at: UserAddr) -> Result<u64, Unreadable> {
        let mut bytes = [0; 8];
        self.read_at(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Fills those buffers that can be filled; which these are, in their order.
    fn read_many(&self, parts: &mut [(UserAddr, &mut [u8])]) -> Vec<bool> {
        parts.iter_mut().map(|(at, into)| self.read_at(*at, into).is_ok()).collect()
    }

    /// Fills those parts that can be read, as objects are, and marks them.
    fn read_parts(&self, parts: &mut [Part]) {
        for part in parts {
            part.read = self.read_object(part.at, &mut part.bytes).is_ok();
        }
    }
}

/// The memory of a live process, by `process_vm_readv(2)`; by `/proc/PID/mem` where a sandbox forbids that.
#[derive(Debug)]
pub struct LiveMemory {
    pid: Pid,
    file: Option<File>,
    stack: MainStack,
}

impl LiveMemory {
    /// The file is opened at once, so that it stays with this process where its id is used again.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        Self { pid, file: File::open(format!("/proc/{pid}/mem")).ok(), stack: MainStack::of(pid) }
    }

    /// Reads as many of the vectors as can be read, one after the other; the bytes read.
    fn read_vectors(&self, vectors: &mut [(UserAddr, &mut [u8])]) -> io::Result<usize> {
        let allowed = vectors.iter().take_while(|(at, into)| self.stack.allows(*at, into.len())).count();
        match vectors.get_mut(..allowed) {
            None | Some([]) => Ok(0),
            Some(allowed) => system::read_vectors(self.pid, allowed),
        }
    }

    fn read_file(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Unreadable> {
        let file = self.file.as_ref().ok_or(Unreadable(at))?;
        file.read_exact_at(into, at.0).map_err(|_| Unreadable(at))
    }
}

impl Memory for LiveMemory {
    fn read_at(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Unreadable> {
        let wanted = into.len();
        match self.read_vectors(&mut [(at, into)]) {
            Ok(bytes) if bytes == wanted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied || is_unsupported(&error) => {
                self.read_file(at, into)
            }
            Ok(_) | Err(_) => Err(Unreadable(at)),
        }
    }

    fn read_many(&self, parts: &mut [(UserAddr, &mut [u8])]) -> Vec<bool> {
        let mut done = Vec::with_capacity(parts.len());
        let mut rest = parts;
        while !rest.is_empty() {
            let most = rest.len().min(PARTS_MAX);
            let (batch, _) = rest.split_at_mut(most);
            let mut bytes = self.read_vectors(batch).unwrap_or(0);
            let mut whole = 0;
            for (_, into) in batch.iter() {
                let Some(rest) = bytes.checked_sub(into.len()) else { break };
                bytes = rest;
                whole += 1;
                done.push(true);
            }
            if let Some((at, into)) = batch.get_mut(whole) {
                done.push(self.read_at(*at, into).is_ok());
                whole += 1;
            }
            rest = rest.get_mut(whole..).unwrap_or_default();
        }
        done
    }

    fn read_parts(&self, parts: &mut [Part]) {
        let mut rest = parts;
        while !rest.is_empty() {
            let most = rest.len().min(PARTS_MAX);
            let (batch, _) = rest.split_at_mut(most);
            let mut vectors: Vec<_> = batch.iter_mut().map(|part| (part.at, part.bytes.as_mut_slice())).collect();
            // What could be read ends before the first part that could not be.
            let whole = self.read_vectors(&mut vectors).map_or(0, |bytes| bytes / PART_BYTES);
            let mut done = whole;
            for part in batch.iter_mut().take(whole) {
                part.read = true;
            }
            if let Some(failed) = batch.get_mut(whole) {
                failed.read = self.read_object(failed.at, &mut failed.bytes).is_ok();
                done += 1;
            }
            rest = rest.get_mut(done..).unwrap_or_default();
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSYS)
}

/// The system call, and all that is unsafe about it.
mod system {
    use std::io;

    use crate::units::{Pid, UserAddr};

    /// Reads as many of the vectors as can be read, one after the other; the bytes read.
    pub fn read_vectors(pid: Pid, vectors: &mut [(UserAddr, &mut [u8])]) -> io::Result<usize> {
        let remote: Vec<libc::iovec> = vectors
            .iter()
            .map(|(at, into)| libc::iovec {
                iov_base: std::ptr::without_provenance_mut(usize::try_from(at.0).unwrap_or(0)),
                iov_len: into.len(),
            })
            .collect();
        let local: Vec<libc::iovec> = vectors
            .iter_mut()
            .map(|(_, into)| libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() })
            .collect();
        let count = libc::c_ulong::try_from(local.len()).unwrap_or(0);
        let pid = libc::pid_t::try_from(pid.0).unwrap_or(0);
        // SAFETY: each local vector is exclusively borrowed memory of exactly its length; remote addresses are only looked up in
        // the other process, by the kernel, which checks them.
        let bytes = unsafe { libc::process_vm_readv(pid, local.as_ptr(), count, remote.as_ptr(), count, 0) };
        usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
    }
}

/// Memory that is made up: regions by their first address.
#[derive(Clone, Debug, Default)]
pub struct Fixture {
    regions: Vec<(UserAddr, Vec<u8>)>,
}

impl Fixture {
    /// Adds a region; where regions overlap, the one that was added first counts.
    pub fn map(&mut self, at: UserAddr, bytes: Vec<u8>) {
        self.regions.push((at, bytes));
    }

    /// Writes into what is mapped; what is not is left.
    pub fn write(&mut self, at: UserAddr, bytes: &[u8]) {
        for (start, region) in &mut self.regions {
            let Some(offset) = at.0.checked_sub(start.0).and_then(|offset| usize::try_from(offset).ok()) else {
                continue;
            };
            let Some(end) = offset.checked_add(bytes.len()) else { continue };
            if let Some(place) = region.get_mut(offset..end) {
                place.copy_from_slice(bytes);
                return;
            }
        }
    }
}

impl Memory for Fixture {
    fn read_at(&self, at: UserAddr, into: &mut [u8]) -> Result<(), Unreadable> {
        let from = self.regions.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(at.0.checked_sub(start.0)?).ok()?;
            bytes.get(offset..offset.checked_add(into.len())?)
        });
        into.copy_from_slice(from.ok_or(Unreadable(at))?);
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    fn this() -> LiveMemory {
        LiveMemory::of(Pid(std::process::id()))
    }

    fn addr_of<T: ?Sized>(of: &T) -> UserAddr {
        UserAddr(std::ptr::from_ref(of).addr() as u64)
    }

    #[test]
    fn live_memory_is_read_both_ways() {
        let bytes = *b"sixteen bytes...";
        let mut read = [0; 16];
        assert_eq!(this().read_at(addr_of(&bytes), &mut read), Ok(()));
        assert_eq!(read, bytes);
        let mut read = [0; 16];
        assert_eq!(this().read_file(addr_of(&bytes), &mut read), Ok(()));
        assert_eq!(read, bytes);
        assert_eq!(this().read_at(UserAddr(8), &mut read), Err(Unreadable(UserAddr(8))));
    }

    #[test]
    fn parts_that_cannot_be_read_do_not_hide_the_others() {
        let bytes = [7; PART_BYTES];
        let addrs = [addr_of(&bytes), UserAddr(8), addr_of(&bytes), UserAddr(u64::MAX), addr_of(&bytes)];
        let mut parts: Vec<Part> = addrs.iter().cycle().take(3000).map(|at| Part::new(*at)).collect();
        this().read_parts(&mut parts);
        assert!(
            parts.iter().all(|part| part.read == (part.at == addr_of(&bytes)) && part.read == (part.bytes == bytes))
        );
    }

    #[test]
    fn an_object_at_the_end_of_what_is_mapped_is_read() {
        let mut memory = Fixture::default();
        memory.map(UserAddr(PAGE_BYTES), vec![7; 4096]);
        let read = |before_end: u64| {
            let mut bytes = [1; 64];
            memory.read_object(UserAddr(2 * PAGE_BYTES - before_end), &mut bytes).map(|()| bytes)
        };
        assert!(read(64).is_ok_and(|bytes| bytes == [7; 64]));
        assert!(read(56).is_ok_and(|bytes| bytes.starts_with(&[7; 56]) && bytes.ends_with(&[0; 8])));
        assert!(read(0).is_err());
    }

    #[test]
    fn a_process_that_has_gone_is_unreadable() {
        let mut child = std::process::Command::new("true").spawn().expect("a process");
        let memory = LiveMemory::of(Pid(child.id()));
        child.wait().expect("its end");
        assert!(memory.read_at(UserAddr(0x40_0000), &mut [0; 8]).is_err());
    }
}
