//! Live objects of a heap, and the chunks and handles beside it: of a process that is corrupt, or that lies.
#![no_main]

use agent::{
    census::fixture,
    target::{handles, malloc, memory::Fixture},
    units::UserAddr,
};

/// Where a heap of the C library may begin: at a multiple of 64 MiB, or, where that grows by blocks, anywhere.
const ROW: u64 = 64 << 20;
const BLOCK: u64 = ROW + (1 << 20);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let _ = fixture::of(&words);
    let mut memory = Fixture::default();
    for at in [ROW, BLOCK] {
        memory.map(UserAddr(at), bytes.to_vec());
        for is_brk in [true, false] {
            let _ = malloc::look_at(&memory, &(at..at + bytes.len() as u64), is_brk, |words| words[0] < 24);
        }
    }
    for at in (0..bytes.len() as u64).step_by(64).take(16) {
        let _ = handles::count(&memory, UserAddr(ROW + at));
        let _ = handles::first(&memory, UserAddr(ROW + at), 100);
    }
});
