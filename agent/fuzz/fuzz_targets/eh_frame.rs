//! `.eh_frame`, of whatever file a process has mapped.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let rows = agent::target::unwind::rows_of(0x1000, bytes);
    assert!(rows.is_sorted_by(|one, next| one.start < next.start));
    let exceptions = agent::target::unwind::exceptions_of(0x1000, bytes);
    assert!(exceptions.is_sorted_by(|one, next| one.start < next.start));
});
