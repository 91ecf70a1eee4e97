//! Which workers a pattern in a control request names: the two matchers of kombu (`kombu.matcher`).
//!
//! Anybody who may send a control request chooses the pattern, and every worker reads it: so neither matcher may take
//! more than (length of the pattern × length of the name) steps.

use regex::RegexBuilder;

/// The largest pattern that is looked at, in bytes; a node name has 255 at most.
const PATTERN_MAX: usize = 1024;

/// Whether a name fits a pattern. An unknown matcher and a broken pattern fit nobody.
pub(super) fn matches(matcher: &str, pattern: &str, name: &str) -> bool {
    if pattern.len() > PATTERN_MAX {
        return false;
    }
    match matcher {
        "glob" => glob(pattern, name),
        // Python's `re.match`: from the beginning, not necessarily to the end.
        "pcre" => RegexBuilder::new(&format!(r"\A(?:{pattern})"))
            .size_limit(REGEX_SIZE_MAX)
            .build()
            .is_ok_and(|pattern| pattern.is_match(name)),
        _ => false,
    }
}

/// What a compiled regular expression may take, in bytes.
const REGEX_SIZE_MAX: usize = 256 << 10;

/// One step of a glob.
enum Part {
    /// `*`
    Any,
    /// `?`
    One,
    /// A letter that stands for itself.
    Letter(char),
    /// `[a-z]`, `[!a-z]`
    Class { not: bool, ranges: Vec<(char, char)> },
}

impl Part {
    fn takes(&self, letter: char) -> bool {
        match self {
            Self::Any | Self::One => true,
            Self::Letter(own) => *own == letter,
            Self::Class { not, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&letter)) != *not
            }
        }
    }
}

/// Python's `fnmatch`. Only the last star is ever taken back, which is enough: what an earlier one could take, the
/// last one can.
fn glob(pattern: &str, name: &str) -> bool {
    let (parts, name): (Vec<Part>, Vec<char>) = (parts(pattern), name.chars().collect());
    let (mut part, mut letter) = (0, 0);
    let mut last_star = None;
    while letter < name.len() {
        match parts.get(part) {
            Some(Part::Any) => {
                last_star = Some((part, letter));
                part += 1;
            }
            Some(one) if one.takes(name[letter]) => {
                part += 1;
                letter += 1;
            }
            _ => {
                let Some((star, taken)) = last_star else { return false };
                last_star = Some((star, taken + 1));
                (part, letter) = (star + 1, taken + 1);
            }
        }
    }
    parts[part..].iter().all(|rest| matches!(rest, Part::Any))
}

fn parts(pattern: &str) -> Vec<Part> {
    let letters: Vec<char> = pattern.chars().collect();
    let mut parts = Vec::with_capacity(letters.len());
    let mut at = 0;
    while at < letters.len() {
        let part = match letters[at] {
            '*' => Part::Any,
            '?' => Part::One,
            '[' => match class(&letters[at + 1..]) {
                Some((class, length)) => {
                    at += length;
                    class
                }
                None => Part::Letter('['),
            },
            letter => Part::Letter(letter),
        };
        parts.push(part);
        at += 1;
    }
    parts
}

/// The class after a `[`, with its length; none when nothing closes it. A `]` in the first place is a member.
fn class(rest: &[char]) -> Option<(Part, usize)> {
    let not = rest.first() == Some(&'!');
    let begin = usize::from(not);
    let end = begin + 1 + rest.get(begin + 1..)?.iter().position(|letter| *letter == ']')?;
    let members = &rest[begin..end];
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < members.len() {
        if at + 2 < members.len() && members[at + 1] == '-' {
            ranges.push((members[at], members[at + 2]));
            at += 3;
        } else {
            ranges.push((members[at], members[at]));
            at += 1;
        }
    }
    Some((Part::Class { not, ranges }, end + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each line as Python 3.11's `fnmatch.fnmatch` answers it.
    #[test]
    fn globs_fit_as_in_python() {
        let table = [
            ("w1@lab", "w[12]@lab", true),
            ("w1@lab", "w[!2]@lab", true),
            ("w1@lab", "w[!1]@lab", false),
            ("w1@lab", "w[0-9]@*", true),
            ("w1@lab", "w[a-z]@lab", false),
            ("w]@l", "w[]]@l", true),
            ("w[@l", "w[@l", true),
            ("w-@l", "w[a-]@l", true),
            ("w1@lab", "W*", false),
            ("w1@lab", "*", true),
            ("w1@lab", "w?@*b", true),
            ("w1@lab", "*lab*", true),
            ("w1@lab", "w1", false),
            ("w\u{e9}@l", "w?@l", true),
            ("", "**", true),
        ];
        for (name, pattern, expected) in table {
            assert_eq!(matches("glob", pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn regular_expressions_fit_from_the_beginning() {
        let table = [
            ("w1@", true),
            ("1@lab", false),
            ("x|w", true),
            ("(?i)W1", true),
            ("(", false),
            ("(w{1000}){1000}", false),
        ];
        for (pattern, expected) in table {
            assert_eq!(matches("pcre", pattern, "w1@lab"), expected, "{pattern}");
        }
        assert!(!matches("soundex", "w1@lab", "w1@lab"), "a matcher that nobody knows");
    }

    /// Tried with every split, this would outlive the test run.
    #[test]
    fn a_pattern_of_many_stars_is_answered() {
        let name = "a".repeat(255);
        assert!(!matches("glob", &("*a".repeat(500) + "b"), &name));
        assert!(!matches("pcre", &("(a*)*".repeat(20) + "b"), &name));
        assert!(!matches("glob", &"*".repeat(PATTERN_MAX + 1), &name), "longer than is looked at");
    }

    fn by_every_split(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => (0..=name.len()).any(|taken| by_every_split(rest, &name[taken..])),
            (Some(('?', rest)), Some((_, name))) => by_every_split(rest, name),
            (Some((own, rest)), Some((letter, name))) => own == letter && by_every_split(rest, name),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn one_star_taken_back_is_as_good_as_all(pattern in "[ab*?]{0,7}", name in "[ab]{0,8}") {
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(glob(&pattern, &name), by_every_split(&letters(&pattern), &letters(&name)));
        }

        #[test]
        fn no_pattern_panics(pattern in "[a\\[\\]!*?é-]{0,12}", name in "\\PC{0,6}") {
            let _any = matches("glob", &pattern, &name);
            let _any = matches("pcre", &pattern, &name);
        }
    }
}
