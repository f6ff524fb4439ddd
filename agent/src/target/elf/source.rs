//! Where the bytes of a file come from.

use std::{fs::File, io, os::unix::fs::FileExt};

/// What files and buffers have in common.
pub(super) trait ReadAt: Send + Sync {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    fn len(&self) -> u64;
}

pub(super) struct OpenFile {
    pub file: File,
    pub len: u64,
}

impl ReadAt for OpenFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(into.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn len(&self) -> u64 {
        u64::try_from(self.as_slice().len()).unwrap_or(u64::MAX)
    }
}
