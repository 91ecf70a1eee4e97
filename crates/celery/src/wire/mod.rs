//! Celery's messages: tasks (protocol 2), results, events and remote control, decoded from and encoded to what travels.
//!
//! Pure: no I/O, no clock. The authority is what Celery 5.7 and kombu 5.7 were seen to send (the captured messages
//! beside the tests); the protocol's text is <https://docs.celeryq.dev/en/stable/internals/protocol.html>.

mod control;
mod event;
mod finite;
mod json;
mod pattern;
mod result;
mod task;

pub use self::control::{ControlReply, ControlRequest, ReplyAddress};
pub use self::event::Event;
pub use self::json::{JsonError, RawJson};
pub use self::result::{ResultMessage, State};
pub(crate) use self::task::deflate;
pub use self::task::{Embed, TaskMessage};

/// Why a message can't be taken, and whom to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, for people.
    pub reason: String,
    /// The task's id, when it can be read.
    pub id: Option<String>,
    /// Where its caller waits, when it can be read.
    pub reply_to: Option<String>,
    /// What the caller's reply belongs to.
    pub correlation_id: Option<String>,
}

/// The body's text, if the properties say that it is JSON.
fn json_text<'a>(properties: &crate::transport::Properties, body: &'a [u8]) -> Result<&'a str, String> {
    match properties.content_type.as_deref() {
        Some("application/json") => {}
        Some(other) => return Err(format!("content type {other} is not accepted: send application/json")),
        None => return Err("there is no content type: send application/json".to_owned()),
    }
    std::str::from_utf8(body).map_err(|error| format!("the body isn't UTF-8: {error}"))
}
