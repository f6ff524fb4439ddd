//! What the core promises about rare moments.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod synthetic;

use std::sync::Arc;

use agent::{
    core::{Core, Input, Output, Tick},
    decode::Frames,
    export::text::{Style, render},
    report::{
        Body, Record,
        model::{EndReason, Frame, LoopWindow, Process, StackId, Window},
        summary::Summary,
    },
    units::{Clock, MonoNs, Pid},
};
use agent_ebpf::{
    abi::{event_loop::phase, family, sched::reason},
    state::FamilyCounters,
};
use bytes::Bytes;
use synthetic::{Batch, MS, PID, Thread, exit, gc_pause, off_cpu, trace::facts};
use zerocopy::IntoBytes;

/// A core with one target, and what it put out.
struct Run {
    core: Core,
    records: Vec<Record>,
    asked: Vec<Output>,
}

impl Run {
    fn new() -> Self {
        let mut run = Self { core: Core::new(), records: Vec::new(), asked: Vec::new() };
        run.step(Input::Target(Box::new(facts())));
        run.records.clear();
        run
    }

    fn step(&mut self, input: Input) {
        for output in self.core.step(input) {
            match output {
                Output::Record(record) => self.records.push(*record),
                asked => self.asked.push(asked),
            }
        }
    }

    fn record(&mut self, family: u32, record: &[u8]) {
        let mut batch = Batch::default();
        batch.add(record);
        self.step(Input::Records { family, bytes: batch.take() });
    }

    fn turns(&mut self, thread: &mut Thread) {
        for turn in std::mem::take(&mut thread.turns) {
            self.record(family::EVENT_LOOP, turn.as_bytes());
        }
    }

    fn tick(&mut self, threads: &[&Thread], now: u64) {
        let threads: Vec<u8> = threads.iter().flat_map(|thread| thread.state.as_bytes().to_vec()).collect();
        self.step(Input::Tick(Box::new(Tick { now: MonoNs(now), threads: threads.into(), ..Tick::default() })));
    }

    fn stop(&mut self, now: u64) {
        self.step(Input::Stop { now: MonoNs(now), reason: EndReason::Duration });
    }

    fn windows(&self) -> Vec<&Window> {
        let window = |record: &'_ Record| matches!(record.body, Body::Window(_));
        self.records
            .iter()
            .filter(|record| window(record))
            .filter_map(|record| if let Body::Window(window) = &record.body { Some(window.as_ref()) } else { None })
            .collect()
    }

    fn loops(&self) -> Vec<&LoopWindow> {
        self.windows().into_iter().flat_map(|window| &window.loops).collect()
    }

    fn warnings(&self) -> usize {
        self.records.iter().filter(|record| matches!(record.body, Body::Warning(_))).count()
    }
}

const BEGIN: u64 = 5_000_000_000;

#[test]
fn a_slow_turn_has_what_happened_inside_it_and_nothing_else() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    main.poll(MS, 0, 1);
    run.turns(&mut main);
    main.run(phase::POLL, 10 * MS);
    main.poll(MS, 0, 1);
    run.turns(&mut main);
    // In the ring of another family, and earlier: not in the slow turn.
    run.record(family::SCHED, off_cpu(PID, BEGIN + 2 * MS, 0, BEGIN + 3 * MS, 0, 0).as_bytes());
    let started = main.now;
    main.run(phase::TIMERS, 60 * MS);
    let out = main.now;
    main.off(reason::BLOCKED, 5 * MS, MS);
    let back = main.now;
    main.poll(MS, 0, 1);
    run.turns(&mut main);
    // Rings are drained one after the other: the parts may come after the turn that they were in.
    run.record(family::SCHED, off_cpu(PID, out, back - MS, back, 0, 0).as_bytes());
    run.record(family::V8, gc_pause(PID, started + MS, started + 3 * MS, 1, 1).as_bytes());
    run.tick(&[&main], main.now);
    let slow: Vec<_> = run
        .records
        .iter()
        .filter_map(|record| if let Body::SlowTurn(turn) = &record.body { Some(turn) } else { None })
        .collect();
    assert_eq!(slow.len(), 1);
    assert_eq!(slow[0].busy_ns, 66 * MS);
    assert_eq!(slow[0].on_cpu_by_phase_ns.timers, 60 * MS);
    assert_eq!((slow[0].ledger.blocked_ns, slow[0].ledger.runnable_ns, slow[0].ledger.unaccounted_ns), (5 * MS, MS, 0));
    assert_eq!(
        slow[0].off_cpu.iter().map(|stay| (stay.duration_ns, stay.runnable_ns)).collect::<Vec<_>>(),
        [(6 * MS, MS)]
    );
    assert_eq!(slow[0].gc.iter().map(|pause| pause.duration_ns).collect::<Vec<_>>(), [2 * MS]);
}

