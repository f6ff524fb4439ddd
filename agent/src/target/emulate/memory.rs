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
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let (part, tail) = rest.split_at_mut(within_page(at, rest.len()));
            let page = self.page(at)?;
            part.copy_from_slice(page.get(offset(at)..).and_then(|page| page.get(..part.len())).unwrap_or_default());
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn store_bytes(&mut self, at: u64, bytes: &[u8]) -> Step<()> {
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(within_page(at, rest.len()));
            let journaling = self.journaling;
            let place = self.page(at)?.get_mut(offset(at)..).and_then(|page| page.get_mut(..part.len()));
            let place = place.unwrap_or_default();
            let old = journaling.then(|| place.to_vec());
            place.copy_from_slice(part);
            self.journal.extend((at..).zip(old.into_iter().flatten()));
            at = at.wrapping_add(part.len() as u64);
            rest = tail;
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

/// Where in its page an address is.
fn offset(at: u64) -> usize {
    (at & (PAGE - 1)) as usize
}

/// How many of so many bytes are still in the page of the first one.
fn within_page(at: u64, len: usize) -> usize {
    len.min(PAGE as usize - offset(at))
}
