//! Task messages: protocol 2, and protocol 1 on the way in.

use std::io::Read;

use bytes::Bytes;

use super::json::{write_array, write_object};
use super::{JsonError, RawJson, Refusal, json_text};
use crate::transport::{Headers, Properties, UNREADABLE_HEADER, Value};

/// The headers that may be absent (Celery documentation, "Message Protocol", version 2, and what its worker reads with
/// a default).
const OPTIONAL: [&str; 8] = [
    "shadow",
    "eta",
    "expires",
    "group_index",
    "timelimit",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
];

/// The largest body after decompression, so that a small message can't fill the memory.
const BODY_MAX: u64 = 64 << 20;

/// The third part of the body where nothing follows, as Celery writes it: most messages have it.
const NOTHING_FOLLOWS: &str = r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// What shall follow the task: the third part of the body. Each is a signature, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Embed {
    /// After success.
    pub callbacks: Option<Vec<RawJson>>,
    /// After failure.
    pub errbacks: Option<Vec<RawJson>>,
    /// The rest of its chain, the next step last.
    pub chain: Option<Vec<RawJson>>,
    /// The body of the chord that it is a part of.
    pub chord: Option<RawJson>,
    /// Its text as it came, which is written again while the parts above are as they came.
    came_as: Option<RawJson>,
}

/// One task, as it travels.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskMessage {
    /// The registered name.
    pub task: String,
    /// The task's id.
    pub id: String,
    /// The id of the task that began the whole work flow.
    pub root_id: Option<String>,
    /// The id of the task that sent this one.
    pub parent_id: Option<String>,
    /// The group that it is in.
    pub group: Option<String>,
    /// Its place in the group.
    pub group_index: Option<i64>,
    /// How many retries came before.
    pub retries: u32,
    /// Not before: ISO 8601.
    pub eta: Option<String>,
    /// Not after: ISO 8601.
    pub expires: Option<String>,
    /// Hard and soft time limit, in seconds.
    pub timelimit: (Option<f64>, Option<f64>),
    /// The positional arguments for people.
    pub argsrepr: Option<String>,
    /// The keyword arguments for people.
    pub kwargsrepr: Option<String>,
    /// Who sent it.
    pub origin: Option<String>,
    /// Whether nobody wants its result; none for the task's own default.
    pub ignore_result: Option<bool>,
    /// The name that monitors show instead of the registered one.
    pub shadow: Option<String>,
    /// Positional arguments.
    pub args: Vec<RawJson>,
    /// Keyword arguments, in order.
    pub kwargs: Vec<(String, RawJson)>,
    /// What follows.
    pub embed: Embed,
    /// Where the result goes: a queue's name, or what a worker makes its address of.
    pub reply_to: Option<String>,
    /// What the result carries back.
    pub correlation_id: Option<String>,
    /// The message's priority.
    pub priority: Option<u8>,
    /// Whether headers that the protocol calls optional are left out where they say nothing. Celery's workers take
    /// their absence for nothing; Celery itself always writes them.
    pub is_brief: bool,
    /// Properties and headers as they came; unknown ones are kept.
    came_as: Option<Box<Properties>>,
}

impl TaskMessage {
    /// A task without arguments that begins its own work flow.
    pub fn new(task: impl Into<String>, id: impl Into<String>) -> Self {
        let id = id.into();
        Self {
            task: task.into(),
            root_id: Some(id.clone()),
            parent_id: None,
            group: None,
            group_index: None,
            retries: 0,
            eta: None,
            expires: None,
            timelimit: (None, None),
            argsrepr: Some("()".to_owned()),
            kwargsrepr: Some("{}".to_owned()),
            origin: None,
            ignore_result: Some(false),
            shadow: None,
            args: Vec::new(),
            kwargs: Vec::new(),
            embed: Embed::default(),
            reply_to: None,
            correlation_id: Some(id.clone()),
            priority: None,
            is_brief: false,
            id,
            came_as: None,
        }
    }

    /// Reads a task message.
    ///
    /// # Errors
    /// A [`Refusal`] says what is wrong and whom to tell. Nothing makes this panic.
    pub fn decode(properties: &Properties, body: &[u8]) -> Result<Self, Refusal> {
        Self::read(properties, body).map_err(|reason| {
            let text = |name| properties.headers.get(name).and_then(Value::as_str).map(str::to_owned);
            Refusal {
                reason,
                // Celery's correlation id is the task's id.
                id: text("id").or_else(|| unreadable(properties).and(properties.correlation_id.clone())),
                reply_to: properties.reply_to.clone(),
                correlation_id: properties.correlation_id.clone(),
            }
        })
    }

