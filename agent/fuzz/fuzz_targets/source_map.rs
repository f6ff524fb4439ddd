//! A source map, of whatever script a process has loaded.
#![no_main]

use std::sync::Once;

use agent::report::model::{Frame, FrameKind};

static QUIET: Once = Once::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The library's panics are caught where it is called; others still end the run.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let Some((place, map)) = bytes.split_first_chunk::<8>() else { return };
    let [line, column, begin, at] = place.as_chunks::<2>().0 else { return };
    let number = |bytes: &[u8; 2]| Some(u32::from(u16::from_le_bytes(*bytes)));
    let frame = Frame {
        name: "handler".to_owned(),
        kind: FrameKind::Js,
        file: Some("/srv/app.js".to_owned()),
        line: number(line),
        column: number(column),
        function_line: number(begin),
        function_column: number(at),
        ..Frame::default()
    };
    let _ = agent::symbolize::source_map::apply_bytes(map, &frame);
});