#[test]
fn a_pause_that_waits_for_a_cpu_is_not_counted_as_on_cpu() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    main.poll(MS, 0, 1);
    main.run(phase::POLL, MS);
    main.poll(MS, 0, 1);
    run.turns(&mut main);
    let started = main.now;
    main.run(phase::POLL, 4 * MS);
    main.off(reason::PREEMPTED, 0, 20 * MS);
    main.state.ledger.gc_ns += main.now - started;
    run.record(family::V8, gc_pause(PID, started, main.now, 1, 1).as_bytes());
    run.record(family::SCHED, off_cpu(PID, started + 4 * MS, 0, main.now, 0, 0).as_bytes());
    run.tick(&[&main], main.now);
    main.run(phase::POLL, 4 * MS);
    run.tick(&[&main], main.now);
    let loops = run.loops();
    assert_eq!((loops[0].gc_ns, loops[0].gc_off_cpu_ns), (24 * MS, 20 * MS));
    assert_eq!((loops[1].gc_ns, loops[1].gc_off_cpu_ns), (0, 0));
}

#[test]
fn a_loop_that_never_returns_is_reported_while_it_lasts() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    main.poll(MS, 0, 1);
    main.enter_phase(phase::POLL);
    for _ in 0..5 {
        main.pass(1000 * MS);
        run.tick(&[&main], main.now);
    }
    assert_eq!(run.warnings(), 1, "once for each turn");
    assert!(run.loops().iter().all(|of_loop| of_loop.ledger.unaccounted_ns == 0));
    run.stop(main.now);
    let open =
        run.records.iter().find_map(|record| if let Body::SlowTurn(turn) = &record.body { Some(turn) } else { None });
    let open = open.unwrap();
    assert!(open.open);
    assert_eq!(open.busy_ns, 5000 * MS);
    assert_eq!(open.on_cpu_by_phase_ns.poll, 5000 * MS);
}

#[test]
fn a_loop_that_only_waits_is_idle_and_on_time() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    main.poll(MS, 0, 1);
    main.enter_poll();
    main.switch_out(reason::BLOCKED);
    for _ in 0..3 {
        main.pass(1000 * MS);
        run.tick(&[&main], main.now);
    }
    for of_loop in run.loops() {
        assert!(of_loop.utilization < 0.002, "{}", of_loop.utilization);
        assert_eq!(of_loop.ledger.unaccounted_ns, 0);
        assert_eq!((of_loop.delay.count(), of_loop.delay.max()), (100, 0));
    }
}

