//! The queue of one stream, and its books: at every moment `emitted + recovered = delivered + spooled + queued + dropped`.
//!
//! All of them change under one lock, and what is on its way is in the place that it came from until it has arrived.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::config::QueueConfig;
use crate::report::model::StreamAccount;

/// Why records were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Neither memory nor disk had room.
    QueueFull,
    /// The collector will not have them: a status that no retry changes.
    Refused,
    /// A segment of the spool could not be read back.
    SpoolDamaged,
    /// The collector has no place for profiles.
    Unsupported,
    /// The agent ended, and there was no spool to leave them in.
    Shutdown,
}

impl Loss {
    /// Name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Refused => "refused",
            Self::SpoolDamaged => "spool_damaged",
            Self::Unsupported => "unsupported",
            Self::Shutdown => "shutdown",
        }
    }
}

/// One record, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub signal: Signal,
    pub bytes: Vec<u8>,
}

/// What goes into one request together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A line, with its end.
    Line,
    /// Of OTLP: an `ExportMetricsServiceRequest`.
    Metrics,
    /// Of OTLP: an `ExportLogsServiceRequest`.
    Logs,
    /// Of OTLP: an `ExportProfilesServiceRequest`, which goes alone: its tables are its own.
    Profiles,
}

impl Signal {
    /// How many go into one request.
    #[must_use]
    pub const fn together(self, records_max: usize) -> usize {
        match self {
            Self::Line | Self::Metrics | Self::Logs => records_max,
            Self::Profiles => 1,
        }
    }
}

/// The queue between who makes records and who sends them.
#[derive(Debug)]
pub struct Queue {
    name: String,
    limits: QueueConfig,
    state: Mutex<State>,
    /// Told when there is something to do.
    pub news: Notify,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    emitted: u64,
    recovered: u64,
    delivered: u64,
    spooled: u64,
    dropped: BTreeMap<Loss, u64>,
    retries: u64,
    /// The collector has no place for profiles; from then on it may be asked again.
    profiles_again: Option<Instant>,
    /// Nothing more comes, and what is there may take until then.
    deadline: Option<Instant>,
}

