//! Application, worker and client together: on the embedded broker, on RabbitMQ, and with Celery in Python on the other
//! side.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails there")]

mod foreign;
mod interop;
mod losses;
mod python;
mod retry;
mod support;
mod tasks;
