//! A made-up trace of three seconds: a server that serves, reads a file synchronously, hashes passwords, and blocks its loop
//! for 80 ms once a second.

use std::sync::Arc;

use agent::{
    core::{Core, Input, Output, SelfCost, TargetFacts, Tick},
    report::{
        Record,
        model::{Degraded, EndReason, Frame, FrameKind, Space, TraceConfig},
    },
    units::{Clock, MonoNs, Pid, Tid, WallNs},
};
use agent_ebpf::{
    abi::{event_loop::phase, family, v8::collector},
    histogram::index,
    state::{FamilyCounters, RunQueueKey, flag},
};
use bytes::Bytes;
use zerocopy::IntoBytes;

use super::{
    Batch, MS, PID, Thread, exit, fork, fs_work, gc_pause, gc_step, heap_limit, kernel_stack, node_work, off_cpu,
    user_stack,
};

const BEGIN: u64 = 5_000_000_000;
const PBKDF2_VTABLE: u64 = 0x55_0000_1000;
const READ_STACK: u64 = 0xfeed_0000_0000_0001;
const KERNEL_STACK: u64 = 0xfeed_0000_0000_0003;

pub fn facts() -> TargetFacts {
    TargetFacts {
        pid: Pid(PID),
        since: MonoNs(BEGIN),
        clock: Clock { offset_ns: 1_790_000_000_000_000_000 },
        start_time: Some(WallNs(1_789_999_000_000_000_000)),
        exe: "/usr/bin/node".into(),
        command: vec!["node".into(), "synthetic.js".into()],
        node_version: Some("v20.20.2".into()),
        thread_pool_size: Some(4),
        config: TraceConfig::default(),
        degraded: vec![Degraded {
            feature: "heap limit".into(),
            reason: "symbol not in /usr/bin/node (test data)".into(),
        }],
        kernel_release: "6.18.44".into(),
        cpus: 2,
        resource: [("service.name".into(), "synthetic".into())].into(),
    }
}

/// Batches of each family, and how many records went into them.
#[derive(Default)]
struct Rings {
    batches: [Batch; family::COUNT],
}

impl Rings {
    fn add(&mut self, family: u32, record: &[u8]) {
        self.batches[family as usize].add(record);
    }

    fn drain(&mut self, into: &mut Vec<Input>) {
        for (family, batch) in (0..).zip(&mut self.batches) {
            let bytes = batch.take();
            if !bytes.is_empty() {
                into.push(Input::Records { family, bytes });
            }
        }
    }
}

/// The inputs of the whole trace, without the driver's answers.
pub fn inputs() -> Vec<Input> {
    let mut inputs = vec![Input::Target(Box::new(facts()))];
    let mut main = Thread::new(PID, BEGIN + MS);
    let mut rings = Rings::default();
    let mut run_queue = 0;
    rings.add(family::PROCESS, fork(PID, BEGIN + 2 * MS, PID + 20).as_bytes());
    for second in 1..=3 {
        let end = BEGIN + second * 1000 * MS;
        second_of_load(&mut main, &mut rings, end, second);
        rings.drain(&mut inputs);
        run_queue += 100 * second;
        inputs.push(Input::Tick(Box::new(tick(&main, &rings, end, second, run_queue))));
    }
    rings.add(family::PROCESS, exit(PID, main.now, &main.state, true).as_bytes());
    rings.drain(&mut inputs);
    let mut last = tick(&main, &rings, main.now + MS, 4, run_queue);
    last.threads = Bytes::new();
    inputs.push(Input::Tick(Box::new(last)));
    inputs.push(Input::Stop { now: MonoNs(main.now + MS), reason: EndReason::TargetsGone });
    inputs
}

fn second_of_load(main: &mut Thread, rings: &mut Rings, end: u64, second: u64) {
    let mut n = 0;
    while main.now < end - 140 * MS {
        n += 1;
        main.run(phase::POLL, 600_000 + n * 7_000);
        main.run(phase::CHECK, 40_000);
        if n % 10 == 0 {
            read_file(main, rings);
        }
        if n % 25 == 0 {
            collect(main, rings, n % 100 == 0);
        }
        main.run(phase::TIMERS, 20_000);
        main.run(phase::PREPARE, 5_000);
        main.poll(1_200_000 + n * 1_000, 30_000, 2);
        if n % 8 == 0 {
            let at = main.now;
            let (wait, run) = (50_000 * (n % 5), 3 * MS);
            rings.add(family::THREAD_POOL, node_work(PID, at - wait - run, at - run, at, PBKDF2_VTABLE).as_bytes());
            rings.add(family::THREAD_POOL, fs_work(PID, at - 300_000, at - 250_000, at, 3).as_bytes());
        }
    }
    // The busy loop: a timer's callback.
    main.run(phase::TIMERS, 80 * MS);
    main.enter_poll();
    main.off(agent_ebpf::abi::sched::reason::BLOCKED, MS, 10_000);
    main.leave_poll(1);
    main.run(phase::POLL, MS);
    main.enter_poll();
    main.switch_out(agent_ebpf::abi::sched::reason::BLOCKED);
    main.now = end;
    if second == 2 {
        rings.add(family::V8, heap_limit(PID, end - MS).as_bytes());
    }
    for turn in main.turns.drain(..) {
        rings.add(family::EVENT_LOOP, turn.as_bytes());
    }
    // The poll goes on beyond the window.
    main.wake();
    main.switch_in();
    main.leave_poll(1);
}

