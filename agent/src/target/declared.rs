//! What a process declares of itself in OpenTelemetry's variables, which the SDK in it would go by.
//!
//! Of all its environment nothing else is looked at. The values are meant for collectors; their form is checked, as anything may
//! stand there.

use std::collections::BTreeMap;

use super::procfs::{self, ProcError};
use crate::{
    limits::{ATTRIBUTE_CHARS_MAX, DECLARED_ATTRIBUTES_MAX},
    printable::is_printable,
    units::Pid,
};

pub const SERVICE_NAME: &str = "service.name";

const VARIABLES: [&str; 2] = ["OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"];

/// Attributes by name.
pub fn of_process(pid: Pid) -> Result<BTreeMap<String, String>, ProcError> {
    let [name, attributes] = procfs::variables(pid, VARIABLES)?;
    Ok(declared(name.as_deref(), attributes.as_deref()))
}

/// The name goes before one among the attributes; a list with a mistake in it is left out as a whole, as is specified.
#[must_use]
pub fn declared(name: Option<&str>, attributes: Option<&str>) -> BTreeMap<String, String> {
    let mut all = attributes.and_then(parse).unwrap_or_default();
    if let Some(name) = name.filter(|name| is_value(name)) {
        all.insert(SERVICE_NAME.to_owned(), name.to_owned());
    }
    // What SDKs say where nobody told them: no declaration.
    all.retain(|key, value| key != SERVICE_NAME || !value.starts_with("unknown_service"));
    all
}

/// `key=value,key=value`, percent-encoded where it has to be.
fn parse(text: &str) -> Option<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (decoded(key.trim())?, decoded(value.trim())?);
        if !is_key(&key) || !is_value(&value) || attributes.len() == DECLARED_ATTRIBUTES_MAX {
            return None;
        }
        attributes.insert(key, value);
    }
    Some(attributes)
}

fn is_key(key: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    !key.is_empty() && key.len() <= ATTRIBUTE_CHARS_MAX && key.bytes().all(is_part)
}

fn is_value(value: &str) -> bool {
    !value.is_empty() && value.chars().count() <= ATTRIBUTE_CHARS_MAX && value.chars().all(is_printable)
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>()?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        bytes.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(name: Option<&str>, attributes: &str, expected: &[(&str, &str)]) {
        let found = declared(name, Some(attributes));
        let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected, "{name:?} {attributes}");
    }

    #[test]
    fn the_variables_are_read_as_specified() {
        check(None, "", &[]);
        check(None, "service.name=shop", &[("service.name", "shop")]);
        check(Some("cart"), "service.name=shop,team=a b", &[("service.name", "cart"), ("team", "a b")]);
        check(None, " a = b , c=d=e,", &[("a", "b"), ("c", "d=e")]);
        check(None, "a=x%2Cy%3D%25%C3%A9", &[("a", "x,y=%\u{e9}")]);
        assert_eq!(declared(Some("cart"), None).len(), 1);
    }

    #[test]
    fn a_list_with_a_mistake_is_left_out() {
        let long = format!("a={}", "x".repeat(256));
        let many: Vec<_> = (0..65).map(|n| format!("k{n}=v")).collect();
        for bad in
            ["a", "a=b,c", "=b", "a=%", "a=%4", "a=%zz", "a=%+1", "a=%FF", "a=%1B[2J", "a=b\nc", "a\tb=c", "a=", &long]
        {
            check(None, bad, &[]);
            check(Some("cart"), bad, &[("service.name", "cart")]);
        }
        check(None, &many.join(","), &[]);
    }

    #[test]
    fn a_name_that_an_sdk_made_up_is_none() {
        check(Some("unknown_service:node"), "a=b", &[("a", "b")]);
        check(Some("\u{1b}]0;x\u{7}"), "a=b", &[("a", "b")]);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_comes_out_clean(name in ".{0,300}", attributes in "[a-c=,% 0-9é\n]{0,200}") {
            for (key, value) in declared(Some(&name), Some(&attributes)) {
                prop_assert!(is_key(&key) && is_value(&value));
            }
        }
    }
}
