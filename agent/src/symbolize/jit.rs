//! Names of compiled JavaScript from a perf map, where the program writes one (`node --perf-basic-prof`).
//!
//! V8 appends to the map as it compiles and as the collector moves code, so the map is read from where the last reading
//! ended, and of two lines about one address the later one counts.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use log::debug;

use crate::{
    limits::{PERF_MAP_ENTRIES_MAX, PERF_MAP_NAME_BYTES_MAX, PERF_MAP_NAMES_BYTES_MAX, PERF_MAP_READ_BYTES_MAX},
    printable::is_printable,
    report::model::{Frame, FrameKind},
    target::procfs::{FileIdentity, Process},
    units::Pid,
};

/// How often a map that grows is read on.
const PACE: Duration = Duration::from_secs(1);

/// Bytes read at a time; a longer line is no line.
const CHUNK_BYTES: usize = 64 << 10;

/// What a perf map says, by address.
#[derive(Debug, Default)]
pub struct PerfMap {
    code: Vec<Code>,
    /// Names, each ended by a line feed.
    names: String,
    file: Option<FileIdentity>,
    bytes_read: u64,
    looked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Code {
    start: u64,
    bytes: u32,
    /// Where in the names; what was learnt later lies further behind.
    name: u32,
}

impl Code {
    fn end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.bytes))
    }
}

impl PerfMap {
    /// The code at an address, if there is a map that knows it.
    pub fn frame(&mut self, pid: Pid, addr: u64) -> Option<Frame> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= PACE) {
            self.looked = Some(Instant::now());
            self.read_on(pid);
        }
        self.find(addr).map(frame)
    }

    #[must_use]
    pub fn find(&self, addr: u64) -> Option<&str> {
        let next = self.code.partition_point(|code| code.start <= addr);
        let code = self.code.get(next.checked_sub(1)?).filter(|code| addr < code.end())?;
        self.names.get(code.name as usize..)?.split('\n').next()
    }

    fn read_on(&mut self, pid: Pid) {
        let Some((file, identity, bytes)) = open(pid) else { return };
        if self.file != Some(identity) || bytes < self.bytes_read {
            *self = Self { file: Some(identity), looked: self.looked, ..Self::default() };
        }
        if bytes == self.bytes_read {
            return;
        }
        let end = self.bytes_read.saturating_add(PERF_MAP_READ_BYTES_MAX);
        let mut chunk = vec![0; CHUNK_BYTES];
        while self.bytes_read < end {
            let Ok(filled) = file.read_at(&mut chunk, self.bytes_read) else { break };
            let text = chunk.get(..filled).unwrap_or_default();
            let Some(lines) = whole_lines(text) else { break };
            self.learn(lines);
            self.bytes_read += lines.len() as u64;
        }
        self.settle();
    }

    /// Takes lines of `start size name`, both numbers in hexadecimal; others are stepped over.
    pub fn learn(&mut self, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n') {
            let Some((start, bytes, name)) = parse(line) else { continue };
            if self.code.len() >= PERF_MAP_ENTRIES_MAX || self.names.len() >= PERF_MAP_NAMES_BYTES_MAX {
                debug!("perf map is full: older code is forgotten, entries={}", self.code.len());
                self.code.clear();
                self.names.clear();
            }
            let Ok(at) = u32::try_from(self.names.len()) else { continue };
            self.names.extend(name.chars().filter(|c| is_printable(*c)));
            self.names.push('\n');
            self.code.push(Code { start, bytes, name: at });
        }
    }

    /// Sorts what was learnt, so that it can be found, and cuts what later code lies upon.
    pub fn settle(&mut self) {
        self.code.sort_unstable_by_key(|code| (code.start, std::cmp::Reverse(code.name)));
        let mut settled: Vec<Code> = Vec::with_capacity(self.code.len());
        for code in self.code.drain(..) {
            match settled.last_mut() {
                Some(before) if code.start < before.end() => {
                    if code.name < before.name {
                        continue;
                    }
                    before.bytes = u32::try_from(code.start - before.start).unwrap_or(before.bytes);
                    settled.push(code);
                }
                _ => settled.push(code),
            }
        }
        self.code = settled;
    }
}

