//! A recording that may come from anywhere, replayed.
#![no_main]

use agent::{core::Core, export::recording::Reader};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let mut core = Core::new();
    while let Ok(Some(input)) = reader.next_input() {
        core.step(input);
    }
});
