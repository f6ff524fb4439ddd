//! A binary of somebody else's: every reader of it.
#![no_main]

use agent::target::elf::{ElfFile, FileAddr};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(elf) = ElfFile::from_bytes(bytes) else { return };
    let _ = elf.lookup(["uv_run", "uv__io_poll"]);
    let _ = elf.build_id_hex();
    for function in elf.functions().iter().take(64) {
        let _ = elf.name_of(function);
        let _ = elf.function_bytes(function.addr);
        let _ = elf.bytes_at(function.addr, 64);
    }
    let _ = elf.class_of_vptr(FileAddr(0x40_0010));
    let _ = elf.bias(0x7f00_0000_0000, 0);
});