/// Opens the target's map, if it is a plain file that the target's user or root wrote: anybody may put one in /tmp.
fn open(pid: Pid) -> Option<(File, FileIdentity, u64)> {
    let process = Process::read(pid).ok()?;
    let inner = process.status.pids.last().copied().unwrap_or(pid.0);
    let path = PathBuf::from(format!("/proc/{pid}/root/tmp/perf-{inner}.map"));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let metadata = file.metadata().ok()?;
    let trusted = metadata.is_file() && (metadata.uid() == 0 || metadata.uid() == process.status.uid);
    let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
    trusted.then_some((file, identity, metadata.len()))
}

/// What of a chunk can be parsed: to its last line feed, or all of a full one that has none. `None` is to wait for more.
fn whole_lines(chunk: &[u8]) -> Option<&[u8]> {
    match chunk.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => chunk.get(..=last),
        None => (chunk.len() == CHUNK_BYTES).then_some(chunk),
    }
}

fn parse(line: &[u8]) -> Option<(u64, u32, &str)> {
    let line = line.get(..PERF_MAP_NAME_BYTES_MAX).unwrap_or(line);
    let line = line.utf8_chunks().next()?.valid();
    let mut fields = line.splitn(3, ' ');
    let mut number = || u64::from_str_radix(fields.next()?.trim_start_matches("0x"), 16).ok();
    let (start, bytes) = (number()?, number()?);
    let name = fields.next().filter(|name| !name.is_empty())?;
    let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
    start.checked_add(u64::from(bytes)).map(|_| (start, bytes, name))
}

/// A frame from V8's own notation: `JS:*work /app/server.js:3:13` or, until V8 10, `LazyCompile:*work /app/server.js:3`.
fn frame(name: &str) -> Frame {
    const COMPILED: [&str; 6] = ["JS:", "LazyCompile:", "Function:", "Script:", "Eval:", "RegExp:"];
    const BUILT_IN: [&str; 2] = ["Builtin:", "BytecodeHandler:"];
    if let Some(builtin) = BUILT_IN.iter().find_map(|kind| name.strip_prefix(kind)) {
        return Frame { name: builtin.to_owned(), kind: FrameKind::Builtin, ..Frame::default() };
    }
    let Some(function) = COMPILED.iter().find_map(|kind| name.strip_prefix(kind)) else {
        return Frame { name: name.to_owned(), kind: FrameKind::Js, ..Frame::default() };
    };
    // The tier that compiled it: interpreter, baseline, and the optimising ones.
    let function = function.trim_start_matches(['~', '^', '+', '*', '\'']);
    // Names may hold spaces (`get size`), and so may paths: the path begins where one can.
    let split = ["/", "node:", "file:"].iter().filter_map(|head| function.find(&format!(" {head}"))).min();
    let (function, place) = match split.and_then(|at| function.split_at_checked(at)) {
        Some((function, place)) => (function, place.trim_start()),
        None => function.rsplit_once(' ').unwrap_or((function, "")),
    };
    let (file, line) = file_and_line(place);
    let name = if function.is_empty() { "(anonymous)" } else { function }.to_owned();
    Frame { name, kind: FrameKind::Js, file, line, ..Frame::default() }
}

