//! A log of the core's inputs: what it was told, byte for byte, so that it can be told again.
//!
//! `AGENTREC`, a little-endian `u32` version, then frames: a tag byte, a little-endian `u32` length, and that many bytes.
//! Records and map snapshots are kept as they came; what is small is JSON. Made for the version of the agent that wrote it.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use agent_ebpf::state::{FamilyCounters, PgWaitKey, PgWaitSum, RunQueueKey, SWITCHES_KEPT};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    core::{ClusterFacts, Input, SelfCost, TargetFacts, Tick},
    limits::RECORDING_FRAME_BYTES_MAX,
    postgres::{OpenWait, Reading},
    report::model::{EndReason, Frame, Memory, StackId, Truncated},
    units::{MonoNs, Pid, Tid, UserAddr},
};

const MAGIC: [u8; 8] = *b"AGENTREC";

/// Rises whenever an input or a kernel record changes.
pub const VERSION: u32 = 7;

/// Why a recording cannot be read (on).
#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("not a recording of this agent")]
    NotARecording,
    #[error("recording of format {0}; this version reads {VERSION}")]
    OtherVersion(u32),
    #[error("recording frame {frame} is longer than {RECORDING_FRAME_BYTES_MAX} bytes")]
    TooLong { frame: u64 },
    #[error("recording frame {frame} is damaged: {what}")]
    Damaged { frame: u64, what: &'static str },
    #[error("recording ends in the middle of frame {frame}")]
    CutShort { frame: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

mod tag {
    pub const TARGET: u8 = 1;
    pub const TARGET_GONE: u8 = 2;
    pub const RECORDS: u8 = 3;
    pub const TICK: u8 = 4;
    pub const WORK_CLASS: u8 = 5;
    pub const SYMBOLIZED: u8 = 6;
    pub const STOP: u8 = 7;
    pub const CLUSTER: u8 = 8;
    pub const PG_READING: u8 = 9;
    pub const PG_RELATION: u8 = 10;
    pub const PG_CLIENT: u8 = 11;
    pub const MEMORY: u8 = 12;
    pub const AWAITS: u8 = 13;
    pub const PG_WAIT_EVENTS: u8 = 14;
    pub const BEGIN: u8 = 15;
    pub const CLOCK_SET: u8 = 16;
}

#[derive(Serialize, Deserialize)]
struct Held {
    pid: Pid,
    now: MonoNs,
    memory: Memory,
}

/// Of a [`Tick`], what is not raw; the lengths of the raw parts that follow.
#[derive(Serialize, Deserialize)]
struct TickHead {
    now: MonoNs,
    phases_seen_ns: u64,
    requests_seen_ns: u64,
    /// Recordings of versions that watched them all the time do not say so.
    #[serde(default = "all")]
    pool_seen_ns: u64,
    #[serde(default = "all")]
    turns_seen_ns: u64,
    #[serde(default = "all")]
    waits_seen_ns: u64,
    #[serde(default)]
    polls_epoch: u32,
    switches_seen_ns: u64,
    switches_epoch: u32,
    switches_until_ns: [u64; SWITCHES_KEPT],
    threads_len: usize,
    works_len: usize,
    run_queue_len: usize,
    pg_waits_len: usize,
    pg_open_waits: Vec<OpenWait>,
    families: Vec<(u64, u64)>,
    received: Vec<u64>,
    kernel_counters: Vec<u64>,
    thread_names: Vec<(Tid, String)>,
    self_cost: SelfCost,
}

fn all() -> u64 {
    u64::MAX
}

#[derive(Serialize, Deserialize)]
struct TargetGone {
    pid: Pid,
    now: MonoNs,
}

#[derive(Serialize, Deserialize)]
struct PgRelation {
    cluster: Pid,
    database: u32,
    relation: u32,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct WorkClass {
    pid: Pid,
    vtable: UserAddr,
    class: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Symbolized {
    stack: StackId,
    frames: Vec<Arc<Frame>>,
    truncated: Option<Truncated>,
    #[serde(default)]
    at: Option<MonoNs>,
}

#[derive(Serialize, Deserialize)]
struct Stop {
    now: MonoNs,
    reason: EndReason,
}

/// Whether a file that begins like this is a recording.
#[must_use]
pub fn is_recording(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Writes a recording.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    frame: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(&MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        Ok(Self { to, frame: Vec::new() })
    }

    pub fn write(&mut self, input: &Input) -> io::Result<()> {
        self.frame.clear();
        let tag = match input {
            Input::Begin { since, clock } => self.json(tag::BEGIN, &(*since, *clock))?,
            Input::ClockSet(clock) => self.json(tag::CLOCK_SET, clock)?,
            Input::Target(facts) => self.json(tag::TARGET, facts.as_ref())?,
            Input::Cluster(facts) => self.json(tag::CLUSTER, facts.as_ref())?,
            Input::PgReading(reading) => self.json(tag::PG_READING, reading.as_ref())?,
            Input::PgClient { client, cluster, backends } => {
                self.json(tag::PG_CLIENT, &(*client, *cluster, backends))?
            }
            Input::PgWaitEvents { cluster, names } => self.json(tag::PG_WAIT_EVENTS, &(*cluster, names))?,
            Input::Awaits { pid, at, awaits } => self.json(tag::AWAITS, &(*pid, *at, awaits))?,
            Input::PgRelation { cluster, database, relation, name } => self.json(
                tag::PG_RELATION,
                &PgRelation { cluster: *cluster, database: *database, relation: *relation, name: name.clone() },
            )?,
            Input::TargetGone { pid, now } => self.json(tag::TARGET_GONE, &TargetGone { pid: *pid, now: *now })?,
            Input::Records { family, bytes } => {
                self.frame.extend_from_slice(&family.to_le_bytes());
                self.frame.extend_from_slice(bytes);
                tag::RECORDS
            }
            Input::Tick(tick) => self.tick(tick)?,
            Input::Memory { pid, now, memory } => {
                self.json(tag::MEMORY, &Held { pid: *pid, now: *now, memory: (**memory).clone() })?
            }
            Input::WorkClass { pid, vtable, class } => {
                self.json(tag::WORK_CLASS, &WorkClass { pid: *pid, vtable: *vtable, class: class.clone() })?
            }
            Input::Symbolized { stack, frames, truncated, at } => self.json(
                tag::SYMBOLIZED,
                &Symbolized { stack: *stack, frames: frames.clone(), truncated: *truncated, at: *at },
            )?,
            Input::Stop { now, reason } => self.json(tag::STOP, &Stop { now: *now, reason: *reason })?,
        };
        let len = u32::try_from(self.frame.len())
            .ok()
            .filter(|&len| len as usize <= RECORDING_FRAME_BYTES_MAX)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "input too long for a recording"))?;
        self.to.write_all(&[tag])?;
        self.to.write_all(&len.to_le_bytes())?;
        self.to.write_all(&self.frame)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn json(&mut self, tag: u8, value: &impl Serialize) -> io::Result<u8> {
        serde_json::to_writer(&mut self.frame, value)?;
        Ok(tag)
    }

    fn tick(&mut self, tick: &Tick) -> io::Result<u8> {
        let head = TickHead {
            now: tick.now,
            phases_seen_ns: tick.phases_seen_ns,
            requests_seen_ns: tick.requests_seen_ns,
            pool_seen_ns: tick.pool_seen_ns,
            turns_seen_ns: tick.turns_seen_ns,
            waits_seen_ns: tick.waits_seen_ns,
            polls_epoch: tick.polls_epoch,
            switches_seen_ns: tick.switches_seen_ns,
            switches_epoch: tick.switches_epoch,
            switches_until_ns: tick.switches_until_ns,
            threads_len: tick.threads.len(),
            works_len: tick.works.len(),
            run_queue_len: tick.run_queue.len(),
            pg_waits_len: tick.pg_waits.len(),
            pg_open_waits: tick.pg_open_waits.clone(),
            families: tick.families.iter().map(|family| (family.emitted, family.dropped)).collect(),
            received: tick.received.to_vec(),
            kernel_counters: tick.kernel_counters.to_vec(),
            thread_names: tick.thread_names.clone(),
            self_cost: tick.self_cost.clone(),
        };
        let json = serde_json::to_vec(&head)?;
        let json_len = u32::try_from(json.len()).map_err(io::Error::other)?;
        self.frame.extend_from_slice(&json_len.to_le_bytes());
        self.frame.extend_from_slice(&json);
        self.frame.extend_from_slice(&tick.threads);
        self.frame.extend_from_slice(&tick.works);
        for (key, count) in &tick.run_queue {
            self.frame.extend_from_slice(key.as_bytes());
            self.frame.extend_from_slice(&count.to_le_bytes());
        }
        for (key, sum) in &tick.pg_waits {
            self.frame.extend_from_slice(key.as_bytes());
            self.frame.extend_from_slice(sum.as_bytes());
        }
        Ok(tag::TICK)
    }
}

/// Reads a recording; its bytes are foreign.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    frame: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(mut from: R) -> Result<Self, RecordingError> {
        let mut magic = [0; 8];
        let mut version = [0; 4];
        let head = from.read_exact(&mut magic).and_then(|()| from.read_exact(&mut version));
        match head {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(RecordingError::NotARecording),
            head => head?,
        }
        if magic != MAGIC {
            return Err(RecordingError::NotARecording);
        }
        match u32::from_le_bytes(version) {
            VERSION => Ok(Self { from, frame: 0 }),
            other => Err(RecordingError::OtherVersion(other)),
        }
    }

    /// The next input, or `None` at the end.
    pub fn next_input(&mut self) -> Result<Option<Input>, RecordingError> {
        let mut tag = [0];
        if self.from.read(&mut tag)? == 0 {
            return Ok(None);
        }
        let mut len = [0; 4];
        self.exactly(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > RECORDING_FRAME_BYTES_MAX {
            return Err(RecordingError::TooLong { frame: self.frame });
        }
        let mut payload = Vec::new();
        // Grows as bytes really come: a length that lies costs nothing.
        if self.from.by_ref().take(len as u64).read_to_end(&mut payload)? != len {
            return Err(RecordingError::CutShort { frame: self.frame });
        }
        let [tag] = tag;
        let input =
            parse(tag, Bytes::from(payload)).map_err(|what| RecordingError::Damaged { frame: self.frame, what })?;
        self.frame += 1;
        Ok(Some(input))
    }

    fn exactly(&mut self, into: &mut [u8]) -> Result<(), RecordingError> {
        self.from.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => RecordingError::CutShort { frame: self.frame },
            _ => error.into(),
        })
    }
}

