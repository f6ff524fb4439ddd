//! Files under /proc: names in them are the target's choice.
#![no_main]

use agent::target::procfs::{parse_maps, parse_stat, parse_status};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = parse_maps(bytes);
    let _ = parse_stat(bytes);
    let _ = parse_status(bytes);
});
