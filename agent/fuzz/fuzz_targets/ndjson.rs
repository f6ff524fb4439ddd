//! A trace file that may come from anywhere, and the report of it.
#![no_main]

use agent::{
    export::{ndjson::Reader, text},
    report::summary::Summary,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let mut summary = Summary::default();
    while let Ok(Some(record)) = reader.next_record() {
        summary.add(&record);
    }
    let _ = text::render(&summary, text::Style::default());
    let _ = reader.tally().complaint();
});
