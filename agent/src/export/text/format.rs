//! Numbers, bars and lines as people read them.

use std::fmt::Write as _;

use super::Style;
use crate::aggregate::histogram::Histogram;
/// Foreign text (a command line, a thread's name) is no command to the terminal.
pub use crate::printable::printable as safe;

/// Three digits and a unit: `812 ns`, `1.24 ms`, `81.0 ms`, `12.0 s`.
#[must_use]
pub fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs")];
    for (unit, name) in UNITS {
        // What would round up to 1000 of a unit is 1.00 of the next.
        if ns >= unit - unit / 2000 {
            return format!("{} {name}", three_digits(ns, unit));
        }
    }
    format!("{ns} ns")
}

fn three_digits(n: u64, unit: u64) -> String {
    let value = ratio(n, unit);
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// `n / of`, and 0 of nothing.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub fn ratio(n: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { n as f64 / of as f64 }
}

/// A share in percent; two digits below ten, so that small ones do not vanish.
#[must_use]
pub fn percent(n: u64, of: u64) -> String {
    let share = 100.0 * ratio(n, of);
    if share == 0.0 {
        "0 %".to_owned()
    } else if share < 0.05 {
        "<0.1 %".to_owned()
    } else if share < 9.95 {
        format!("{share:.1} %")
    } else {
        format!("{share:.0} %")
    }
}

/// Thousands set apart by a thin gap: `12 345`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Events a second.
#[must_use]
pub fn rate(n: u64, over_ns: u64) -> String {
    let rate = 1e9 * ratio(n, over_ns);
    if rate < 9.95 { format!("{rate:.1}/s") } else { format!("{rate:.0}/s") }
}

/// `1 turn`, `2 turns`.
#[must_use]
pub fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// The clock time of an RFC 3339 time, to the millisecond.
#[must_use]
pub fn clock(time: &str) -> &str {
    time.get(11..23).unwrap_or(time)
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Columns of a histogram's bar: one for each factor of two and a half from 1 µs to 10 s, wider values in the end columns.
pub const SPARK_WIDTH: usize = 16;

/// The shape of a histogram on a fixed logarithmic axis, 1 µs at the left end and 10 s at the right one; a column's height is the
/// logarithm of its count, as one slow turn among a thousand must be seen.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small positive numbers, for drawing"
)]
pub fn spark(histogram: &Histogram) -> String {
    const LOG2_LOW: f64 = 9.965_784;
    const LOG2_HIGH: f64 = 33.219_281;
    let mut columns = [0u64; SPARK_WIDTH];
    let zeros = histogram.parts().zeros;
    let below = zeros.min(histogram.count());
    let of_buckets = histogram.buckets().map(|(bucket, n)| {
        let log2 = (f64::from(bucket) + 0.5) / f64::from(agent_ebpf::histogram::PER_OCTAVE);
        ((log2 - LOG2_LOW) / (LOG2_HIGH - LOG2_LOW) * SPARK_WIDTH as f64, n)
    });
    for (position, n) in of_buckets.chain([(0.0, below)]) {
        let at = (position.max(0.0) as usize).min(SPARK_WIDTH - 1);
        if let Some(column) = columns.get_mut(at) {
            *column = column.saturating_add(n);
        }
    }
    let most = (columns.into_iter().max().unwrap_or(0).max(1) as f64).ln_1p();
    columns
        .into_iter()
        .map(|n| {
            let height = ((n as f64).ln_1p() / most * BARS.len() as f64).ceil() as usize;
            height.checked_sub(1).and_then(|at| BARS.get(at)).copied().unwrap_or('·')
        })
        .collect()
}

/// A bar of `width` columns, cut up into parts by share; each with its own character.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "columns")]
pub fn parts_bar(parts: &[(char, u64)], width: usize) -> String {
    let all = parts.iter().fold(0u64, |sum, &(_, n)| sum.saturating_add(n));
    let mut bar = String::new();
    let (mut sum, mut drawn) = (0u64, 0);
    for &(mark, n) in parts {
        sum = sum.saturating_add(n);
        let until = (ratio(sum, all) * width as f64).round() as usize;
        bar.extend(std::iter::repeat_n(mark, until.saturating_sub(drawn)));
        drawn = until.max(drawn);
    }
    bar
}

