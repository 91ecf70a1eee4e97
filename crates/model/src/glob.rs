//! Patterns on whole names, as routes and filters have them.

/// A pattern that a whole name matches: `*` stands for any text, `?` for one character, and everything else for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Every text is a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.0
    }

    /// Whether a name matches as a whole.
    #[must_use]
    pub fn is_match(&self, name: &str) -> bool {
        let (mut pattern, mut name) = (self.0.chars(), name.chars());
        // What follows the last star, and what follows the text for which it stands. An earlier one needs no other text:
        // whatever it left out, the last one can stand for.
        let mut star = None;
        loop {
            let wanted = pattern.next();
            if wanted == Some('*') {
                star = Some((pattern.clone(), name.clone()));
                continue;
            }
            let found = name.next();
            match (wanted, found) {
                (None, None) => return true,
                (Some(wanted), Some(found)) if wanted == '?' || wanted == found => continue,
                (Some(_), None) => return false,
                (_, Some(_)) => {}
            }
            // The star stands for one character more.
            let Some((after, left)) = &mut star else { return false };
            left.next();
            (pattern, name) = (after.clone(), left.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_matches_as_a_whole_and_by_characters() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("*", "", true),
            ("**", "a\n/b", true),
            ("?", "é", true),
            ("?", "日", true),
            ("??", "é", false),
            ("t-?", "t-😀", true),
            ("*?", "", false),
            ("*é", "aéé", true),
            ("*ab", "aab", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*a?c*", "xxabxabcx", true),
            ("a*", "ba", false),
            ("*a", "ab", false),
            ("[a-z]", "b", false),
            ("{x,y}\\!", "{x,y}\\!", true),
            ("[*]", "[1, 2]", true),
        ] {
            assert_eq!(Glob::new(pattern).is_match(name), expected, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn many_stars_take_no_more_than_their_product() {
        let name = "a".repeat(10_000);
        assert!(!Glob::new(&format!("{}b", "a*".repeat(100))).is_match(&name));
    }
}
