//! A segment of the spool that may hold anything, found by a new run.
#![no_main]

use agent::export::stream::spool::{MAGIC, Spool};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let directory = std::env::temp_dir().join(format!("agent-fuzz-spool-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let Ok(()) = std::fs::create_dir_all(&directory) else { return };
    // The first byte says where the cursor is.
    let (cursor, rest) = bytes.split_first().map_or((0, bytes), |(cursor, rest)| (*cursor, rest));
    let segment = [MAGIC.as_slice(), rest].concat();
    let files = [("0000000000000001.spool", segment.as_slice()), ("cursor", format!("1 {cursor}").as_bytes())]
        .map(|(name, bytes)| std::fs::write(directory.join(name), bytes));
    if files.iter().any(Result::is_err) {
        return;
    }
    let mut spool = Spool::open(&directory, 1 << 20).expect("a directory of our own");
    let mut left = spool.len();
    while !spool.is_empty() {
        let portion = spool.front(3, 100);
        let gone = portion.taken + portion.lost;
        assert!(gone > 0 && gone <= left, "{gone} of {left}");
        left -= gone;
        spool.advance(&portion).expect("a file of our own");
    }
    assert_eq!(left, 0);
});
