//! One call of a task, before it is sent.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::app::DEFAULT_QUEUE;
use crate::error::SendError;
use crate::transport::Value;
use crate::wire::{JsonError, RawJson};

/// One call of a task.
///
/// ```
/// use regatta_celery::Task;
///
/// let task = Task::new("add").args(&(1, 2)).queue("numbers").priority(5);
/// ```
#[derive(Debug)]
pub struct Task {
    pub(crate) name: String,
    pub(crate) args: Vec<RawJson>,
    pub(crate) kwargs: Vec<(String, RawJson)>,
    /// The first argument that could not be written; told when the task is sent.
    pub(crate) spoiled: Option<SendError>,
    pub(crate) id: Option<String>,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) reply_to: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) eta: Option<Eta>,
    pub(crate) expires: Option<Duration>,
    pub(crate) time_limit: Option<Duration>,
    pub(crate) soft_time_limit: Option<Duration>,
    pub(crate) ignore_result: bool,
    pub(crate) headers: Vec<(String, Value)>,
}

/// Not before.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Eta {
    At(SystemTime),
    In(Duration),
}

impl Task {
    /// A call of the task `name` without arguments, addressed to Celery's default queue.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            kwargs: Vec::new(),
            spoiled: None,
            id: None,
            exchange: String::new(),
            routing_key: DEFAULT_QUEUE.to_owned(),
            reply_to: None,
            priority: None,
            eta: None,
            expires: None,
            time_limit: None,
            soft_time_limit: None,
            ignore_result: false,
            headers: Vec::new(),
        }
    }

    /// Adds positional arguments: a tuple, a list, or anything else that serde writes as one. Anything that doesn't
    /// become a list makes the sending fail.
    #[must_use]
    pub fn args(mut self, args: &impl Serialize) -> Self {
        match RawJson::of(args).and_then(|list| list.to::<Vec<RawJson>>()) {
            Ok(list) => self.args.extend(list),
            Err(source) => self.spoil(source),
        }
        self
    }

    /// Adds one positional argument.
    #[must_use]
    pub fn arg(mut self, arg: &impl Serialize) -> Self {
        match RawJson::of(arg) {
            Ok(arg) => self.args.push(arg),
            Err(source) => self.spoil(source),
        }
        self
    }

    /// Adds keyword arguments: a struct, a map, or anything else that serde writes as an object.
    #[must_use]
    pub fn kwargs(mut self, kwargs: &impl Serialize) -> Self {
        match RawJson::of(kwargs).and_then(|object| object.to_entries()) {
            Ok(object) => self.kwargs.extend(object),
            Err(source) => self.spoil(source),
        }
        self
    }

    /// Adds one keyword argument.
    #[must_use]
    pub fn kwarg(mut self, name: impl Into<String>, value: &impl Serialize) -> Self {
        match RawJson::of(value) {
            Ok(value) => self.kwargs.push((name.into(), value)),
            Err(source) => self.spoil(source),
        }
        self
    }

    fn spoil(&mut self, source: JsonError) {
        let task = self.name.clone();
        self.spoiled.get_or_insert(SendError::Encode { task, source });
    }

    /// The queue to go to, through the default exchange.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.exchange = String::new();
        self.routing_key = queue.into();
        self
    }

    /// The exchange and the routing key to go to, instead of a queue.
    #[must_use]
    pub fn exchange(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.exchange = exchange.into();
        self.routing_key = routing_key.into();
        self
    }

    /// Its id, which no other task may have; a new UUID when not said.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// What the worker makes the results' address of, instead of the client's own.
    #[must_use]
    pub fn reply_to(mut self, reply_to: impl Into<String>) -> Self {
        self.reply_to = Some(reply_to.into());
        self
    }

    /// Its priority, 0 to 255; the higher goes first, in queues that have priorities.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Not before so long from the sending.
    #[must_use]
    pub fn countdown(mut self, countdown: Duration) -> Self {
        self.eta = Some(Eta::In(countdown));
        self
    }

    /// Not before this time.
    #[must_use]
    pub fn eta(mut self, eta: SystemTime) -> Self {
        self.eta = Some(Eta::At(eta));
        self
    }

    /// No longer wanted so long after the sending: a worker that comes to it later answers `REVOKED`.
    #[must_use]
    pub fn expires(mut self, expires: Duration) -> Self {
        self.expires = Some(expires);
        self
    }

    /// The hard time limit of its execution.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = Some(limit);
        self
    }

    /// The soft time limit of its execution.
    #[must_use]
    pub fn soft_time_limit(mut self, limit: Duration) -> Self {
        self.soft_time_limit = Some(limit);
        self
    }

    /// Asks the worker for no result. Waiting for it would be in vain.
    #[must_use]
    pub fn ignore_result(mut self) -> Self {
        self.ignore_result = true;
        self
    }

    /// Adds a header of the message. Names that Celery uses itself are overwritten by it.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}
