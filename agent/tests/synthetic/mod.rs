//! Made-up kernel records for tests: a thread that does what a script says, charged as the kernel half charges.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

pub mod postgres;
pub mod profile;
pub mod trace;

use agent_ebpf::{
    abi::{
        Header,
        event_loop::Turn,
        kind,
        process::{Exit, Fork, exit_flag},
        sample::Sample,
        sched::{OffCpu, class, reason},
        stack::{KernelStack, UserFrame, UserStack},
        thread_pool::{Work, function, source},
        v8::{GcPause, GcStep, HeapLimit, limit},
    },
    state::{ThreadState, flag},
};
use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::{FromZeros, IntoBytes};

pub const PID: u32 = 4121;
pub const MS: u64 = 1_000_000;

/// A loop thread, and the time.
pub struct Thread {
    pub now: u64,
    pub state: ThreadState,
    /// Turns that ended, as the ring would deliver them.
    pub turns: Vec<Turn>,
}

impl Thread {
    pub fn new(tid: u32, now: u64) -> Self {
        let mut state = ThreadState::new_zeroed();
        state.tgid = PID;
        state.tid = tid;
        state.first_ns = now;
        state.mark_ns = now;
        state.poll_fd = 9;
        Self { now, state, turns: Vec::new() }
    }

    /// Time passes; the state stays as it is, as nothing happens.
    pub fn pass(&mut self, ns: u64) {
        self.now += ns;
    }

    pub fn charge(&mut self) {
        let spent = self.now - self.state.mark_ns;
        self.state.mark_ns = self.now;
        self.state.ledger.on_cpu_ns[self.state.phase as usize] += spent;
    }

    pub fn enter_phase(&mut self, phase: u32) {
        self.charge();
        self.state.phase = phase;
    }

    pub fn run(&mut self, phase: u32, ns: u64) {
        self.enter_phase(phase);
        self.pass(ns);
        self.charge();
    }

    pub fn switch_out(&mut self, reason: u32) {
        self.charge();
        self.state.out_reason = reason;
        self.state.out_ns = self.now;
        self.state.woken_ns = 0;
        self.state.ledger.switches += 1;
        self.state.flags |= flag::OFF_CPU;
    }

    pub fn wake(&mut self) {
        self.state.woken_ns = self.now;
    }

    pub fn switch_in(&mut self) {
        let away = self.now - self.state.out_ns;
        let runnable = match self.state.out_reason {
            reason::PREEMPTED => away,
            _ if self.state.woken_ns == 0 => 0,
            _ => self.now - self.state.woken_ns,
        };
        self.state.ledger.runnable_ns += runnable;
        let waited = away - runnable;
        let idle = self.state.flags & (flag::IN_POLL | flag::POLL_MAY_BLOCK) == flag::IN_POLL | flag::POLL_MAY_BLOCK;
        if self.state.out_reason == reason::STOPPED {
            self.state.ledger.stopped_ns += waited;
        } else if idle {
            self.state.ledger.idle_ns += waited;
        } else {
            self.state.ledger.blocked_ns += waited;
        }
        self.state.mark_ns = self.now;
        self.state.flags &= !flag::OFF_CPU;
    }

    /// Off CPU for `waited`, then for `runnable` until a CPU is free.
    pub fn off(&mut self, reason: u32, waited: u64, runnable: u64) {
        self.switch_out(reason);
        self.pass(waited);
        self.wake();
        self.pass(runnable);
        self.switch_in();
    }

    pub fn enter_poll(&mut self) {
        self.charge();
        self.state.polled_ns = self.now;
        self.state.poll_entered_ns = self.now;
        self.state.flags |= flag::LOOP | flag::IN_POLL | flag::POLL_MAY_BLOCK;
    }

    pub fn leave_poll(&mut self, events: u64) {
        self.charge();
        self.state.ledger.poll_ns += self.now - self.state.poll_entered_ns;
        self.state.ledger.events += events;
        self.state.flags &= !(flag::IN_POLL | flag::POLL_MAY_BLOCK);
        self.state.poll_returned_ns = self.now;
        if self.state.flags & flag::IN_TURN != 0 {
            self.turns.push(Turn {
                header: header(kind::TURN, self.state.tid, self.now),
                loop_addr: 0x7000,
                started_ns: self.state.turn_started_ns,
                polled_ns: self.state.polled_ns,
                reserved: 0,
                ledger: self.state.ledger.since(&self.state.turn_base),
            });
        }
        self.state.turn_started_ns = self.now;
        self.state.turn_base = self.state.ledger;
        self.state.turns += 1;
        self.state.flags |= flag::IN_TURN;
    }

