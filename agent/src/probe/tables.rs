//! The tables by which the kernel half unwinds code without frame pointers: filled file by file, shared by all processes.

use std::{
    collections::HashMap,
    mem::size_of,
    os::{fd::AsFd, unix::fs::MetadataExt},
    ptr::NonNull,
};

use agent_ebpf::state::{REGIONS_MAX, Region, Regions, UNWIND_ROWS_MAX, UnwindRow};
use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use log::debug;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    allotment::{Allotment, Rows},
    attach::Probes,
    maps::MapsError,
};
use crate::{
    limits::UNWIND_FILES_KNOWN_MAX,
    target::{
        content::Content,
        elf::ElfFile,
        procfs::{self, FileIdentity, Mapping},
        unwind,
    },
    units::Pid,
};

const REGIONS: usize = size_of::<Regions>();
const ROWS_BYTES: usize = UNWIND_ROWS_MAX as usize * size_of::<UnwindRow>();

/// What of a process is unwound by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    pub files: usize,
    pub rows: u32,
    /// Rows of the file that keeps frame pointers.
    pub exceptions: u32,
    /// Files for which there was no room, or too little of it in one process.
    pub left_out: usize,
}

/// The tables, and what has been put into them.
pub struct Tables {
    regions: BpfHashMap<MapData, u32, [u8; REGIONS]>,
    rows: SharedRows,
    stamp: u32,
    allotment: Allotment,
    /// What is in files that were read.
    contents: HashMap<FileIdentity, Content>,
    processes: HashMap<Pid, Process>,
}

/// What a process had mapped when it was looked at.
struct Process {
    keeps_frame_pointers: Option<FileIdentity>,
    mappings: Vec<Mapping>,
    /// By which it is unwound.
    tables: Vec<Content>,
}

impl Tables {
    /// Takes the maps out of the loaded object.
    pub fn take(probes: &mut Probes) -> Result<Self, MapsError> {
        let mut take = |name: &'static str| probes.ebpf.take_map(name).ok_or(MapsError::Missing(name));
        let regions =
            BpfHashMap::try_from(take("REGIONS")?).map_err(|source| MapsError::Access { name: "REGIONS", source })?;
        let Map::Array(rows) = take("UNWIND_ROWS")? else { return Err(MapsError::Missing("UNWIND_ROWS")) };
        Ok(Self {
            regions,
            rows: SharedRows::of(rows)?,
            stamp: 0,
            allotment: Allotment::new(UNWIND_ROWS_MAX),
            contents: HashMap::new(),
            processes: HashMap::new(),
        })
    }

    /// Looks at what a process has mapped now, and tells the kernel half how to unwind it. Of the one file that keeps frame pointers,
    /// which is too large for a table, those functions count that do not. Takes the target's mmap lock for the time of one read.
    pub fn cover(&mut self, pid: Pid, keeps_frame_pointers: Option<FileIdentity>) -> Covered {
        // A process that has gone has nothing to unwind.
        let mappings = files_of(pid).unwrap_or_default();
        self.tell(pid, keeps_frame_pointers, mappings)
    }

    /// The same, if a process has mapped anything since, and is known.
    pub fn cover_again(&mut self, pid: Pid) -> Option<Covered> {
        let mappings = files_of(pid)?;
        let process = self.processes.get(&pid).filter(|process| process.mappings != mappings)?;
        let keeps_frame_pointers = process.keeps_frame_pointers;
        Some(self.tell(pid, keeps_frame_pointers, mappings))
    }

    fn tell(&mut self, pid: Pid, keeps_frame_pointers: Option<FileIdentity>, mappings: Vec<Mapping>) -> Covered {
        let mut covered = Covered::default();
        let mut regions = Regions::new_zeroed();
        regions.low = u64::MAX;
        self.stamp += 1;
        regions.stamp = self.stamp;
        let mut tables = Vec::new();
        for mapping in &mappings {
            let place = self.place(pid, mapping, keeps_frame_pointers, &mut tables, &mut covered);
            let Some((base, rows, identity)) = place else { continue };
            let (start, end) = (mapping.start.0, mapping.end.0);
            let region = Region { start, end, base, first_row: rows.first, rows: rows.count };
            if Some(identity) == keeps_frame_pointers {
                regions.exceptions = narrowed(region, rows, regions.exceptions);
                covered.exceptions = rows.count;
                continue;
            }
            let Some(slot) = regions.regions.get_mut(regions.count as usize) else {
                covered.left_out += 1;
                continue;
            };
            *slot = region;
            regions.count += 1;
            regions.low = regions.low.min(start);
            regions.high = regions.high.max(end);
            covered.files += 1;
            covered.rows += rows.count;
        }
        debug_assert!(regions.count as usize <= REGIONS_MAX, "more regions than slots");
        let mut value = [0; REGIONS];
        value.copy_from_slice(regions.as_bytes());
        if let Err(error) = self.regions.insert(&pid.0, &value, 0) {
            debug!("pid={pid} is unwound by frame pointers only: {error}");
        }
        self.processes.insert(pid, Process { keeps_frame_pointers, mappings, tables });
        covered
    }