impl Queue {
    #[must_use]
    pub fn new(name: String, limits: QueueConfig) -> Self {
        Self { name, limits, state: Mutex::default(), news: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an item in, or counts it as dropped.
    pub fn push(&self, item: Item) {
        let mut state = self.state();
        state.emitted += 1;
        if item.signal == Signal::Profiles && !state.takes_profiles() {
            *state.dropped.entry(Loss::Unsupported).or_default() += 1;
            return;
        }
        let bytes = state.bytes.saturating_add(item.bytes.len());
        if state.deadline.is_some() || state.items.len() >= self.limits.max_records || bytes > self.limits.max_bytes {
            *state.dropped.entry(Loss::QueueFull).or_default() += 1;
            return;
        }
        state.bytes = bytes;
        state.items.push_back(item);
        drop(state);
        self.news.notify_one();
    }

    /// Copies of the first items after so many, of one signal, which stay in the queue until [`Queue::delivered`] and the like.
    #[must_use]
    pub fn front(&self, skip: usize, records_max: usize, bytes_max: usize) -> Vec<Item> {
        let state = self.state();
        let Some(signal) = state.items.get(skip).map(|item| item.signal) else { return Vec::new() };
        let mut bytes = 0;
        let fits = |item: &&Item| {
            bytes += item.bytes.len();
            item.signal == signal && (bytes <= bytes_max || bytes == item.bytes.len())
        };
        state.items.iter().skip(skip).take(signal.together(records_max)).take_while(fits).cloned().collect()
    }

    /// Takes no profiles for so long; whether that is news.
    pub fn refuse_profiles(&self, pause: Duration) -> bool {
        self.state().profiles_again.replace(Instant::now() + pause).is_none()
    }

    #[must_use]
    pub fn takes_profiles(&self) -> bool {
        self.state().takes_profiles()
    }

    /// Memory is so full that it shall be made free.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let state = self.state();
        state.items.len() > self.limits.max_records / 2 || state.bytes > self.limits.max_bytes / 2
    }

    /// The first `n` are where they should be.
    pub fn delivered(&self, n: usize) {
        let mut state = self.state();
        state.delivered += state.take(0, n);
    }

    /// The first `n` after so many are on disk.
    pub fn spooled(&self, skip: usize, n: usize) {
        let mut state = self.state();
        state.spooled += state.take(skip, n);
    }

    pub fn dropped(&self, n: usize, loss: Loss) {
        let mut state = self.state();
        let n = state.take(0, n);
        if n > 0 {
            *state.dropped.entry(loss).or_default() += n;
        }
    }

    /// So many were found on disk, from an earlier run.
    pub fn recovered(&self, n: u64) {
        let mut state = self.state();
        state.recovered += n;
        state.spooled += n;
    }

    /// Of those on disk, so many are where they should be.
    pub fn spool_delivered(&self, n: u64) {
        let mut state = self.state();
        let n = n.min(state.spooled);
        state.spooled -= n;
        state.delivered += n;
    }

    pub fn spool_dropped(&self, n: u64, loss: Loss) {
        let mut state = self.state();
        let n = n.min(state.spooled);
        state.spooled -= n;
        if n > 0 {
            *state.dropped.entry(loss).or_default() += n;
        }
    }

    pub fn retried(&self) {
        self.state().retries += 1;
    }

    /// Nothing more comes; what is there goes out, if it can in time.
    pub fn close(&self, deadline: Instant) {
        self.state().deadline = Some(deadline);
        self.news.notify_one();
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.state().deadline
    }

    /// The books as they are now.
    #[must_use]
    pub fn account(&self) -> StreamAccount {
        let state = self.state();
        StreamAccount {
            stream: self.name.clone(),
            emitted: state.emitted,
            recovered: state.recovered,
            delivered: state.delivered,
            spooled: state.spooled,
            queued: state.items.len() as u64,
            dropped: state.dropped.iter().map(|(loss, n)| (loss.name().to_owned(), *n)).collect(),
            retries: state.retries,
        }
    }
}

impl State {
    fn takes_profiles(&self) -> bool {
        self.profiles_again.is_none_or(|again| again <= Instant::now())
    }

    fn take(&mut self, skip: usize, n: usize) -> u64 {
        let skip = skip.min(self.items.len());
        let n = n.min(self.items.len() - skip);
        let bytes: usize = self.items.drain(skip..skip + n).map(|item| item.bytes.len()).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        n as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Deliver(usize),
        Spool(usize, usize),
        Drop(usize),
        Recover(u64),
        SpoolDeliver(u64),
        SpoolDrop(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..40).prop_map(Step::Push),
            1 => (0usize..5).prop_map(Step::Deliver),
            1 => (0usize..5, 0usize..5).prop_map(|(skip, n)| Step::Spool(skip, n)),
            1 => (0usize..5).prop_map(Step::Drop),
            1 => (0u64..5).prop_map(Step::Recover),
            1 => (0u64..5).prop_map(Step::SpoolDeliver),
            1 => (0u64..5).prop_map(Step::SpoolDrop),
        ]
    }

    proptest! {
        #[test]
        fn the_books_balance_at_every_moment(steps in proptest::collection::vec(step(), 0..200)) {
            let queue = Queue::new("test".into(), QueueConfig { max_records: 8, max_bytes: 100 });
            for step in steps {
                match step {
                    Step::Push(n) => queue.push(Item { signal: Signal::Line, bytes: vec![b'x'; n] }),
                    Step::Deliver(n) => queue.delivered(n),
                    Step::Spool(skip, n) => queue.spooled(skip, n),
                    Step::Drop(n) => queue.dropped(n, Loss::Refused),
                    Step::Recover(n) => queue.recovered(n),
                    Step::SpoolDeliver(n) => queue.spool_delivered(n),
                    Step::SpoolDrop(n) => queue.spool_dropped(n, Loss::SpoolDamaged),
                }
                let account = queue.account();
                prop_assert!(account.is_balanced(), "{account:?}");
                prop_assert!(account.queued <= 8);
            }
        }
    }
}
