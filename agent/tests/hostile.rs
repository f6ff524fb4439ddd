//! Whatever the rings and the maps hold, the core neither panics nor grows beyond its limits.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod synthetic;

use agent::{
    core::{Core, Input, Tick},
    export::text::{Style, render},
    report::{Record, model::EndReason, summary::Summary},
    units::{Clock, MonoNs, Pid, UserAddr},
};
use agent_ebpf::{
    abi::kind,
    state::{FamilyCounters, RunQueueKey, ThreadState, WorkKey, WorkState},
};
use bytes::Bytes;
use proptest::prelude::*;
use synthetic::{Batch, PID, header, trace::facts};
use zerocopy::IntoBytes;

const KINDS: [u32; 12] = [
    kind::TURN,
    kind::WORK,
    kind::GC_PAUSE,
    kind::GC_STEP,
    kind::HEAP_LIMIT,
    kind::OFF_CPU,
    kind::KERNEL_STACK,
    kind::USER_STACK,
    kind::SAMPLE,
    kind::PROCESS_FORK,
    kind::PROCESS_EXEC,
    kind::PROCESS_EXIT,
];

/// Words that are often wrong in interesting ways.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::from(PID)), 0u64..1000, any::<u64>()]
}

fn words(n: usize) -> impl Strategy<Value = Vec<u64>> {
    proptest::collection::vec(word(), n)
}

/// A record with a good head and any body.
fn record() -> impl Strategy<Value = Input> {
    (prop::sample::select(KINDS.to_vec()), 0u32..4, word(), words(24)).prop_map(|(kind, tid, time_ns, body)| {
        let mut batch = Batch::default();
        let mut bytes = header(kind, PID + tid, time_ns).as_bytes().to_vec();
        bytes.extend_from_slice(body.as_bytes());
        batch.add(&bytes);
        Input::Records { family: kind >> 8, bytes: batch.take() }
    })
}

fn tick() -> impl Strategy<Value = Input> {
    let state = words(size_of::<ThreadState>() / 8);
    let work = words((size_of::<WorkKey>() + size_of::<WorkState>()) / 8);
    (word(), proptest::collection::vec(state, 0..3), work, word(), any::<u16>(), words(6)).prop_map(
        |(now, states, work, count, bucket, totals)| {
            let mut threads = Vec::new();
            for (tid, mut state) in (0u64..).zip(states) {
                // tgid and tid: of the target.
                state[0] = u64::from(PID) | (u64::from(PID) + tid) << 32;
                threads.extend_from_slice(state.as_bytes());
            }
            threads.push(7);
            let mut tick = Tick {
                now: MonoNs(now),
                threads: threads.into(),
                works: Bytes::from(work.as_bytes().to_vec()),
                ..Tick::default()
            };
            tick.run_queue = vec![(RunQueueKey { tgid: PID, class: bucket % 5, bucket }, count)];
            for (family, total) in tick.families.iter_mut().zip(&totals) {
                *family = FamilyCounters { emitted: *total, dropped: count };
            }
            tick.self_cost.hits = vec![(bucket.into(), count), (64, now)];
            Input::Tick(Box::new(tick))
        },
    )
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        8 => record(),
        2 => tick(),
        1 => Just(Input::Target(Box::new(facts()))),
        1 => word().prop_map(|since| Input::Begin { since: MonoNs(since), clock: facts().clock }),
        1 => any::<i64>().prop_map(|offset_ns| Input::ClockSet(Clock { offset_ns })),
        1 => word().prop_map(|now| Input::TargetGone { pid: Pid(PID), now: MonoNs(now) }),
        1 => word().prop_map(|at| Input::WorkClass { pid: Pid(PID), vtable: UserAddr(at), class: Some("\u{1b}[2J<<>".into()) }),
        1 => (0u32..9, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|(family, bytes)| Input::Records { family, bytes: bytes.into() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn no_input_panics(inputs in proptest::collection::vec(input(), 1..40), now in word()) {
        let mut core = Core::new();
        let mut records: Vec<Record> = Vec::new();
        let last = [Input::Stop { now: MonoNs(now), reason: EndReason::Duration }];
        for input in inputs.into_iter().chain(last) {
            for output in core.step(input) {
                if let agent::core::Output::Record(record) = output {
                    records.push(*record);
                }
            }
        }
        // And what came out can be read back and shown.
        let lines: Vec<Record> = records
            .iter()
            .map(|record| serde_json::from_slice(&serde_json::to_vec(record).unwrap()).unwrap())
            .collect();
        prop_assert_eq!(&lines, &records);
        let text = render(&Summary::from_records(&records), Style::default());
        prop_assert!(!text.contains('\x1b'));
    }
}
