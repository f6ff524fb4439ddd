//! The kernel's types.
#![no_main]

use agent::probe::btf::KernelTypes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = KernelTypes::parse(bytes);
});
