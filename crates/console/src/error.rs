//! What can go wrong in a console, and what to do then.

use std::path::PathBuf;

use regatta_celery::transport::TransportError;
use regatta_celery::{ClientError, SendError, WorkerError};

use crate::broker::BrokerArgsError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error(transparent)]
    Broker(#[from] BrokerArgsError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error(transparent)]
    Worker(Box<WorkerError>),
    #[error("a worker inside this process ended unexpectedly")]
    Lost(#[from] tokio::task::JoinError),
    #[error("can't {doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("can't write to the standard output")]
    Output(#[source] std::io::Error),
    #[error("can't write the record as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the process can't watch for signals")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; a task without a result may still run")]
    Interrupted,
    #[error("the runtime can't start")]
    Runtime(#[source] std::io::Error),
    #[error(
        "there is no broker outside this process to use; give --broker amqp://user@host/ or set REGATTA_BROKER"
    )]
    NeedsBroker,
}

impl From<WorkerError> for ConsoleError {
    fn from(error: WorkerError) -> Self {
        Self::Worker(Box::new(error))
    }
}
