//! A perf map: anybody may put one into /tmp.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let entries = agent::symbolize::parse_perf_map(bytes);
    assert!(entries.is_sorted_by_key(|entry| entry.start));
    assert!(entries.iter().all(|entry| entry.start < entry.end));
});
