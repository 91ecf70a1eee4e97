//! What queues and workers can be called. It knows no broker: whoever takes a name from a user asks here first.

use thiserror::Error;

/// The longest name of a task queue or a worker, in bytes. The names that are made of them, of dead letters, retries and
/// control, have to fit into AMQP's 255 (0-9-1, `shortstr`).
pub const NAME_BYTES_MAX: usize = 200;

/// What RabbitMQ keeps for itself (AMQP 0-9-1, `queue.declare`).
const RESERVED: &str = "amq.";

/// A name that can't be given.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NameError(String);

/// Takes the name of a task queue.
///
/// # Errors
/// When it is empty, longer than [`NAME_BYTES_MAX`], or reserved by the broker.
pub fn queue_name(name: &str) -> Result<String, NameError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(NameError(format!("the name of a queue has 1 to {NAME_BYTES_MAX} bytes")));
    }
    if name.starts_with(RESERVED) {
        return Err(NameError(format!(
            "names of queues that begin with `{RESERVED}` are the broker's own; choose another"
        )));
    }
    Ok(name.to_owned())
}

/// Takes the name of a worker.
///
/// # Errors
/// When it is empty, longer than [`NAME_BYTES_MAX`], or holds white space.
pub fn worker_name(name: &str) -> Result<String, NameError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_whitespace) {
        return Err(NameError(format!(
            "the name of a worker has 1 to {NAME_BYTES_MAX} bytes and no white space"
        )));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_or_refused() {
        let long = "q".repeat(NAME_BYTES_MAX);
        for name in ["celery", "a b", "ü", "amqp", &long] {
            assert_eq!(queue_name(name).as_deref(), Ok(name));
        }
        for name in ["", "amq.gen-1", &format!("{long}q"), &"ü".repeat(101)] {
            assert!(queue_name(name).is_err(), "{name}");
        }
        for name in ["celery@localhost", &long] {
            assert_eq!(worker_name(name).as_deref(), Ok(name));
        }
        for name in ["", "a b", "a\n", &format!("{long}q")] {
            assert!(worker_name(name).is_err(), "{name}");
        }
    }
}
