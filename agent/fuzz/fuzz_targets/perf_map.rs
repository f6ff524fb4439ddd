//! A perf map: anybody may put one into /tmp.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut map = agent::symbolize::PerfMap::default();
    map.learn(bytes);
    map.settle();
    let name = map.find(0x1000).unwrap_or_default();
    assert!(!name.contains(char::is_control));
});
