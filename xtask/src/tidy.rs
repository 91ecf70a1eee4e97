//! The house's rules that no compiler holds, as a test: [`problems`] is a pure function over what [`House::read`] found.
//!
//! Each rule is one function and has one unit test that shows it fail. The reasons stand in ARCHITECTURE.md and STYLE.md;
//! a rule that has no reason there does not belong here.

mod arrows;
mod documents;
mod house;
mod text;

use std::fmt;
use std::path::Path;

pub use house::{Dependency, File, House, Kind, Package};

/// A rule that is broken somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The rule's short name.
    pub rule: &'static str,
    /// The file, with a line where one is known, or the package.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    fn new(rule: &'static str, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { rule, place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.place, self.message, self.rule)
    }
}

/// Every rule that `house` breaks.
#[must_use]
pub fn problems(house: &House) -> Vec<Problem> {
    let rules: [fn(&House) -> Vec<Problem>; 14] = [
        arrows::between_our_crates,
        arrows::reserved_dependencies,
        arrows::model_is_pure,
        arrows::packages_have_a_ceiling,
        text::unsafe_has_one_home,
        text::settling_has_one_home,
        text::model_has_no_clock,
        text::files_are_short,
        text::no_machine_paths,
        text::no_left_overs,
        text::modules_say_what_they_are,
        documents::design_pages_are_linked,
        documents::design_pages_have_their_parts,
        documents::links_lead_somewhere,
    ];
    rules.iter().flat_map(|rule| rule(house)).collect()
}

/// Reads the workspace at `root`, prints what is wrong, and tells whether nothing is.
///
/// # Errors
/// When a file can't be read or `cargo metadata` fails.
pub fn run(root: &Path) -> anyhow::Result<bool> {
    let problems = problems(&House::read(root)?);
    for problem in &problems {
        crate::say::line(&problem.to_string());
    }
    if problems.is_empty() {
        crate::say::line("tidy: every rule holds");
    }
    Ok(problems.is_empty())
}
