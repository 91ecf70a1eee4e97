//! What can go wrong between us and a broker. No text here holds a password.

use std::time::Duration;

/// Why the broker could not be reached, or would not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// There is no connection.
    #[error(
        "the broker at {broker} can't be reached: {reason}; is it running, and is its port open from here?"
    )]
    Unreachable {
        /// Where it should be.
        broker: String,
        /// What was noticed.
        reason: String,
    },
    /// The broker doesn't know the user, or the password is wrong.
    #[error("the broker at {broker} refused the login: {reason}; look at the user and its password file")]
    LoginRefused {
        /// Where.
        broker: String,
        /// The broker's words.
        reason: String,
    },
    /// The user lacks a right.
    #[error("{what}: the broker refused access: {reason}; grant the user that right, or use the right user")]
    AccessRefused {
        /// What was to be done.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// The queue or exchange isn't there.
    #[error("{what}: not there: {reason}")]
    NotFound {
        /// What was to be done.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// It exists with other properties.
    #[error("{what}: it exists with other properties: {reason}; delete it, or declare it as it is")]
    Mismatch {
        /// What was to be done.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker can't do it.
    #[error("{what}: the broker can't do that: {reason}")]
    Unsupported {
        /// What was to be done.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker didn't answer in time.
    #[error("{what}: no answer from the broker within {waited:?}")]
    Timeout {
        /// What was to be done.
        what: String,
        /// The limit.
        waited: Duration,
    },
    /// Anything else.
    #[error("{what}: {reason}")]
    Other {
        /// What was to be done.
        what: String,
        /// What was noticed.
        reason: String,
    },
}

impl TransportError {
    /// Whether a queue (or exchange) isn't there.
    pub fn is_no_queue(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the user lacks a right.
    pub fn is_access_refused(&self) -> bool {
        matches!(self, Self::AccessRefused { .. })
    }

    /// Whether the broker was asked and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::AccessRefused { .. } | Self::NotFound { .. } | Self::Mismatch { .. })
    }

    /// Whether trying again later may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Timeout { .. })
    }
}

/// Why a publishing isn't known to be at the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No queue takes it.
    #[error("no queue takes messages with routing key {routing_key:?} of exchange {exchange:?}")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker said that it didn't take it.
    #[error("the broker did not take the message for {routing_key:?} (a queue is full or failed)")]
    Refused {
        /// The routing key.
        routing_key: String,
    },
    /// The broker didn't confirm in time.
    #[error("the broker did not confirm the message for {routing_key:?} within {waited:?}{hint}")]
    Unconfirmed {
        /// The routing key.
        routing_key: String,
        /// The limit.
        waited: Duration,
        /// What was noticed, beginning with a separator; empty when nothing.
        hint: String,
    },
    /// The connection was lost before the confirm.
    #[error("the connection was lost before the message for {routing_key:?} was confirmed: {reason}")]
    Lost {
        /// The routing key.
        routing_key: String,
        /// What was noticed.
        reason: String,
    },
    /// What publishing needs could not be made ready.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl PublishError {
    /// Whether the broker was asked and said no, as it will next time.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Transport(error) if error.is_refusal())
    }

    /// Whether the message could be at the broker nevertheless.
    pub fn may_have_arrived(&self) -> bool {
        matches!(self, Self::Unconfirmed { .. } | Self::Lost { .. })
    }
}
