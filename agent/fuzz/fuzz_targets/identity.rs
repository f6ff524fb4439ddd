//! What a process may say of itself: names of its control groups, variables, a package.json.
#![no_main]

use agent::target::{container, declared, package};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(found) = container::parse(bytes) {
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        assert!(is_plain(&found.id) && found.pod_uid.is_none_or(|uid| is_plain(&uid)));
    }
    let text = String::from_utf8_lossy(bytes);
    for value in declared::declared(Some(&text), Some(&text)).values() {
        assert!(!value.chars().any(char::is_control));
    }
    let _ = package::parse(bytes);
});
