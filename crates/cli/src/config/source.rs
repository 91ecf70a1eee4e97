//! The text of `regatta.toml`, and what is wrong in it, shown where it stands.

use std::ops::Range;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, MietteError, MietteSpanContents,
    Report, SourceCode, SourceSpan, SpanContents,
};
use toml::de::{DeTable, DeValue};

use crate::error::CliError;

/// The most edits between a wrong key and the one that was meant.
const TYPO_EDITS_MAX: usize = 2;

/// A step on the way to a place in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// To a key of a table.
    Key(&'a str),
    /// To the n-th of a list, from 0.
    At(usize),
}

/// A file's name and text; both are empty where there is none.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// How the user named it.
    pub(super) name: String,
    /// What it says.
    pub(super) text: String,
}

impl Source {
    /// What the parser doesn't take.
    pub(super) fn misunderstood(&self, error: &toml::de::Error) -> CliError {
        self.show(&Wrong::new(error))
    }

    /// What is wrong with a key.
    pub(crate) fn wrong_key(&self, path: &[Step<'_>], message: String, help: Option<String>) -> CliError {
        let span = place(&self.text, path).map(|(key, _)| key);
        self.show(&Wrong { message, help, span })
    }

    /// What is wrong with a value.
    pub(crate) fn wrong_value(&self, path: &[Step<'_>], message: String) -> CliError {
        let span = place(&self.text, path).map(|(_, value)| value);
        self.show(&Wrong { message, help: None, span })
    }

    fn show(&self, wrong: &Wrong) -> CliError {
        let Self { name, text } = self;
        CliError::usage(format!(
            "{name} says something that regatta doesn't understand\n{}",
            wrong.show(name, text)
        ))
    }
}

/// Where a key and its value stand; of what is in a list, the value twice.
fn place(text: &str, path: &[Step<'_>]) -> Option<(Range<usize>, Range<usize>)> {
    let document = DeValue::Table(DeTable::parse(text).ok()?.into_inner());
    let (mut here, mut found) = (&document, None);
    for step in path {
        let (key, value) = match step {
            Step::Key(key) => {
                let (key, value) = here.as_table()?.get_key_value(*key)?;
                (key.span(), value)
            }
            Step::At(n) => {
                let value = here.as_array()?.get(*n)?;
                (value.span(), value)
            }
        };
        found = Some((key, value.span()));
        here = value.get_ref();
    }
    found
}

/// What is wrong, and where.
struct Wrong {
    message: String,
    help: Option<String>,
    span: Option<Range<usize>>,
}

impl Wrong {
    fn new(error: &toml::de::Error) -> Self {
        let message = error.message().trim().to_owned();
        // Names stand in backticks: the wrong one first, then those that would be right.
        let mut names = message.split('`').skip(1).step_by(2);
        let help = names.next().filter(|_| message.starts_with("unknown")).and_then(|wrong| {
            let near = names.map(|name| (edits(wrong, name), name)).min()?;
            (near.0 <= TYPO_EDITS_MAX).then(|| format!("did you mean `{}`?", near.1))
        });
        Self { message: in_words(&message), help, span: error.span() }
    }

    /// The message, with the place and the lines around it.
    fn show(&self, name: &str, text: &str) -> String {
        let mut diagnostic = MietteDiagnostic::new(self.message.clone());
        diagnostic.help.clone_from(&self.help);
        if let Some(span) = self.span.clone() {
            diagnostic = diagnostic.with_label(LabeledSpan::at(span, "here"));
        }
        let report = Report::new(diagnostic)
            .with_source_code(ByCharacters { name: name.to_owned(), text: text.to_owned() });
        let mut shown = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
        match handler.render_report(&mut shown, report.as_ref()) {
            Ok(()) => shown.trim_end().to_owned(),
            Err(_) => self.message.clone(),
        }
    }
}

/// The file for miette, which counts bytes in columns; whoever looks for the place counts characters.
struct ByCharacters {
    name: String,
    text: String,
}

impl SourceCode for ByCharacters {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let found = self.text.read_span(span, lines_before, lines_after)?;
        let before = self.text.get(..found.span().offset()).unwrap_or_default();
        let column = before.chars().rev().take_while(|&before| before != '\n').count();
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            found.data(),
            *found.span(),
            found.line(),
            column,
            found.line_count(),
        )))
    }
}

/// A message of the parser in the words of the file: it names Rust's types.
fn in_words(message: &str) -> String {
    let begins = [
        ("missing field ", "missing key "),
        ("unknown field ", "unknown key "),
        ("unknown variant ", "unknown word "),
    ];
    for (theirs, ours) in begins {
        if let Some(rest) = message.strip_prefix(theirs) {
            return format!("{ours}{rest}");
        }
    }
    let Some((found, expected)) = message.rsplit_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "u16" | "u32" => "a whole number, not below 0",
        "a sequence" => "a list",
        "a map" => "a table",
        _ if expected.starts_with("struct ") => "a table",
        _ => return message.to_owned(),
    };
    format!("{found}, expected {expected}")
}

/// How many characters must be changed, added or removed to make `b` of `a` (Levenshtein 1965).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, count) in
            [("", "abc", 3), ("retrys", "retries", 2), ("timeout", "timeout", 0), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }

    #[test]
    fn messages_name_what_stands_in_the_file() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            #[serde(rename = "n")]
            _n: u32,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Outer {
            #[serde(rename = "list")]
            _list: Vec<String>,
            #[serde(rename = "inner")]
            _inner: Inner,
        }
        for (text, expected) in [
            ("list = []", "missing key `inner`"),
            ("list = 1", "invalid type: integer `1`, expected a list"),
            ("list = [\", expected u32\", 2]", "invalid type: integer `2`, expected a string"),
            ("inner = 1", "invalid type: integer `1`, expected a table"),
            ("inner = { n = \"x\" }", "invalid type: string \"x\", expected a whole number, not below 0"),
            ("inner = { n = -1 }", "invalid value: integer `-1`, expected a whole number, not below 0"),
            ("lust = 1", "unknown key `lust`, expected `list` or `inner`"),
        ] {
            let error = toml::from_str::<Outer>(text).unwrap_err();
            assert_eq!(in_words(error.message().trim()), expected);
        }
    }

    #[test]
    fn a_place_is_found_by_its_path() {
        let text = "[a]\nx = 1\n[[a.list]]\nname = \"one\"\n[[a.list]]\nname = \"two\"\n";
        let table = [
            (vec![Step::Key("a"), Step::Key("x")], Some(("x", "1"))),
            (
                vec![Step::Key("a"), Step::Key("list"), Step::At(1), Step::Key("name")],
                Some(("name", "\"two\"")),
            ),
            (vec![Step::Key("b")], None),
            (vec![], None),
        ];
        for (path, expected) in table {
            let found = place(text, &path).map(|(key, value)| (&text[key], &text[value]));
            assert_eq!(found, expected, "{path:?}");
        }
    }
}
