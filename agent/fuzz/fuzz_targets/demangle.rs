//! Names of functions: whoever made the file chose them.
#![no_main]

libfuzzer_sys::fuzz_target!(|name: &str| {
    let shown = agent::symbolize::readable(name);
    assert!(shown.len() <= name.len().max(16 << 10), "{}", shown.len());
});
