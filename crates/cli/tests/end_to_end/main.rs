//! The real binary in projects of its own: every exit code, every promise about failures, time and signals.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod configuration;
mod fleet;
mod frameworks;
mod project;
mod running;
mod sessions;
mod spreading;
mod stopping;
