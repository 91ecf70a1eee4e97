//! The hands of [`Plan`](regatta_model::Plan) and [`Run`](regatta_model::Run): batches out, results in, facts to whoever listens.
//!
//! [`run`] owns one run's state from its first fact to its last. Every fact goes to the caller's ledger
//! before anything that follows from it is done. This crate must not know test frameworks, processes, files or
//! terminals.

mod broker;
mod clock;
mod hands;

use std::io;

use regatta_celery::transport::Broker;
use regatta_model::{RunOrder, RunRecord, Stamped};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use regatta_model::Input;

/// Why a run could not be carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// A fact could not be written down; nothing is published that the ledger doesn't know.
    #[error("could not write the run's ledger; free the disk or name another folder with --results")]
    Ledger(#[source] io::Error),
    /// The run's queues could not be set up.
    #[error("could not set up the run's queues at the broker: {0}")]
    Broker(String),
}

impl DispatchError {
    fn broker(error: impl std::error::Error) -> Self {
        Self::Broker(broker::chain(&error))
    }
}

/// Where facts are written down.
pub trait Ledger {
    /// Takes a fact, in order, before anything that follows from it is done.
    ///
    /// # Errors
    /// When it can't be written.
    fn write(&mut self, fact: &Stamped) -> io::Result<()>;

    /// Hands what was taken to the operating system. Only then is the broker told to forget what it came from.
    ///
    /// # Errors
    /// When it can't be written.
    fn flush(&mut self) -> io::Result<()>;
}

/// Carries a run to its end and returns its record.
///
/// `inputs` brings what is listed and what the user wants ([`Input::Listed`], [`Input::Prepared`],
/// [`Input::ListingEnded`], [`Input::Interrupt`], [`Input::Kill`]); the rest comes from the broker and the clock.
/// `ledger` gets every fact, in order, before its consequences are published. `release` fires when all tests are
/// judged and the run's own worker may end; where the order says that there is one, the run ends after
/// [`Input::Released`].
///
/// # Errors
/// When the ledger can't be written or the topology can't be declared. A broker that is lost later is waited for.
pub async fn run(
    broker: &Broker,
    order: RunOrder,
    inputs: mpsc::Receiver<Input>,
    ledger: &mut dyn Ledger,
    release: CancellationToken,
) -> Result<RunRecord, DispatchError> {
    hands::Hands::new(broker, order, ledger, release).await?.work(inputs).await
}
