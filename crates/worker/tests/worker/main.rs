//! A whole worker with real processes, on the embedded broker and on RabbitMQ.

#![expect(clippy::unwrap_used, reason = "the whole file is a test")]

mod ground;

mod batches;
mod rabbitmq;
