//! What lives on a heap, and what grew on it.

use super::{
    Style,
    format::{Page, count, cut, duration, plural, safe},
};
use crate::report::heap::{Constructor, Growth, Heap, Whole};

/// A stray share from which a reader should know that the collector was at work.
const STRAY_SHARE_SAID: f64 = 0.01;

/// The census of a heap.
#[must_use]
pub fn render(heap: &Heap, top: usize, style: Style) -> String {
    let mut page = Page::new(style);
    whole(&mut page, &heap.whole);
    page.heading("     objects        bytes  constructor");
    for Constructor { name, place, objects, bytes } in heap.constructors.iter().take(top) {
        let name = named(name, place.as_deref());
        page.line(&cut(&format!("{:>12} {:>12}  {name}", count(*objects), size(*bytes)), style.width));
    }
    let rest = heap.constructors.get(top..).unwrap_or_default();
    if !rest.is_empty() {
        let (objects, bytes) = rest.iter().fold((0_u64, 0_u64), |(objects, bytes), one| {
            (objects.saturating_add(one.objects), bytes.saturating_add(one.bytes))
        });
        let more = rest.len() as u64;
        page.aside(&format!("{:>12} {:>12}  in {} more (--top)", count(objects), size(bytes), count(more)));
    }
    page.into_text()
}

/// Counts were held against heap snapshots of these versions.
fn is_measured(node_version: Option<&str>) -> bool {
    let major = node_version.and_then(|version| version.trim_start_matches('v').split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| (18..=26).contains(&major))
}

fn whole(page: &mut Page, whole: &Whole) {
    let node = whole.node_version.as_ref().map_or_else(String::new, |version| format!(" (node {})", safe(version)));
    page.strong(&format!(
        "Heap of process {}{node}: {}, {}, alive in pages of {}",
        whole.pid,
        plural(whole.objects, "object", "objects"),
        size(whole.object_bytes),
        size(whole.heap_bytes)
    ));
    let trust = if is_measured(whole.node_version.as_deref()) {
        "counts are within 10 % of a heap snapshot's"
    } else {
        "of this version of Node.js, what died lately may still count now and then"
    };
    page.aside(&format!(
        "read in {} while it ran ({} read); {trust}",
        duration(whole.duration_ns),
        size(whole.read_bytes)
    ));
    if !whole.complete {
        page.alarm("There was not enough time: what is listed is a part of what is alive. Give more with --timeout.");
    }
    if whole.stray_share >= STRAY_SHARE_SAID {
        page.alarm(&format!(
            "{:.1} % of pointers led to no object, though it was tried {}: the collector moves much just now, and counts may be \
             further off than 10 %. Try again when there is less load.",
            whole.stray_share * 100.0,
            plural(u64::from(whole.attempts), "time", "times")
        ));
    }
}

/// What grew between two censuses.
#[must_use]
pub fn render_diff(before: &Heap, after: &Heap, growth: &[Growth], top: usize, style: Style) -> String {
    let mut page = Page::new(style);
    page.strong(&format!(
        "From {} to {}: {} objects, {}",
        before.whole.time,
        after.whole.time,
        signed(difference(before.whole.objects, after.whole.objects)),
        signed_size(difference(before.whole.object_bytes, after.whole.object_bytes))
    ));
    if before.whole.pid != after.whole.pid {
        page.aside(&format!("of two processes, {} and {}", before.whole.pid, after.whole.pid));
    }
    if growth.is_empty() {
        page.line("Nothing grew or shrank.");
        return page.into_text();
    }
    page.heading("     objects        bytes   now objects  constructor");
    // The most that grew, and where there is room the most that shrank.
    let shrunk = growth.iter().rev().take_while(|one| one.bytes() < 0).count().min(top / 3);
    let shown = growth.iter().take(top - shrunk);
    let from = growth.len().saturating_sub(shrunk).max(top - shrunk);
    for one in shown.chain(growth.get(from..).unwrap_or_default()) {
        let name = named(&one.name, one.place.as_deref());
        let objects = signed(one.objects());
        let bytes = signed_size(one.bytes());
        page.line(&cut(&format!("{objects:>12} {bytes:>12}  {:>12}  {name}", count(one.objects_after)), style.width));
    }
    if growth.len() > top {
        page.aside(&format!("and {} more that changed (--top)", count((growth.len() - top) as u64)));
    }
    page.into_text()
}

fn named(name: &str, place: Option<&str>) -> String {
    place.map_or_else(|| safe(name), |place| format!("{}  {}", safe(name), safe(place)))
}

fn difference(before: u64, after: u64) -> i64 {
    after.cast_signed().saturating_sub(before.cast_signed())
}

fn signed(n: i64) -> String {
    let digits = count(n.unsigned_abs());
    if n < 0 { format!("-{digits}") } else { format!("+{digits}") }
}

fn signed_size(n: i64) -> String {
    let size = size(n.unsigned_abs());
    if n < 0 { format!("-{size}") } else { format!("+{size}") }
}

/// Three digits and a unit.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            return format!("{:.1} {name}", bytes as f64 / unit as f64);
        }
    }
    format!("{bytes} B")
}