fn json<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, &'static str> {
    serde_json::from_slice(payload).map_err(|_| "fields missing or of the wrong type")
}

fn parse(tag: u8, payload: Bytes) -> Result<Input, &'static str> {
    Ok(match tag {
        tag::BEGIN => {
            let (since, clock) = json(&payload)?;
            Input::Begin { since, clock }
        }
        tag::CLOCK_SET => Input::ClockSet(json(&payload)?),
        tag::TARGET => Input::Target(Box::new(json::<TargetFacts>(&payload)?)),
        tag::CLUSTER => Input::Cluster(Box::new(json::<ClusterFacts>(&payload)?)),
        tag::PG_READING => Input::PgReading(Box::new(json::<Reading>(&payload)?)),
        tag::PG_CLIENT => {
            let (client, cluster, backends) = json(&payload)?;
            Input::PgClient { client, cluster, backends }
        }
        tag::PG_WAIT_EVENTS => {
            let (cluster, names) = json(&payload)?;
            Input::PgWaitEvents { cluster, names }
        }
        tag::AWAITS => {
            let (pid, at, awaits) = json(&payload)?;
            Input::Awaits { pid, at, awaits }
        }
        tag::PG_RELATION => {
            let PgRelation { cluster, database, relation, name } = json(&payload)?;
            Input::PgRelation { cluster, database, relation, name }
        }
        tag::TARGET_GONE => {
            let TargetGone { pid, now } = json(&payload)?;
            Input::TargetGone { pid, now }
        }
        tag::RECORDS => {
            let (family, _) = u32::read_from_prefix(&payload).map_err(|_| "no family")?;
            Input::Records { family, bytes: payload.slice(4..) }
        }
        tag::TICK => Input::Tick(Box::new(parse_tick(payload)?)),
        tag::MEMORY => {
            let Held { pid, now, memory } = json(&payload)?;
            Input::Memory { pid, now, memory: Box::new(memory) }
        }
        tag::WORK_CLASS => {
            let WorkClass { pid, vtable, class } = json(&payload)?;
            Input::WorkClass { pid, vtable, class }
        }
        tag::SYMBOLIZED => {
            let Symbolized { stack, frames, truncated, at } = json(&payload)?;
            Input::Symbolized { stack, frames, truncated, at }
        }
        tag::STOP => {
            let Stop { now, reason } = json(&payload)?;
            Input::Stop { now, reason }
        }
        _ => return Err("unknown tag"),
    })
}

