//! Unwinding code that keeps no frame pointers, by rows that user space made of the files' `.eh_frame`.

use agent_ebpf::state::{REGIONS_MAX, Region, Regions, UNWIND_ROWS_MAX, UnwindRow};

use super::maps;

/// Halvings that find any row.
const HALVINGS: u32 = UNWIND_ROWS_MAX.ilog2() + 1;

/// The row for an address; `None` where frame pointers are to be followed.
#[inline(always)]
pub fn row(regions: &Regions, addr: u64) -> Option<UnwindRow> {
    if addr < regions.low || addr >= regions.high {
        return None;
    }
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
    (u64::from(row.start) <= at).then_some(row)
}

#[inline(always)]
fn region(regions: &Regions, addr: u64) -> Option<Region> {
    let mut i = 0;
    while i < REGIONS_MAX {
        if i as u32 >= regions.count {
            return None;
        }
        let region = &regions.regions[i];
        if addr >= region.start && addr < region.end {
            return Some(*region);
        }
        i += 1;
    }
    None
}
