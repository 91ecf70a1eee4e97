//! Reporters over the stream of a run's facts: live on a terminal, plain where it is piped, `run.json` and `junit.xml`.
//!
//! Everything that can be is pure: facts in, text out. [`Live`] alone draws. This crate must not know brokers, stores or
//! exit codes, and decides no verdict: it reads the fold that `model` makes.

mod document;
mod junit;
mod live;
mod progress;
#[cfg(test)]
mod stories;
mod style;
mod summary;
mod text;

pub use document::{RUN_SCHEMA, write_run};
pub use junit::write_junit;
pub use live::Live;
pub use progress::{Progress, Verbosity};
pub use style::{Paint, Style};
pub use summary::{Summary, SummaryOptions};
pub use text::{clean, span};
