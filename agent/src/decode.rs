//! From bytes to events: unit types for numbers, enums for codes.
//!
//! A record that is cut short or unknown is an error of that record alone. A code that is not known becomes `Unknown` and is
//! counted, as the rest of its record is still good.

mod event;
mod postgres;

use agent_ebpf::abi::{Header, event_loop, family, kind, process, sample, sched, stack, thread_pool, v8};
pub use event::*;
pub use postgres::{LockEnd, LockLists, LockOutcome, LockWait};
use zerocopy::FromBytes;

use crate::{
    counters::Reason,
    units::{MonoNs, Pid, Tid, UserAddr},
};

/// Walks a batch: records of one family, each after its length as a little-endian `u32`.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    family: u32,
    rest: &'a [u8],
    unknown_codes: u64,
}

impl<'a> Decoder<'a> {
    #[must_use]
    pub fn new(family: u32, batch: &'a [u8]) -> Self {
        Self { family, rest: batch, unknown_codes: 0 }
    }

    /// Codes that were not known so far.
    #[must_use]
    pub fn unknown_codes(&self) -> u64 {
        self.unknown_codes
    }

    fn record(&mut self, bytes: &[u8]) -> Result<Event, Reason> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| Reason::RecordTruncated)?;
        if header.kind >> 8 != self.family {
            return Err(Reason::RecordUnknown);
        }
        let body = match header.kind {
            kind::TURN => turn(&read(bytes)?),
            kind::WORK => self.work(&read(bytes)?),
            kind::GC_PAUSE => self.gc_pause(&read(bytes)?),
            kind::GC_STEP => Body::GcStep { started: MonoNs(read::<v8::GcStep>(bytes)?.started_ns) },
            kind::HEAP_LIMIT => self.heap_limit(&read(bytes)?),
            kind::OFF_CPU => self.off_cpu(&read(bytes)?),
            kind::KERNEL_STACK => kernel_stack(bytes)?,
            kind::USER_STACK => self.user_stack(bytes)?,
            kind::SAMPLE => self.sample(&read(bytes)?),
            kind::LOCK_WAIT => Body::LockWait(Box::new(postgres::lock_wait(&read(bytes)?))),
            kind::LOCK_END => {
                let end = postgres::lock_end(&read(bytes)?);
                self.unknown_codes += u64::from(end.outcome == LockOutcome::Unknown);
                Body::LockEnd(end)
            }
            kind::PROCESS_FORK => {
                let fork: process::Fork = read(bytes)?;
                Body::Fork { child_pid: Pid(fork.child_tgid), child_tid: Tid(fork.child_tid) }
            }
            kind::PROCESS_EXEC if header.flags & process::exec_flag::STRANGER != 0 => Body::Stranger,
            kind::PROCESS_EXEC => Body::Exec { name: text(&read::<process::Exec>(bytes)?.comm) },
            kind::PROCESS_EXIT => Body::Exit(Box::new(exit(&read(bytes)?))),
            _ => return Err(Reason::RecordUnknown),
        };
        Ok(Event { pid: Pid(header.tgid), tid: Tid(header.tid), at: MonoNs(header.time_ns), body })
    }

    /// A code that is not known, replaced.
    fn unknown<T>(&mut self, instead: T) -> T {
        self.unknown_codes += 1;
        instead
    }

    fn work(&mut self, work: &thread_pool::Work) -> Body {
        let task = match (work.source, work.function) {
            (thread_pool::source::IO_URING, _) => Task::IoUring(work.op),
            (_, thread_pool::function::FS) => Task::Fs(work.op),
            (_, thread_pool::function::GETADDRINFO) => Task::GetAddrInfo,
            (_, thread_pool::function::GETNAMEINFO) => Task::GetNameInfo,
            (_, thread_pool::function::RANDOM) => Task::Random,
            (_, thread_pool::function::NODE) if work.vtable != 0 => Task::Node(UserAddr(work.vtable)),
            (_, thread_pool::function::NODE | thread_pool::function::UNKNOWN) => Task::Unknown,
            (_, thread_pool::function::QUEUE_WORK) => Task::Queued,
            _ => self.unknown(Task::Unknown),
        };
        let cancelled = work.status == -libc::ECANCELED;
        Body::Work(Work {
            submitted: seen(work.submitted_ns),
            started: seen(work.started_ns),
            ended: seen(work.ended_ns),
            task,
            cancelled,
            failed: work.status < 0 && !cancelled,
        })
    }

    fn gc_pause(&mut self, pause: &v8::GcPause) -> Body {
        const MINOR: u32 = v8::collector::SCAVENGE | v8::collector::MINOR_MARK_SWEEP;
        let gc_type = match pause.collectors {
            // A scavenge that fell back to a full collection is a full collection.
            bits if bits & v8::collector::MARK_COMPACT != 0 => GcType::Major,
            bits if bits & MINOR != 0 => GcType::Minor,
            0 => GcType::Unknown,
            _ => self.unknown(GcType::Unknown),
        };
        Body::GcPause(GcPause { started: MonoNs(pause.started_ns), gc_type, reason: pause.reason })
    }

    fn heap_limit(&mut self, record: &v8::HeapLimit) -> Body {
        Body::HeapLimit(match record.limit {
            v8::limit::NEAR => HeapSeverity::Near,
            v8::limit::OUT_OF_MEMORY => HeapSeverity::OutOfMemory,
            _ => self.unknown(HeapSeverity::Unknown),
        })
    }

    fn off_cpu(&mut self, stay: &sched::OffCpu) -> Body {
        let reason = match OffReason::of_code(stay.reason) {
            Some(reason) => reason,
            None => self.unknown(OffReason::Unknown),
        };
        let class = match Class::of_code(stay.class) {
            Some(class) => class,
            None => self.unknown(Class::Other),
        };
        Body::OffCpu(OffCpu {
            out: MonoNs(stay.out_ns),
            woken: seen(stay.woken_ns),
            user_stack: Some(stay.user_stack).filter(|&id| id != 0),
            kernel_stack: Some(stay.kernel_stack).filter(|&id| id != 0),
            reason,
            class,
            over_budget: stay.header.flags & sched::flag::STACK_OVER_BUDGET != 0,
        })
    }

    fn user_stack(&mut self, bytes: &[u8]) -> Result<Body, Reason> {
        let (head, frames) = stack::UserStack::read_from_prefix(bytes).map_err(|_| Reason::RecordTruncated)?;
        let end = match head.end {
            stack::end::OUTERMOST => WalkEnd::Outermost,
            stack::end::DEEP => WalkEnd::Deep,
            stack::end::UNREADABLE => WalkEnd::Unreadable,
            stack::end::NOT_ABOVE => WalkEnd::NotAbove,
            _ => self.unknown(WalkEnd::Unknown),
        };
        let all = head.depth.checked_add(head.awaits).ok_or(Reason::RecordTruncated)?;
        let names = frames.get(all as usize * size_of::<UserFrame>()..).ok_or(Reason::RecordTruncated)?;
        let names = frames_of(names, head.names, stack::NAMES_MAX)?;
        let mut frames: Vec<UserFrame> = frames_of(frames, all, stack::USER_FRAMES_MAX)?;
        let awaits = frames.split_off(usize::try_from(head.depth).unwrap_or(usize::MAX).min(frames.len()));
        Ok(Body::Stack(Stack {
            id: head.id,
            frames: Frames::User(Box::new(UserFrames {
                frames,
                awaits,
                names,
                leaf: (head.header.flags & stack::user_flag::INTERRUPTED != 0).then_some(head.leaf),
                end,
                major_gcs: head.major_gcs,
                gcs: head.gcs,
            })),
        }))
    }

    fn sample(&mut self, sample: &sample::Sample) -> Body {
        let class = match Class::of_code(sample.class) {
            Some(class) => class,
            None => self.unknown(Class::Other),
        };
        Body::Sample(Sample {
            user_stack: Some(sample.user_stack).filter(|&id| id != 0),
            kernel_stack: Some(sample.kernel_stack).filter(|&id| id != 0),
            class,
            in_gc: sample.header.flags & sample::flag::IN_GC != 0,
            weight: sample.weight,
            period_ns: sample.period_ns,
        })
    }
}

