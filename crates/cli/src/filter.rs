//! Which tests are meant. A pattern with `*` or `?` matches a whole name (`*` any text, `?` one character; everything
//! else, brackets too, is itself); a pattern without is a part of the name.

use std::collections::HashSet;

use regatta_model::{Glob, Route, TestId, Unit};

/// What a filter says of a unit whose tests nobody has listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnitMatch {
    /// All its tests are meant.
    Whole,
    /// None is.
    None,
    /// It depends on the tests' names.
    Undecided,
}

/// One pattern.
#[derive(Debug, Clone)]
enum Pattern {
    Part(String),
    Whole(Glob),
}

/// Which tests are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
    only: Option<HashSet<TestId>>,
}

/// The end of a Python file's name with which a text begins, before `::`. Other dots and colons may stand in the values of
/// a parametrized test.
fn file(text: &str) -> Option<&str> {
    let (file, _) = text.split_once("::")?;
    (file.ends_with(".py") && !file.contains('[')).then_some(file)
}

impl Pattern {
    fn new(text: &str) -> Self {
        if text.contains(['*', '?']) { Self::Whole(Glob::new(text)) } else { Self::Part(text.to_owned()) }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Part(text) => {
                let own = || name.split_once("::").map_or(name, |(own, _)| own);
                name.contains(text.as_str()) && file(text).is_none_or(|file| own().ends_with(file))
            }
            Self::Whole(glob) => glob.is_match(name),
        }
    }

    /// The names of a unit's tests begin with the unit's name and `::`.
    fn unit(&self, unit: &str) -> UnitMatch {
        match self {
            Self::Part(text) if unit.contains(text.as_str()) => UnitMatch::Whole,
            Self::Part(text) if file(text).is_some_and(|file| !unit.ends_with(file)) => UnitMatch::None,
            Self::Part(_) => UnitMatch::Undecided,
            Self::Whole(glob) => whole(glob, unit),
        }
    }
}

/// What a pattern that matches whole names says of a unit.
fn whole(glob: &Glob, unit: &str) -> UnitMatch {
    let text = glob.pattern();
    let fixed = text.split(['*', '?']).next().unwrap_or_default();
    let begin = format!("{unit}::");
    if text.ends_with('*') && glob.is_match(unit) {
        UnitMatch::Whole
    } else if begin.starts_with(fixed) || fixed.starts_with(&begin) {
        UnitMatch::Undecided
    } else {
        UnitMatch::None
    }
}

/// Whether it takes the names of a unit's tests to tell the queues to which they go.
pub(crate) fn is_cut(routes: &[Route], unit: &Unit) -> bool {
    let mut answers = routes.iter().map(|route| whole(&route.pattern, &unit.name));
    answers.find(|answer| *answer != UnitMatch::None) == Some(UnitMatch::Undecided)
}

