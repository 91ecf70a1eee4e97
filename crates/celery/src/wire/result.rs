//! Results and state updates, as Celery's `rpc://` backend carries them.

use std::fmt;

use bytes::Bytes;

use super::json::{write_object, write_string};
use super::{RawJson, Refusal, json_text};
use crate::transport::Properties;

/// The state of a task.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum State {
    /// Nobody knows anything of it.
    Pending,
    /// A worker has it.
    Received,
    /// It runs.
    Started,
    /// It ended well.
    Success,
    /// It ended badly.
    Failure,
    /// It is tried again later.
    Retry,
    /// Nobody will run it.
    Revoked,
    /// A state of the application's own, such as `PROGRESS`.
    Custom(String),
}

impl State {
    /// Its name on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Retry => "RETRY",
            Self::Revoked => "REVOKED",
            Self::Custom(name) => name,
        }
    }

    /// Whether nothing comes after it.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }
}

impl From<&str> for State {
    fn from(name: &str) -> Self {
        match name {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "RETRY" => Self::Retry,
            "REVOKED" => Self::Revoked,
            other => Self::Custom(other.to_owned()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultMessage {
    /// The task.
    pub task_id: String,
    /// Its state.
    pub status: State,
    /// The result; for a failure, the exception.
    pub result: RawJson,
    /// The traceback, when there is one.
    pub traceback: Option<String>,
    /// The tasks that it sent.
    pub children: RawJson,
    /// When it ended: ISO 8601.
    pub date_done: Option<String>,
    /// The group that it was in.
    pub group_id: Option<String>,
    /// The task that sent it.
    pub parent_id: Option<String>,
    /// Fields beyond these, in order.
    pub extra: Vec<(String, RawJson)>,
    correlation_id: Option<String>,
    /// The object as it came: its order, and the texts that are written again while they mean the same.
    came_as: Option<RawJson>,
}

impl ResultMessage {
    /// A result without anything beside it.
    pub fn new(task_id: impl Into<String>, status: State, result: RawJson) -> Self {
        Self {
            task_id: task_id.into(),
            status,
            result,
            traceback: None,
            children: RawJson::parse("[]").unwrap_or_else(|_| RawJson::null()),
            date_done: None,
            group_id: None,
            parent_id: None,
            extra: Vec::new(),
            correlation_id: None,
            came_as: None,
        }
    }

    /// The same with a traceback.
    #[must_use]
    pub fn with_traceback(mut self, traceback: Option<String>) -> Self {
        self.traceback = traceback;
        self
    }

    /// Reads a result.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn decode(properties: &Properties, body: &[u8]) -> Result<Self, Refusal> {
        Self::read(properties, body).map_err(|reason| Refusal {
            reason,
            id: properties.correlation_id.clone(),
            reply_to: None,
            correlation_id: properties.correlation_id.clone(),
        })
    }

    fn read(properties: &Properties, body: &[u8]) -> Result<Self, String> {
        let text = json_text(properties, body)?;
        let whole = RawJson::parse(text).map_err(|error| format!("the body isn't JSON: {error}"))?;
        let entries = whole.to_entries().map_err(|_| "the body isn't an object".to_owned())?;
        let mut message = Self::new("", State::Pending, RawJson::null());
        message.came_as = Some(whole);
        message.correlation_id.clone_from(&properties.correlation_id);
        let mut status = None;
        for (name, value) in entries {
            let text = || value.to::<Option<String>>().map_err(|_| format!("field {name} isn't a text"));
            match name.as_str() {
                "status" => status = text()?,
                "task_id" => message.task_id = text()?.unwrap_or_default(),
                "traceback" => {
                    let read = value.to_text_lossy();
                    message.traceback = read.map_err(|_| "field traceback isn't a text".to_owned())?;
                }
                "date_done" => message.date_done = text()?,
                "group_id" => message.group_id = text()?,
                "parent_id" => message.parent_id = text()?,
                "result" => message.result = value,
                "children" => message.children = value,
                _ => message.extra.push((name, value)),
            }
        }
        message.status = State::from(status.ok_or("field status is missing")?.as_str());
        if message.task_id.is_empty() {
            return Err("field task_id is missing".to_owned());
        }
        Ok(message)
    }

    /// Writes it.
    pub fn encode(&self) -> (Properties, Bytes) {
        let correlation_id = self.correlation_id.clone().or_else(|| Some(self.task_id.clone()));
        let properties = Properties { correlation_id, priority: Some(0), ..Properties::json(1) };
        let mut body = String::with_capacity(160 + self.result.as_str().len());
        // What came in could be read then, so it can be read now.
        match self.came_as.as_ref().and_then(|came| came.to_entries().ok()) {
            Some(came) if !came.is_empty() => self.write_again(&mut body, &came),
            _ => self.write_plain(&mut body),
        }
        (properties, Bytes::from(body))
    }

    /// The fields in the order in which they came; what was set since then stands before the task's id, where Celery
    /// has it.
    fn write_again(&self, body: &mut String, came: &[(String, RawJson)]) {
        let mut names: Vec<&str> = came.iter().map(|(name, _)| name.as_str()).collect();
        let groups = [("group_id", &self.group_id), ("parent_id", &self.parent_id)];
        let set = groups.into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name);
        let set = set.chain(self.extra.iter().map(|(name, _)| name.as_str()));
        let new: Vec<&str> = set.filter(|name| !names.contains(name)).collect();
        let before_id = names.iter().position(|name| *name == "task_id").unwrap_or(names.len());
        names.splice(before_id..before_id, new);
        let fields: Vec<(&str, RawJson)> =
            names.into_iter().filter_map(|name| self.field(name, came)).collect();
        write_object(body, fields.iter().map(|(name, value)| (*name, value)));
    }

    /// The order in which Celery writes the fields.
    fn write_plain(&self, body: &mut String) {
        body.push_str("{\"status\": ");
        write_string(body, self.status.as_str());
        body.push_str(", \"result\": ");
        body.push_str(self.result.as_str());
        body.push_str(", \"traceback\": ");
        write_optional(body, self.traceback.as_deref());
        body.push_str(", \"children\": ");
        body.push_str(self.children.as_str());
        body.push_str(", \"date_done\": ");
        write_optional(body, self.date_done.as_deref());
        for (name, value) in [("group_id", &self.group_id), ("parent_id", &self.parent_id)] {
            if let Some(value) = value {
                body.push_str(", ");
                write_string(body, name);
                body.push_str(": ");
                write_string(body, value);
            }
        }
        for (name, value) in &self.extra {
            body.push_str(", ");
            write_string(body, name);
            body.push_str(": ");
            body.push_str(value.as_str());
        }
        body.push_str(", \"task_id\": ");
        write_string(body, &self.task_id);
        body.push('}');
    }

    fn field<'a>(&'a self, name: &'a str, came: &[(String, RawJson)]) -> Option<(&'a str, RawJson)> {
        let came = came.iter().rev().find(|(came, _)| came == name).map(|(_, value)| value);
        let text = |text: Option<&str>| match came {
            Some(came) if came.to_text_lossy().is_ok_and(|came| came.as_deref() == text) => came.clone(),
            _ => RawJson::of(&text).unwrap_or_else(|_| RawJson::null()),
        };
        let value = match name {
            "status" => text(Some(self.status.as_str())),
            "task_id" => text(Some(&self.task_id)),
            "traceback" => text(self.traceback.as_deref()),
            "date_done" => text(self.date_done.as_deref()),
            "group_id" => text(self.group_id.as_deref()),
            "parent_id" => text(self.parent_id.as_deref()),
            "result" => self.result.clone(),
            "children" => self.children.clone(),
            other => self.extra.iter().find(|(name, _)| name == other)?.1.clone(),
        };
        Some((name, value))
    }
}

fn write_optional(out: &mut String, text: Option<&str>) {
    match text {
        Some(text) => write_string(out, text),
        None => out.push_str("null"),
    }
}