impl Iterator for Decoder<'_> {
    type Item = Result<Event, Reason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Ok((len, rest)) = u32::read_from_prefix(self.rest) else {
            self.rest = &[];
            return Some(Err(Reason::RecordTruncated));
        };
        let Some((record, rest)) = rest.split_at_checked(len as usize) else {
            // Where the next record begins is not known either.
            self.rest = &[];
            return Some(Err(Reason::RecordTruncated));
        };
        self.rest = rest;
        Some(self.record(record))
    }
}

/// The record at the head of `bytes`: a longer one is of a newer kernel half, and its head is what we know.
fn read<T: FromBytes>(bytes: &[u8]) -> Result<T, Reason> {
    T::read_from_prefix(bytes).map(|(record, _)| record).map_err(|_| Reason::RecordTruncated)
}

fn seen(time_ns: u64) -> Option<MonoNs> {
    (time_ns != 0).then_some(MonoNs(time_ns))
}

fn kernel_stack(bytes: &[u8]) -> Result<Body, Reason> {
    let (head, frames) = stack::KernelStack::read_from_prefix(bytes).map_err(|_| Reason::RecordTruncated)?;
    let frames: Vec<u64> = frames_of(frames, head.depth, stack::KERNEL_FRAMES_MAX)?;
    Ok(Body::Stack(Stack { id: head.id, frames: Frames::Kernel(frames.into()) }))
}

/// The frames behind a stack's head.
fn frames_of<T: FromBytes>(bytes: &[u8], depth: u32, depth_max: usize) -> Result<Vec<T>, Reason> {
    let depth = depth as usize;
    if depth > depth_max || bytes.len() < depth * size_of::<T>() {
        return Err(Reason::RecordTruncated);
    }
    Ok(bytes.chunks_exact(size_of::<T>()).take(depth).filter_map(|frame| T::read_from_bytes(frame).ok()).collect())
}

