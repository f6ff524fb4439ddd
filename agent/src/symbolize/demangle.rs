//! Names as a person wants to read them.

use cpp_demangle::{DemangleOptions, Symbol};

/// Longer template arguments than this are elided.
const TEMPLATE_CHARS_MAX: usize = 40;

/// A C++ or Rust name without its arguments and long template arguments; any other name as it is.
pub fn readable(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // The alternate form leaves the hash out. `<Type as Trait>::method` says nothing without its head.
        let full = format!("{rust:#}");
        return if full.starts_with('<') { full } else { shorten(&full) };
    }
    if !name.starts_with("_Z") {
        return name.to_owned();
    }
    let options = DemangleOptions::new().no_params().no_return_type();
    let demangled = Symbol::new(name).ok().and_then(|symbol| symbol.demangle_with_options(&options).ok());
    demangled.map(|full| shorten(&full)).or_else(|| leading_names(name)).unwrap_or_else(|| name.to_owned())
}

/// Of a C++ name that the demangler does not understand, as newer compilers write them: the plain names that it begins with.
fn leading_names(mangled: &str) -> Option<String> {
    let mut rest = mangled.strip_prefix("_ZN")?.trim_start_matches('K');
    let mut names = Vec::new();
    if let Some(standard) = rest.strip_prefix("St") {
        names.push("std");
        rest = standard;
    }
    while let Some(digits) = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0) {
        let (count, after) = rest.split_at_checked(digits)?;
        let (name, after) = after.split_at_checked(count.parse().ok()?)?;
        if !name.starts_with("_GLOBAL__N") {
            names.push(name);
        }
        rest = after;
    }
    (!names.is_empty()).then(|| names.join("::"))
}

/// A whole class name, for classification.
pub fn whole(name: &str) -> Option<String> {
    Symbol::new(name).ok().and_then(|symbol| symbol.demangle().ok())
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
    let name = name.split_once(" [clone").map_or(name, |(name, _)| name);
    let qualifiers = [" &&", " &", " volatile", " const"];
    let name = qualifiers.iter().fold(name, |name, qualifier| name.strip_suffix(qualifier).unwrap_or(name));
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
    fn rust_in_both_forms() {
        assert_eq!(readable("_ZN3swc6minify17h0123456789abcdefE"), "swc::minify");
        assert_eq!(readable("_RNvCskwGfYPst2Cb_3swc6minify"), "swc::minify");
        let inherent = "_ZN47_$LT$swc..Chunk$u20$as$u20$core..fmt..Debug$GT$3fmt17h0123456789abcdefE";
        assert_eq!(readable(inherent), "<swc::Chunk as core::fmt::Debug>::fmt");
    }

    #[test]
    fn what_is_not_understood_keeps_its_plain_names() {
        let names = |mangled| leading_names(mangled);
        assert_eq!(names("_ZN2v812_GLOBAL__N_14base5CheckIjEEQnonsense").as_deref(), Some("v8::base::Check"));
        assert_eq!(names("_ZNSt3oneE!").as_deref(), Some("std::one"));
        assert_eq!((names("_ZN99shortE"), names("_ZNE"), names("_Z3foo")), (None, None, None));
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
        assert_eq!(shorten("a::get const"), "a::get");
        assert_eq!(shorten("a::operator&& const"), "a::operator&&");
        assert_eq!(shorten("a::operator&"), "a::operator&");
        assert_eq!(shorten("a::run [clone .part.0]"), "a::run");
        let lambda = "_ZZSt9call_onceIRFvvEJEEvRSt9once_flagOT_DpOT0_ENKUlvE0_clEv";
        assert!(readable(lambda).starts_with("std::call_once"), "{}", readable(lambda));
    }
}
