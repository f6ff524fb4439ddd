//! Names of compiled JavaScript from a perf map, where the program writes one (`node --perf-basic-prof`).

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{limits::PERF_MAP_BYTES_MAX, target::procfs::Process, units::Pid};

/// How often a map that grows is read again.
const PACE: Duration = Duration::from_secs(2);

/// Entries of a perf map, by address; later ones replace earlier ones that they overlap.
#[derive(Debug, Default)]
pub struct PerfMap {
    entries: Vec<Entry>,
    bytes_read: u64,
    looked: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub start: u64,
    pub end: u64,
    pub name: String,
}

impl PerfMap {
    /// The name of the code at an address, if there is a map that knows it.
    pub fn name(&mut self, pid: Pid, addr: u64) -> Option<String> {
        if let Some(name) = self.find(addr) {
            return Some(name);
        }
        if self.looked.is_none_or(|looked| looked.elapsed() >= PACE) {
            self.looked = Some(Instant::now());
            self.refresh(pid);
        }
        self.find(addr)
    }

    fn find(&self, addr: u64) -> Option<String> {
        let next = self.entries.partition_point(|entry| entry.start <= addr);
        let entry = self.entries.get(next.checked_sub(1)?)?;
        (addr < entry.end).then(|| entry.name.clone())
    }

    fn refresh(&mut self, pid: Pid) {
        let Some((file, bytes)) = open(pid) else { return };
        if bytes == self.bytes_read {
            return;
        }
        let mut text = Vec::new();
        if file.take(PERF_MAP_BYTES_MAX).read_to_end(&mut text).is_ok() {
            self.entries = parse(&text);
            self.bytes_read = bytes;
        }
    }
}

/// Opens the target's map, if it is a plain file that the target's user or root wrote: anybody may put one in /tmp.
fn open(pid: Pid) -> Option<(File, u64)> {
    let process = Process::read(pid).ok()?;
    let inner = process.status.pids.last().copied().unwrap_or(pid.0);
    let path = PathBuf::from(format!("/proc/{pid}/root/tmp/perf-{inner}.map"));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let trusted = metadata.is_file() && (metadata.uid() == 0 || metadata.uid() == process.status.uid);
    trusted.then_some((file, metadata.len()))
}

/// Lines of `start size name`, both in hexadecimal; others are stepped over.
#[must_use]
pub fn parse(text: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else { continue };
        let mut fields = line.splitn(3, ' ');
        let (Some(start), Some(size), Some(name)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
        let (Some(start), Some(size)) = (number(start), number(size)) else { continue };
        let Some(end) = start.checked_add(size).filter(|_| size > 0 && !name.is_empty()) else { continue };
        entries.push(Entry { start, end, name: name.chars().filter(|c| !c.is_control()).take(256).collect() });
    }
    // Code moves: of two entries with the same start, the later line counts.
    entries.reverse();
    entries.sort_by_key(|entry| entry.start);
    entries.dedup_by_key(|entry| entry.start);
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_later_line_counts() {
        let entries = parse(b"1000 10 old\n2000 20 JS:*f server.js:1\n1000 10 new\ngarbage\n3000 0 empty\n");
        assert_eq!(entries.len(), 2);
        let map = PerfMap { entries, ..PerfMap::default() };
        assert_eq!(map.find(0x1008).as_deref(), Some("new"));
        assert_eq!(map.find(0x201f).as_deref(), Some("JS:*f server.js:1"));
        assert_eq!(map.find(0x2020), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), addr: u64) {
            let map = PerfMap { entries: parse(&bytes), ..PerfMap::default() };
            let _ = map.find(addr);
        }
    }
}
