//! What waits on disk: segments of records, written in order, read in order, and deleted when they have arrived.
//!
//! A segment is [`MAGIC`], then entries of length (`u32`), checksum (`u32`, CRC-32 of signal and bytes), signal (`u8`) and bytes,
//! little-endian. An agent that is killed leaves whole entries and at most one that is cut short, which the checksum tells; a
//! machine that loses its power may lose the segment that was being written. `cursor` says how far the first one has been
//! delivered: without it, at most a segment is delivered twice.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    account::{Item, Signal},
    config::StreamError,
};

/// The first bytes of a segment; the last of them is the version.
pub const MAGIC: &[u8; 8] = b"agspool\x01";

/// A segment is closed when it is longer than this: what may be delivered twice after a crash.
const SEGMENT_BYTES: u64 = 1 << 20;

/// No record is longer.
pub const ENTRY_BYTES_MAX: usize = 16 << 20;

const HEAD_BYTES: usize = 9;

/// Why an entry could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("it is cut short")]
    CutShort,
    #[error("it is damaged")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The next entry of a segment whose magic has been read; `None` at its end.
pub fn read_entry(from: &mut impl Read) -> Result<Option<Item>, EntryError> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    from.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    if head.is_empty() {
        return Ok(None);
    }
    let (Some((len, rest)), Some(signal)) = (head.split_first_chunk(), head.get(HEAD_BYTES - 1)) else {
        return Err(EntryError::CutShort);
    };
    let Some(checksum) = rest.first_chunk() else { return Err(EntryError::CutShort) };
    let (len, checksum) = (u32::from_le_bytes(*len) as usize, u32::from_le_bytes(*checksum));
    let signal = signal_of(*signal).ok_or(EntryError::Damaged)?;
    if len > ENTRY_BYTES_MAX {
        return Err(EntryError::Damaged);
    }
    let mut bytes = Vec::new();
    from.by_ref().take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() < len {
        return Err(EntryError::CutShort);
    }
    if checksum_of(signal, &bytes) != checksum {
        return Err(EntryError::Damaged);
    }
    Ok(Some(Item { signal, bytes }))
}

fn write_entry(into: &mut Vec<u8>, item: &Item) -> io::Result<()> {
    let len = u32::try_from(item.bytes.len()).ok().filter(|len| *len as usize <= ENTRY_BYTES_MAX);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record too long for the spool"))?;
    into.extend(len.to_le_bytes());
    into.extend(checksum_of(item.signal, &item.bytes).to_le_bytes());
    into.push(code_of(item.signal));
    into.extend(&item.bytes);
    Ok(())
}

const fn code_of(signal: Signal) -> u8 {
    match signal {
        Signal::Line => 0,
        Signal::Metrics => 1,
        Signal::Logs => 2,
        Signal::Profiles => 3,
    }
}

const fn signal_of(code: u8) -> Option<Signal> {
    match code {
        0 => Some(Signal::Line),
        1 => Some(Signal::Metrics),
        2 => Some(Signal::Logs),
        3 => Some(Signal::Profiles),
        _ => None,
    }
}

fn checksum_of(signal: Signal, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[code_of(signal)]);
    hasher.update(bytes);
    hasher.finalize()
}

#[derive(Debug)]
struct Segment {
    number: u64,
    /// Whole entries; what follows them does not count.
    bytes: u64,
    /// Entries that are not delivered yet.
    left: u64,
}

/// The directory of one stream's segments.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    bytes_max: u64,
    /// The oldest first; the last may be open for writing.
    segments: VecDeque<Segment>,
    writing: Option<File>,
    /// Where in the first segment the next entry is.
    offset: u64,
    /// Somebody was told that the disk does not take more.
    has_complained: bool,
    /// Held for as long as the spool is used.
    _lock: File,
}

/// Entries that were read, and are still on disk.
#[derive(Debug, Default)]
pub struct Portion {
    pub items: Vec<Item>,
    /// How many they are, also when they are somewhere else.
    pub taken: u64,
    /// Where the first segment goes on after them.
    end: u64,
    /// Entries of the segment that are lost.
    pub lost: u64,
}

