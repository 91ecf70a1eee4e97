//! One file per test framework: how to recognise it, how to list its tests, what to run, and how to read what came
//! back.
//!
//! This crate executes nothing itself: it describes an [`Invocation`] and reads an [`Ended`]. It must not know queues,
//! workers or how a process is fenced.

mod seam;

pub use seam::{
    Adapter, AdapterError, Ended, Exit, Invocation, Listing, ListingStep, Runner, TestProcess, WarmFact,
    WarmSession,
};
