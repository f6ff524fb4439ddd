//! How fast the core takes turns in; run by hand: `cargo test --release --test throughput -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod synthetic;

use std::time::Instant;

use agent::{
    core::{Core, Input},
    decode::Decoder,
};
use agent_ebpf::abi::{event_loop::phase, family};
use synthetic::{Batch, PID, Thread};
use zerocopy::IntoBytes;

const TURNS: u64 = 1500;
const ROUNDS: u64 = 2000;

#[test]
#[ignore = "a measurement"]
#[expect(clippy::cast_precision_loss, reason = "three digits are enough")]
fn turns_a_second() {
    let mut thread = Thread::new(PID, 1_000_000);
    let mut batch = Batch::default();
    for n in 0..=TURNS {
        thread.run(phase::POLL, 20_000 + n * 37 % 90_000);
        thread.poll(30_000 + n * 101 % 50_000, 5_000, 1);
    }
    for turn in &thread.turns {
        batch.add(turn.as_bytes());
    }
    let bytes = batch.take();
    let begin = Instant::now();
    let mut good = 0u64;
    for _ in 0..ROUNDS {
        good += Decoder::new(family::EVENT_LOOP, &bytes).flatten().count() as u64;
    }
    let decoded = begin.elapsed();
    let mut core = Core::new();
    core.step(Input::Target(Box::new(synthetic::trace::facts())));
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        core.step(Input::Records { family: family::EVENT_LOOP, bytes: bytes.clone() });
    }
    let stepped = begin.elapsed();
    assert_eq!(good, TURNS * ROUNDS);
    let rate = |elapsed: std::time::Duration| good as f64 / elapsed.as_secs_f64() / 1e6;
    eprintln!("decode {:.1} M turns/s, whole core {:.1} M turns/s", rate(decoded), rate(stepped));
}
