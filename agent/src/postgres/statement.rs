//! A statement without its literals: what it does, not to whom.

/// Characters of a fingerprint.
const CHARS_MAX: usize = 200;

/// Strips comments, replaces string and number literals by `?`, and folds white space and lists of literals. Text that ends within a
/// literal, as cut ones do, ends with that literal's `?`.
#[must_use]
pub fn fingerprint(sql: &str) -> String {
    let mut out = String::new();
    let mut rest = sql;
    while let Some(c) = rest.chars().next() {
        if out.chars().count() > CHARS_MAX {
            break;
        }
        let after = rest.get(c.len_utf8()..).unwrap_or("");
        rest = match c {
            _ if c.is_whitespace() => {
                space(&mut out);
                after
            }
            '-' if after.starts_with('-') => {
                space(&mut out);
                after.find('\n').and_then(|end| after.get(end..)).unwrap_or("")
            }
            '/' if after.starts_with('*') => {
                space(&mut out);
                past_comment(after)
            }
            '\'' => {
                let escapes = takes_escapes(&mut out);
                literal(&mut out);
                past_quoted(after, '\'', escapes)
            }
            '"' => {
                let end = past_quoted(after, '"', false);
                out.push_str(rest.get(..rest.len() - end.len()).unwrap_or(""));
                end
            }
            '$' if !ends_in_word(&out) => {
                if let Some(end) = dollar_quoted(rest) {
                    literal(&mut out);
                    end
                } else {
                    // A parameter: `$1`.
                    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                    out.push('$');
                    out.push_str(after.get(..digits).unwrap_or(""));
                    after.get(digits..).unwrap_or("")
                }
            }
            _ if c.is_ascii_digit() && !ends_in_word(&out) => {
                literal(&mut out);
                past_number(rest)
            }
            _ => {
                out.push(c);
                after
            }
        };
    }
    let mut text = out.trim().trim_end_matches(';').trim_end().to_owned();
    if text.chars().count() > CHARS_MAX {
        text = text.chars().take(CHARS_MAX).collect();
        text.push('…');
    }
    text
}

fn space(out: &mut String) {
    if !out.is_empty() && !out.ends_with(' ') {
        out.push(' ');
    }
}

/// `?`, or nothing where a list of literals goes on: `(?, ?, ?)` is `(?)`.
fn literal(out: &mut String) {
    let before = out.trim_end();
    if let Some(list) = before.strip_suffix(',')
        && list.trim_end().ends_with('?')
    {
        let len = list.trim_end().len();
        out.truncate(len);
        return;
    }
    out.push('?');
}

fn ends_in_word(out: &str) -> bool {
    out.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$')
}

/// Takes the prefix of a string literal (`E'..'`, `B'..'`, `X'..'`, `N'..'`) off; whether backslashes escape in it.
fn takes_escapes(out: &mut String) -> bool {
    let Some(prefix) = out.chars().next_back().filter(|c| "eEbBxXnN".contains(*c)) else { return false };
    let before = out.get(..out.len() - prefix.len_utf8()).unwrap_or("");
    if ends_in_word(before) {
        return false;
    }
    out.truncate(before.len());
    prefix.eq_ignore_ascii_case(&'e')
}

/// What follows the closing quote; doubled ones belong to the text.
fn past_quoted(text: &str, quote: char, escapes: bool) -> &str {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return text.get(at + c.len_utf8()..).unwrap_or("");
            }
        }
    }
    ""
}

/// What follows the comment whose slash was taken; comments nest.
fn past_comment(text: &str) -> &str {
    let mut depth = 1u32;
    let mut rest = text.get(1..).unwrap_or("");
    while depth > 0 {
        let Some(at) = rest.find(['*', '/']) else { return "" };
        let found = rest.get(at..).unwrap_or("");
        if found.starts_with("*/") {
            depth -= 1;
            rest = found.get(2..).unwrap_or("");
        } else if found.starts_with("/*") {
            depth += 1;
            rest = found.get(2..).unwrap_or("");
        } else {
            rest = found.get(1..).unwrap_or("");
        }
    }
    rest
}

/// What follows a `$tag$ .. $tag$` literal that the text begins with.
fn dollar_quoted(text: &str) -> Option<&str> {
    let inner = text.get(1..)?;
    let tag_len = inner.find('$')?;
    let tag = inner.get(..tag_len)?;
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    is_tag.then_some(())?;
    let quote = text.get(..tag_len + 2)?;
    let body = text.get(tag_len + 2..)?;
    Some(body.find(quote).and_then(|end| body.get(end + quote.len()..)).unwrap_or(""))
}

/// What follows the number that the text begins with: `1`, `1.5`, `1e-3`, `0x1f`, `1_000`.
fn past_number(text: &str) -> &str {
    let mut previous = ' ';
    let end = text.find(|c: char| {
        let sign = (c == '+' || c == '-') && previous.eq_ignore_ascii_case(&'e');
        let inside = c.is_ascii_alphanumeric() || c == '.' || c == '_' || sign;
        previous = c;
        !inside
    });
    end.and_then(|end| text.get(end..)).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_are_gone_and_the_rest_stays() {
        let check = |sql: &str, expected: &str| assert_eq!(fingerprint(sql), expected, "{sql}");
        check("select *  from manta\n where _key='k1' and n = 17;", "select * from manta where _key=? and n = ?");
        check("select * from t where a in (1, 2, 3) and b = $1", "select * from t where a in (?) and b = $1");
        check(
            "insert into \"Odd 1\" values (1, 'x', E'it\\'s', $tag$ secret $tag$)",
            "insert into \"Odd 1\" values (?)",
        );
        check("select /* who: /* nested */ x */ a1, t2.b3 from t -- the end", "select a1, t2.b3 from t");
        check("select 'it''s', 1.5e-3, 0x1f, x'ab', -7", "select ?, -?");
        check("select $$body$$ || 'cut off her", "select ? || ?");
        check("set work_mem = '64MB'", "set work_mem = ?");
        check("update t1 set c='é'", "update t1 set c=?");
        check("", "");
    }

    #[test]
    fn a_long_one_is_cut() {
        let text = fingerprint(&"select column_with_a_name, ".repeat(100));
        assert_eq!(text.chars().count(), CHARS_MAX + 1);
    }

    proptest! {
        #[test]
        fn no_string_literal_survives(before in "[a-z =(,]{0,20}", secret in "[a-z0-9 ;,()=-]{6,20}", after in "[a-z =),]{0,20}") {
            // A prefix such as e'..' changes the literal's rules, but not that it is one.
            let text = fingerprint(&format!("{before}'{secret}'{after}"));
            prop_assert!(!text.contains(&secret) || before.contains(&secret) || after.contains(&secret), "{text}");
        }

        #[test]
        fn any_text_is_survived(sql in any::<String>()) {
            let _ = fingerprint(&sql);
        }
    }
}
