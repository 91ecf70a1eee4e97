//! What is still to be asked of a warm process, and what its records mean. Pure: records and ends come in, facts and
//! the next request go out.
//!
//! A process may end in the midst of a request, for reasons of the test that runs, of the file that is collected, or of
//! nothing that can be named. Whoever is to blame gets a record; everybody else is asked again of a new process. Each
//! process either makes some progress or takes one item off the list, so this comes to an end.

use std::collections::HashMap;

use regatta_adapters::WarmFact;
use regatta_model::{Fact, Item, OrderItem, Record, Token};

/// The part of a batch that isn't reported yet.
#[derive(Debug)]
pub(crate) struct Asking {
    /// Items in the order in which they were asked for; what is reported is taken out.
    left: Vec<Left>,
    /// The tokens of all tests and units of the batch.
    tokens: HashMap<String, Token>,
    /// The test that runs.
    running: Option<String>,
    /// Whether the process in hand has reported anything since it was asked.
    progress: bool,
}

/// An item of which something isn't reported.
#[derive(Debug)]
enum Left {
    Test(String),
    /// A unit that isn't collected.
    Unit(String),
    /// A unit that is.
    Collected(Collected),
}

#[derive(Debug)]
struct Collected {
    unit: String,
    /// Those of its tests that aren't reported.
    tests: Vec<String>,
    /// Its process ended: its tests are now asked for one by one, and nobody else will say that it is done.
    by_name: bool,
}

/// A record that can't be true. Whoever runs in the process may have written it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Nonsense {
    /// A test that isn't asked for any more, or while another runs.
    #[error("its process said that {0} began, which can't be")]
    Started(String),
    /// A test that doesn't run.
    #[error("its process sent a record of {0}, which didn't run")]
    Finished(String),
    /// While a test runs.
    #[error("its process said in the midst of this test that it had done all")]
    Done,
}

impl Asking {
    pub(crate) fn new(items: &[OrderItem]) -> Self {
        let left = items.iter().map(|item| match &item.item {
            Item::Test(name) => Left::Test(name.clone()),
            Item::Unit(name) => Left::Unit(name.clone()),
        });
        let tokens = items.iter().map(|item| {
            let (Item::Test(name) | Item::Unit(name)) = &item.item;
            (name.clone(), item.token)
        });
        Self { left: left.collect(), tokens: tokens.collect(), running: None, progress: false }
    }

    /// What is to be asked of a new process, nothing when all is reported; and what is to be said besides.
    pub(crate) fn request(&mut self) -> (Vec<Item>, Vec<Fact>) {
        self.progress = false;
        self.running = None;
        let mut done = Vec::new();
        self.left.retain_mut(|left| {
            let Left::Collected(collected) = left else { return true };
            collected.by_name = true;
            if collected.tests.is_empty() {
                done.push(Fact::UnitFinished { unit: collected.unit.clone() });
            }
            !collected.tests.is_empty()
        });
        let items = self.left.iter().flat_map(|left| match left {
            Left::Test(name) => vec![Item::Test(name.clone())],
            Left::Unit(name) => vec![Item::Unit(name.clone())],
            Left::Collected(collected) => collected.tests.iter().cloned().map(Item::Test).collect(),
        });
        (items.collect(), done)
    }

