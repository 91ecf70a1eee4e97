//! Celery for Rust: messages, topology, transports (embedded and AMQP), client, results, worker loop, events, remote
//! control and retry.
//!
//! This crate is the only user of the AMQP client and the only place that can settle a delivery. It must not know what
//! a test is, and it prints nothing.
//!
//! A worker and a caller in one process, without any broker:
//!
//! ```
//! use regatta_celery::transport::Broker;
//! use regatta_celery::{App, Client, ClientOptions, Context, Task, TaskError, WorkerOptions};
//! use tokio_util::sync::CancellationToken;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let broker = Broker::embedded();
//! let app = App::new("sums").task("add", |_: Context, (x, y): (i64, i64)| async move {
//!     Ok::<_, TaskError>(x + y)
//! });
//! let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
//! let worker = app.worker(&broker, WorkerOptions::new("sums@here", ["numbers"]).slots(2));
//! let worker = tokio::spawn(worker.run(quiet.clone(), kill));
//!
//! let client = Client::new(&broker, ClientOptions::default()).await?;
//! let mut handle = client.send(Task::new("add").args(&(1, 2)).queue("numbers")).await?;
//! assert_eq!(handle.get::<i64>().await?.value, 3);
//!
//! quiet.cancel();
//! worker.await??;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! Where to read on: [`App`] for tasks, [`Worker::run`] for what a worker promises, [`Client`] for callers,
//! [`transport`] for the brokers and [`wire`] for the messages.

#![warn(missing_docs)]

mod app;
mod client;
mod clock;
mod context;
mod emitter;
mod error;
mod name;
mod retry;
pub mod transport;
pub mod wire;
mod worker;

pub use self::app::{App, Arguments, DEFAULT_QUEUE, Mismatch, TaskOptions};
pub use self::client::{
    Answer, Client, ClientOptions, Facts, Handle, Inspect, REPLIES_PREFETCH, Replies, Reply, ReplyRoute,
    Task, TaskResult, Update,
};
pub use self::context::{Context, UpdateError};
pub use self::error::{ClientError, RemoteError, SendError, TaskError, TaskFailure, WorkerError};
pub use self::name::{NAME_BYTES_MAX, NameError, queue_name, worker_name};
pub use self::retry::Retry;
pub use self::transport::{Broker, BrokerUrl, ConnectOptions};
pub use self::worker::{
    DeadLetter, HEARTBEAT, MAX_PREFETCH, Phase, Prefetch, ResultRoute, Worker, WorkerEnd, WorkerOptions,
};
