//! Machine code and memory of somebody else's, run here over each other.
#![no_main]

use agent::{
    target::{
        emulate::{Known, Machine, SCRATCH},
        memory::Fixture,
    },
    units::UserAddr,
};

const CODE: u64 = 0x40_0000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut memory = Fixture::default();
    memory.map(UserAddr(CODE), bytes.to_vec());
    let mut known = Known::default();
    // A second run finds what the first one kept.
    for _ in 0..2 {
        let mut machine = Machine::new(&memory, &mut known);
        machine.read_ahead();
        let _ = machine.call_and_watch(UserAddr(CODE), [CODE + 64, SCRATCH]);
        let _ = machine.word(SCRATCH);
        machine.keep_pages();
    }
});