fn parse_tick(mut payload: Bytes) -> Result<Tick, &'static str> {
    let mut take = |len: usize| {
        if len > payload.len() { Err("shorter than its parts") } else { Ok(payload.split_to(len)) }
    };
    let json_len = u32::read_from_bytes(&take(4)?).map_err(|_| "no head")?;
    let head: TickHead = json(&take(json_len as usize)?)?;
    let threads = take(head.threads_len)?;
    let works = take(head.works_len)?;
    let mut run_queue = Vec::new();
    for _ in 0..head.run_queue_len {
        let entry = take(size_of::<RunQueueKey>() + size_of::<u64>())?;
        let (key, rest) = RunQueueKey::read_from_prefix(&entry).map_err(|_| "run queue entry")?;
        run_queue.push((key, u64::read_from_bytes(rest).map_err(|_| "run queue entry")?));
    }
    let mut pg_waits = Vec::new();
    for _ in 0..head.pg_waits_len {
        let entry = take(size_of::<PgWaitKey>() + size_of::<PgWaitSum>())?;
        let (key, rest) = PgWaitKey::read_from_prefix(&entry).map_err(|_| "waits entry")?;
        pg_waits.push((key, PgWaitSum::read_from_bytes(rest).map_err(|_| "waits entry")?));
    }
    let families: Vec<_> =
        head.families.iter().map(|&(emitted, dropped)| FamilyCounters { emitted, dropped }).collect();
    Ok(Tick {
        now: head.now,
        phases_seen_ns: head.phases_seen_ns,
        requests_seen_ns: head.requests_seen_ns,
        pool_seen_ns: head.pool_seen_ns,
        turns_seen_ns: head.turns_seen_ns,
        waits_seen_ns: head.waits_seen_ns,
        polls_epoch: head.polls_epoch,
        switches_seen_ns: head.switches_seen_ns,
        switches_epoch: head.switches_epoch,
        switches_until_ns: head.switches_until_ns,
        threads,
        works,
        run_queue,
        pg_waits,
        pg_open_waits: head.pg_open_waits,
        families: families.try_into().map_err(|_| "wrong number of families")?,
        received: head.received.try_into().map_err(|_| "wrong number of families")?,
        kernel_counters: head.kernel_counters.try_into().map_err(|_| "wrong number of counters")?,
        thread_names: head.thread_names,
        self_cost: head.self_cost,
    })
}
