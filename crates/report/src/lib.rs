//! Reporters over the stream of a run's facts: the lines of a live view, plain ones for a pipe, `run.json` and `junit.xml`.
//!
//! All is pure: facts in, text out; who draws is in `console`. This crate must not know terminals, brokers, stores or exit
//! codes, and decides no verdict: it reads the fold that `model` makes.

mod document;
mod junit;
mod progress;
#[cfg(test)]
mod stories;
mod style;
mod summary;
mod text;

pub use document::{RUN_SCHEMA, write_run};
pub use junit::write_junit;
pub use progress::{Progress, Verbosity};
pub use style::{Paint, Style};
pub use summary::{Summary, SummaryOptions};
pub use text::{clean, name, span};