impl Spool {
    /// Opens a directory, makes it if need be, and counts what an earlier run has left there.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self, StreamError> {
        let fail = |error| StreamError::Spool { path: directory.to_owned(), error };
        fs::create_dir_all(directory).map_err(fail)?;
        let lock = File::create(directory.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StreamError::SpoolTaken { path: directory.to_owned() }),
            Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
        let mut spool = Self {
            directory: directory.to_owned(),
            bytes_max,
            segments: VecDeque::new(),
            writing: None,
            offset: MAGIC.len() as u64,
            has_complained: false,
            _lock: lock,
        };
        spool.recover().map_err(fail)?;
        Ok(spool)
    }

    /// Entries on disk.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|segment| segment.left).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.iter().all(|segment| segment.left == 0)
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:016}.spool"))
    }

    fn recover(&mut self) -> io::Result<()> {
        let mut numbers: Vec<u64> = fs::read_dir(&self.directory)?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".spool")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let cursor = self.read_cursor();
        for (at, number) in numbers.into_iter().enumerate() {
            let from = cursor.filter(|(segment, _)| *segment == number && at == 0).map_or(0, |(_, offset)| offset);
            let (segment, offset) = scan(&self.path(number), number, from)?;
            if segment.left == 0 {
                fs::remove_file(self.path(number))?;
            } else {
                if self.segments.is_empty() {
                    self.offset = offset;
                }
                self.segments.push_back(segment);
            }
        }
        Ok(())
    }

    fn read_cursor(&self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(self.directory.join("cursor")).ok()?;
        let (segment, offset) = text.trim().split_once(' ')?;
        Some((segment.parse().ok()?, offset.parse().ok()?))
    }

    fn write_cursor(&self) -> io::Result<()> {
        let Some(first) = self.segments.front() else { return Ok(()) };
        let next = self.directory.join("cursor.next");
        fs::write(&next, format!("{} {}\n", first.number, self.offset))?;
        fs::rename(next, self.directory.join("cursor"))
    }

    /// Writes as many as there is room for, and says how many. An error is of the disk, and nothing was written.
    pub fn append(&mut self, items: &[Item]) -> io::Result<usize> {
        let mut buffer = Vec::new();
        let mut n = 0;
        let room = self.bytes_max.saturating_sub(self.bytes());
        for item in items {
            if (buffer.len() + HEAD_BYTES + item.bytes.len()) as u64 > room {
                break;
            }
            write_entry(&mut buffer, item)?;
            n += 1;
        }
        if n == 0 {
            return Ok(0);
        }
        self.begin_segment()?;
        let (Some(file), Some(segment)) = (&mut self.writing, self.segments.back_mut()) else { return Ok(0) };
        if let Err(error) = file.write_all(&buffer) {
            // What was written of it goes; where even that fails, the next segment is another file.
            let _ = file.set_len(segment.bytes).and_then(|()| file.seek(SeekFrom::End(0)));
            self.writing = None;
            return Err(error);
        }
        segment.bytes += buffer.len() as u64;
        segment.left += n as u64;
        self.has_complained = false;
        if segment.bytes > SEGMENT_BYTES {
            file.sync_data()?;
            self.writing = None;
        }
        Ok(n)
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        if self.writing.is_some() {
            return Ok(());
        }
        // Those that were begun and hold nothing.
        while let Some(last) = self.segments.pop_back() {
            if last.left > 0 {
                self.segments.push_back(last);
                break;
            }
            fs::remove_file(self.path(last.number))?;
        }
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let mut file = File::create(self.path(number))?;
        file.write_all(MAGIC)?;
        if self.segments.is_empty() {
            self.offset = MAGIC.len() as u64;
        }
        self.segments.push_back(Segment { number, bytes: MAGIC.len() as u64, left: 0 });
        self.writing = Some(file);
        Ok(())
    }

    /// The oldest entries, of one signal. What cannot be read is lost with the rest of its segment.
    pub fn front(&mut self, records_max: usize, bytes_max: usize) -> Portion {
        let Some(first) = self.segments.front() else { return Portion::default() };
        let mut portion = Portion { end: self.offset, ..Portion::default() };
        let mut bytes = 0;
        let read = File::open(self.path(first.number)).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            Ok(BufReader::new(file.take(first.bytes.saturating_sub(self.offset))))
        });
        let Ok(mut from) = read else {
            portion.lost = first.left;
            return portion;
        };
        while portion.items.len() < records_max && portion.taken < first.left {
            let Ok(Some(item)) = read_entry(&mut from) else {
                portion.lost = first.left - portion.taken;
                break;
            };
            bytes += item.bytes.len();
            let head = portion.items.first().map(|head| head.signal);
            let is_other = head.is_some_and(|head| head != item.signal || head.together(2) == 1);
            if is_other || (bytes > bytes_max && !portion.items.is_empty()) {
                break;
            }
            portion.end += (HEAD_BYTES + item.bytes.len()) as u64;
            portion.items.push(item);
            portion.taken += 1;
        }
        portion
    }

    /// What was read has arrived, or is given up: it goes.
    pub fn advance(&mut self, portion: &Portion) -> io::Result<()> {
        let Some(first) = self.segments.front_mut() else { return Ok(()) };
        first.left = first.left.saturating_sub(portion.taken + portion.lost);
        self.offset = portion.end;
        if first.left > 0 {
            return self.write_cursor();
        }
        let number = first.number;
        if self.segments.len() == 1 {
            self.writing = None;
        }
        self.segments.pop_front();
        self.offset = MAGIC.len() as u64;
        fs::remove_file(self.path(number))
    }

    /// Whether a failure shall be told: the first one of a row.
    pub const fn complain(&mut self) -> bool {
        !std::mem::replace(&mut self.has_complained, true)
    }

    /// What is written is on the disk.
    pub fn sync(&mut self) -> io::Result<()> {
        self.writing.as_ref().map_or(Ok(()), File::sync_data)
    }
}

