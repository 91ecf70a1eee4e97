//! The real binary in projects of its own: every exit code, every promise about failures, time and signals.

mod configuration;
mod fleet;
mod frameworks;
mod project;
mod running;
mod stopping;
