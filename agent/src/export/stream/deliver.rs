//! The thread of one stream: takes batches from disk and memory to the collector, tries again, and makes room meanwhile.

use std::{pin::pin, sync::Arc, time::Duration};

use log::{info, warn};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Refusal,
    account::{Loss, Queue, Signal},
    config::RetryConfig,
    sink::Sink,
    spool::{Portion, Spool},
};

/// What goes in one write or request.
const BATCH_RECORDS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;

/// A collector without a place for profiles may be another one after its next rollout.
const PROFILES_PAUSE: Duration = Duration::from_mins(10);

/// Doubles from failure to failure; each pause is at random between half of it and all, so that agents do not come all at once.
#[derive(Debug)]
pub struct Backoff {
    config: RetryConfig,
    failures: u32,
}

impl Backoff {
    #[must_use]
    pub const fn new(config: RetryConfig) -> Self {
        Self { config, failures: 0 }
    }

    /// The next pause; `chance` is in 0 to 1.
    #[must_use]
    pub fn pause(&mut self, chance: f64) -> Duration {
        let factor = 1u64.checked_shl(self.failures).unwrap_or(u64::MAX);
        self.failures = self.failures.saturating_add(1);
        let full = Duration::from_millis(self.config.initial_ms.saturating_mul(factor).min(self.config.max_ms));
        full.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
    }

    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

/// One stream at work.
pub struct Delivery {
    pub name: String,
    pub queue: Arc<Queue>,
    pub sink: Sink,
    pub spool: Option<Spool>,
    pub timeout: Duration,
    pub backoff: Backoff,
}

/// Where a batch came from, and still is.
enum Batch {
    OnDisk(Portion),
    InMemory(usize),
}

impl Delivery {
    /// Goes on until the queue is closed and everything has arrived, or its deadline has come.
    pub async fn run(mut self) {
        let mut is_failing = false;
        let mut refused = 0u64;
        loop {
            if self.queue.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
                break;
            }
            let (items, batch) = match self.next() {
                Some(batch) => batch,
                None if self.queue.deadline().is_some() => break,
                None => {
                    self.queue.news.notified().await;
                    if self.queue.deadline().is_none() {
                        tokio::time::sleep(self.sink.linger()).await;
                    }
                    continue;
                }
            };
            let is_profile = items.first().is_some_and(|item| item.signal == Signal::Profiles);
            if is_profile && !self.queue.takes_profiles() {
                self.settle(&batch, Some(Loss::Unsupported));
                continue;
            }
            let in_flight = if let Batch::InMemory(n) = batch { n } else { 0 };
            let outcome = if items.is_empty() { Some(Ok(())) } else { self.attempt(&items, in_flight).await };
            match outcome {
                None => break,
                Some(Ok(())) => {
                    self.settle(&batch, None);
                    self.backoff.reset();
                    if std::mem::take(&mut is_failing) {
                        info!("stream={} is delivered again", self.name);
                    }
                }
                Some(Err(Refusal::Unknown { why })) if is_profile => {
                    self.settle(&batch, Some(Loss::Unsupported));
                    if self.queue.refuse_profiles(PROFILES_PAUSE) {
                        let minutes = PROFILES_PAUSE.as_secs() / 60;
                        warn!(
                            "stream={} has no place for profiles ({why}): they are dropped, and tried again each {minutes} minutes; \
                             the rest goes on",
                            self.name
                        );
                    }
                }
                Some(Err(Refusal::Never { why } | Refusal::Unknown { why })) => {
                    self.settle(&batch, Some(Loss::Refused));
                    refused += 1;
                    // 1, 2, 4, 8 …: said, but not each time.
                    if refused.is_power_of_two() {
                        warn!("stream={} refused for good, {refused} times by now: {why}", self.name);
                    }
                }
                Some(Err(Refusal::Later { why, wait })) => {
                    self.queue.retried();
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!("stream={} cannot be delivered, which is tried again: {why}", self.name);
                    }
                    let pause = self.backoff.pause(fastrand::f64());
                    self.pause(wait.unwrap_or(pause)).await;
                }
            }
        }
        self.put_away();
    }

    /// The next batch: what is on disk is older.
    fn next(&mut self) -> Option<(Vec<super::Item>, Batch)> {
        if let Some(spool) = self.spool.as_mut().filter(|spool| !spool.is_empty()) {
            let mut portion = spool.front(BATCH_RECORDS, BATCH_BYTES);
            let items = std::mem::take(&mut portion.items);
            return Some((items, Batch::OnDisk(portion)));
        }
        let items = self.queue.front(0, BATCH_RECORDS, BATCH_BYTES);
        let n = items.len();
        (n > 0).then_some((items, Batch::InMemory(n)))
    }

    /// One try. `None`: the deadline has come first.
    async fn attempt(&mut self, items: &[super::Item], in_flight: usize) -> Option<Result<(), Refusal>> {
        let Self { name, queue, sink, spool, timeout: patience, .. } = self;
        let mut delivery = pin!(timeout(*patience, sink.deliver(items)));
        loop {
            tokio::select! {
                biased;
                done = &mut delivery => {
                    return Some(done.unwrap_or_else(|_| Err(Refusal::unreachable(format!("no answer in {patience:?}")))));
                }
                () = until(queue.deadline()) => return None,
                () = queue.news.notified() => relieve(queue, spool.as_mut(), in_flight, name),
            }
        }
    }

    /// Waits before the next try.
    async fn pause(&mut self, pause: Duration) {
        let mut end = pin!(tokio::time::sleep(pause));
        loop {
            relieve(&self.queue, self.spool.as_mut(), 0, &self.name);
            tokio::select! {
                () = &mut end => return,
                () = until(self.queue.deadline()) => return,
                () = self.queue.news.notified() => {}
            }
        }
    }

    /// A batch has arrived, or is lost.
    fn settle(&mut self, batch: &Batch, loss: Option<Loss>) {
        match (batch, &mut self.spool) {
            (Batch::InMemory(n), _) => match loss {
                None => self.queue.delivered(*n),
                Some(loss) => self.queue.dropped(*n, loss),
            },
            (Batch::OnDisk(portion), Some(spool)) => {
                if let Err(error) = spool.advance(portion) {
                    warn!("stream={} the spool may be sent twice after a restart: {error}", self.name);
                }
                match loss {
                    None => self.queue.spool_delivered(portion.taken),
                    Some(loss) => self.queue.spool_dropped(portion.taken, loss),
                }
                self.queue.spool_dropped(portion.lost, Loss::SpoolDamaged);
            }
            (Batch::OnDisk(_), None) => {}
        }
    }

    /// The end: what is left waits on disk for the next run, if it can.
    fn put_away(&mut self) {
        if let Some(spool) = &mut self.spool {
            move_out(&self.queue, spool, 0, &self.name);
            if let Err(error) = spool.sync() {
                warn!("stream={} the spool may not outlast a loss of power: {error}", self.name);
            }
        }
        self.queue.dropped(usize::MAX, Loss::Shutdown);
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Moves what waits in memory to disk, if it is much.
fn relieve(queue: &Queue, spool: Option<&mut Spool>, in_flight: usize, name: &str) {
    if let Some(spool) = spool
        && queue.is_pressed()
    {
        move_out(queue, spool, in_flight, name);
    }
}

fn move_out(queue: &Queue, spool: &mut Spool, in_flight: usize, name: &str) {
    loop {
        let items = queue.front(in_flight, BATCH_RECORDS, BATCH_BYTES);
        if items.is_empty() {
            return;
        }
        match spool.append(&items) {
            // Full: what is newer finds no room in memory, and is counted there.
            Ok(0) => return,
            Ok(n) => queue.spooled(in_flight, n),
            Err(error) => {
                if spool.complain() {
                    warn!("stream={name} cannot be put away on disk: {error}");
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_never_the_same_for_all() {
        let mut backoff = Backoff::new(RetryConfig { initial_ms: 100, max_ms: 1000 });
        let pauses: Vec<u128> = (0..6).map(|_| backoff.pause(1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!((backoff.pause(0.0).as_millis(), backoff.pause(0.5).as_millis()), (50, 150));
        for _ in 0..100 {
            assert!(backoff.pause(1.0).as_millis() <= 1000);
        }
    }
}
