//! Streams of records to collectors, each with a thread, a queue and, if wanted, a spool of its own: a slow or absent collector holds
//! up nobody.
//!
//! A record is encoded where it is made, and from there on is an [`Item`] that is in one place at any moment: queued, spooled,
//! delivered or dropped; [`account`] keeps these books. Delivery is at least once: a batch of which the answer was lost is sent again.
//! Over TCP and Unix sockets, where nobody answers, what was written counts as delivered.

pub mod account;
pub mod config;
mod connect;
mod deliver;
mod http;
mod sink;
pub mod spool;

use std::{
    fmt::Display,
    sync::{Arc, mpsc},
    time::Duration,
};

use log::warn;
use tokio::time::Instant;

pub use self::{
    account::{Item, Queue, Signal},
    config::{Compression, OtlpSignal, Protocol, SpoolConfig, StreamConfig, StreamError, StreamFormat},
};
use self::{
    config::without_secrets,
    deliver::{Backoff, Delivery},
    sink::Sink,
    spool::Spool,
};
use super::{bunyan, ndjson, otlp};
use crate::report::{Record, model::StreamAccount};

/// Beyond the deadline: a write that hangs in the kernel cannot be called off.
const GRACE: Duration = Duration::from_millis(500);

/// Why a batch did not arrive.
#[derive(Debug)]
enum Refusal {
    /// It may, another time: after `wait`, if the collector said so.
    Later { why: String, wait: Option<Duration> },
    /// It never will.
    Never { why: String },
    /// It never will, as there is nothing at that address.
    Unknown { why: String },
}

impl Refusal {
    fn unreachable(why: impl Display) -> Self {
        Self::Later { why: why.to_string(), wait: None }
    }
}

/// All streams.
#[derive(Default)]
pub struct Streams {
    streams: Vec<Stream>,
}

struct Stream {
    format: StreamFormat,
    otlp: otlp::Encoder,
    queue: Arc<Queue>,
    /// Disconnected when the thread has ended.
    done: mpsc::Receiver<()>,
}

/// The books of all streams, for whoever wants to look.
#[derive(Clone, Default)]
pub struct Books(Vec<Arc<Queue>>);

impl Books {
    #[must_use]
    pub fn accounts(&self) -> Vec<StreamAccount> {
        self.0.iter().map(|queue| queue.account()).collect()
    }
}

impl Streams {
    /// Opens files and spools, and reads certificates and headers; collectors may come later.
    pub fn open(configs: &[StreamConfig]) -> Result<Self, StreamError> {
        configs.iter().map(Stream::open).collect::<Result<_, _>>().map(|streams| Self { streams })
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Hands a record to each stream; never waits.
    pub fn record(&mut self, record: &Record) {
        for stream in &mut self.streams {
            for item in stream.encode(record) {
                stream.queue.push(item);
            }
        }
    }

    #[must_use]
    pub fn books(&self) -> Books {
        Books(self.streams.iter().map(|stream| Arc::clone(&stream.queue)).collect())
    }

    #[must_use]
    pub fn counts(&self) -> Vec<StreamAccount> {
        self.books().accounts()
    }

    /// Sends what is left, for so long at most; what then remains is put away on disk, or dropped. Returns the last books.
    #[must_use]
    pub fn finish(mut self, patience: Duration) -> Vec<StreamAccount> {
        let deadline = Instant::now() + patience;
        for stream in &mut self.streams {
            for item in stream.otlp.finish() {
                stream.queue.push(item);
            }
            stream.queue.close(deadline);
        }
        for stream in &self.streams {
            let left = deadline.saturating_duration_since(Instant::now()) + GRACE;
            if stream.done.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                warn!("stream={} hangs in a write, and is left behind", stream.queue.account().stream);
            }
        }
        self.counts()
    }
}

impl Stream {
    fn open(config: &StreamConfig) -> Result<Self, StreamError> {
        let sink = Sink::open(config)?;
        let name = format!("{}+{}", config.format.name(), without_secrets(&config.to));
        let spool = config
            .spool
            .as_ref()
            .map(|spool| Spool::open(&spool.directory.join(directory(&name)), spool.max_bytes))
            .transpose()?;
        let queue = Arc::new(Queue::new(name.clone(), config.queue));
        queue.recovered(spool.as_ref().map_or(0, Spool::len));
        let delivery = Delivery {
            name,
            queue: Arc::clone(&queue),
            sink,
            spool,
            timeout: Duration::from_millis(config.timeout_ms),
            backoff: Backoff::new(config.retry),
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StreamError::Thread)?;
        let (thread_ends, done) = mpsc::channel();
        std::thread::Builder::new()
            .name("agent-stream".into())
            .spawn(move || {
                runtime.block_on(delivery.run());
                drop(thread_ends);
            })
            .map_err(StreamError::Thread)?;
        let otlp = otlp::Encoder::new(config.signals(), config.resource.clone());
        Ok(Self { format: config.format, otlp, queue, done })
    }

    /// The record in the stream's format, if it has a place for it, and what has waited for it.
    fn encode(&mut self, record: &Record) -> Vec<Item> {
        let mut bytes = Vec::new();
        let written = match self.format {
            StreamFormat::Ndjson => ndjson::write_record(&mut bytes, record),
            StreamFormat::Bunyan => bunyan::write_record(&mut bytes, record),
            StreamFormat::Otlp => return self.otlp.encode(record),
        };
        match written {
            Ok(()) => vec![Item { signal: Signal::Line, bytes }],
            Err(error) => {
                warn!("a record cannot be written: {error}");
                Vec::new()
            }
        }
    }
}

/// A stream's name as that of a directory: what is readable of it, and a checksum of all of it.
fn directory(name: &str) -> String {
    let readable: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).take(60).collect();
    format!("{readable}-{:08x}", crc32fast::hash(name.as_bytes()))
}
