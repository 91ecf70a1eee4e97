//! Ctrl-C, and what service managers send.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// SIGINT, by a person who sees what happens, and can send another.
    Interrupt,
    /// SIGTERM, by a program that will send SIGKILL within seconds.
    Terminate,
}

/// Waits for SIGINT and SIGTERM, as often as they come.
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    /// Listens from now on. Where the system refuses, signals end the process as ever.
    pub(crate) fn listen() -> Self {
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
        }
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Sent {
        let wait = async |signal: &mut Option<Signal>| {
            if let Some(signal) = signal
                && signal.recv().await.is_some()
            {
                return;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = wait(&mut self.interrupt) => Sent::Interrupt,
            () = wait(&mut self.terminate) => Sent::Terminate,
        }
    }
}
