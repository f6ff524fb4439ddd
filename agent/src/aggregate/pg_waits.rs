//! How long the backends of a PostgreSQL cluster waited, by wait event.
//!
//! The kernel half keeps a histogram of the waits that ended in a window, and the time that they took of it; those that go on are told with it.
//! A wait is a stay off CPU: what sleeps several times in one call of the server, as an `fdatasync` may, counts as often.

use std::collections::BTreeMap;

use agent_ebpf::state::{PgWaitKey, PgWaitSum};

use super::histogram::Histogram;
use crate::{
    counters::{Counters, Reason},
    limits::PG_WAIT_EVENTS_MAX,
    postgres::{OpenWait, WaitEvent},
    units::{MonoNs, Pid},
};

/// Waits for one event in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitFigures {
    /// Of the waits that ended.
    pub wait: Histogram,
    /// That backends spent in it within the window, also in waits that go on.
    pub time_ns: u64,
    /// Waits that go on.
    pub waiting: u64,
    /// When the oldest of those began, and whether that is known: one from before the trace has no beginning.
    pub oldest: Option<(MonoNs, bool)>,
}

/// Class and name.
pub type EventName = (&'static str, String);

/// The waits of one cluster.
#[derive(Clone, Debug, Default)]
pub struct WaitBook {
    since: MonoNs,
    from: MonoNs,
    /// As the server calls them.
    names: BTreeMap<WaitEvent, String>,
    /// Events that are told apart: those that came first.
    known: std::collections::BTreeSet<WaitEvent>,
}

/// Events for which there was no room.
const OTHER: &str = "(other)";

impl WaitBook {
    #[must_use]
    pub fn new(since: MonoNs) -> Self {
        Self { since, from: since, ..Self::default() }
    }

    /// What the server calls an event.
    pub fn name(&mut self, event: WaitEvent, name: String) {
        if self.names.len() < PG_WAIT_EVENTS_MAX {
            self.names.insert(event, name);
        }
    }

    /// Ends the window: what was waited for. Entries of other clusters are passed over.
    pub fn close(
        &mut self,
        cluster: Pid,
        to: MonoNs,
        sums: &[(PgWaitKey, PgWaitSum)],
        open: &[OpenWait],
        counters: &mut Counters,
    ) -> BTreeMap<EventName, WaitFigures> {
        let mut events = BTreeMap::<EventName, WaitFigures>::new();
        for (key, sum) in sums.iter().filter(|(key, _)| key.cluster == cluster.0) {
            let figures = events.entry(self.label(WaitEvent(key.event), counters)).or_default();
            figures.wait.record_bucket(u32::from(key.bucket), sum.count);
            figures.time_ns = figures.time_ns.saturating_add(sum.time_ns);
        }
        for wait in open.iter().filter(|wait| wait.cluster == cluster) {
            let figures = events.entry(self.label(wait.event, counters)).or_default();
            figures.waiting += 1;
            figures.time_ns = figures.time_ns.saturating_add(to.since(wait.since.max(self.from)).0);
            let oldest = (wait.since, wait.since > self.since);
            figures.oldest = Some(figures.oldest.map_or(oldest, |before| before.min(oldest)));
        }
        self.from = to.max(self.from);
        events
    }

    fn label(&mut self, event: WaitEvent, counters: &mut Counters) -> EventName {
        if !self.known.contains(&event) && self.known.len() >= PG_WAIT_EVENTS_MAX {
            counters.add(Reason::WaitEventsFull);
            return (event.class(), OTHER.to_owned());
        }
        self.known.insert(event);
        (event.class(), self.names.get(&event).cloned().unwrap_or_else(|| event.number()))
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const SYNC: WaitEvent = WaitEvent(0x0a00_0046);
    const LOCK: WaitEvent = WaitEvent(0x0300_0005);

    fn ended(event: WaitEvent, ns: u64, count: u64) -> (PgWaitKey, PgWaitSum) {
        let bucket = u16::try_from(agent_ebpf::histogram::index(ns)).unwrap_or(0);
        let key = PgWaitKey { cluster: 7, event: event.0, bucket, epoch: 0 };
        (key, PgWaitSum { count, time_ns: ns * count })
    }

    fn open(event: WaitEvent, since: u64) -> OpenWait {
        OpenWait { pid: Pid(9), cluster: Pid(7), event, since: MonoNs(since) }
    }

    fn close(
        book: &mut WaitBook,
        to: u64,
        sums: &[(PgWaitKey, PgWaitSum)],
        open: &[OpenWait],
    ) -> BTreeMap<EventName, WaitFigures> {
        book.close(Pid(7), MonoNs(to), sums, open, &mut Counters::default())
    }

    #[test]
    fn a_wait_that_goes_on_is_in_each_window() {
        let mut book = WaitBook::new(MonoNs(10 * S));
        book.name(LOCK, "transactionid".into());
        let key: EventName = ("Lock", "transactionid".into());
        let waits = [open(LOCK, 10 * S + S / 2), open(LOCK, 9 * S)];
        let first = close(&mut book, 11 * S, &[], &waits);
        assert_eq!((first[&key].time_ns, first[&key].waiting), (S / 2 + S, 2));
        assert_eq!(first[&key].oldest, Some((MonoNs(9 * S), false)), "it began before the trace did");
        let second = close(&mut book, 12 * S, &[], waits.get(..1).unwrap_or_default());
        assert_eq!((second[&key].time_ns, second[&key].oldest), (S, Some((MonoNs(10 * S + S / 2), true))));
    }

    #[test]
    fn events_without_a_name_have_a_number_and_strangers_are_passed_over() {
        let mut book = WaitBook::new(MonoNs(0));
        let (mut of_other, sum) = ended(SYNC, 1000, 9);
        of_other.cluster = 8;
        let events = close(&mut book, S, &[ended(SYNC, 1000, 5), ended(SYNC, 4000, 1), (of_other, sum)], &[]);
        let figures = &events[&("IO", "#70".to_owned())];
        assert_eq!((figures.wait.count(), figures.time_ns, events.len()), (6, 9000, 1));
    }

    #[test]
    fn what_is_beyond_the_bound_is_summed_by_class() {
        let mut book = WaitBook::new(MonoNs(0));
        let mut counters = Counters::default();
        let most = u32::try_from(PG_WAIT_EVENTS_MAX).unwrap_or(0);
        let sums: Vec<_> = (0..most + 10).map(|n| ended(WaitEvent(0x0100_0000 + n), 1000, 1)).collect();
        let events = book.close(Pid(7), MonoNs(S), &sums, &[], &mut counters);
        assert_eq!((events.len(), events[&("LWLock", OTHER.to_owned())].wait.count()), (PG_WAIT_EVENTS_MAX + 1, 10));
        assert_eq!(counters.get(Reason::WaitEventsFull), 10);
    }
}