    /// Forgets a process.
    pub fn forget(&mut self, pid: Pid) {
        self.processes.remove(&pid);
        let _ = self.regions.remove(&pid.0);
    }

    /// What is taken from an address in a mapping to look it up, and where the rows of its file are.
    fn place(
        &mut self,
        pid: Pid,
        mapping: &Mapping,
        keeps_frame_pointers: Option<FileIdentity>,
        tables: &mut Vec<Content>,
        covered: &mut Covered,
    ) -> Option<(u64, Rows, FileIdentity)> {
        let (file, path) = procfs::open_mapped(pid, mapping).map_err(|error| debug!("{error}")).ok()?;
        let metadata = file.metadata().map_err(|error| debug!("{error}")).ok()?;
        let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        let elf = ElfFile::from_file(file, &path).map_err(|error| debug!("{error}")).ok()?;
        let base = elf.bias(mapping.start.0, mapping.offset)?;
        let known = self.contents.get(&identity).and_then(|content| Some((*content, self.allotment.get(*content)?)));
        let (content, rows) = match known {
            Some(known) => known,
            None => self.read(&elf, identity, Some(identity) == keeps_frame_pointers, tables, covered)?,
        };
        tables.push(content);
        (rows.count > 0).then_some((base, rows, identity))
    }

    /// The table of a file that was not met before; `None` if it has none, or there is no room.
    fn read(
        &mut self,
        elf: &ElfFile,
        identity: FileIdentity,
        keeps_frame_pointers: bool,
        tables: &[Content],
        covered: &mut Covered,
    ) -> Option<(Content, Rows)> {
        let (addr, bytes) = elf.frames()?;
        let content = Content::of((addr, keeps_frame_pointers, &bytes));
        if self.contents.len() >= UNWIND_FILES_KNOWN_MAX {
            self.contents.clear();
        }
        self.contents.insert(identity, content);
        if let Some(rows) = self.allotment.get(content) {
            return Some((content, rows));
        }
        let made = if keeps_frame_pointers { unwind::exceptions_of } else { unwind::rows_of }(addr.0, &bytes);
        let start = |row: Option<&UnwindRow>| row.map_or(0, |row| row.start);
        let count = u32::try_from(made.len()).ok()?;
        let rows = Rows { first: 0, count, from: start(made.first()), to: start(made.last()) };
        let processes = &self.processes;
        let is_used =
            |content| tables.contains(&content) || processes.values().any(|process| process.tables.contains(&content));
        let Some(rows) = self.allotment.add(content, rows, is_used) else {
            covered.left_out += 1;
            return None;
        };
        self.rows.write(rows.first, &made);
        Some((content, rows))
    }
}

fn files_of(pid: Pid) -> Option<Vec<Mapping>> {
    let mut mappings = procfs::executable_mappings(pid).ok()?;
    mappings.retain(Mapping::is_file);
    Some(mappings)
}

/// The part of a mapping that rows are about, and what lies between it and the part of another mapping that belongs to it. Of V8's builtins
/// there may be a copy elsewhere, which is the smaller part.
fn narrowed(region: Region, rows: Rows, other: Region) -> Region {
    let start = region.start.max(region.base.saturating_add(rows.from.into()));
    let end = region.end.min(region.base.saturating_add(rows.to.into()));
    if start >= end || (other.base != region.base && other.end - other.start > end - start) {
        other
    } else if other.rows > 0 && other.base == region.base {
        Region { start: start.min(other.start), end: end.max(other.end), ..region }
    } else {
        Region { start, end, ..region }
    }
}

/// The rows, in memory that the kernel half reads.
struct SharedRows {
    at: NonNull<UnwindRow>,
    /// Keeps the map alive as long as its memory is here.
    _map: MapData,
}

// SAFETY: the memory belongs to this value alone on our side; the kernel half only reads it.
unsafe impl Send for SharedRows {}

impl SharedRows {
    fn of(map: MapData) -> Result<Self, MapsError> {
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice; the map was made mappable and has this many bytes.
        let at = unsafe { mmap(std::ptr::null_mut(), ROWS_BYTES, flags.0, flags.1, map.fd().as_fd(), 0) };
        let at = at.map_err(|error| MapsError::Memory { name: "UNWIND_ROWS", source: error.into() })?;
        let at = NonNull::new(at.cast()).ok_or(MapsError::Missing("UNWIND_ROWS"))?;
        Ok(Self { at, _map: map })
    }

    /// Writes rows from a place on; those beyond the end are left out.
    fn write(&mut self, first: u32, rows: &[UnwindRow]) {
        for (index, row) in (first..UNWIND_ROWS_MAX).zip(rows) {
            // SAFETY: the index lies below the number of rows that are mapped, and the memory is writable and aligned.
            unsafe { self.at.add(index as usize).write_volatile(*row) };
        }
    }
}

impl Drop for SharedRows {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), ROWS_BYTES) };
    }
}