#[test]
fn a_thread_that_ends_between_two_looks_keeps_its_time() {
    let mut run = Run::new();
    let worker = PID + 30;
    let mut thread = Thread::new(worker, BEGIN + 10 * MS);
    thread.poll(MS, 0, 1);
    thread.run(phase::POLL, 20 * MS);
    thread.poll(MS, 0, 1);
    run.turns(&mut thread);
    run.record(family::PROCESS, exit(worker, thread.now, &thread.state, false).as_bytes());
    run.tick(&[], BEGIN + 1000 * MS);
    let loops = run.loops();
    assert_eq!(loops.len(), 1);
    assert_eq!((loops[0].tid, loops[0].ledger.wall_ns, loops[0].ledger.unaccounted_ns), (worker, 22 * MS, 0));
    assert_eq!(loops[0].ledger.on_cpu_ns, 20 * MS);
    assert_eq!(loops[0].turns, 1);
}

#[test]
fn a_thread_id_that_is_used_again_is_another_thread() {
    let mut run = Run::new();
    let mut first = Thread::new(PID + 30, BEGIN);
    first.run(phase::POLL, 500 * MS);
    run.tick(&[&first], first.now);
    let mut second = Thread::new(PID + 30, BEGIN + 600 * MS);
    second.run(phase::POLL, 100 * MS);
    run.tick(&[&second], second.now);
    let last = run.windows().last().unwrap().threads.clone();
    assert_eq!((last[0].ledger.wall_ns, last[0].ledger.on_cpu_ns), (100 * MS, 100 * MS));
}

#[test]
fn records_that_come_after_the_exit_make_no_new_process() {
    let mut run = Run::new();
    let main = Thread::new(PID, BEGIN);
    run.record(family::PROCESS, exit(PID, BEGIN + MS, &main.state, true).as_bytes());
    run.tick(&[], BEGIN + 1000 * MS);
    assert_eq!(run.windows().len(), 1);
    run.record(family::V8, gc_pause(PID, BEGIN, BEGIN + MS, 1, 1).as_bytes());
    run.tick(&[], BEGIN + 2000 * MS);
    assert_eq!(run.windows().len(), 1);
    let exits = run.records.iter().filter(|record| matches!(record.body, Body::Process(Process::Exit { .. }))).count();
    assert_eq!(exits, 1);
    let Some(Body::Agent(agent)) = run.records.last().map(|record| &record.body) else { panic!("no books") };
    assert_eq!(agent.counters.get("target_unknown"), Some(&1));
    run.step(Input::TargetGone { pid: Pid(PID), now: MonoNs(BEGIN) });
}

#[test]
fn threads_that_end_at_the_same_time_are_one_end_of_the_process() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    main.run(phase::POLL, 20 * MS);
    let mut other = Thread::new(PID + 1, BEGIN);
    other.run(phase::UNSPLIT, 10 * MS);
    run.record(family::PROCESS, exit(PID + 1, BEGIN + 20 * MS, &other.state, true).as_bytes());
    run.record(family::PROCESS, exit(PID, BEGIN + 20 * MS, &main.state, true).as_bytes());
    run.tick(&[], BEGIN + 1000 * MS);
    let threads: Vec<_> = run.windows()[0].threads.iter().map(|thread| (thread.tid, thread.ledger.on_cpu_ns)).collect();
    assert_eq!(threads, [(PID, 20 * MS), (PID + 1, 10 * MS)]);
    let exits = run.records.iter().filter(|record| matches!(record.body, Body::Process(Process::Exit { .. }))).count();
    assert_eq!(exits, 1);
}

#[test]
fn books_that_do_not_balance_are_shown() {
    let mut run = Run::new();
    let mut tick = Tick { now: MonoNs(BEGIN + MS), threads: Bytes::new(), ..Tick::default() };
    tick.families[family::SCHED as usize] = FamilyCounters { emitted: 10, dropped: 3 };
    tick.received[family::SCHED as usize] = 6;
    run.step(Input::Tick(Box::new(tick)));
    run.stop(BEGIN + MS);
    let Some(Body::End(end)) = run.records.last().map(|record| &record.body) else { panic!("no end") };
    assert!(!end.balanced);
    let text = render(&Summary::from_records(&run.records), Style::default());
    assert!(text.contains("sched: the books do not balance: emitted - received - dropped = 1"), "{text}");
    assert!(text.contains("sched: 3 of 10 dropped"), "{text}");
}

