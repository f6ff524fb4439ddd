//! The stack of a process's first thread, below which nobody is to read.
//!
//! The kernel makes that stack larger where the thread itself reaches below it. Who reads there from another process does no good:
//! from Linux 6.5 on a warning with the reader's call trace goes to the kernel's log, and on older ones the stack grows. A word that
//! is no pointer may lead there all the same, so that each read is asked about first.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{
    procfs,
    regions::{self, Kind},
};
use crate::units::{Pid, UserAddr};

/// Up to so far below its top a stack may begin, and nothing else is mapped: the least that the kernel leaves free for it by default.
const REACH: u64 = 8 << 20;

/// What is mapped is not looked up more often, as that takes a lock of the process: a stack that has grown since may be read a little
/// later.
const PACE: Duration = Duration::from_millis(100);

/// Where that stack is, as far as it has been asked for.
#[derive(Debug)]
pub struct MainStack {
    pid: Pid,
    /// Where it was when the process began; 0 if the kernel does not say.
    top: u64,
    hole: Mutex<Option<Hole>>,
}

/// What is free below the stack, and when it was looked up.
#[derive(Debug)]
struct Hole {
    range: Range<u64>,
    read: Instant,
}

impl MainStack {
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        Self { pid, top: procfs::start_stack(pid).unwrap_or(0), hole: Mutex::new(None) }
    }

    /// Whether so many bytes may be read, of what is mapped or is not.
    pub fn allows(&self, at: UserAddr, bytes: usize) -> bool {
        let wanted = at.0..at.0.saturating_add(bytes as u64);
        if wanted.end <= self.top.saturating_sub(REACH) || wanted.start >= self.top {
            return true;
        }
        let is_clear = |hole: &Hole| wanted.end <= hole.range.start || wanted.start >= hole.range.end;
        let mut hole = self.hole.lock().unwrap_or_else(PoisonError::into_inner);
        if hole.as_ref().is_none_or(|hole| !is_clear(hole) && hole.read.elapsed() >= PACE) {
            *hole = self.look();
        }
        // A process without one has gone.
        hole.as_ref().is_some_and(is_clear)
    }

    fn look(&self) -> Option<Hole> {
        let regions = regions::readable(self.pid).ok()?;
        let at = regions.iter().position(|region| region.kind == Kind::Stack)?;
        let below = at.checked_sub(1).and_then(|below| regions.get(below)).map_or(0, |region| region.range.end);
        Some(Hole { range: below..regions.get(at)?.range.start, read: Instant::now() })
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::{super::regions::Region, *};

    #[test]
    fn all_is_allowed_but_what_is_below_the_stack() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = Pid(child.id());
        // The program is another one once its own stack is there.
        while procfs::title(pid).is_none_or(|title| title != "sleep") {
            std::thread::sleep(Duration::from_millis(1));
        }
        let regions = regions::readable(pid).expect("its mappings");
        let stack = MainStack::of(pid);
        let of_stack = regions.iter().find(|region| region.kind == Kind::Stack).expect("a stack").range.clone();
        assert!(of_stack.contains(&stack.top), "{of_stack:x?} {:x}", stack.top);
        for Region { range, .. } in &regions {
            let bytes = usize::try_from(range.end - range.start).expect("a length");
            assert!(stack.allows(UserAddr(range.start), bytes), "{range:x?}");
        }
        for (below, bytes) in [(8, 8), (8, 16), (0x1_0000, 8), (0x2_0000, 0x2_0001)] {
            assert!(!stack.allows(UserAddr(of_stack.start - below), bytes), "{below:#x} below");
        }
        assert!(stack.allows(UserAddr(of_stack.end), 8), "what is above may be asked for, though nothing is there");
        child.kill().and_then(|()| child.wait()).expect("its end");
    }
}
