//! Ctrl-C, what service managers send, and the end of the terminal.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// SIGINT, by a person who sees what happens, and can send another.
    Interrupt,
    /// SIGTERM, by a program that will send SIGKILL within seconds; or SIGHUP, when the terminal or the connection to it is
    /// closed and nobody will see what comes.
    Terminate,
}

/// Where Linux says of a process which signals it ignores (proc(5), `SigIgn`).
const STATUS: &str = "/proc/self/status";

/// Waits for SIGINT, SIGTERM and SIGHUP, as often as they come.
pub(crate) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Listens from now on. Where the system refuses, signals end the process as ever. Whoever was started by `nohup` is to
    /// outlive its terminal.
    pub(crate) fn listen() -> Self {
        let hangup = SignalKind::hangup();
        let status = std::fs::read_to_string(STATUS).unwrap_or_default();
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
            hangup: Some(hangup)
                .filter(|hangup| !is_ignored(&status, hangup.as_raw_value()))
                .and_then(|hangup| signal(hangup).ok()),
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
            () = wait(&mut self.hangup) => Sent::Terminate,
        }
    }
}

/// Whether a process with this status ignores a signal: bit 0 of the mask is signal 1.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stands_in_a_mask() {
        let status = "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001002\nSigCgt:\t0000000000000001\n";
        for (signal, expected) in [(1, false), (2, true), (13, true), (14, false)] {
            assert_eq!(is_ignored(status, signal), expected, "{signal}");
        }
        assert!(!is_ignored("", 1));
    }
}
