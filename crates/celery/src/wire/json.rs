//! JSON as Python writes it. A superset of JSON: `NaN`, `Infinity` and integers of any size are numbers there. So a
//! value that only passes through is kept as its exact text, and becomes a Rust value only where somebody asks for one.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::ser::Formatter;
use serde_json::value::RawValue;

use super::finite::Finite;

/// How deep arrays and objects may nest; the limit of `serde_json` itself.
const DEPTH_MAX: usize = 128;

/// A value that can't be read or written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// One JSON value as its exact text. Parts of a value share the text of the whole.
#[derive(Clone)]
pub struct RawJson {
    whole: Arc<str>,
    part: Span,
}

impl RawJson {
    /// Writes a value in Python's form: `", "` and `": "` between parts, everything beyond ASCII escaped.
    ///
    /// # Errors
    /// When the value has no JSON form (a float that is NaN or infinite, a map with keys that aren't texts, or its own
    /// serialization fails).
    pub fn of(value: &(impl Serialize + ?Sized)) -> Result<Self, JsonError> {
        let mut text = Vec::with_capacity(64);
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, Python);
        Finite(value).serialize(&mut serializer).map_err(|error| JsonError(error.to_string()))?;
        let text = String::from_utf8(text).map_err(|error| JsonError(error.to_string()))?;
        Ok(Self::whole(&text))
    }

    fn whole(text: &str) -> Self {
        Self { part: 0..text.len(), whole: text.into() }
    }

    fn part(&self, part: Span) -> Self {
        let from = self.part.start;
        Self { whole: Arc::clone(&self.whole), part: from + part.start..from + part.end }
    }

    /// `null`.
    pub fn null() -> Self {
        Self::whole("null")
    }

    /// Takes a text that is one value.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(text: &str) -> Result<Self, JsonError> {
        let mut scanner = Scanner { text: text.as_bytes(), at: 0 };
        scanner.space();
        let start = scanner.at;
        scanner.value(0)?;
        let end = scanner.at;
        scanner.end()?;
        Ok(Self::whole(&text[start..end]))
    }

    /// An object of values.
    pub(crate) fn object<'a>(entries: impl Iterator<Item = (&'a str, &'a Self)>) -> Self {
        let mut text = String::new();
        write_object(&mut text, entries);
        Self::whole(&text)
    }

    /// An array of values.
    pub(crate) fn array<'a>(elements: impl Iterator<Item = &'a Self>) -> Self {
        let mut text = String::new();
        write_array(&mut text, elements);
        Self::whole(&text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.whole[self.part.clone()]
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        self.as_str() == "null"
    }

    /// Reads it as a Rust value.
    ///
    /// An integer beyond 64 bits is refused by an integer type that can't hold it. A float and
    /// [`serde_json::Value`] take the nearest float; ask for an `i128` or a [`RawJson`] where every digit counts.
    ///
    /// # Errors
    /// When it isn't of that shape. `NaN` and `Infinity` have no place in a Rust value that is read from JSON.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, JsonError> {
        serde_json::from_str(self.as_str())
            .map_err(|error| JsonError(not_rusts(self.as_str()).unwrap_or_else(|| error.to_string())))
    }

    /// Reads a text that only people read, such as a traceback, or `null`. A lone surrogate, which Python makes of a
    /// file name that isn't UTF-8, becomes U+FFFD; [`RawJson::to`] refuses it.
    ///
    /// # Errors
    /// When it is neither a text nor `null`.
    pub fn to_text_lossy(&self) -> Result<Option<String>, JsonError> {
        self.to().or_else(|error| {
            let whole = without_lone_surrogates(self.as_str());
            serde_json::from_str(&whole).map_err(|_| error)
        })
    }

    /// The elements of an array.
    ///
    /// # Errors
    /// When it isn't an array.
    pub fn to_elements(&self) -> Result<Vec<Self>, JsonError> {
        let mut elements = Vec::new();
        let mut scanner = Scanner { text: self.as_str().as_bytes(), at: 0 };
        scanner.array(0, &mut |part| elements.push(self.part(part)))?;
        Ok(elements)
    }

    /// The names and values of an object, in order.
    ///
    /// # Errors
    /// When it isn't an object.
    pub fn to_entries(&self) -> Result<Vec<(String, Self)>, JsonError> {
        let mut spans = Vec::new();
        let mut scanner = Scanner { text: self.as_str().as_bytes(), at: 0 };
        scanner.object(0, &mut |name, value| spans.push((name, value)))?;
        let entries = spans.into_iter().map(|(name, value)| {
            let name =
                serde_json::from_str(&self.as_str()[name]).map_err(|error| JsonError(error.to_string()))?;
            Ok((name, self.part(value)))
        });
        entries.collect()
    }
}

