//! `.debug_aranges`, of whatever file a process has mapped.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let ranges = agent::symbolize::parse_debug_ranges(bytes);
    assert!(ranges.iter().all(|(start, end)| start < end));
    assert!(ranges.is_sorted_by(|one, next| one.1 < next.0));
});
