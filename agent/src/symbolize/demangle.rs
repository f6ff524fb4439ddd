//! Names as a person wants to read them.

use std::fmt;

use cpp_demangle::{DemangleOptions, Symbol};

/// Longer template arguments than this are elided.
const TEMPLATE_CHARS_MAX: usize = 40;

/// What a name may stand for: the longest of Node.js has a quarter of it. A hundred bytes that refer to each other can mean
/// gigabytes, and whoever made the file chose them.
const DEMANGLED_BYTES_MAX: usize = 16 << 10;

/// A C++ or Rust name without its arguments and long template arguments; any other name as it is.
#[must_use]
pub fn readable(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        // The alternate form leaves the hash out. `<Type as Trait>::method` says nothing without its head.
        let mut full = Bounded::default();
        let _ = fmt::write(&mut full, format_args!("{rust:#}"));
        return if full.text.starts_with('<') { full.text } else { shorten(&full.text) };
    }
    let options = DemangleOptions::new().no_params().no_return_type().hide_expression_literal_types();
    // Of a name that is too long, the beginning is there.
    let demangled = demangle(name, options).map(|full| shorten(&full.text));
    demangled.or_else(|| leading_names(name)).unwrap_or_else(|| name.to_owned())
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
    demangle(name, DemangleOptions::new()).filter(|full| !full.is_cut).map(|full| full.text)
}

fn demangle(name: &str, options: DemangleOptions) -> Option<Bounded> {
    if !name.starts_with("_Z") {
        return None;
    }
    let symbol = Symbol::new(name).ok()?;
    let mut full = Bounded::default();
    let done = symbol.structured_demangle(&mut full, &options).is_ok();
    (done || full.is_cut).then_some(full)
}