impl Filter {
    /// Any of `include` (all if there is none) and none of `exclude`.
    pub(crate) fn new(include: &[String], exclude: &[String]) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect();
        Self { include: patterns(include), exclude: patterns(exclude), only: None }
    }

    /// And only these tests.
    pub(crate) fn only(mut self, tests: HashSet<TestId>) -> Self {
        self.only = Some(tests);
        self
    }

    /// Whether every test is meant.
    pub(crate) fn is_whole(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty() && self.only.is_none()
    }

    /// Whether a test is meant.
    pub(crate) fn test(&self, test: &TestId) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(test))
            && (self.include.is_empty() || self.include.iter().any(|pattern| pattern.matches(&test.name)))
            && !self.exclude.iter().any(|pattern| pattern.matches(&test.name))
    }

    /// Which of a unit's tests are meant.
    pub(crate) fn unit(&self, unit: &Unit) -> UnitMatch {
        let excluded = self.exclude.iter().map(|pattern| pattern.unit(&unit.name));
        let mut answer = if self.include.is_empty() { UnitMatch::Whole } else { UnitMatch::None };
        for pattern in &self.include {
            match pattern.unit(&unit.name) {
                UnitMatch::Whole => answer = UnitMatch::Whole,
                UnitMatch::Undecided if answer == UnitMatch::None => answer = UnitMatch::Undecided,
                UnitMatch::Undecided | UnitMatch::None => {}
            }
        }
        if let Some(only) = &self.only {
            let begin = format!("{}::", unit.name);
            let inside = only.iter().any(|test| test.suite == unit.suite && test.name.starts_with(&begin));
            // A unit that could not be collected failed under its own name.
            let itself = only.iter().any(|test| test.suite == unit.suite && test.name == unit.name);
            answer = match (inside || itself, answer) {
                (false, _) | (true, UnitMatch::None) => UnitMatch::None,
                (true, UnitMatch::Whole) if itself => UnitMatch::Whole,
                (true, _) => UnitMatch::Undecided,
            };
        }
        for excluded in excluded {
            match excluded {
                UnitMatch::Whole => return UnitMatch::None,
                UnitMatch::Undecided if answer == UnitMatch::Whole => answer = UnitMatch::Undecided,
                UnitMatch::Undecided | UnitMatch::None => {}
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &[&str], exclude: &[&str]) -> Filter {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        Filter::new(&own(include), &own(exclude))
    }

    #[test]
    fn a_route_cuts_a_unit_of_which_it_may_mean_a_part() {
        let table: &[(&[&str], bool)] = &[
            (&[], false),
            (&["*plum*"], true),
            (&["tests/gpu/*"], false),
            (&["other/*"], false),
            (&["other/*", "*"], false),
            (&["tests/*", "*plum*"], false),
            (&["*plum*", "tests/*"], true),
            (&["tests/gpu/test_a.py"], true),
            (&["tests/gpu/test_a.py::test_x"], true),
            (&["tests/gpu/test_b.py::*"], false),
            (&["plum"], false),
        ];
        let unit = Unit { suite: "s".into(), name: "tests/gpu/test_a.py".into() };
        for (patterns, cut) in table {
            let route = |text: &&str| Route { pattern: Glob::new(text), queue: "q".into() };
            let routes: Vec<Route> = patterns.iter().map(route).collect();
            assert_eq!(is_cut(&routes, &unit), *cut, "{patterns:?}");
        }
    }

    #[test]
    fn patterns_are_parts_or_globs_and_brackets_are_themselves() {
        let table: &[(&[&str], &[&str], &str, bool)] = &[
            (&[], &[], "a.py::t", true),
            (&["py::t"], &[], "a.py::t", true),
            (&["t[1]"], &[], "a.py::t[1]", true),
            (&["*t[1]"], &[], "a.py::t[1]", true),
            (&["*t[1]"], &[], "a.py::t1", false),
            (&["t*"], &[], "a.py::t", false),
            (&["a/*"], &[], "a/b/c.py::t", true),
            (&["x", "*::?"], &[], "a.py::t", true),
            (&["a"], &["*::t"], "a.py::t", false),
            (&["*{x,y}"], &[], "a::{x,y}", true),
            (&["1.5::x"], &[], "a.py::t[1.5::x]", true),
            (&["b.py::t"], &[], "a.py::t[b.py::t]", false),
            (&["t[b.py::t]"], &[], "a.py::t[b.py::t]", true),
            (&["b.py::t"], &[], "d/b.py::t", true),
            (&["*::é?"], &[], "a.py::éé", true),
        ];
        for (include, exclude, name, expected) in table {
            assert_eq!(
                filter(include, exclude).test(&TestId::new("s", *name)),
                *expected,
                "{include:?} {name}"
            );
        }
    }

    #[test]
    fn a_unit_is_decided_only_where_every_test_name_would_agree() {
        use UnitMatch::{None, Undecided, Whole};
        let table: &[(&[&str], &[&str], UnitMatch)] = &[
            (&[], &[], Whole),
            (&["d/a.py"], &[], Whole),
            (&["d/"], &[], Whole),
            (&["d/*"], &[], Whole),
            (&["e/*"], &[], None),
            (&["*_x"], &[], Undecided),
            (&["test_x"], &[], Undecided),
            (&["d/a.py::t"], &[], Undecided),
            (&["d/b.py::t"], &[], None),
            (&["TestA::t"], &[], Undecided),
            (&["d/*"], &["slow"], Undecided),
            (&["d/*"], &["a.py"], None),
            (&["e/*", "a.py"], &[], Whole),
            (&["1.5::x"], &[], Undecided),
            (&["t[b.py::x]"], &[], Undecided),
            (&[], &["1.5::x"], Undecided),
        ];
        let unit = Unit { suite: "s".into(), name: "d/a.py".into() };
        for (include, exclude, expected) in table {
            assert_eq!(filter(include, exclude).unit(&unit), *expected, "{include:?} {exclude:?}");
        }
    }
}
