//! One module per test framework: how to recognise it, how to list its tests, what to run, and how to read what came
//! back.
//!
//! This crate executes nothing itself: it describes an [`Invocation`] and reads an [`Ended`]. It must not know queues,
//! workers or how a process is fenced, and it reads no environment: what comes from there is in a configuration.

mod cargo;
mod commands;
mod digest;
mod pytest;
mod recognise;
mod seam;
mod text;

pub use cargo::{Cargo, CargoConfig};
pub use commands::{COMMANDS_MAX, Commands, CommandsConfig, parse_commands, split_command};
pub use pytest::{Pytest, PytestConfig};
pub use recognise::{Framework, detect};
pub use seam::{
    Adapter, AdapterError, Conclusion, Ended, Exit, Invocation, Listing, ListingStep, Place, Runner,
    TestProcess, WarmFact, WarmSession,
};