impl PartialEq for RawJson {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RawJson {}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RawJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.as_str().to_owned()).map_err(|error| {
            serde::ser::Error::custom(not_rusts(self.as_str()).unwrap_or_else(|| error.to_string()))
        })?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self::whole(raw.get()))
    }
}

/// What a text has that Python's JSON allows and Rust's doesn't, for people.
fn not_rusts(text: &str) -> Option<String> {
    let word = ["NaN", "Infinity"].into_iter().find(|word| outside_strings(text, word))?;
    Some(format!("it contains {word}, which Python's JSON has and Rust's values don't"))
}

/// A JSON text in which each escape `\ud800` to `\udfff` that isn't half of a pair is `\ufffd`.
fn without_lone_surrogates(text: &str) -> String {
    let unit = |rest: &str| {
        let digits = rest.strip_prefix("\\u").and_then(|rest| rest.get(..4))?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match unit(rest) {
            Some(0xd800..=0xdbff)
                if rest.get(6..).and_then(unit).is_some_and(|low| low & 0xfc00 == 0xdc00) =>
            {
                12
            }
            Some(0xd800..=0xdfff) => {
                out.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            // The escaped letter goes along, since it may be another backslash.
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out.push_str(rest);
    out
}

/// Whether a word stands in a JSON text where it isn't part of a string.
fn outside_strings(text: &str, word: &str) -> bool {
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if in_string && !escaped => {
                escaped = true;
                continue;
            }
            b'"' if !escaped => in_string = !in_string,
            _ if !in_string && text.as_bytes()[at..].starts_with(word.as_bytes()) => return true,
            _ => {}
        }
        escaped = false;
    }
    false
}

/// Writes an array of texts that are JSON already.
pub(crate) fn write_array<'a>(out: &mut String, elements: impl Iterator<Item = &'a RawJson>) {
    out.push('[');
    for (index, element) in elements.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        out.push_str(element.as_str());
    }
    out.push(']');
}

/// Writes an object of names and texts that are JSON already.
pub(crate) fn write_object<'a>(out: &mut String, entries: impl Iterator<Item = (&'a str, &'a RawJson)>) {
    out.push('{');
    for (index, (name, value)) in entries.enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_string(out, name);
        out.push_str(": ");
        out.push_str(value.as_str());
    }
    out.push('}');
}

/// Writes a text as a JSON string in Python's form.
pub(crate) fn write_string(out: &mut String, text: &str) {
    // Most are ids, names and times.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
        out.extend(["\"", text, "\""]);
        return;
    }
    match RawJson::of(text) {
        Ok(json) => out.push_str(json.as_str()),
        // A text always has a JSON form.
        Err(_) => out.push_str("\"\""),
    }
}

