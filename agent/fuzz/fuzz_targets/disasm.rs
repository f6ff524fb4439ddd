//! Machine code of somebody else's.
#![no_main]

use std::collections::BTreeSet;

use agent::target::{
    disasm::{Function, is_emulated},
    elf::FileAddr,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = is_emulated(bytes);
    let Ok(function) = Function::decode(FileAddr(0x40_0000), bytes) else { return };
    for args in 0..16 {
        let _ = function.entry(args);
    }
    let callees: BTreeSet<FileAddr> = function.callees().take(8).collect();
    for callee in &callees {
        let _ = function.after_calls(*callee, &callees, &|_, bytes| vec![0xff; bytes.min(64) as usize]);
    }
});
