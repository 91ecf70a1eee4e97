//! From a [`Task`] to a message at the broker.

use std::time::{Duration, SystemTime};

use crate::client::task::Eta;
use crate::client::{Inner, Task};
use crate::clock::{after, iso};
use crate::error::SendError;
use crate::transport::{Broker, PublishError, Publishing, Queue, Value};
use crate::wire::{RawJson, TaskMessage};

/// The longest description of arguments in a header; Celery's own limit.
const REPR_LIMIT: usize = 1024;

/// The longest time to live that RabbitMQ takes; for more it closes the channel.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Publishes a task, confirmed; makes its queue, where the options allow it, when it isn't there.
pub(crate) async fn publish(inner: &Inner, task: Task, id: &str) -> Result<(), SendError> {
    let call = Call::new(inner, task, id)?;
    let name = || call.message.task.clone();
    match inner.broker.publish(call.publishing()).await {
        Ok(()) => Ok(()),
        Err(PublishError::Unroutable { .. }) if inner.options.declare_queues && call.exchange.is_empty() => {
            make_queue(&inner.broker, &call.routing_key, &call.message.task).await?;
            let published = inner.broker.publish(call.publishing()).await;
            published.map_err(|source| SendError::Publish { task: name(), source })
        }
        Err(source) => Err(SendError::Publish { task: name(), source }),
    }
}

/// A task that is ready to be published, more than once if it must be.
struct Call {
    message: TaskMessage,
    exchange: String,
    routing_key: String,
    expiration: Option<String>,
    headers: Vec<(String, Value)>,
}

async fn make_queue(broker: &Broker, queue: &str, task: &str) -> Result<(), SendError> {
    let made = crate::worker::ensure(broker, Queue::celery(queue)).await;
    made.map_err(|source| SendError::Topology { task: task.to_owned(), source })
}

impl Call {
    fn new(inner: &Inner, task: Task, id: &str) -> Result<Self, SendError> {
        if let Some(spoiled) = task.spoiled {
            return Err(spoiled);
        }
        let mut message = TaskMessage::new(task.name, id);
        message.argsrepr = Some(describe_args(&task.args));
        message.kwargsrepr = Some(describe_kwargs(&task.kwargs));
        message.args = task.args;
        message.kwargs = task.kwargs;
        message.origin = Some(inner.options.name.clone());
        message.ignore_result = Some(task.ignore_result);
        message.priority = task.priority;
        message.is_brief = inner.options.brief_headers;
        let limit = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
        message.timelimit = (limit(task.time_limit), limit(task.soft_time_limit));
        message.reply_to = Some(task.reply_to.unwrap_or_else(|| inner.reply_to.clone()));
        if task.eta.is_some() || task.expires.is_some() {
            let now = SystemTime::now();
            message.eta = task.eta.map(|eta| match eta {
                Eta::At(time) => iso(time),
                Eta::In(delay) => iso(after(now, delay)),
            });
            message.expires = task.expires.map(|expires| iso(after(now, expires)));
        }
        let expiration = task.expires.and_then(lifetime);
        let (exchange, routing_key, headers) = (task.exchange, task.routing_key, task.headers);
        Ok(Self { message, exchange, routing_key, expiration, headers })
    }

    fn publishing(&self) -> Publishing {
        let (mut properties, body) = self.message.encode();
        properties.expiration.clone_from(&self.expiration);
        for (name, value) in &self.headers {
            properties.headers.insert(name.clone(), value.clone());
        }
        let routing_key = self.routing_key.clone();
        Publishing { exchange: self.exchange.as_str().into(), routing_key, properties, body, mandatory: true }
    }
}

/// How long a message may wait in a queue, as its property says it; beyond [`LIFETIME_MAX`] the header `expires` must do.
pub(crate) fn lifetime(time: Duration) -> Option<String> {
    (time <= LIFETIME_MAX).then(|| time.as_millis().to_string())
}

/// Positional arguments as people see them.
pub(crate) fn describe_args(args: &[RawJson]) -> String {
    describe("(", ")", args.iter().map(|arg| (None, arg)))
}

/// Keyword arguments as people see them.
pub(crate) fn describe_kwargs(kwargs: &[(String, RawJson)]) -> String {
    describe("{", "}", kwargs.iter().map(|(name, arg)| (Some(name.as_str()), arg)))
}

/// Arguments as people see them in Flower and in events. Celery writes Python's own representation; JSON is close.
fn describe<'a>(
    open: &str,
    close: &str,
    parts: impl Iterator<Item = (Option<&'a str>, &'a RawJson)>,
) -> String {
    let mut text = open.to_owned();
    for (index, (name, part)) in parts.enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        if let Some(name) = name {
            text.push('\'');
            text.push_str(name);
            text.push_str("': ");
        }
        let room = REPR_LIMIT.saturating_sub(text.len());
        if part.as_str().len() > room {
            text.extend(part.as_str().chars().take(room / 4));
            text.push_str("...");
            break;
        }
        text.push_str(part.as_str());
    }
    text.push_str(close);
    text
}