    /// Polls: idle, then woken and in need of a CPU.
    pub fn poll(&mut self, idle: u64, runnable: u64, events: u64) {
        self.enter_poll();
        if idle != 0 {
            self.off(reason::BLOCKED, idle, runnable);
        }
        self.leave_poll(events);
    }
}

pub fn header(kind: u32, tid: u32, time_ns: u64) -> Header {
    Header { kind, tgid: PID, tid, flags: 0, time_ns }
}

/// Records of one family, as the intake hands them on.
#[derive(Default)]
pub struct Batch {
    bytes: BytesMut,
    pub count: u64,
}

impl Batch {
    pub fn add(&mut self, record: &[u8]) {
        self.bytes.put_u32_le(u32::try_from(record.len()).unwrap());
        self.bytes.put_slice(record);
        self.count += 1;
    }

    pub fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }
}

pub fn gc_pause(tid: u32, started_ns: u64, ended_ns: u64, collectors: u32, reason: u32) -> GcPause {
    GcPause {
        header: header(kind::GC_PAUSE, tid, ended_ns),
        started_ns,
        heap: 0x1000,
        space: 1,
        reason,
        collectors,
        reserved: 0,
    }
}

pub fn gc_step(tid: u32, started_ns: u64, ended_ns: u64) -> GcStep {
    GcStep { header: header(kind::GC_STEP, tid, ended_ns), started_ns }
}

pub fn heap_limit(tid: u32, at: u64) -> HeapLimit {
    HeapLimit { header: header(kind::HEAP_LIMIT, tid, at), heap: 0x1000, limit: limit::NEAR, reserved: 0 }
}

pub fn off_cpu(tid: u32, out_ns: u64, woken_ns: u64, back_ns: u64, user_stack: u64, kernel_stack: u64) -> OffCpu {
    OffCpu {
        header: header(kind::OFF_CPU, tid, back_ns),
        out_ns,
        woken_ns,
        user_stack,
        kernel_stack,
        reason: reason::BLOCKED,
        class: class::EVENT_LOOP,
    }
}

pub fn kernel_stack(tid: u32, at: u64, id: u64, frames: &[u64]) -> Vec<u8> {
    let head = header(kind::KERNEL_STACK, tid, at);
    let mut bytes =
        KernelStack { header: head, id, depth: u32::try_from(frames.len()).unwrap(), reserved: 0 }.as_bytes().to_vec();
    bytes.extend_from_slice(frames.as_bytes());
    bytes
}

/// A stack of these return addresses, taken in a system call.
pub fn user_stack(tid: u32, at: u64, id: u64, frames: &[u64]) -> Vec<u8> {
    let mut head = UserStack::new_zeroed();
    head.header = header(kind::USER_STACK, tid, at);
    head.id = id;
    head.depth = u32::try_from(frames.len()).unwrap();
    let mut bytes = head.as_bytes().to_vec();
    for &pc in frames {
        bytes.extend_from_slice(UserFrame { pc, object: 0, bytecode_offset: 0 }.as_bytes());
    }
    bytes
}

/// A sample of 10 ms.
pub fn sample(tid: u32, at: u64, user_stack: u64) -> Sample {
    Sample {
        header: header(kind::SAMPLE, tid, at),
        user_stack,
        kernel_stack: 0,
        class: class::EVENT_LOOP,
        weight: 1,
        period_ns: 10 * MS,
    }
}

pub fn fs_work(tid: u32, submitted_ns: u64, started_ns: u64, ended_ns: u64, op: u32) -> Work {
    Work {
        header: header(kind::WORK, tid, ended_ns + 40_000),
        work: 0x9000,
        submitted_ns,
        started_ns,
        ended_ns,
        callback: 0x5000,
        vtable: 0,
        pool_tid: PID + 7,
        source: source::INTERNAL,
        function: function::FS,
        op,
        status: 0,
        reserved: 0,
    }
}

pub fn node_work(tid: u32, submitted_ns: u64, started_ns: u64, ended_ns: u64, vtable: u64) -> Work {
    Work {
        vtable,
        source: source::QUEUE_WORK,
        function: function::NODE,
        op: 0,
        ..fs_work(tid, submitted_ns, started_ns, ended_ns, 0)
    }
}

pub fn fork(tid: u32, at: u64, child_tid: u32) -> Fork {
    Fork { header: header(kind::PROCESS_FORK, tid, at), child_tgid: PID, child_tid }
}

pub fn exit(tid: u32, at: u64, state: &ThreadState, is_process: bool) -> Exit {
    let mut head = header(kind::PROCESS_EXIT, tid, at);
    head.flags = if is_process { exit_flag::PROCESS } else { 0 };
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(b"node");
    Exit {
        header: head,
        status: 0,
        reserved: 0,
        comm,
        first_ns: state.first_ns,
        state_flags: u64::from(state.flags),
        ledger: state.ledger,
    }
}