    fn read(properties: &Properties, body: &[u8]) -> Result<Self, String> {
        if let Some(why) = unreadable(properties) {
            return Err(why.to_owned());
        }
        if properties.headers.get("task").is_none() {
            return Self::read_protocol_1(properties, body);
        }
        let mut message = Self::read_headers(properties)?;
        let inflated = inflate(&properties.headers, body)?;
        let text = json_text(properties, inflated.as_deref().unwrap_or(body))?;
        let broken = |error: JsonError| format!("the body isn't JSON: {error}");
        let whole = RawJson::parse(text).map_err(broken)?;
        let not_a_triple = || "the body isn't a list of arguments, keyword arguments and options".to_owned();
        let parts = whole.to_elements().map_err(|_| not_a_triple())?;
        let [args, kwargs, embed] = <[RawJson; 3]>::try_from(parts).map_err(|_| not_a_triple())?;
        message.args = args.to_elements().map_err(|_| "the arguments aren't a list".to_owned())?;
        message.kwargs =
            kwargs.to_entries().map_err(|_| "the keyword arguments aren't an object".to_owned())?;
        message.embed = Embed::read(embed)?;
        message.came_as = Some(Box::new(properties.clone()));
        Ok(message)
    }

    fn read_headers(properties: &Properties) -> Result<Self, String> {
        let headers = &properties.headers;
        let task = text(headers, "task")?.filter(|task| !task.is_empty()).ok_or("header task is empty")?;
        let id = text(headers, "id")?.filter(|id| !id.is_empty()).ok_or("header id is missing")?;
        Ok(Self {
            root_id: text(headers, "root_id")?,
            parent_id: text(headers, "parent_id")?,
            group: text(headers, "group")?,
            group_index: headers.get("group_index").and_then(Value::as_i64),
            retries: count(headers, "retries")?,
            eta: text(headers, "eta")?,
            expires: text(headers, "expires")?,
            timelimit: timelimit(headers.get("timelimit"))?,
            argsrepr: shown(headers, "argsrepr"),
            kwargsrepr: shown(headers, "kwargsrepr"),
            origin: shown(headers, "origin"),
            ignore_result: match headers.get("ignore_result") {
                Some(Value::Bool(ignore)) => Some(*ignore),
                Some(Value::Null) | None => None,
                Some(_) => return Err("header ignore_result is neither true nor false".to_owned()),
            },
            shadow: shown(headers, "shadow"),
            reply_to: properties.reply_to.clone(),
            correlation_id: properties.correlation_id.clone(),
            priority: properties.priority,
            ..Self::new(task, id)
        })
    }

    /// Protocol 1 has everything in the body. Only very old clients send it.
    fn read_protocol_1(properties: &Properties, body: &[u8]) -> Result<Self, String> {
        let unknown = "there is neither a header task nor a body of protocol 1".to_owned();
        let whole = RawJson::parse(json_text(properties, body)?).map_err(|_| unknown.clone())?;
        let entries = whole.to_entries().map_err(|_| unknown.clone())?;
        let get = |name: &str| entries.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let text = |name: &str| get(name).and_then(|value| value.to::<Option<String>>().ok().flatten());
        let (Some(task), Some(id)) = (text("task"), text("id")) else { return Err(unknown) };
        let args = get("args").map(RawJson::to_elements).transpose();
        let kwargs = get("kwargs").map(RawJson::to_entries).transpose();
        let list =
            |name: &str| get(name).filter(|value| !value.is_null()).map(RawJson::to_elements).transpose();
        let broken = |error: JsonError| format!("a part of the body has a wrong shape: {error}");
        let limits = get("timelimit").and_then(|limits| limits.to::<(Option<f64>, Option<f64>)>().ok());
        Ok(Self {
            args: args.map_err(broken)?.unwrap_or_default(),
            kwargs: kwargs.map_err(broken)?.unwrap_or_default(),
            retries: get("retries").and_then(|retries| retries.to().ok()).unwrap_or(0),
            eta: text("eta"),
            expires: text("expires"),
            group: text("taskset"),
            timelimit: limits.unwrap_or_default(),
            embed: Embed {
                callbacks: list("callbacks").map_err(broken)?,
                errbacks: list("errbacks").map_err(broken)?,
                chord: get("chord").filter(|chord| !chord.is_null()).cloned(),
                ..Embed::default()
            },
            reply_to: properties.reply_to.clone(),
            correlation_id: properties.correlation_id.clone(),
            priority: properties.priority,
            ..Self::new(task, id)
        })
    }

