//! A V8 heap: of a process that is corrupt, or that lies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    const VERSIONS: [[u32; 3]; 6] = [[9, 4, 146], [10, 2, 154], [11, 3, 244], [12, 4, 254], [13, 6, 233], [14, 6, 202]];
    let Some((version, heap)) = bytes.split_first() else { return };
    agent::symbolize::v8::fixture::decode(VERSIONS[usize::from(*version) % VERSIONS.len()], heap);
});
