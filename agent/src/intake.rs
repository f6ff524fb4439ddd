//! Takes records out of the ring buffers, in batches.
//!
//! The kernel half wakes the reader only when much lies in a ring, so the rings are also emptied at a steady pace. Batches go
//! to the core over a bounded channel: when the core cannot keep up, this task waits, the rings fill, and the
//! kernel half counts what it drops. Nothing is lost uncounted.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Duration,
};

use agent_ebpf::{abi::family, state::STACK_WAKEUP_NS};
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use bytes::{BufMut, Bytes, BytesMut};
use log::debug;
use thiserror::Error;
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};

use crate::probe::attach::{Probes, RING_MAPS};

/// How often the rings are emptied while nothing wakes the reader: 20 times a second costs next to nothing.
pub const PACE: Duration = Duration::from_millis(50);

/// How often at first, and so many times: whoever starts a trace waits for its first record.
const EAGER_PACE: Duration = Duration::from_millis(10);
const EAGER_LOOKS: u32 = 20;

/// After a wake-up the rings are looked at once more: what followed at once did not wake anybody.
const AGAIN: Duration = Duration::from_nanos(STACK_WAKEUP_NS + STACK_WAKEUP_NS / 5);

/// A batch goes on when it has grown to this: 1500 turns.
const BATCH_BYTES: usize = 256 << 10;

/// Records of one family: each a little-endian length of 4 bytes and that many bytes.
#[derive(Clone, Debug)]
pub struct Batch {
    pub family: u32,
    /// How many records there are.
    pub count: u64,
    pub bytes: Bytes,
}

#[derive(Debug, Error)]
pub enum IntakeError {
    #[error("the BPF object has no ring {0}")]
    Missing(&'static str),
    #[error("ring {name}: {source}")]
    Ring { name: &'static str, source: aya::maps::MapError },
    #[error("waiting on ring {name}: {source}")]
    Poll { name: &'static str, source: std::io::Error },
}

/// The reading ends of all rings.
pub struct Intake {
    rings: Vec<AsyncFd<Ring>>,
    /// The kernel half's own, rare messages.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
}

struct Ring {
    family: u32,
    ring: RingBuf<MapData>,
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Intake {
    /// Takes the rings out of the loaded object; must be called inside the runtime.
    pub fn take(probes: &mut Probes) -> Result<Self, IntakeError> {
        let mut rings = Vec::with_capacity(family::COUNT);
        for (family, name) in (0..).zip(RING_MAPS) {
            let map = probes.take_ring(name).ok_or(IntakeError::Missing(name))?;
            let ring = RingBuf::try_from(map).map_err(|source| IntakeError::Ring { name, source })?;
            // SAFETY: the descriptor is the map's; the ring owns the map, never swaps it, and lives as long as the `AsyncFd`.
            let ring = unsafe { AsyncFd::register(Ring { family, ring }) }
                .map_err(|error| IntakeError::Poll { name, source: error.into() })?;
            rings.push(ring);
        }
        let log = probes.take_log().map_err(|error| debug!("no messages from the kernel half: {error}")).ok();
        Ok(Self { rings, log })
    }

    /// Reads until the receiver is gone. A message on `flush` asks for everything that is there now; its answer is sent
    /// when all of it has been handed on.
    pub async fn run(
        mut self,
        batches: mpsc::Sender<Batch>,
        mut flush: mpsc::Receiver<tokio::sync::oneshot::Sender<()>>,
    ) {
        let mut pace = every(EAGER_PACE);
        let mut looks = 0u32;
        let mut again = None;
        loop {
            let answer = tokio::select! {
                _ = pace.tick() => {
                    looks = looks.saturating_add(1);
                    if looks == EAGER_LOOKS {
                        pace = every(PACE);
                    }
                    None
                }
                () = any_readable(&mut self.rings) => {
                    again = again.or_else(|| Some(Instant::now() + AGAIN));
                    None
                }
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    again = None;
                    None
                }
                request = flush.recv() => match request {
                    Some(answer) => Some(answer),
                    None => return,
                },
            };
            for ring in &mut self.rings {
                if !drain(ring.get_mut(), &batches).await {
                    return;
                }
            }
            if let Some(log) = &mut self.log {
                log.flush();
            }
            if let Some(answer) = answer {
                // The asker may have gone; then nobody waits.
                let _ = answer.send(());
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut pace = interval_at(Instant::now() + period, period);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}

/// Waits until a ring asks to be read, and takes note of that.
async fn any_readable(rings: &mut [AsyncFd<Ring>]) {
    std::future::poll_fn(|cx| {
        for ring in rings.iter_mut() {
            if let std::task::Poll::Ready(Ok(mut guard)) = ring.poll_read_ready_mut(cx) {
                guard.clear_ready();
                return std::task::Poll::Ready(());
            }
        }
        std::task::Poll::Pending
    })
    .await;
}

/// Empties a ring; false if nobody wants the records any more.
async fn drain(ring: &mut Ring, batches: &mpsc::Sender<Batch>) -> bool {
    loop {
        let (batch, more) = fill(ring);
        if batch.count > 0 && batches.send(batch).await.is_err() {
            return false;
        }
        if !more {
            return true;
        }
    }
}

/// One batch, and whether the ring may hold more.
fn fill(ring: &mut Ring) -> (Batch, bool) {
    let mut bytes = BytesMut::new();
    let mut count = 0;
    let mut more = false;
    while let Some(record) = ring.ring.next() {
        // A record is a kilobyte at most; its length fits by far.
        bytes.put_u32_le(u32::try_from(record.len()).unwrap_or(0));
        bytes.put_slice(&record);
        count += 1;
        if bytes.len() >= BATCH_BYTES {
            more = true;
            break;
        }
    }
    (Batch { family: ring.family, count, bytes: bytes.freeze() }, more)
}