#[test]
fn symbols_are_asked_for_once_of_kernel_stacks_when_needed_and_of_user_stacks_at_once() {
    let mut run = Run::new();
    let main = Thread::new(PID, BEGIN);
    run.record(family::STACK, &synthetic::user_stack(PID, BEGIN, 77, &[1, 2, 3]));
    run.record(family::STACK, &synthetic::user_stack(PID, BEGIN, 77, &[1, 2, 3]));
    run.record(family::STACK, &synthetic::kernel_stack(PID, BEGIN, 78, &[4, 5]));
    run.record(family::STACK, &synthetic::kernel_stack(PID, BEGIN, 79, &[6]));
    let [Output::NeedSymbols { stack: StackId(77), frames: Frames::User(frames), .. }] = run.asked.as_slice() else {
        panic!("{:?}", run.asked)
    };
    assert_eq!(frames.frames.iter().map(|frame| frame.pc).collect::<Vec<_>>(), [1, 2, 3]);
    for second in 1..=3 {
        run.record(family::SCHED, off_cpu(PID, BEGIN, 0, BEGIN + MS, 77, 78).as_bytes());
        run.tick(&[&main], BEGIN + second * 1000 * MS);
    }
    assert_eq!(run.asked.len(), 2, "{:?}", run.asked);
    let Output::NeedSymbols { stack: StackId(78), frames: Frames::Kernel(frames), .. } = &run.asked[1] else {
        panic!("{:?}", run.asked)
    };
    assert_eq!(**frames, [4, 5]);
}

fn stacks_shown(run: &Run) -> Vec<StackId> {
    let ids = run.records.iter().filter_map(|record| match &record.body {
        Body::Stack(stack) => Some(stack.id),
        _ => None,
    });
    ids.collect()
}

#[test]
fn a_stack_that_no_line_speaks_of_has_no_line() {
    let mut run = Run::new();
    let main = Thread::new(PID, BEGIN);
    for id in [77, 78] {
        run.record(family::STACK, &synthetic::user_stack(PID, BEGIN, id, &[id]));
        let frame = Frame { name: format!("f{id}"), ..Frame::default() };
        run.step(Input::Symbolized { stack: StackId(id), frames: vec![Arc::new(frame)], truncated: None, at: None });
    }
    run.tick(&[&main], BEGIN + 1000 * MS);
    assert!(stacks_shown(&run).is_empty());
    for second in 2..=3 {
        run.record(family::SAMPLE, synthetic::sample(PID, BEGIN + second, 78).as_bytes());
        run.tick(&[&main], BEGIN + second * 1000 * MS);
    }
    assert_eq!(stacks_shown(&run), [StackId(78)]);
}

#[test]
fn how_long_a_stack_waited_for_its_names_is_in_the_books() {
    let mut run = Run::new();
    let main = Thread::new(PID, BEGIN);
    for (id, delay) in [(77, 3 * MS), (78, 5 * MS)] {
        run.record(family::STACK, &synthetic::user_stack(PID, BEGIN, id, &[id]));
        let at = Some(MonoNs(BEGIN + delay));
        run.step(Input::Symbolized { stack: StackId(id), frames: Vec::new(), truncated: None, at });
    }
    for second in 1..=2 {
        run.tick(&[&main], BEGIN + second * 1000 * MS);
    }
    let naming = run.records.iter().filter_map(|record| match &record.body {
        Body::Agent(agent) => Some((agent.naming.count(), agent.naming.min(), agent.naming.max())),
        _ => None,
    });
    assert_eq!(naming.collect::<Vec<_>>(), [(2, 3 * MS, 5 * MS), (0, 0, 0)]);
}