    /// The test that runs.
    pub(crate) fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }

    /// Whether a record can be.
    ///
    /// # Errors
    /// When a test begins that isn't asked for any more, or while another runs, or when something ends that had not
    /// begun. The process is not to be trusted then, and whichever test runs is to blame.
    pub(crate) fn check(&self, fact: &WarmFact) -> Result<(), Nonsense> {
        match fact {
            WarmFact::Started { test } if self.running.is_some() || !self.is_left(test) => {
                Err(Nonsense::Started(test.clone()))
            }
            WarmFact::Finished { test, .. } if self.running() != Some(test) => {
                Err(Nonsense::Finished(test.clone()))
            }
            WarmFact::RequestDone if self.running.is_some() => Err(Nonsense::Done),
            WarmFact::Ready
            | WarmFact::Collected { .. }
            | WarmFact::Started { .. }
            | WarmFact::Finished { .. }
            | WarmFact::UnitFinished { .. }
            | WarmFact::RequestDone
            | WarmFact::TornDown { .. } => Ok(()),
        }
    }

    /// Takes in a record that [can be](Asking::check); gives what it says to the dispatcher. What names nothing that is
    /// still asked for says nothing.
    pub(crate) fn heard(&mut self, fact: WarmFact) -> Vec<Fact> {
        match fact {
            WarmFact::Ready | WarmFact::RequestDone | WarmFact::TornDown { .. } => Vec::new(),
            WarmFact::Collected { unit, tests } => vec![self.collected(unit, tests)],
            WarmFact::Started { test } => {
                let Some(&token) = self.tokens.get(&test) else { return Vec::new() };
                self.progress = true;
                self.running = Some(test.clone());
                vec![Fact::Started { test, token }]
            }
            WarmFact::Finished { test, record } => self.finished(test, record),
            WarmFact::UnitFinished { unit } => {
                let before = self.left.len();
                self.left.retain(|left| match left {
                    Left::Test(_) => true,
                    Left::Unit(name) => *name != unit,
                    Left::Collected(collected) => collected.unit != unit,
                });
                if self.left.len() == before {
                    return Vec::new();
                }
                self.progress = true;
                vec![Fact::UnitFinished { unit }]
            }
        }
    }

    /// Whether a test, or a unit that is reported under its own name, has no record yet.
    fn is_left(&self, test: &str) -> bool {
        self.left.iter().any(|left| match left {
            Left::Test(name) | Left::Unit(name) => name == test,
            Left::Collected(collected) => collected.tests.iter().any(|name| name == test),
        })
    }

    /// The test or unit that is to blame when the process has ended now without the end of its request: the test that
    /// ran, or else the first item, unless others were reported before it. None when nobody is.
    pub(crate) fn blame(&self) -> Option<String> {
        if self.running.is_some() {
            return self.running.clone();
        }
        match self.left.first().filter(|_| !self.progress)? {
            Left::Test(name) | Left::Unit(name) => Some(name.clone()),
            Left::Collected(collected) => collected.tests.first().cloned(),
        }
    }

    /// Takes in what a test did. A unit that can't be collected is reported so under its own name, and is done.
    pub(crate) fn finished(&mut self, test: String, record: Record) -> Vec<Fact> {
        let Some(&token) = self.tokens.get(&test) else { return Vec::new() };
        if self.running.as_ref() == Some(&test) {
            self.running = None;
        }
        let (mut asked, mut unit_done) = (false, None);
        self.left.retain_mut(|left| match left {
            Left::Test(name) | Left::Unit(name) => {
                asked |= *name == test;
                *name != test
            }
            Left::Collected(Collected { unit, tests, by_name }) => {
                let before = tests.len();
                tests.retain(|name| *name != test);
                asked |= tests.len() < before;
                let done = *by_name && tests.is_empty();
                if done {
                    unit_done = Some(Fact::UnitFinished { unit: unit.clone() });
                }
                !done
            }
        });
        if !asked {
            return Vec::new();
        }
        self.progress = true;
        std::iter::once(Fact::Finished { test, token, record }).chain(unit_done).collect()
    }

    fn collected(&mut self, unit: String, tests: Vec<String>) -> Fact {
        let is_unit = |left: &&mut Left| matches!(left, Left::Unit(name) if *name == unit);
        let Some((left, token)) = self.left.iter_mut().find(is_unit).zip(self.tokens.get(&unit).copied())
        else {
            // It was collected for tests that are asked for by name; whoever asked may expect others in it.
            return Fact::Collected { unit, tests };
        };
        for test in &tests {
            // One that was asked for by its own name keeps its own token.
            self.tokens.entry(test.clone()).or_insert(token);
        }
        *left = Left::Collected(Collected { unit: unit.clone(), tests: tests.clone(), by_name: false });
        self.progress = true;
        Fact::Collected { unit, tests }
    }
}

#[cfg(test)]
mod tests {
    use regatta_model::{Outcome, Time};

    use super::*;

    /// `t1` is a test with token 1, `u2` a unit with token 2.
    fn asking(items: &str) -> Asking {
        let item = |name: &str| {
            let token = Token(name[1..2].parse().unwrap());
            let item = if name.starts_with('u') { Item::Unit(name.into()) } else { Item::Test(name.into()) };
            OrderItem { token, attempt: 1, item }
        };
        Asking::new(&items.split(' ').map(item).collect::<Vec<_>>())
    }

    /// `collect u2 a b`, `start a`, `end a`, `done u2`; what is said is written in the same words, with tokens.
    fn hear(asking: &mut Asking, story: &str) -> String {
        let said: Result<Vec<Vec<Fact>>, Nonsense> =
            story.split(", ").map(|line| try_hear(asking, line)).collect();
        say(said.unwrap().concat())
    }

    fn try_hear(asking: &mut Asking, line: &str) -> Result<Vec<Fact>, Nonsense> {
        let words: Vec<&str> = line.split(' ').collect();
        let name = words.get(1).copied().unwrap_or_default().to_owned();
        let fact = match words[0] {
            "collect" => {
                let tests = words[2..].iter().map(|&test| test.into()).collect();
                WarmFact::Collected { unit: name, tests }
            }
            "start" => WarmFact::Started { test: name },
            "end" => WarmFact::Finished { test: name, record: passed() },
            "done" => WarmFact::UnitFinished { unit: name },
            "all" => WarmFact::RequestDone,
            other => panic!("{other}"),
        };
        asking.check(&fact)?;
        Ok(asking.heard(fact))
    }

    fn passed() -> Record {
        Record::new(Outcome::Passed, Time(0), 1)
    }

    fn say(facts: Vec<Fact>) -> String {
        let said = facts.into_iter().map(|fact| match fact {
            Fact::Collected { unit, tests } => format!("collect {unit} {}", tests.join(" ")),
            Fact::Started { test, token } => format!("start {test} {}", token.0),
            Fact::Finished { test, token, .. } => format!("end {test} {}", token.0),
            Fact::UnitFinished { unit } => format!("done {unit}"),
        });
        said.collect::<Vec<_>>().join(", ")
    }

