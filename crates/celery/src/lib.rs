//! Celery for Rust: messages, topology, transports (embedded and AMQP), client, results, worker loop, events, remote
//! control and retry.
//!
//! This crate is the only user of the AMQP client and the only place that can settle a delivery. It must not know what
//! a test is, and it prints nothing.

#![warn(missing_docs)]

pub mod transport;
