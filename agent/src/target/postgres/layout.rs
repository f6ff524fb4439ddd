//! Where `PGPROC` has what is read of it, and the fixed parts of the lock table's structures.
//!
//! `LOCK`, `PROCLOCK` and the list links have been the same since version 9.6 (`storage/lock.h`, `storage/shmem.h`, `lib/ilist.h`);
//! each reading checks them by their pointers to each other. `PGPROC` changes with nearly every version: its fields are searched.

use super::first_field;
use crate::{
    postgres::PgPid,
    target::{elf::ElfFile, procfs::Memory},
    units::UserAddr,
};

/// Bytes of a `PGPROC` that are searched; it has 880 in version 15, and what is wanted lies in the first 150.
const PROC_SEARCHED_BYTES: usize = 512;

/// `Latch::owner_pid`, counted from the latch: a process id in `PGPROC` that is not the one that is looked for.
const LATCH_OWNER: u64 = 12;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// `PGPROC::pid`.
    pub pid: Option<u32>,
    /// `PGPROC::waitLock`; `waitProcLock` follows it, then `waitLockMode`, `heldLocks` and, from version 14 on, `waitStart`.
    pub wait_lock: Option<u32>,
}

/// From `PGPROC::waitLock`.
pub const WAIT_PROCLOCK: u64 = 8;
pub const WAIT_MODE: u64 = 16;
pub const WAIT_START: u64 = 24;

/// In a `LOCK`: heads of the lists of its `PROCLOCK`s and of its waiters, and the number of those.
pub const LOCK_PROCS: u64 = 24;
pub const LOCK_QUEUE: u64 = 40;
/// In a `PROCLOCK`: the link in the list of its lock.
pub const PROCLOCK_LINK: u64 = 32;

/// A server process that the layout is checked on.
pub struct Sample {
    pub pid: PgPid,
    pub proc: UserAddr,
    pub latch: UserAddr,
    pub memory: Memory,
}

impl Layout {
    /// From the machine code: the first thing that `RemoveFromWaitQueue(PGPROC *)` takes from its argument is `waitLock`.
    pub fn of_code(elf: &ElfFile) -> Self {
        let wait_lock = first_field(elf, "RemoveFromWaitQueue").filter(|at| at % 8 == 0 && *at > 0);
        Self { pid: None, wait_lock: wait_lock.filter(|at| (*at as usize) < PROC_SEARCHED_BYTES) }
    }

    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.pid.is_some() && self.wait_lock.is_some()
    }

    /// The process id is where each process has its own, but for the latch's owner.
    pub fn calibrate(&mut self, samples: &[Sample]) {
        let mut common: Option<Vec<u32>> = None;
        for sample in samples {
            let mut bytes = [0; PROC_SEARCHED_BYTES];
            if sample.memory.read(sample.proc, &mut bytes).is_none() {
                continue;
            }
            let owner = sample.latch.0.wrapping_add(LATCH_OWNER).wrapping_sub(sample.proc.0);
            let own = sample.pid.0.to_le_bytes();
            let places: Vec<u32> = (0u32..)
                .step_by(4)
                .zip(bytes.as_chunks::<4>().0)
                .filter(|(at, word)| **word == own && u64::from(*at) != owner)
                .map(|(at, _)| at)
                .collect();
            common = Some(match common {
                None => places,
                Some(before) => before.into_iter().filter(|at| places.contains(at)).collect(),
            });
        }
        // Several places are as good as none: no telling which.
        match common.as_deref() {
            Some([at]) => self.pid = Some(*at),
            Some([]) => self.pid = None,
            Some([_, ..]) | None => {}
        }
    }
}
