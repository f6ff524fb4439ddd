//! Names as a person wants to read them.

use cpp_demangle::{DemangleOptions, Symbol};

/// Longer template arguments than this are elided.
const TEMPLATE_CHARS_MAX: usize = 40;

/// A C++ or Rust name without its arguments and long template arguments; any other name as it is.
pub fn readable(name: &str) -> String {
    let demangled = if name.starts_with("_ZN") && name.contains("17h") && rust_hash(name) {
        return rust(name);
    } else if name.starts_with("_Z") {
        let options = DemangleOptions::new().no_params().no_return_type();
        Symbol::new(name).ok().and_then(|symbol| symbol.demangle_with_options(&options).ok())
    } else {
        None
    };
    demangled.map_or_else(|| name.to_owned(), |full| shorten(&full))
}

/// A whole class name, for classification.
pub fn whole(name: &str) -> Option<String> {
    Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok())
}

/// `_ZN4core3fmt17h0123456789abcdefE`: the legacy form of Rust's.
fn rust_hash(name: &str) -> bool {
    name.strip_suffix('E').is_some_and(|stem| {
        stem.rfind("17h")
            .is_some_and(|at| stem.len() == at + 19 && stem.chars().skip(at + 3).all(|c| c.is_ascii_hexdigit()))
    })
}

fn rust(name: &str) -> String {
    let full = Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok()).unwrap_or_else(|| name.to_owned());
    full.rsplit_once("::h").map_or(full.clone(), |(stem, _)| stem.to_owned())
}

/// Elides template arguments that are long: `Map<…>`.
fn shorten(full: &str) -> String {
    let mut out = String::with_capacity(full.len());
    let mut rest = full;
    while let Some(open) = rest.find('<') {
        let (before, after) = rest.split_at(open);
        out.push_str(before);
        // `operator<` and `operator<<` open nothing.
        let is_operator = before.ends_with("operator") || before.ends_with("operator<");
        let close = if is_operator { None } else { matching(after) };
        let Some(close) = close else {
            out.push('<');
            rest = after.get(1..).unwrap_or_default();
            continue;
        };
        let arguments = after.get(..=close).unwrap_or_default();
        out.push_str(if arguments.chars().count() > TEMPLATE_CHARS_MAX { "<…>" } else { arguments });
        rest = after.get(close + 1..).unwrap_or_default();
    }
    out.push_str(rest);
    bare(&out.replace("(anonymous namespace)", "{anonymous}")).replace("{anonymous}::", "")
}

/// The name alone: no return type before it, no note that it is a thunk, no bracket that nothing closes.
fn bare(name: &str) -> &str {
    let name = name
        .rsplit_once(", ")
        .filter(|_| name.starts_with('{'))
        .map_or(name, |(_, inner)| inner.trim_end_matches(['}', ')']));
    let mut depth = 0u32;
    let mut begin = 0;
    for (at, c) in name.char_indices() {
        match c {
            '<' | '(' | '{' => depth += 1,
            '>' | ')' | '}' => depth = depth.saturating_sub(1),
            ' ' if depth == 0 && !name.get(..at).is_some_and(|before| before.ends_with("operator")) => begin = at + 1,
            _ => {}
        }
    }
    let name = name.get(begin..).unwrap_or(name);
    match name.find('<') {
        Some(open) if matching(name.get(open..).unwrap_or_default()).is_none() && !name.contains("operator") => {
            name.get(..open).unwrap_or(name)
        }
        _ => name,
    }
}

/// Byte index of the bracket that closes the one at the start.
fn matching(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            // An arrow closes nothing.
            '>' if before != '-' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
        before = c;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_dropped() {
        let name = "_ZN2v88internal4Heap14CollectGarbageENS0_15AllocationSpaceENS0_23GarbageCollectionReasonENS_15GCCallbackFlagsE";
        assert_eq!(readable(name), "v8::internal::Heap::CollectGarbage");
        assert_eq!(readable("uv_run"), "uv_run");
        assert_eq!(readable("_Znonsense"), "_Znonsense");
    }

    #[test]
    fn long_template_arguments_are_elided() {
        assert_eq!(shorten("a::Map<int>::get"), "a::Map<int>::get");
        let long = format!("a::Map<{}, b<c>>::get", "x".repeat(50));
        assert_eq!(shorten(&long), "a::Map<…>::get");
        assert_eq!(shorten("a::operator<"), "a::operator<");
        assert_eq!(shorten("a<b"), "a");
    }

    #[test]
    fn return_types_and_notes_are_dropped() {
        assert_eq!(
            shorten("void node::StreamBase::JSMethod<&int node::f>"),
            "node::StreamBase::JSMethod<&int node::f>"
        );
        assert_eq!(shorten("{virtual override thunk({offset(-184)}, node::TCPWrap::f)}"), "node::TCPWrap::f");
        assert_eq!(shorten("v8::(anonymous namespace)::Invoke"), "v8::Invoke");
        assert_eq!(shorten("a::operator bool"), "a::operator bool");
    }
}