/// A report that is being written.
#[derive(Debug)]
pub struct Page {
    pub style: Style,
    text: String,
}

impl Page {
    #[must_use]
    pub fn new(style: Style) -> Self {
        Self { style, text: String::new() }
    }

    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    /// A line; what is longer than the page is wide is wrapped at spaces and indented as the line is, by two more.
    pub fn line(&mut self, line: &str) {
        for wrapped in wrap(line, self.style.width) {
            let _ = writeln!(self.text, "{}", wrapped.trim_end());
        }
    }

    /// An empty line and a heading.
    pub fn heading(&mut self, heading: &str) {
        self.text.push('\n');
        self.coloured("1", heading);
    }

    /// A line that should worry its reader.
    pub fn alarm(&mut self, line: &str) {
        self.coloured("31", line);
    }

    /// A line of little weight.
    pub fn aside(&mut self, line: &str) {
        self.coloured("2", line);
    }

    /// A line in bold.
    pub fn strong(&mut self, line: &str) {
        self.coloured("1", line);
    }

    fn coloured(&mut self, code: &str, line: &str) {
        for wrapped in wrap(line, self.style.width) {
            if self.style.colour {
                let _ = writeln!(self.text, "\x1b[{code}m{wrapped}\x1b[0m");
            } else {
                let _ = writeln!(self.text, "{wrapped}");
            }
        }
    }
}

fn wrap(line: &str, width: usize) -> Vec<String> {
    if line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let indent = line.chars().take_while(|&c| c == ' ').count();
    let mut lines = Vec::new();
    let mut now = " ".repeat(indent);
    let mut is_first_word = true;
    for word in line.get(indent..).unwrap_or("").split(' ') {
        if !is_first_word && now.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut now, " ".repeat(indent + 2)));
            is_first_word = true;
        }
        if !is_first_word {
            now.push(' ');
        }
        now.push_str(word);
        is_first_word = false;
    }
    lines.push(now);
    lines
}

/// The first `width` characters.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        let check = |ns, text: &str| assert_eq!(duration(ns), text, "{ns}");
        check(0, "0 ns");
        check(999, "999 ns");
        check(1_000, "1.00 µs");
        check(999_400, "999 µs");
        check(999_600, "1.00 ms");
        check(81_040_000, "81.0 ms");
        check(12_000_000_000, "12.0 s");
        check(u64::MAX, "18446744074 s");
    }

    #[test]
    fn small_shares_do_not_vanish() {
        assert_eq!((percent(0, 5), percent(1, 100_000), percent(1, 50), percent(1, 3)).3, "33 %");
        assert_eq!(percent(1, 100_000), "<0.1 %");
        assert_eq!(percent(1, 50), "2.0 %");
        assert_eq!(percent(1, 0), "0 %");
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!((count(1), count(1234), count(1_234_567)), ("1".into(), "1 234".into(), "1 234 567".into()));
    }

    #[test]
    fn a_bar_fills_its_width() {
        assert_eq!(parts_bar(&[('#', 1), ('-', 1), ('.', 2)], 8), "##--....");
        assert_eq!(parts_bar(&[('#', 0)], 8), "");
    }

    #[test]
    fn long_lines_are_wrapped_and_indented() {
        assert_eq!(wrap("  one two three", 9), ["  one two", "    three"]);
        assert_eq!(wrap("  unbreakable", 5), ["  unbreakable"]);
    }

    #[test]
    fn a_lone_outlier_is_seen() {
        let mut histogram = Histogram::default();
        histogram.record_n(2_000, 100_000);
        histogram.record(9_000_000_000);
        let spark = spark(&histogram);
        assert_eq!(spark.chars().count(), SPARK_WIDTH);
        assert!(spark.starts_with('█') && !spark.ends_with('·'), "{spark}");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
