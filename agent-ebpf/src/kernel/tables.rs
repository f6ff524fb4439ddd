//! Unwinding code that keeps no frame pointers, by rows that user space made of the files' `.eh_frame`.

use agent_ebpf::state::{REGIONS_MAX, Region, Regions, UNWIND_FILE_ROWS_MAX, UnwindRow, cfa};

use super::maps;

/// Halvings that find any row of a table.
const HALVINGS: u32 = UNWIND_FILE_ROWS_MAX.ilog2() + 1;

/// Looked up before: the frames that a thread was called through are the same in each of its stacks, and to find one row takes
/// eighteen looks into megabytes that nobody else uses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KnownRow {
    addr: u64,
    /// [`Regions::stamp`], and whether there is a row.
    stamp: u32,
    is_there: u32,
    row: UnwindRow,
}

/// A power of two.
pub const KNOWN_ROWS: usize = 64;

/// As [`row`], from what is known if it is.
#[inline(always)]
pub fn known_row(known: &mut [KnownRow; KNOWN_ROWS], regions: &Regions, addr: u64) -> Option<UnwindRow> {
    if !is_in(&regions.exceptions, addr) && (addr < regions.low || addr >= regions.high) {
        return None;
    }
    // The compiler knows that the mask does nothing, the verifier does not.
    let slot = core::hint::black_box((addr ^ addr >> 6) as usize & (KNOWN_ROWS - 1)) & (KNOWN_ROWS - 1);
    let found = known[slot];
    if found.addr == addr && found.stamp == regions.stamp {
        return (found.is_there != 0).then_some(found.row);
    }
    let row = row(regions, addr);
    known[slot] = KnownRow {
        addr,
        stamp: regions.stamp,
        is_there: u32::from(row.is_some()),
        row: row.unwrap_or(UnwindRow { start: 0, cfa: 0, fp: 0 }),
    };
    row
}

/// The row for an address; `None` where frame pointers are to be followed.
#[inline(always)]
fn row(regions: &Regions, addr: u64) -> Option<UnwindRow> {
    let region = region(regions, addr)?;
    let at = addr.wrapping_sub(region.base);
    let mut low = region.first_row;
    let mut rows = region.rows;
    // The last row that starts at or before the address lies in `low .. low + rows`.
    let mut i = 0;
    while i < HALVINGS {
        if rows <= 1 {
            break;
        }
        let half = rows / 2;
        let middle = maps::UNWIND_ROWS.get_ptr(low.wrapping_add(half))?;
        // SAFETY: a value of an array that stays; a row that is being written is checked like any other.
        if u64::from(unsafe { (*middle).start }) <= at {
            low = low.wrapping_add(half);
            rows -= half;
        } else {
            rows = half;
        }
        i += 1;
    }
    let row = maps::UNWIND_ROWS.get_ptr(low)?;
    // SAFETY: as above.
    let row = unsafe { *row };
    (u64::from(row.start) <= at && row.cfa != cfa::FRAME_POINTERS).then_some(row)
}

#[inline(always)]
fn is_in(region: &Region, addr: u64) -> bool {
    addr >= region.start && addr < region.end
}

#[inline(always)]
fn region(regions: &Regions, addr: u64) -> Option<Region> {
    if is_in(&regions.exceptions, addr) {
        return Some(regions.exceptions);
    }
    let mut i = 0;
    while i < REGIONS_MAX {
        if i as u32 >= regions.count {
            return None;
        }
        let region = &regions.regions[i];
        if is_in(region, addr) {
            return Some(*region);
        }
        i += 1;
    }
    None
}
