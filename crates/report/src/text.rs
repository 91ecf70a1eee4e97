//! Small texts: spans of time, and what a test printed, made harmless.

use std::borrow::Cow;
use std::time::Duration;

/// A span for people: `0.012s`, `12.3s`, `2m03s`, `1h02m`.
#[must_use]
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..10 => format!("{:.3}s", span.as_secs_f64()),
        10..60 => format!("{:.1}s", span.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// What a test printed, without what could move the cursor, retitle the window or hide text. Colours stay if `color`.
#[must_use]
pub fn clean(text: &str, color: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '\u{1b}' => {
                let sequence = rest.as_str();
                let length = escape_length(sequence);
                let (sequence, after) = sequence.split_at(length);
                if color && sequence.starts_with('[') && sequence.ends_with('m') {
                    out.push('\u{1b}');
                    out.push_str(sequence);
                }
                rest = after.chars();
            }
            '\n' | '\t' => out.push(next),
            '\r' => {}
            _ if is_unseen(next) => {}
            _ => out.push(next),
        }
    }
    out
}

/// A name on one line: what could move the cursor, or hide a part of it, is written as Rust escapes it (`\n`, `\u{1b}`).
/// It is not left out, as from [`clean`] text: two names must not look the same.
#[must_use]
pub fn name(name: &str) -> Cow<'_, str> {
    if !name.contains(is_unseen) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 8);
    for next in name.chars() {
        if is_unseen(next) { out.extend(next.escape_default()) } else { out.push(next) }
    }
    Cow::Owned(out)
}

/// C0, DEL and C1; and what turns the direction of writing.
fn is_unseen(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The length of an escape sequence after its escape character (ECMA-48: CSI until a final byte; OSC and its like
/// until BEL or ST; else one character).
fn escape_length(text: &str) -> usize {
    match text.as_bytes().first() {
        Some(b'[') => text
            .bytes()
            .skip(1)
            .position(|byte| (0x40..=0x7e).contains(&byte))
            .map_or(text.len(), |at| at + 2),
        Some(b']' | b'P' | b'X' | b'^' | b'_') => match (text.find('\u{7}'), text.find("\u{1b}\\")) {
            (Some(bell), Some(st)) if bell < st => bell + 1,
            (_, Some(st)) => st + 2,
            (Some(bell), None) => bell + 1,
            (None, None) => text.len(),
        },
        Some(_) => text.chars().next().map_or(0, char::len_utf8),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_about_three_digits() {
        let table =
            [(1, "0.001s"), (9_999, "9.999s"), (12_345, "12.3s"), (123_000, "2m03s"), (3_725_000, "1h02m")];
        for (ms, text) in table {
            assert_eq!(span(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn a_name_is_one_line_and_shows_all_of_itself() {
        let table = [
            ("a.py::t[é \\]", "a.py::t[é \\]"),
            ("a\nb\u{1b}[31m", "a\\nb\\u{1b}[31m"),
            ("\r\t\u{202e}", "\\r\\t\\u{202e}"),
        ];
        for (text, shown) in table {
            assert_eq!(name(text), shown);
        }
    }

    #[test]
    fn output_can_only_print() {
        let table = [
            ("a\nb\tc", "a\nb\tc", "a\nb\tc"),
            ("\u{1b}[31mred\u{1b}[0m", "\u{1b}[31mred\u{1b}[0m", "red"),
            ("\u{1b}[2Jx\u{1b}[1;1Hy", "xy", "xy"),
            ("\u{1b}]0;title\u{7}x\u{1b}]8;;http://a\u{1b}\\y", "xy", "xy"),
            ("\u{1b}cx\r\u{8}y\u{9b}z", "xyz", "xyz"),
            ("\u{202e}x\u{1b}", "x", "x"),
            ("\u{1b}éx \u{1b}[3", "x ", "x "),
        ];
        for (text, colored, plain) in table {
            assert_eq!(
                (clean(text, true), clean(text, false)),
                (colored.to_owned(), plain.to_owned()),
                "{text:?}"
            );
        }
    }
}