/// Counts the whole entries of a segment from an offset on; one at which no entry begins counts as its beginning.
fn scan(path: &Path, number: u64, from: u64) -> io::Result<(Segment, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut segment = Segment { number, bytes: MAGIC.len() as u64, left: 0 };
    let mut magic = Vec::new();
    file.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
    if magic != MAGIC {
        return Ok((segment, 0));
    }
    let (mut total, mut before) = (0, None);
    while let Ok(Some(item)) = read_entry(&mut file) {
        if segment.bytes == from {
            before = Some(total);
        }
        total += 1;
        segment.bytes += (HEAD_BYTES + item.bytes.len()) as u64;
    }
    if segment.bytes == from {
        before = Some(total);
    }
    segment.left = total - before.unwrap_or(0);
    Ok((segment, if before.is_some() { from } else { MAGIC.len() as u64 }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn items(range: std::ops::Range<usize>) -> Vec<Item> {
        range.map(|n| Item { signal: Signal::Line, bytes: format!("record {n}\n").into_bytes() }).collect()
    }

    fn all(spool: &mut Spool) -> Vec<Item> {
        let mut all = Vec::new();
        while !spool.is_empty() {
            let portion = spool.front(7, 1 << 20);
            all.extend(portion.items.clone());
            assert_eq!(portion.lost, 0);
            spool.advance(&portion).unwrap();
        }
        all
    }

    #[test]
    fn what_is_spooled_comes_back_in_order_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(spool.append(&items(0..10)).unwrap(), 10);
        let portion = spool.front(4, 1 << 20);
        spool.advance(&portion).unwrap();
        assert_eq!(spool.append(&items(10..20)).unwrap(), 10);
        assert_eq!(all(&mut spool), items(4..20));
        assert_eq!(spool.append(&items(20..21)).unwrap(), 1);
        assert_eq!(all(&mut spool), items(20..21));
        assert_eq!(spool.bytes(), 0);
    }

    #[test]
    fn what_goes_alone_comes_back_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        let signals = [Signal::Logs, Signal::Logs, Signal::Profiles, Signal::Profiles, Signal::Logs];
        spool.append(&signals.map(|signal| Item { signal, bytes: vec![1] })).unwrap();
        for wanted in [2, 1, 1, 1] {
            let portion = spool.front(7, 1 << 20);
            assert_eq!(portion.items.len(), wanted);
            spool.advance(&portion).unwrap();
        }
        assert!(spool.is_empty());
    }

    #[test]
    fn a_restart_goes_on_where_the_last_run_was() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        spool.append(&items(0..10)).unwrap();
        let portion = spool.front(4, 1 << 20);
        spool.advance(&portion).unwrap();
        assert!(matches!(Spool::open(directory.path(), 1), Err(StreamError::SpoolTaken { .. })));
        drop(spool);
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        assert_eq!(spool.len(), 6);
        spool.append(&items(10..12)).unwrap();
        assert_eq!(all(&mut spool), items(4..12));
    }

    #[test]
    fn an_entry_that_was_cut_short_ends_its_segment_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        spool.append(&items(0..3)).unwrap();
        let path = spool.path(1);
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
            let left = usize::try_from(spool.len()).unwrap();
            assert!(left < 3, "{len}");
            assert_eq!(all(&mut spool), items(0..left));
        }
    }

    #[test]
    fn what_is_damaged_while_it_lies_there_is_counted_as_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 1 << 20).unwrap();
        spool.append(&items(0..3)).unwrap();
        let mut bytes = fs::read(spool.path(1)).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(spool.path(1), bytes).unwrap();
        let portion = spool.front(10, 1 << 20);
        assert_eq!((portion.items.len(), portion.lost), (2, 1));
        spool.advance(&portion).unwrap();
        assert!(spool.is_empty());
    }

    #[test]
    fn it_takes_no_more_than_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(directory.path(), 100).unwrap();
        let taken = spool.append(&items(0..100)).unwrap();
        assert!((1..10).contains(&taken));
        assert_eq!(spool.append(&items(0..1)).unwrap(), 0);
        assert_eq!(all(&mut spool), items(0..taken));
    }
}