/// Python's separators and its escapes of everything beyond ASCII.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() && !fragment.contains('\x7f') {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for letter in fragment.chars() {
            // Python escapes DEL as well.
            if letter.is_ascii() && letter != '\x7f' {
                writer.write_all(&[letter as u8])?;
            } else {
                for unit in letter.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// Finds where values begin and end. It accepts what Python's decoder accepts.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

type Span = std::ops::Range<usize>;

impl Scanner<'_> {
    fn error(&self, what: &str) -> JsonError {
        JsonError(format!("{what} at byte {}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.error(&format!("expected {:?}", char::from(byte))))
        }
    }

    fn end(&mut self) -> Result<(), JsonError> {
        self.space();
        if self.at == self.text.len() { Ok(()) } else { Err(self.error("trailing characters")) }
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth > DEPTH_MAX {
            return Err(self.error("values nest too deep"));
        }
        match self.peek() {
            Some(b'[') => self.array(depth, &mut |_| {}),
            Some(b'{') => self.object(depth, &mut |_, _| {}),
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(_) => self.word(&["true", "false", "null", "NaN", "Infinity"]),
            None => Err(self.error("the text ends where a value is expected")),
        }
    }

    fn array(&mut self, depth: usize, each: &mut dyn FnMut(Span)) -> Result<(), JsonError> {
        self.expect(b'[')?;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let start = self.at;
            self.value(depth + 1)?;
            each(start..self.at);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b']'),
            }
        }
    }

    fn object(&mut self, depth: usize, each: &mut dyn FnMut(Span, Span)) -> Result<(), JsonError> {
        self.expect(b'{')?;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.space();
            let name = self.at;
            self.string()?;
            let name = name..self.at;
            self.space();
            self.expect(b':')?;
            self.space();
            let start = self.at;
            self.value(depth + 1)?;
            each(name, start..self.at);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.expect(b'"')?;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => match self.text.get(self.at + 1) {
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
                    Some(b'u') => {
                        let digits = self.text.get(self.at + 2..self.at + 6);
                        if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                            return Err(self.error("a broken escape"));
                        }
                        self.at += 6;
                    }
                    _ => return Err(self.error("a broken escape")),
                },
                Some(0..=0x1f) => return Err(self.error("a control character in a string")),
                Some(_) => self.at += 1,
                None => return Err(self.error("the text ends in a string")),
            }
        }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(self.error("expected a digit")) }
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.peek() == Some(b'I') {
                return self.word(&["Infinity"]);
            }
        }
        let leading_zero = self.peek() == Some(b'0');
        let start = self.at;
        self.digits()?;
        if leading_zero && self.at - start > 1 {
            return Err(self.error("a number with a leading zero"));
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn word(&mut self, words: &[&str]) -> Result<(), JsonError> {
        let rest = &self.text[self.at..];
        let Some(word) = words.iter().find(|word| rest.starts_with(word.as_bytes())) else {
            return Err(self.error("expected a value"));
        };
        self.at += word.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_python_writes_survives_and_what_rust_can_not_hold_is_refused() {
        for text in [
            "NaN",
            "-Infinity",
            "123456789012345678901234567890",
            "[1, {\"a\": NaN}]",
            "\"\\ud800\"",
            "1e400",
        ] {
            let raw = RawJson::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(raw.as_str(), text);
        }
        let nan = RawJson::parse("[1, NaN]").unwrap().to::<Vec<f64>>().unwrap_err();
        assert_eq!(nan.to_string(), "it contains NaN, which Python's JSON has and Rust's values don't");
        assert!(RawJson::parse("123456789012345678901234567890").unwrap().to::<i64>().is_err());
        assert_eq!(RawJson::parse("[\"NaN\"]").unwrap().to::<Vec<String>>().unwrap(), ["NaN"]);
    }

    #[test]
    fn an_integer_beyond_64_bits_is_kept_refused_or_rounded_as_the_type_says() {
        let big = RawJson::parse("123456789012345678901234567890").unwrap();
        assert_eq!(big.to::<i128>(), Ok(123_456_789_012_345_678_901_234_567_890));
        assert!(big.to::<u64>().is_err());
        assert_eq!(big.to::<RawJson>().unwrap(), big);
        assert_eq!(big.to::<f64>().unwrap().to_bits(), 123_456_789_012_345_678_901_234_567_890_f64.to_bits());
    }

    #[test]
    fn a_float_that_json_cannot_carry_is_refused_wherever_it_stands() {
        #[derive(Serialize)]
        enum Kind {
            Newtype(f64),
            Tuple(u8, f32),
            Fields { x: Option<f64> },
        }
        #[derive(Serialize)]
        struct Unit;
        let raw = RawJson::parse("[1, 2]").unwrap();
        let fine = (1.5, vec![Some(2.0f32), None], Kind::Fields { x: Some(0.0) }, Unit, "t", 'c', &raw, ());
        let text = RawJson::of(&fine).unwrap();
        assert_eq!(
            text.as_str(),
            "[1.5, [2.0, null], {\"Fields\": {\"x\": 0.0}}, null, \"t\", \"c\", [1, 2], null]"
        );
        let map = |x: f64| std::collections::BTreeMap::from([("k", [x])]);
        for refused in [
            RawJson::of(&f64::NAN),
            RawJson::of(&vec![1.0, f64::INFINITY]),
            RawJson::of(&map(f64::NEG_INFINITY)),
            RawJson::of(&Kind::Newtype(f64::NAN)),
            RawJson::of(&Kind::Tuple(1, f32::NAN)),
            RawJson::of(&Kind::Fields { x: Some(f64::NAN) }),
        ] {
            let words = refused.unwrap_err().to_string();
            assert!(words.contains("no number that JSON can carry"), "{words}");
        }
    }

    #[test]
    fn what_can_not_be_written_says_why() {
        let nan = RawJson::parse("[NaN]").unwrap();
        let error = RawJson::of(&vec![nan]).unwrap_err();
        assert_eq!(error.to_string(), "it contains NaN, which Python's JSON has and Rust's values don't");
    }

    #[test]
    fn a_lone_surrogate_is_mended_in_a_text_for_people_alone() {
        // The right side is what is read; the left side is JSON text.
        let table = [
            (r#""\udcff""#, "\u{fffd}"),
            (r#""a\ud83d\ude00\ud800b""#, "a\u{1f600}\u{fffd}b"),
            (r#""\ud800\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""\ud800\n\\ude00 é""#, "\u{fffd}\n\\ude00 é"),
            (r#""plain""#, "plain"),
        ];
        for (json, expected) in table {
            let raw = RawJson::parse(json).unwrap();
            assert_eq!(raw.to_text_lossy().unwrap().as_deref(), Some(expected), "{json}");
        }
        assert!(RawJson::parse(r#""\udcff""#).unwrap().to::<String>().is_err());
        assert_eq!(RawJson::null().to_text_lossy(), Ok(None));
        assert!(RawJson::parse("[1]").unwrap().to_text_lossy().is_err());
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in
            ["", "{", "[1,]", "{\"a\"}", "nul", "01", "-", "\"\\x\"", "\"", "1 2", "'a'", "[1 2]", "{1: 2}"]
        {
            assert!(RawJson::parse(text).is_err(), "{text}");
        }
        assert!(RawJson::parse(&"[".repeat(100_000)).is_err(), "deep nesting doesn't overflow the stack");
    }

    #[test]
    fn values_are_written_in_pythons_form() {
        let value = serde_json::json!({"a": [1, 2.5, null], "ü\u{1f600}\n\"": "x\x7f"});
        let written = RawJson::of(&value).unwrap();
        assert_eq!(written.as_str(), r#"{"a": [1, 2.5, null], "\u00fc\ud83d\ude00\n\"": "x\u007f"}"#);
        let entries = written.to_entries().unwrap();
        assert_eq!(entries[1].0, "ü\u{1f600}\n\"");
        assert_eq!(entries[0].1.to_elements().unwrap().len(), 3);
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,40}") {
            if let Ok(raw) = RawJson::parse(&text) {
                prop_assert_eq!(raw.as_str(), text.trim_matches([' ', '\t', '\n', '\r']));
            }
        }

        #[test]
        fn no_escape_makes_a_text_for_people_panic(text in "\"([a\u{e9}]|\\\\[u\\\\nd]|d8|[0-9a-f]){0,12}\"") {
            if let Ok(raw) = RawJson::parse(&text) {
                prop_assert!(raw.to_text_lossy().is_ok(), "{}", text);
            }
        }

        #[test]
        fn what_serde_json_accepts_we_accept(text in "[\\[\\]{}:,\"a1. -]{0,12}") {
            if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
                prop_assert!(RawJson::parse(&text).is_ok(), "{}", text);
            }
        }
    }
}
