//! Ctrl-C, and what service managers and containers send.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::ConsoleError;

/// Waits for SIGINT and SIGTERM, as often as they come. They don't end the process any more.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self, ConsoleError> {
        let listen = |kind| signal(kind).map_err(ConsoleError::Signals);
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