    /// Writes it. What came in and was not changed is written as it came.
    pub fn encode(&self) -> (Properties, Bytes) {
        let mut properties = self.came_as.as_deref().cloned().unwrap_or_else(|| Properties::json(2));
        properties.reply_to.clone_from(&self.reply_to);
        properties.correlation_id.clone_from(&self.correlation_id);
        properties.priority = self.priority;
        self.write_headers(&mut properties);
        let body = self.body();
        let body = match properties.headers.get("compression").and_then(Value::as_str) {
            Some("application/x-gzip") => deflate(body.as_bytes()),
            _ => body.into_bytes(),
        };
        (properties, body.into())
    }

    fn body(&self) -> String {
        let mut body = String::with_capacity(96);
        body.push('[');
        write_array(&mut body, self.args.iter());
        body.push_str(", ");
        write_object(&mut body, self.kwargs.iter().map(|(name, value)| (name.as_str(), value)));
        body.push_str(", ");
        self.embed.write(&mut body);
        body.push(']');
        body
    }

    fn write_headers(&self, properties: &mut Properties) {
        let Some(before) = self.came_as.as_deref().and_then(|came| Self::read_headers(came).ok()) else {
            self.write_all_headers(&mut properties.headers);
            return;
        };
        let headers = &mut properties.headers;
        let mut set = |name: &'static str, changed: bool, value: Value| {
            if changed {
                headers.insert(name, value);
            }
        };
        set("task", before.task != self.task, self.task.as_str().into());
        set("id", before.id != self.id, self.id.as_str().into());
        set("root_id", before.root_id != self.root_id, self.root_id.clone().into());
        set("parent_id", before.parent_id != self.parent_id, self.parent_id.clone().into());
        set("group", before.group != self.group, self.group.clone().into());
        set("group_index", before.group_index != self.group_index, self.group_index.into());
        set("retries", before.retries != self.retries, i64::from(self.retries).into());
        set("eta", before.eta != self.eta, self.eta.clone().into());
        set("expires", before.expires != self.expires, self.expires.clone().into());
        set("timelimit", before.timelimit != self.timelimit, self.limits());
        set("argsrepr", before.argsrepr != self.argsrepr, self.argsrepr.clone().into());
        set("kwargsrepr", before.kwargsrepr != self.kwargsrepr, self.kwargsrepr.clone().into());
        set("origin", before.origin != self.origin, self.origin.clone().into());
        set("ignore_result", before.ignore_result != self.ignore_result, self.ignore_result.into());
        set("shadow", before.shadow != self.shadow, self.shadow.clone().into());
    }

    /// All headers that Celery 5.7 sends, in its order.
    fn write_all_headers(&self, headers: &mut Headers) {
        let all: [(&str, Value); 19] = [
            ("lang", "py".into()),
            ("task", self.task.as_str().into()),
            ("id", self.id.as_str().into()),
            ("shadow", self.shadow.as_deref().into()),
            ("eta", self.eta.as_deref().into()),
            ("expires", self.expires.as_deref().into()),
            ("group", self.group.as_deref().into()),
            ("group_index", self.group_index.into()),
            ("retries", i64::from(self.retries).into()),
            ("timelimit", self.limits()),
            ("root_id", self.root_id.as_deref().into()),
            ("parent_id", self.parent_id.as_deref().into()),
            ("argsrepr", self.argsrepr.as_deref().into()),
            ("kwargsrepr", self.kwargsrepr.as_deref().into()),
            ("origin", self.origin.as_deref().into()),
            ("ignore_result", self.ignore_result.into()),
            ("replaced_task_nesting", Value::Int(0)),
            ("stamped_headers", Value::Null),
            ("stamps", Value::Table(Headers::default())),
        ];
        let left_out =
            |name: &str, value: &Value| self.is_brief && OPTIONAL.contains(&name) && says_nothing(value);
        let said = all.into_iter().filter(|(name, value)| !left_out(name, value));
        if headers.is_empty() {
            *headers = Headers::of_distinct(said);
            return;
        }
        for (name, value) in said {
            headers.insert(name, value);
        }
    }

    fn limits(&self) -> Value {
        let limit = |limit: Option<f64>| match limit {
            // Celery writes whole seconds as integers.
            #[expect(clippy::cast_possible_truncation, reason = "whole and within i32")]
            Some(seconds) if seconds.fract() == 0.0 && seconds.abs() < f64::from(i32::MAX) => {
                Value::Int(seconds as i64)
            }
            other => other.into(),
        };
        Value::List(vec![limit(self.timelimit.0), limit(self.timelimit.1)])
    }
}

