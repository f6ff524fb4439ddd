//! A process's memory as the kernel has it: which stretches there are, how far stacks are in use, and what was never touched.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt,
};

use super::procfs::{self, ProcError};
use crate::{
    limits::PROC_MAPS_BYTES_MAX,
    units::{Pid, Tid, UserAddr},
};

/// A private mapping that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    pub range: Range<u64>,
    pub writable: bool,
    /// Of no file.
    pub anonymous: bool,
    pub kind: Kind,
}

/// What the kernel says that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The stack of the first thread.
    Stack,
    /// What `brk(2)` gave.
    Brk,
    Other,
}

/// Private mappings that can be read. Takes the target's mmap lock for the time of the read.
pub fn readable(pid: Pid) -> Result<Vec<Region>, ProcError> {
    Ok(parse(&procfs::read(pid, "maps", PROC_MAPS_BYTES_MAX)?))
}

fn parse(maps: &[u8]) -> Vec<Region> {
    maps.split(|byte| *byte == b'\n').filter_map(|line| region(&String::from_utf8_lossy(line))).collect()
}

fn region(line: &str) -> Option<Region> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let range = hex(start)?..hex(end)?;
    let rights = fields.next()?.as_bytes();
    let inode = fields.nth(2)?;
    let name = fields.next().unwrap_or_default();
    // The kernel's own are no memory of the process.
    let is_special = name.starts_with("[v");
    (range.start < range.end && rights.first() == Some(&b'r') && rights.get(3) == Some(&b'p') && !is_special).then(
        || Region {
            range,
            writable: rights.get(1) == Some(&b'w'),
            anonymous: inode == "0",
            kind: match name {
                "[stack]" => Kind::Stack,
                "[heap]" => Kind::Brk,
                _ => Kind::Other,
            },
        },
    )
}

/// How far down a sleeping thread has used its stack; `None` for one that runs.
#[must_use]
pub fn stack_pointer(pid: Pid, tid: Tid) -> Option<UserAddr> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    parse_stack_pointer(&text)
}

/// The last but one of the words, whether there is a system call or not.
fn parse_stack_pointer(text: &str) -> Option<UserAddr> {
    let word = text.split_ascii_whitespace().rev().nth(1)?;
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().filter(|at| *at != 0).map(UserAddr)
}

/// `/proc/PID/pagemap`: which pages there are.
#[derive(Debug)]
pub struct PageMap(Option<File>);

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

impl PageMap {
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        Self(File::open(format!("/proc/{pid}/pagemap")).ok())
    }

    /// A bit for each of the 64 pages from an address on: in memory or swapped out. Where the kernel does not say, all are.
    #[must_use]
    pub fn present(&self, at: UserAddr) -> u64 {
        const PRESENT_OR_SWAPPED: u64 = 3 << 62;
        let mut entries = [[0; 8]; 64];
        let read = self.0.as_ref().map(|file| {
            let offset = at.0 / PAGE_BYTES * 8;
            file.read_exact_at(entries.as_flattened_mut(), offset).is_ok()
        });
        if read != Some(true) {
            return u64::MAX;
        }
        let is_there = |entry: &[u8; 8]| u64::from(u64::from_le_bytes(*entry) & PRESENT_OR_SWAPPED != 0);
        entries.iter().rev().fold(0, |bits, entry| bits << 1 | is_there(entry))
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_told_from_the_rest() {
        let maps = b"00400000-00800000 r--p 00000000 fe:00 77 /usr/bin/node\n\
            00800000-00900000 rw-p 00000000 fe:00 77 /usr/bin/node\n\
            10000000-20000000 ---p 00000000 00:00 0 \n\
            7f0000000000-7f0000040000 rw-p 00000000 00:00 0 \n\
            7f0000040000-7f0000050000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n\
            garbage\n\
            7ffd00000000-7ffd00020000 rw-p 00000000 00:00 0                          [stack]\n\
            7ffd00030000-7ffd00032000 r-xp 00000000 00:00 0                          [vdso]";
        let of: Vec<_> = parse(maps)
            .into_iter()
            .map(|region| (region.range.start, region.writable, region.anonymous, region.kind))
            .collect();
        let expected = [
            (0x40_0000, false, false, Kind::Other),
            (0x80_0000, true, false, Kind::Other),
            (0x7f00_0000_0000, true, true, Kind::Other),
            (0x7ffd_0000_0000, true, true, Kind::Stack),
        ];
        assert_eq!(of, expected);
    }

    #[test]
    fn a_sleeping_thread_shows_its_stack() {
        let check =
            |text, expected: Option<u64>| assert_eq!(parse_stack_pointer(text), expected.map(UserAddr), "{text}");
        check("281 0xd 0x1 0x400 0xffffffff 0x0 0x8 0x7ffd0a1f3b00 0x7f2c8e91e1a6\n", Some(0x7ffd_0a1f_3b00));
        check("-1 0x7ffd0a1f3b00 0x7f2c8e91e1a6\n", Some(0x7ffd_0a1f_3b00));
        check("running\n", None);
        check("", None);
    }

    #[test]
    fn memory_that_was_never_touched_is_known() {
        let pages = PageMap::of(Pid(std::process::id()));
        let bytes = 64 * usize::try_from(PAGE_BYTES).expect("a small number");
        // SAFETY: new memory, for this test alone; only its first byte is written.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let at = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE);
            at.cast::<u8>().write_volatile(1);
            at
        };
        assert_eq!(pages.present(UserAddr(at.addr() as u64)), 1);
    }
}