/// Takes text until it is full.
#[derive(Default)]
struct Bounded {
    text: String,
    is_cut: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.is_cut |= self.text.len() + part.len() > DEMANGLED_BYTES_MAX;
        if self.is_cut {
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

/// The path of a function alone: no return type before it, no arguments, no qualifiers behind, long template arguments elided
/// (`Map<…>`), of a thunk what it leads to.
fn shorten(full: &str) -> String {
    let mut rest = full;
    while let Some((_, inner)) = thunk(rest) {
        rest = inner;
    }
    let mut out = String::new();
    while let Some(next) = rest.chars().next() {
        let (piece, after) = match next {
            'o' if !out.ends_with(is_of_a_word) && operator(rest).is_some() => {
                rest.split_at(operator(rest).unwrap_or_default())
            }
            '<' => match matching(rest, '<', '>') {
                Some(close) => {
                    let (arguments, after) = rest.split_at(close + 1);
                    (if arguments.chars().count() > TEMPLATE_CHARS_MAX { "<…>" } else { arguments }, after)
                }
                None => ("", ""),
            },
            '(' => {
                let after = matching(rest, '(', ')').and_then(|close| rest.get(close + 1..)).unwrap_or_default();
                ("", after.strip_prefix("::").filter(|_| out.is_empty() || out.ends_with("::")).unwrap_or(after))
            }
            ' ' => {
                let after = rest.trim_start();
                match QUALIFIERS.iter().find_map(|word| qualifier(after, word)) {
                    Some(after) => ("", after),
                    None if after.starts_with('[') => ("", ""),
                    // `operator<< <int>`.
                    None if after.starts_with('<') => (" ", after),
                    // It was the return type, unless an operator converts to a type of two words.
                    None if out.rsplit("::").next().is_some_and(|last| last.starts_with("operator ")) => (" ", after),
                    None => {
                        out.clear();
                        ("", after)
                    }
                }
            }
            _ => rest.split_at(next.len_utf8()),
        };
        out.push_str(piece);
        rest = after;
    }
    // A pack of nothing.
    out.replace(", >", ">")
}

/// What may stand behind a function, and so before the name of what is inside it.
const QUALIFIERS: [&str; 4] = ["const", "volatile", "&&", "&"];

fn qualifier<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    text.strip_prefix(word).filter(|after| after.is_empty() || after.starts_with([' ', ':']))
}

/// `{virtual override thunk({offset(-184)}, node::TCPWrap::f)}`: what it is, and what it leads to.
fn thunk(full: &str) -> Option<(&str, &str)> {
    let (what, inner) = full.strip_prefix('{')?.split_once("}, ")?;
    what.contains("thunk(").then(|| (what, inner.strip_suffix(")}").unwrap_or(inner)))
}

/// Bytes of an operator's name at the beginning: its symbols look like brackets.
fn operator(text: &str) -> Option<usize> {
    const WORD: &str = "operator";
    let symbol = text.strip_prefix(WORD).filter(|symbol| !symbol.starts_with(is_of_a_word))?;
    let symbols = symbol.find(|c: char| !"<>=-+*/%^&|~!,[]".contains(c)).unwrap_or(symbol.len());
    // Of `operator<<int>` the last opens; of `operator< <int>` a blank says so.
    let symbols = match symbol.get(..symbols).unwrap_or_default() {
        "" if symbol.starts_with("()") => 2,
        "" if symbol.starts_with(' ') => 1,
        "<<<" => 2,
        "<" | "<<" | "<=" | "<=>" | "<<=" => symbols,
        mixed => mixed.find('<').filter(|open| *open > 0).unwrap_or(symbols),
    };
    Some(WORD.len() + symbols)
}

fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Byte index of the bracket that closes the one at the start.
fn matching(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0u32;
    let mut parentheses = 0u32;
    let mut before = ' ';
    for (at, c) in text.char_indices() {
        // Within parentheses, angles are comparisons or in pairs. An arrow closes nothing.
        let counts = open == '(' || parentheses == 0 && !(c == '>' && before == '-');
        if c == open && counts {
            depth += 1;
        } else if c == close && counts {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        } else if c == '(' {
            parentheses += 1;
        } else if c == ')' {
            parentheses = parentheses.saturating_sub(1);
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
    }

    #[test]
    fn operators_are_names() {
        for name in [
            "a::operator bool",
            "a::operator unsigned long",
            "a::operator<",
            "a::operator<<",
            "a::operator<=>",
            "a::operator->",
            "a::operator()",
            "a::operator[]",
            "operator new[]",
            "a::operators::b",
            "a::Map<int>::operator=",
        ] {
            assert_eq!(shorten(name), name);
        }
        assert_eq!(shorten("void a::operator()<int>(int) const"), "a::operator()<int>");
        assert_eq!(shorten("a::B& a::operator<< <int>"), "a::operator<< <int>");
    }

    #[test]
    fn what_is_inside_a_function_has_a_path() {
        // From a Node.js binary: the lambda of a collection of garbage.
        let name = "_ZZN2v88internal4Heap14CollectGarbageENS0_15AllocationSpaceENS0_23GarbageCollectionReasonENS_15GCCallbackFlagsEENKUlvE0_clEv";
        assert_eq!(readable(name), "v8::internal::Heap::CollectGarbage::{lambda#2}::operator()");
        assert_eq!(shorten("a::f(int) const::{lambda(b<c>, d&)#1}::_FUN"), "a::f::{lambda#1}::_FUN");
        assert_eq!(shorten("a::f() const &"), "a::f");
        assert_eq!(shorten("a::f(int) [clone .cold]"), "a::f");
        assert_eq!(shorten("a::get const"), "a::get");
        assert_eq!(shorten("a::operator&& const"), "a::operator&&");
        let lambda = "_ZZSt9call_onceIRFvvEJEEvRSt9once_flagOT_DpOT0_ENKUlvE0_clEv";
        assert_eq!(readable(lambda), "std::call_once<void (&)()>::{lambda#2}::operator()");
    }

    #[test]
    fn a_name_that_means_gigabytes_is_cut() {
        // Each argument is a template of the one before it, twice.
        let mut name = "_Z1fI1AIiiE".to_owned();
        for digit in ('1'..='9').chain('A'..='X') {
            name.extend(["S0_IS", &digit.to_string(), "_S", &digit.to_string(), "_E"]);
        }
        name += "Evv";
        assert_eq!(readable(&name), "f");
        assert_eq!(whole(&name), None);
    }

    proptest::proptest! {
        #[test]
        fn any_name_is_survived(tail in "[ -~]{0,80}", mangled in "[0-9A-Za-z_]{0,80}") {
            let _ = (readable(&tail), shorten(&tail), readable(&format!("_Z{mangled}")));
        }
    }
}
