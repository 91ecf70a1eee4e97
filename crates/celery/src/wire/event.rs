//! Events of workers and tasks, which Celery's monitors read.

use bytes::Bytes;

use super::json::write_object;
use super::{JsonError, RawJson, Refusal, json_text};
use crate::transport::{Properties, Publishing, Value};

/// Something that happened in a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `worker-heartbeat`, `task-started` and so on.
    pub kind: String,
    /// The task, for an event of one.
    pub uuid: Option<String>,
    /// The worker's name.
    pub hostname: String,
    /// Lamport's clock.
    pub clock: u64,
    /// Seconds since 1970.
    pub timestamp: f64,
    /// Hours from UTC, counted westwards.
    pub utcoffset: f64,
    /// The worker's process.
    pub pid: u32,
    /// What else belongs to the kind, in order.
    pub fields: Vec<(String, RawJson)>,
}

/// Where a batch of task events goes.
const MULTI_KEY: &str = "task.multi";

impl Event {
    /// Whether it tells of a task rather than of a worker.
    pub fn is_of_task(&self) -> bool {
        self.kind.starts_with("task-")
    }

    /// The message that carries it alone.
    pub fn publishing(&self, exchange: &str) -> Publishing {
        let mut body = String::new();
        self.write(&mut body);
        publishing(exchange, self.kind.replace('-', "."), &self.hostname, body)
    }

    /// The message that carries several events of tasks, as Celery batches them.
    pub fn publishing_many(exchange: &str, events: &[Self]) -> Publishing {
        let mut body = "[".to_owned();
        for (index, event) in events.iter().enumerate() {
            if index > 0 {
                body.push_str(", ");
            }
            event.write(&mut body);
        }
        body.push(']');
        let hostname = events.first().map(|event| event.hostname.as_str()).unwrap_or_default();
        publishing(exchange, MULTI_KEY.to_owned(), hostname, body)
    }

    fn write(&self, out: &mut String) {
        let json = |value: &dyn erased::Json| value.json();
        let mut entries: Vec<(&str, RawJson)> = vec![
            ("hostname", json(&self.hostname)),
            ("utcoffset", json(&self.utcoffset)),
            ("pid", json(&self.pid)),
            ("clock", json(&self.clock)),
        ];
        entries.extend(self.uuid.as_ref().map(|uuid| ("uuid", json(uuid))));
        entries.extend(self.fields.iter().map(|(name, value)| (name.as_str(), value.clone())));
        entries.push(("timestamp", json(&self.timestamp)));
        entries.push(("type", json(&self.kind)));
        write_object(out, entries.iter().map(|(name, value)| (*name, value)));
    }

    /// Reads the events of a message: one, or a batch.
    ///
    /// # Errors
    /// When it has none.
    pub fn decode(properties: &Properties, body: &[u8]) -> Result<Vec<Self>, Refusal> {
        let read = || -> Result<Vec<Self>, String> {
            let text = json_text(properties, body)?;
            let whole = RawJson::parse(text).map_err(|error| format!("the body isn't JSON: {error}"))?;
            match whole.to_elements() {
                Ok(events) => events.iter().map(Self::read).collect(),
                Err(_) => Ok(vec![Self::read(&whole)?]),
            }
        };
        read().map_err(|reason| Refusal { reason, id: None, reply_to: None, correlation_id: None })
    }

    fn read(event: &RawJson) -> Result<Self, String> {
        let mut read = Self {
            kind: String::new(),
            uuid: None,
            hostname: String::new(),
            clock: 0,
            timestamp: 0.0,
            utcoffset: 0.0,
            pid: 0,
            fields: Vec::new(),
        };
        for (name, value) in event.to_entries().map_err(|_| "an event isn't an object".to_owned())? {
            let wrong = |_| format!("field {name} of an event has a wrong type");
            match name.as_str() {
                "type" => read.kind = value.to().map_err(wrong)?,
                "uuid" => read.uuid = value.to().map_err(wrong)?,
                "hostname" => read.hostname = value.to().map_err(wrong)?,
                "clock" => read.clock = value.to::<Option<_>>().map_err(wrong)?.unwrap_or_default(),
                "timestamp" => read.timestamp = seconds(&value).map_err(wrong)?,
                "utcoffset" => read.utcoffset = value.to::<Option<_>>().map_err(wrong)?.unwrap_or_default(),
                "pid" => read.pid = value.to::<Option<_>>().map_err(wrong)?.unwrap_or_default(),
                _ => read.fields.push((name, value)),
            }
        }
        if read.kind.is_empty() {
            return Err("an event has no type".to_owned());
        }
        Ok(read)
    }
}

/// A time with every digit that it came with: `serde_json` may be off by the last bit of a float.
fn seconds(value: &RawJson) -> Result<f64, JsonError> {
    let read: f64 = value.to()?;
    Ok(value.as_str().parse().unwrap_or(read))
}

fn publishing(exchange: &str, routing_key: String, hostname: &str, body: String) -> Publishing {
    let mut properties = Properties { priority: Some(0), ..Properties::json(1) };
    properties.headers.insert("hostname", Value::from(hostname));
    Publishing {
        exchange: exchange.into(),
        routing_key,
        properties,
        body: Bytes::from(body),
        mandatory: false,
    }
}

/// Values that surely have a JSON form.
mod erased {
    use super::RawJson;

    pub(super) trait Json {
        fn json(&self) -> RawJson;
    }

    impl<T: serde::Serialize> Json for T {
        fn json(&self) -> RawJson {
            RawJson::of(self).unwrap_or_else(|_| RawJson::null())
        }
    }
}
