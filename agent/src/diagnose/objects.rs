//! Live objects by constructor: what more there are of at the last census than at the first.

use super::{history::Process, js_heap::bytes, trend::round};
use crate::report::{
    heap::Constructor,
    model::{Evidence, HeapCount},
};

/// More pointers than this to what was moved, and a census says little.
const STRAY_SHARE_MAX: f64 = 0.05;

/// Constructors that are named: each with so many more objects, and either with this share at least of the bytes that were gained, or a
/// program's own and as numerous as this share of those with the most.
const NAMED_MAX: usize = 4;
const SHARE_LEAST: f64 = 0.05;
const NUMEROUS: f64 = 0.5;
const OBJECTS_LEAST: u64 = 50;

/// Censuses that can be relied on, by when they were begun.
#[expect(clippy::cast_precision_loss, reason = "seconds")]
fn censuses(process: &Process) -> impl DoubleEndedIterator<Item = (f64, &HeapCount)> {
    process.windows.iter().filter_map(|point| {
        let census = point.memory.as_ref()?.census.as_deref()?;
        (census.complete && census.stray_share < STRAY_SHARE_MAX)
            .then_some((point.at_s - census.age_ns as f64 / 1e9, census))
    })
}

/// The first census and the last, of those during which nothing was moved if these lie far enough apart.
fn outermost(process: &Process) -> Option<[(f64, &HeapCount); 2]> {
    /// Of the time between all.
    const SPAN_LEAST: f64 = 0.5;
    let ends = |exact: bool| {
        let mut all = censuses(process).filter(|(_, census)| !exact || !census.disturbed);
        Some([all.next()?, all.next_back()?])
    };
    let span = |[first, last]: &[(f64, &HeapCount); 2]| last.0 - first.0;
    let all = ends(false)?;
    Some(ends(true).filter(|exact| span(exact) >= SPAN_LEAST * span(&all)).unwrap_or(all))
}

/// Bytes of live objects at each census.
#[expect(clippy::cast_precision_loss, reason = "figures for trends")]
pub fn live_bytes(process: &Process) -> Vec<(f64, f64)> {
    censuses(process).map(|(at_s, census)| (at_s, census.object_bytes as f64)).collect()
}

/// A constructor with more objects.
#[derive(Debug, PartialEq)]
pub struct Grower {
    name: String,
    /// It has a name and a place in a script, and no other constructor stands for it: `(array)` is what many things are made of.
    is_own: bool,
    before: u64,
    after: u64,
    bytes: u64,
    per_request: Option<f64>,
}

impl Grower {
    pub fn evidence(&self) -> Evidence {
        let Self { name, before, after, bytes: gained, per_request, .. } = self;
        let per_request = per_request.map_or_else(String::new, |each| format!(", {each:.2} a request"));
        #[expect(clippy::cast_precision_loss, reason = "figures that are shown with three digits")]
        let (gained, more) = (bytes(*gained as f64), self.more() as f64);
        Evidence {
            text: format!("{name}: {before} objects at first and {after} at last{per_request}, {gained} more"),
            value: Some(more),
            unit: Some("objects".to_owned()),
            stack: None,
        }
    }

    fn more(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    /// One of Node.js's timers.
    pub fn is_timer(&self) -> bool {
        self.name.starts_with("Timeout (node:") || self.name.starts_with("Immediate (node:")
    }
}

/// Whose objects the growth is: a program's own first, then most bytes first.
#[expect(clippy::cast_precision_loss, reason = "shares")]
pub fn growers(process: &Process) -> Vec<Grower> {
    let Some([(from_s, first), (to_s, last)]) = outermost(process) else { return Vec::new() };
    let requests = process.requests_from(from_s, to_s);
    let before =
        |one: &Constructor| first.constructors.iter().find(|old| old.name == one.name && old.place == one.place);
    // Of those that are not listed there is no more than of the last one that is.
    let unlisted = first.constructors.last().map_or(0, |least| least.bytes);
    let gained = last.object_bytes.saturating_sub(first.object_bytes);
    let grown = last.constructors.iter().map(|one| {
        let old = before(one);
        let objects = old.map_or(0, |old| old.objects);
        let more = one.objects.saturating_sub(objects);
        Grower {
            name: one.place.as_ref().map_or_else(|| one.name.clone(), |place| format!("{} ({place})", one.name)),
            is_own: one.place.is_some(),
            before: objects,
            after: one.objects,
            bytes: one.bytes.saturating_sub(old.map_or(unlisted, |old| old.bytes)),
            per_request: (requests > 0.0).then(|| round(more as f64 / requests)),
        }
    });
    let mut growers: Vec<Grower> = grown.filter(|one| one.bytes > 0 && one.more() >= OBJECTS_LEAST).collect();
    let most = growers.iter().map(Grower::more).max().unwrap_or(0);
    growers.retain(|one| {
        let is_numerous = one.is_own && one.more() as f64 >= NUMEROUS * most as f64;
        is_numerous || one.bytes as f64 >= SHARE_LEAST * gained as f64
    });
    growers.sort_by_key(|grower| std::cmp::Reverse((grower.is_own, grower.bytes)));
    growers.truncate(NAMED_MAX);
    growers
}