/// `file:line` or `file:line:column`.
fn file_and_line(place: &str) -> (Option<String>, Option<u32>) {
    let number = |text: &str| text.parse::<u32>().ok();
    let whole = || (!place.is_empty()).then(|| place.to_owned());
    let Some((head, Some(last))) = place.rsplit_once(':').map(|(head, last)| (head, number(last))) else {
        return (whole(), None);
    };
    let (file, line) = match head.rsplit_once(':').map(|(file, line)| (file, number(line))) {
        Some((file, Some(line))) => (file, line),
        _ => (head, last),
    };
    ((!file.is_empty()).then(|| file.to_owned()), Some(line))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(text: &str) -> PerfMap {
        let mut map = PerfMap::default();
        map.learn(text.as_bytes());
        map.settle();
        map
    }

    #[test]
    fn the_later_line_counts() {
        let map = map("1000 10 old\n2000 20 JS:*f server.js:1\n1000 10 new\ngarbage\n3000 0 empty\n");
        assert_eq!(map.find(0x1008), Some("new"));
        assert_eq!(map.find(0x201f), Some("JS:*f server.js:1"));
        assert_eq!(map.find(0x2020), None);
        assert_eq!(map.find(0x3000), None);
    }

    #[test]
    fn code_that_was_overwritten_is_gone() {
        let earlier = map("1100 100 old\n1000 300 new\n");
        assert_eq!((earlier.find(0x1150), earlier.find(0x1000)), (Some("new"), Some("new")));
        let later = map("1000 300 old\n1100 100 new\n");
        assert_eq!((later.find(0x10ff), later.find(0x1150), later.find(0x1250)), (Some("old"), Some("new"), None));
    }

    #[test]
    fn a_line_that_is_being_written_waits() {
        assert_eq!(whole_lines(b"1000 10 a\n2000 1"), Some(b"1000 10 a\n".as_slice()));
        assert_eq!(whole_lines(b"2000 1"), None);
        assert_eq!(whole_lines(&vec![b'x'; CHUNK_BYTES]).map(<[u8]>::len), Some(CHUNK_BYTES));
    }

    #[test]
    fn a_full_map_keeps_the_newest() {
        let mut map = PerfMap::default();
        for at in 0..=PERF_MAP_ENTRIES_MAX {
            map.learn(format!("{:x} 8 f{at}", at * 16).as_bytes());
        }
        map.settle();
        assert_eq!(map.find(0), None);
        assert_eq!(map.find(PERF_MAP_ENTRIES_MAX as u64 * 16), Some(format!("f{PERF_MAP_ENTRIES_MAX}").as_str()));
    }

    #[test]
    fn notation_of_v8() {
        let check = |text: &str, name: &str, kind, file: Option<&str>, line| {
            let file = file.map(str::to_owned);
            assert_eq!(frame(text), Frame { name: name.to_owned(), kind, file, line, ..Frame::default() }, "{text}");
        };
        check("JS:*'fib /tmp/p.js:3:13", "fib", FrameKind::Js, Some("/tmp/p.js"), Some(3));
        check("LazyCompile:~fib /tmp/p.js:3", "fib", FrameKind::Js, Some("/tmp/p.js"), Some(3));
        check("JS:^get size /my app/a b.js:7:1", "get size", FrameKind::Js, Some("/my app/a b.js"), Some(7));
        check("JS:~ node:internal/x:1:1", "(anonymous)", FrameKind::Js, Some("node:internal/x"), Some(1));
        check("Builtin:ArrayMap", "ArrayMap", FrameKind::Builtin, None, None);
        check("whatever", "whatever", FrameKind::Js, None, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400), addr: u64) {
            let mut map = PerfMap::default();
            map.learn(&bytes);
            map.settle();
            let _ = map.find(addr).map(frame);
        }

        #[test]
        fn lines_do_not_lie_upon_each_other(lines in proptest::collection::vec((0u64..64, 1u32..16), 0..40)) {
            let lines: Vec<_> = lines.iter().map(|(start, bytes)| format!("{start:x} {bytes:x} n")).collect();
            let map = map(&lines.join("\n"));
            prop_assert!(map.code.is_sorted_by(|one, next| one.end() <= next.start));
        }
    }
}