    fn request(asking: &mut Asking) -> (String, String) {
        let (items, facts) = asking.request();
        let names = items.into_iter().map(|item| match item {
            Item::Test(name) | Item::Unit(name) => name,
        });
        (names.collect::<Vec<_>>().join(" "), say(facts))
    }

    #[test]
    fn a_batch_without_trouble() {
        let mut asking = asking("t1 u2 t3");
        assert_eq!(request(&mut asking).0, "t1 u2 t3");
        let said =
            hear(&mut asking, "start t1, end t1, collect u2 a b, start a, end a, start b, end b, done u2");
        assert_eq!(
            said,
            "start t1 1, end t1 1, collect u2 a b, start a 2, end a 2, start b 2, end b 2, done u2"
        );
        assert_eq!(hear(&mut asking, "start t3, end t3"), "start t3 3, end t3 3");
        assert_eq!(request(&mut asking), (String::new(), String::new()));
    }

    #[test]
    fn who_is_to_blame_for_an_end() {
        let table = [
            ("t1 t2", "", Some("t1")),
            ("t1 t2", "start t1", Some("t1")),
            ("t1 t2", "start t2", Some("t2")),
            ("t1 t2", "start t1, end t1", None),
            ("u1 t2", "", Some("u1")),
            ("u1 t2", "collect u1 a", None),
            ("u1", "collect u1 a, start a", Some("a")),
            ("t1", "start t1, end t1", None),
        ];
        for (items, story, expected) in table {
            let mut asking = asking(items);
            request(&mut asking);
            if !story.is_empty() {
                hear(&mut asking, story);
            }
            assert_eq!(asking.blame().as_deref(), expected, "{items}: {story}");
        }
    }

    #[test]
    fn after_a_crash_the_rest_is_asked_for_by_name() {
        let mut asking = asking("u1 u2 t3");
        request(&mut asking);
        hear(&mut asking, "collect u1 a b c, start a, end a, start b");
        assert_eq!(asking.running(), Some("b"));
        assert_eq!(say(asking.finished("b".into(), passed())), "end b 1");
        assert_eq!(request(&mut asking), ("c u2 t3".into(), String::new()));
        assert_eq!(hear(&mut asking, "start c, end c"), "start c 1, end c 1, done u1");
        assert_eq!(asking.blame(), None, "there was progress");
        assert_eq!(request(&mut asking).0, "u2 t3");
        assert_eq!(asking.blame().as_deref(), Some("u2"), "twice at the same place");
        assert_eq!(say(asking.finished("u2".into(), passed())), "end u2 2");
        assert_eq!(request(&mut asking).0, "t3");
    }

    #[test]
    fn a_unit_whose_last_test_crashed_is_done() {
        let mut asking = asking("u1");
        request(&mut asking);
        hear(&mut asking, "collect u1 a, start a");
        asking.finished("a".into(), passed());
        assert_eq!(request(&mut asking), (String::new(), "done u1".into()));
    }

    #[test]
    fn a_unit_that_was_not_asked_for_says_nothing() {
        let mut asking = asking("u1 t2");
        request(&mut asking);
        hear(&mut asking, "collect u1 a t2");
        assert_eq!(hear(&mut asking, "done u9, start t2, end t2"), "start t2 2, end t2 2");
        assert_eq!(hear(&mut asking, "collect u9 y"), "collect u9 y", "whether that is news, others know");
        assert_eq!(hear(&mut asking, "start a, end a, done u1, done u1"), "start a 1, end a 1, done u1");
        assert_eq!(hear(&mut asking, "all"), "");
    }

    #[test]
    fn a_record_of_what_does_not_run_is_nonsense() {
        let (started, finished) =
            (|name: &str| Nonsense::Started(name.into()), |name: &str| Nonsense::Finished(name.into()));
        let table = [
            ("", "end t1", finished("t1"), Some("t1")),
            ("start t1", "end t2", finished("t2"), Some("t1")),
            ("start t1", "end x", finished("x"), Some("t1")),
            ("start t1, end t1", "end t1", finished("t1"), None),
            ("start t1, end t1", "start t1", started("t1"), None),
            ("start t1", "start t2", started("t2"), Some("t1")),
            ("start t1", "start t1", started("t1"), Some("t1")),
            ("start t1", "all", Nonsense::Done, Some("t1")),
            ("start t1, end t1", "start x", started("x"), None),
            ("start t1, end t1, collect u3 a, start a, end a", "end a", finished("a"), None),
        ];
        for (before, line, expected, to_blame) in table {
            let mut asking = asking("t1 t2 u3");
            request(&mut asking);
            if !before.is_empty() {
                hear(&mut asking, before);
            }
            assert_eq!(try_hear(&mut asking, line), Err(expected), "{before}; {line}");
            assert_eq!(asking.blame().as_deref(), to_blame, "{before}; {line}");
        }
    }
}