/// A synchronous read that blocks for 3 ms.
fn read_file(main: &mut Thread, rings: &mut Rings) {
    let out = main.now;
    main.off(agent_ebpf::abi::sched::reason::BLOCKED, 3 * MS, 50_000);
    main.state.ledger.sync_fs += 1;
    let (woken, back) = (main.now - 50_000, main.now);
    rings.add(family::STACK, &user_stack(PID, out, READ_STACK, &[0x40_1000, 0x40_2000, 0x7f00_0000]));
    rings.add(family::STACK, &kernel_stack(PID, out, KERNEL_STACK, &[0xffff_ffff_8100_0000, 0xffff_ffff_8100_1000]));
    rings.add(family::SCHED, off_cpu(PID, out, woken, back, READ_STACK, KERNEL_STACK).as_bytes());
}

fn collect(main: &mut Thread, rings: &mut Rings, major: bool) {
    let started = main.now;
    let (ns, collectors, reason) =
        if major { (9 * MS, collector::MARK_COMPACT, 9) } else { (1_200_000, collector::SCAVENGE, 1) };
    main.run(phase::POLL, ns);
    main.state.ledger.gc_ns += ns;
    rings.add(family::V8, gc_pause(PID, started, main.now, collectors, reason).as_bytes());
    if major {
        rings.add(family::V8, gc_step(PID, started - 800_000, started - 100_000).as_bytes());
    }
}

fn tick(main: &Thread, rings: &Rings, now: u64, second: u64, run_queue: u64) -> Tick {
    let mut pool = Thread::new(PID + 7, BEGIN + 3 * MS).state;
    pool.flags = flag::POOL;
    pool.mark_ns = now;
    pool.ledger.on_cpu_ns[0] = 200 * MS * second;
    pool.ledger.blocked_ns = now - pool.first_ns - pool.ledger.on_cpu_ns[0];
    pool.ledger.switches = 70 * second;
    let mut threads = main.state.as_bytes().to_vec();
    threads.extend_from_slice(pool.as_bytes());
    let mut tick = Tick {
        now: MonoNs(now),
        phases_seen_ns: if second == 1 { 1000 * MS } else { 400 * MS },
        pool_seen_ns: 1000 * MS,
        turns_seen_ns: 1000 * MS,
        switches_seen_ns: 1000 * MS,
        threads: Bytes::from(threads),
        run_queue: vec![
            (RunQueueKey { tgid: PID, class: 1, bucket: bucket(30_000) }, run_queue),
            (RunQueueKey { tgid: PID, class: 1, bucket: bucket(900_000) }, second),
            (RunQueueKey { tgid: PID, class: 2, bucket: bucket(45_000) }, 40 * second),
        ],
        thread_names: vec![(Tid(PID), "node".into()), (Tid(PID + 7), "libuv-worker".into())],
        self_cost: SelfCost {
            cpu_user_ns: 6 * MS * second,
            cpu_system_ns: 4 * MS * second,
            rss_bytes: 24_000_000 + second * 1_000_000,
            hits: vec![(1, 500 * second), (5, 500 * second), (40, 20 * second), (64, 4000 * second)],
            bpf_run_ns: None,
            hit_cost_ns: Some(476),
            budget_ns: 20 * MS * second,
            stacks_rarer: 1,
            samples_rarer: 1,
            looks_rarer: 1,
            records_rarer: 1,
            streams: Vec::new(),
        },
        ..Tick::default()
    };
    for (at, batch) in rings.batches.iter().enumerate() {
        // The third second's sched ring overflowed a little.
        let dropped = if at == family::SCHED as usize && second >= 3 { 12 } else { 0 };
        tick.families[at] = FamilyCounters { emitted: batch.count + dropped, dropped };
        tick.received[at] = batch.count;
    }
    tick
}

fn bucket(ns: u64) -> u16 {
    u16::try_from(index(ns)).unwrap()
}

fn frame(name: &str, kind: FrameKind) -> Frame {
    Frame { name: name.into(), kind, ..Frame::default() }
}

/// What a driver would answer.
fn answer(output: &Output) -> Option<Input> {
    match output {
        Output::Record(_) => None,
        Output::NeedSymbols { stack, pid: _, frames } => {
            let frames = match frames.space() {
                Space::User => vec![
                    frame("__libc_pread64", FrameKind::Native),
                    frame("uv__fs_work", FrameKind::Native),
                    frame("node::fs::Read(v8::FunctionCallbackInfo<v8::Value> const&)", FrameKind::Native),
                    frame("", FrameKind::Js),
                ],
                Space::Kernel => vec![
                    frame("__schedule", FrameKind::Kernel),
                    frame("io_schedule", FrameKind::Kernel),
                    frame("filemap_read", FrameKind::Kernel),
                    frame("do_syscall_64", FrameKind::Kernel),
                ],
            };
            let frames = frames.into_iter().map(Arc::new).collect();
            Some(Input::Symbolized { stack: *stack, frames, truncated: None, at: None })
        }
        // A process in whose heap no call is suspended.
        Output::NeedAwaits { pid } => Some(Input::Awaits { pid: *pid, at: MonoNs(0), awaits: Vec::new() }),
        Output::NeedWorkClass { pid, vtable } => {
            let class = Some("node::crypto::DeriveBitsJob<node::crypto::PBKDF2Traits>".to_owned());
            Some(Input::WorkClass { pid: *pid, vtable: *vtable, class })
        }
    }
}

/// Runs a core over the inputs as a driver does: the log of all inputs, answers included, and the records.
pub fn drive(inputs: Vec<Input>) -> (Vec<Input>, Vec<Record>) {
    let mut core = Core::new();
    let mut log = Vec::new();
    let mut records = Vec::new();
    for input in inputs {
        let mut todo = vec![input];
        while let Some(input) = todo.pop() {
            log.push(input.clone());
            for output in core.step(input) {
                todo.extend(answer(&output));
                if let Output::Record(record) = output {
                    records.push(*record);
                }
            }
        }
    }
    (log, records)
}
