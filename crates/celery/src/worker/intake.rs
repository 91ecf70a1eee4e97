//! What a delivery is: a task for this worker, or something that only needs an answer. Pure: the time comes in.

use std::sync::Arc;
use std::time::SystemTime;

use crate::app::{App, Arguments, Registered};
use crate::clock::parse_iso;
use crate::error::TaskError;
use crate::transport::Envelope;
use crate::wire::TaskMessage;
use crate::worker::conclude::not_registered;
use crate::worker::follow;

/// Who wants to know what became of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The task's id; without one there is no answer.
    pub(crate) id: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) correlation_id: Option<String>,
}

/// A delivery, understood.
pub(crate) enum Intake {
    /// A task of this worker.
    Run(Box<Order>),
    /// Not before this time.
    Early(Box<TaskMessage>, SystemTime),
    /// Nobody wants it any more.
    Expired(Box<TaskMessage>),
    /// Nothing that this worker may or can run.
    Refuse(Asker, TaskError),
}

/// A task to execute.
pub(crate) struct Order {
    pub(crate) message: TaskMessage,
    pub(crate) arguments: Arguments,
    pub(crate) task: Arc<Registered>,
    /// Not after this time.
    pub(crate) expires: Option<SystemTime>,
}

/// Reads a delivery that came out of `queue`.
pub(crate) fn read(app: &App, envelope: &Envelope, queue: &str, now: SystemTime) -> Intake {
    let mut message = match TaskMessage::decode(&envelope.properties, &envelope.body) {
        Ok(message) => message,
        Err(refusal) => {
            let asker =
                Asker { id: refusal.id, reply_to: refusal.reply_to, correlation_id: refusal.correlation_id };
            return Intake::Refuse(asker, TaskError::refused(refusal.reason).named("MalformedMessage"));
        }
    };
    let expires = match time(message.expires.as_deref(), "expires") {
        Ok(expires) => expires,
        Err(error) => return Intake::Refuse(asker(&message), error),
    };
    let eta = match time(message.eta.as_deref(), "eta") {
        Ok(eta) => eta,
        Err(error) => return Intake::Refuse(asker(&message), error),
    };
    let Some(task) = app.registered(&message.task) else {
        return Intake::Refuse(asker(&message), not_registered(&message.task));
    };
    if let Some(route) = app.route_of(&message.task)
        && route != queue
    {
        let reason = format!("task {} belongs to queue {route}, but came out of queue {queue}", message.task);
        return Intake::Refuse(asker(&message), TaskError::refused(reason));
    }
    if let Err(reason) = follow::check(app, &message, now) {
        return Intake::Refuse(
            asker(&message),
            TaskError::refused(format!("task {}: {reason}", message.task)),
        );
    }
    if expires.is_some_and(|expires| expires <= now) {
        return Intake::Expired(Box::new(message));
    }
    if let Some(eta) = eta.filter(|eta| *eta > now) {
        return Intake::Early(Box::new(message), eta);
    }
    let arguments =
        Arguments { args: std::mem::take(&mut message.args), kwargs: std::mem::take(&mut message.kwargs) };
    Intake::Run(Box::new(Order { message, arguments, task: Arc::clone(task), expires }))
}

/// Who asks for a task that could be read.
pub(crate) fn asker(message: &TaskMessage) -> Asker {
    Asker {
        id: Some(message.id.clone()),
        reply_to: message.reply_to.clone(),
        correlation_id: message.correlation_id.clone(),
    }
}

fn time(text: Option<&str>, header: &str) -> Result<Option<SystemTime>, TaskError> {
    match text {
        None => Ok(None),
        Some(text) => parse_iso(text).map(Some).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            TaskError::refused(format!("header {header} isn't a time: {shown:?}")).named("MalformedMessage")
        }),
    }
}