#[test]
fn a_slow_turn_says_where_it_was_on_cpu() {
    let mut run = Run::new();
    let mut main = Thread::new(PID, BEGIN);
    for _ in 0..2 {
        main.enter_poll();
        main.off(reason::BLOCKED, MS, 10_000);
        main.leave_poll(1);
    }
    // From its first turn on, the loop is known.
    run.record(family::EVENT_LOOP, main.turns[0].as_bytes());
    let began = main.now;
    main.run(phase::TIMERS, 80 * MS);
    for (at, id) in [(began - 1, 1), (began + MS, 2), (began + 20 * MS, 3), (began + 60 * MS, 3), (began + 81 * MS, 4)]
    {
        run.record(family::SAMPLE, synthetic::sample(PID, at, id).as_bytes());
    }
    main.enter_poll();
    main.off(reason::BLOCKED, MS, 10_000);
    main.leave_poll(1);
    run.record(family::EVENT_LOOP, main.turns[1].as_bytes());
    run.tick(&[&main], BEGIN + 1000 * MS);
    let slow = run.records.iter().find_map(|record| match &record.body {
        Body::SlowTurn(turn) => Some(turn),
        _ => None,
    });
    let on_cpu: Vec<_> = slow.unwrap().on_cpu.iter().map(|place| (place.samples, place.user_stack)).collect();
    assert_eq!(on_cpu, [(2, Some(StackId(3))), (1, Some(StackId(2)))]);
}

#[test]
fn stacks_that_say_the_same_are_one() {
    let mut run = Run::new();
    let main = Thread::new(PID, BEGIN);
    let frame =
        |line, column| Arc::new(Frame { name: "f".into(), line: Some(line), column: Some(column), ..Frame::default() });
    for (id, line, column) in [(77, 5, 1), (78, 5, 9), (79, 6, 1)] {
        run.record(family::STACK, &synthetic::user_stack(PID, BEGIN, id, &[id]));
        run.step(Input::Symbolized {
            stack: StackId(id),
            frames: vec![frame(line, column)],
            truncated: None,
            at: None,
        });
        run.record(family::SAMPLE, synthetic::sample(PID, BEGIN + id, id).as_bytes());
    }
    run.tick(&[&main], BEGIN + 1000 * MS);
    assert_eq!(stacks_shown(&run), [StackId(77), StackId(79)]);
    let profile = run.records.iter().find_map(|record| match &record.body {
        Body::Profile(profile) => Some(profile),
        _ => None,
    });
    let samples: Vec<_> = profile.unwrap().stacks.iter().map(|place| (place.user_stack, place.samples)).collect();
    assert_eq!(samples, [(Some(StackId(77)), 2), (Some(StackId(79)), 1)]);
}

#[test]
fn what_comes_after_the_wall_clock_was_set_is_told_in_the_new_time() {
    let mut run = Run::new();
    run.tick(&[], BEGIN + 1000 * MS);
    let before = std::mem::take(&mut run.records);
    run.step(Input::ClockSet(Clock { offset_ns: 0 }));
    run.tick(&[], BEGIN + 2000 * MS);
    assert!(before.iter().all(|record| record.time.starts_with("2026-")), "{before:?}");
    let told = !run.records.is_empty() && run.records.iter().all(|record| record.time.starts_with("1970-01-"));
    assert!(told, "{:?}", run.records);
}

#[test]
fn a_trace_without_anybody_to_trace_knows_what_time_it_is() {
    let mut run = Run { core: Core::new(), records: Vec::new(), asked: Vec::new() };
    run.step(Input::Begin { since: MonoNs(BEGIN), clock: facts().clock });
    run.tick(&[], BEGIN + 1000 * MS);
    let about_itself = run.records.iter().find_map(|record| match &record.body {
        Body::Agent(own) => Some((record.time.as_str(), own.duration_ns)),
        _ => None,
    });
    let (time, duration_ns) = about_itself.unwrap();
    assert!(time.starts_with("2026-"), "{time}");
    assert_eq!(duration_ns, 1000 * MS);
}
