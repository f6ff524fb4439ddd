//! What a run reads and writes: pages of the process, copied as they are needed, and its own stack.

use super::{
    Fault, Machine, PAGE, PAGES_MAX, PRIVATE_FROM, SCRATCH, STACK_BYTES, STACK_TOP, Step, THREAD_BASE, number,
};
use crate::{target::memory::Memory, units::UserAddr};

impl<S: Memory> Machine<'_, S> {
    pub(super) fn page(&mut self, at: u64) -> Step<&mut [u8; PAGE as usize]> {
        let base = at & !(PAGE - 1);
        if !self.pages.contains_key(&base) {
            if self.pages.len() >= PAGES_MAX {
                return Err(Fault::Pages);
            }
            let mut page = Box::new([0; PAGE as usize]);
            let is_private = (STACK_TOP - STACK_BYTES..STACK_TOP).contains(&base)
                || base.abs_diff(THREAD_BASE) <= 8 * PAGE
                || base == SCRATCH;
            if base < PRIVATE_FROM {
                if self.source.read_at(UserAddr(base), page.as_mut_slice()).is_err() {
                    return Err(Fault::Unreadable(at));
                }
            } else if !is_private {
                return Err(Fault::Unreadable(at));
            }
            self.pages.insert(base, page);
        }
        self.pages.get_mut(&base).map(Box::as_mut).ok_or(Fault::Unreadable(at))
    }

    pub(super) fn load_bytes(&mut self, at: u64, into: &mut [u8]) -> Step<()> {
        for (offset, byte) in (0u64..).zip(into) {
            let at = at.wrapping_add(offset);
            *byte = self.page(at)?.get((at & (PAGE - 1)) as usize).copied().unwrap_or(0);
        }
        Ok(())
    }

    pub(super) fn store_bytes(&mut self, at: u64, bytes: &[u8]) -> Step<()> {
        for (offset, byte) in (0u64..).zip(bytes) {
            let at = at.wrapping_add(offset);
            let journaling = self.journaling;
            let Some(place) = self.page(at)?.get_mut((at & (PAGE - 1)) as usize) else { continue };
            let old = std::mem::replace(place, *byte);
            if journaling {
                self.journal.push((at, old));
            }
        }
        Ok(())
    }

    pub(super) fn load(&mut self, at: u64, size: usize) -> Step<u64> {
        let mut bytes = [0; 8];
        let size = size.min(8);
        let mut part = [0; 8];
        self.load_bytes(at, part.get_mut(..size).unwrap_or_default())?;
        bytes.copy_from_slice(&part);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn store(&mut self, at: u64, size: usize, value: u64) -> Step<()> {
        self.store_bytes(at, value.to_le_bytes().get(..size.min(8)).unwrap_or_default())
    }

    pub(super) fn load_vector(&mut self, at: u64, size: usize) -> Step<u128> {
        let mut bytes = [0; 16];
        self.load_bytes(at, bytes.get_mut(..size.min(16)).unwrap_or_default())?;
        Ok(u128::from_le_bytes(bytes))
    }

    pub(super) fn push(&mut self, value: u64) -> Step<()> {
        let top = self.get(number::RSP).wrapping_sub(8);
        self.set(number::RSP, top);
        self.store(top, 8, value)
    }

    pub(super) fn pop(&mut self) -> Step<u64> {
        let top = self.get(number::RSP);
        self.set(number::RSP, top.wrapping_add(8));
        self.load(top, 8)
    }
}