/// `comm`, up to the first NUL.
fn text(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|&byte| byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(comm.get(..end).unwrap_or(comm)).into_owned()
}

fn turn(turn: &event_loop::Turn) -> Body {
    Body::Turn(Turn { started: MonoNs(turn.started_ns), polled: MonoNs(turn.polled_ns), ledger: turn.ledger })
}

fn exit(exit: &process::Exit) -> Exit {
    let signal = u8::try_from(exit.status & 0x7f).unwrap_or(0);
    let code = u8::try_from(exit.status >> 8 & 0xff).unwrap_or(0);
    Exit {
        process: exit.header.flags & process::exit_flag::PROCESS != 0,
        code: (signal == 0).then_some(code),
        signal: (signal != 0).then_some(signal),
        core_dumped: exit.status & 0x80 != 0,
        name: text(&exit.comm),
        first: seen(exit.first_ns),
        flags: u32::try_from(exit.state_flags & u64::from(u32::MAX)).unwrap_or(0),
        ledger: exit.ledger,
    }
}

/// Families whose records this module knows; a new one does not build until it is thought of.
const _: () = assert!(family::COUNT == 8);

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use zerocopy::{FromZeros, IntoBytes};

    use agent_ebpf::abi::event_loop::Ledger;

    use super::*;

    fn prefixed(record: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(record.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(record);
        bytes
    }

    fn header(kind: u32) -> Header {
        Header { kind, tgid: 7, tid: 8, flags: 0, time_ns: 99 }
    }

    #[test]
    fn a_turn_comes_out_as_it_went_in() {
        let record = event_loop::Turn {
            header: header(kind::TURN),
            loop_addr: 1,
            started_ns: 10,
            polled_ns: 20,
            reserved: 0,
            ledger: Ledger { idle_ns: 79, ..Ledger::ZERO },
        };
        let bytes = prefixed(record.as_bytes());
        let events: Vec<_> = Decoder::new(family::EVENT_LOOP, &bytes).collect();
        let body = Body::Turn(Turn { started: MonoNs(10), polled: MonoNs(20), ledger: record.ledger });
        assert_eq!(events, [Ok(Event { pid: Pid(7), tid: Tid(8), at: MonoNs(99), body })]);
    }

    #[test]
    fn a_bad_record_does_not_hide_the_next_one() {
        let step = v8::GcStep { header: header(kind::GC_STEP), started_ns: 5 };
        let mut bytes = prefixed(&[1, 2, 3]);
        bytes.extend(prefixed(step.as_bytes()));
        let turn_in_the_wrong_ring = v8::GcStep { header: header(kind::TURN), started_ns: 5 };
        bytes.extend(prefixed(turn_in_the_wrong_ring.as_bytes()));
        bytes.extend([9, 0, 0, 0, 1]);
        let kinds: Vec<_> = Decoder::new(family::V8, &bytes).map(|event| event.map(|event| event.body)).collect();
        assert_eq!(
            kinds,
            [
                Err(Reason::RecordTruncated),
                Ok(Body::GcStep { started: MonoNs(5) }),
                Err(Reason::RecordUnknown),
                Err(Reason::RecordTruncated),
            ]
        );
    }

    #[test]
    fn a_wait_status_is_taken_apart() {
        let mut record = process::Exit::new_zeroed();
        record.status = 3 << 8;
        assert_eq!((exit(&record).code, exit(&record).signal), (Some(3), None));
        record.status = 6 | 0x80;
        assert_eq!((exit(&record).code, exit(&record).signal, exit(&record).core_dumped), (None, Some(6), true));
    }

    #[test]
    fn an_unknown_code_is_counted_and_the_rest_kept() {
        let mut record = sched::OffCpu::new_zeroed();
        record.header = header(kind::OFF_CPU);
        record.reason = 77;
        record.class = 78;
        let bytes = prefixed(record.as_bytes());
        let mut decoder = Decoder::new(family::SCHED, &bytes);
        let event = decoder.next().unwrap().unwrap();
        assert!(matches!(event.body, Body::OffCpu(OffCpu { reason: OffReason::Unknown, class: Class::Other, .. })));
        assert_eq!(decoder.unknown_codes(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_end(family in 0u32..9, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            // Each step takes at least a length word, or ends the walk.
            prop_assert!(Decoder::new(family, &bytes).count() <= bytes.len() / 4 + 1);
        }

        #[test]
        fn any_record_body_is_read_or_refused(kind in prop::sample::select(vec![
            kind::TURN, kind::WORK, kind::GC_PAUSE, kind::GC_STEP, kind::HEAP_LIMIT, kind::OFF_CPU, kind::KERNEL_STACK,
            kind::USER_STACK, kind::SAMPLE, kind::PROCESS_FORK, kind::PROCESS_EXEC, kind::PROCESS_EXIT, kind::LOCK_WAIT,
            kind::LOCK_END,
        ]), tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut record = header(kind).as_bytes().to_vec();
            record.extend(tail);
            prop_assert_eq!(Decoder::new(kind >> 8, &prefixed(&record)).count(), 1);
        }
    }
}
