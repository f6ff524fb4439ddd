//! The kernel's symbols.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let symbols = agent::symbolize::parse_kallsyms(bytes);
    for addr in [0, 1, 0xffff_ffff_8100_0000, u64::MAX] {
        let _ = symbols.name(addr);
    }
});
