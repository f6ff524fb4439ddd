//! Text of others, fit to be shown: names of processes, threads, functions and containers are chosen by whoever runs them, and what a
//! terminal takes for a command, or turns the rest of a line around, is no part of a name.

/// What stands in the place of what is not shown.
const IN_ITS_PLACE: char = char::REPLACEMENT_CHARACTER;

/// It is shown as it is.
#[must_use]
pub fn is_printable(c: char) -> bool {
    // Marks, embeddings, overrides and isolates of directions (Unicode Standard Annex 9).
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let ends_line = matches!(c, '\u{2028}' | '\u{2029}');
    !(c.is_control() || turns || ends_line)
}

/// The text with nothing in it but what can be seen.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_printable(c) { c } else { IN_ITS_PLACE }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_replaced_and_all_else_stays() {
        assert_eq!(printable("node \u{1b}[31mred\n"), "node \u{fffd}[31mred\u{fffd}");
        assert_eq!(printable("a\u{202e}b\u{2066}c"), "a\u{fffd}b\u{fffd}c");
        let fine = "größe 漢字 שלום (app.js:3) 👍";
        assert_eq!(printable(fine), fine);
    }
}