impl Embed {
    fn read(text: RawJson) -> Result<Self, String> {
        if text.is_null() || text.as_str() == NOTHING_FOLLOWS {
            return Ok(Self { came_as: Some(text), ..Self::default() });
        }
        let mut embed = Self::default();
        let shape = |error: JsonError| format!("the options of the body have a wrong shape: {error}");
        for (name, value) in text.to_entries().map_err(shape)? {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "callbacks" => embed.callbacks = Some(value.to_elements().map_err(shape)?),
                "errbacks" => embed.errbacks = Some(value.to_elements().map_err(shape)?),
                "chain" => embed.chain = Some(value.to_elements().map_err(shape)?),
                "chord" => embed.chord = Some(value),
                _ => {}
            }
        }
        embed.came_as = Some(text);
        Ok(embed)
    }

    fn write(&self, out: &mut String) {
        if let Some(text) = &self.came_as
            && Self::read(text.clone()).as_ref() == Ok(self)
        {
            out.push_str(text.as_str());
            return;
        }
        let list = |out: &mut String, name: &str, list: &Option<Vec<RawJson>>| {
            out.push_str(name);
            match list {
                Some(list) => write_array(out, list.iter()),
                None => out.push_str("null"),
            }
        };
        list(out, "{\"callbacks\": ", &self.callbacks);
        list(out, ", \"errbacks\": ", &self.errbacks);
        list(out, ", \"chain\": ", &self.chain);
        out.push_str(", \"chord\": ");
        out.push_str(self.chord.as_ref().map_or("null", RawJson::as_str));
        out.push('}');
    }
}

/// Whether a header's value is the same as its absence.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Int(0) => true,
        Value::List(values) => values.iter().all(Value::is_null),
        Value::Table(table) => table.is_empty(),
        _ => false,
    }
}

fn text(headers: &Headers, name: &str) -> Result<Option<String>, String> {
    match headers.get(name) {
        Some(Value::Text(text)) => Ok(Some(text.clone())),
        Some(Value::Null) | None => Ok(None),
        Some(_) => Err(format!("header {name} isn't a text")),
    }
}

/// Why the headers can't be read.
fn unreadable(properties: &Properties) -> Option<&str> {
    properties.headers.get(UNREADABLE_HEADER).and_then(Value::as_str)
}

/// A header that is for people only, so that it refuses no message. Python's file names may hold bytes that aren't UTF-8,
/// and Celery shows arguments as they are.
fn shown(headers: &Headers, name: &str) -> Option<String> {
    match headers.get(name)? {
        Value::Text(text) => Some(text.clone()),
        Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    }
}

fn count(headers: &Headers, name: &str) -> Result<u32, String> {
    match headers.get(name) {
        Some(Value::Int(number)) => {
            u32::try_from(*number).map_err(|_| format!("header {name} is out of range"))
        }
        Some(Value::Null) | None => Ok(0),
        Some(_) => Err(format!("header {name} isn't a number")),
    }
}

fn timelimit(value: Option<&Value>) -> Result<(Option<f64>, Option<f64>), String> {
    let limit = |value: &Value| match value {
        Value::Null => Ok(None),
        number => number
            .as_f64()
            .map(Some)
            .ok_or_else(|| "header timelimit has a limit that isn't a number".to_owned()),
    };
    match value {
        None | Some(Value::Null) => Ok((None, None)),
        Some(Value::List(limits)) => match limits.as_slice() {
            [hard, soft] => Ok((limit(hard)?, limit(soft)?)),
            other => Err(format!("header timelimit has {} elements instead of 2", other.len())),
        },
        Some(_) => Err("header timelimit isn't a list".to_owned()),
    }
}

/// The body without its compression; none when it has none. Kombu's `gzip` and `zlib` are both a zlib stream.
fn inflate(headers: &Headers, body: &[u8]) -> Result<Option<Vec<u8>>, String> {
    match headers.get("compression").and_then(Value::as_str) {
        None => Ok(None),
        Some("application/x-gzip") => {
            let mut plain = Vec::new();
            let read = flate2::read::ZlibDecoder::new(body).take(BODY_MAX + 1).read_to_end(&mut plain);
            read.map_err(|error| format!("the body isn't compressed as its header says: {error}"))?;
            if plain.len() as u64 > BODY_MAX {
                return Err(format!("the body is larger than {BODY_MAX} bytes"));
            }
            Ok(Some(plain))
        }
        Some(other) => Err(format!("compression {other} is not supported: send without, or with gzip")),
    }
}

/// A body compressed as kombu's `gzip` does it.
pub(crate) fn deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::ZlibEncoder::new(body, flate2::Compression::default());
    let mut out = Vec::new();
    // Reading from memory and writing to memory can't fail.
    let _infallible = encoder.read_to_end(&mut out);
    out
}
