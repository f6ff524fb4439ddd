//! The one BPF object.
#![no_std]
#![no_main]
// `lock` on map values: the target has no atomic types.
#![feature(asm_experimental_arch)]

mod kernel;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
