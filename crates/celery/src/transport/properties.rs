//! What travels beside a body: AMQP 0-9-1 basic properties and the header table, in our own types, so that nothing
//! above the transports sees the AMQP client's.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A value of a header table. Integers of all widths are one kind: AMQP has eight, and no peer tells them apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer; beyond `i64` it can't be carried.
    Int(i64),
    /// A floating-point number.
    Double(f64),
    /// A text.
    Text(String),
    /// Bytes that needn't be text.
    Bytes(Vec<u8>),
    /// Seconds since 1970.
    Timestamp(u64),
    /// A decimal number, `value / 10^scale`.
    Decimal {
        /// Digits after the point.
        scale: u8,
        /// All digits.
        value: u32,
    },
    /// Values in order.
    List(Vec<Value>),
    /// A table in a table.
    Table(Headers),
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "seconds and counts stay far below 2^53")]
            Self::Int(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }

    /// Whether it is nothing.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Double(number)
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The header that stands for headers that can't be read, and says why.
pub(crate) const UNREADABLE_HEADER: &str = "unreadable-headers";

/// The headers that Celery's messages have. A name of these takes no memory of its own, and messages have twenty.
const KNOWN: [&str; 24] = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",
    "worker",
    "started",
    "finished",
    "hostname",
];

/// A text that many messages have in common: no copy when it is one of `known`.
fn interned(text: &str, known: &[&'static str]) -> Cow<'static, str> {
    known.iter().find(|known| **known == text).map_or_else(|| text.to_owned().into(), |known| (*known).into())
}

/// A header table: names and values in the order in which they were put in. Equality looks at names, not at order,
/// since brokers and clients keep none. Clones share it until one of them is changed.
#[derive(Clone, Default)]
pub struct Headers(Arc<Vec<(Cow<'static, str>, Value)>>);

impl Headers {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Sets a value; gives the one that it replaces.
    pub fn insert(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Value>) -> Option<Value> {
        let (name, value) = (name.into(), value.into());
        let entries = Arc::make_mut(&mut self.0);
        if let Some((_, old)) = entries.iter_mut().find(|(key, _)| *key == name) {
            return Some(std::mem::replace(old, value));
        }
        entries.push((name, value));
        None
    }

    /// Takes a value out.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(Arc::make_mut(&mut self.0).remove(at).1)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// Takes names that are known to differ, with their values: no search.
    pub(crate) fn of_distinct<'a>(entries: impl Iterator<Item = (&'a str, Value)>) -> Self {
        Self(Arc::new(entries.map(|(name, value)| (interned(name, &KNOWN), value)).collect()))
    }
}

impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl FromIterator<(String, Value)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(entries: I) -> Self {
        Self(Arc::new(entries.into_iter().map(|(name, value)| (name.into(), value)).collect()))
    }
}

/// AMQP's basic properties (AMQP 0-9-1, class 60).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties {
    /// MIME type of the body.
    pub content_type: Option<Cow<'static, str>>,
    /// Character set or `binary`.
    pub content_encoding: Option<Cow<'static, str>>,
    /// The header table.
    pub headers: Headers,
    /// 2 for a message that survives the broker's restart, 1 for one that doesn't.
    pub delivery_mode: Option<u8>,
    /// 0 to 255; the higher goes first, in queues that have priorities.
    pub priority: Option<u8>,
    /// What a reply belongs to.
    pub correlation_id: Option<String>,
    /// Where replies go.
    pub reply_to: Option<String>,
    /// Milliseconds to live in a queue, as text.
    pub expiration: Option<String>,
    /// The message's own id.
    pub message_id: Option<String>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The application's word for what it is.
    pub kind: Option<String>,
    /// The publishing user; RabbitMQ checks it.
    pub user_id: Option<String>,
    /// The publishing application.
    pub app_id: Option<String>,
}

impl Properties {
    /// A content type or encoding, without a copy when it is the usual one.
    pub(crate) fn content(text: &str) -> Cow<'static, str> {
        interned(text, &["application/json", "utf-8"])
    }

    /// Properties of a JSON body, as kombu writes them.
    pub fn json(delivery_mode: u8) -> Self {
        Self {
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            delivery_mode: Some(delivery_mode),
            ..Self::default()
        }
    }
}
