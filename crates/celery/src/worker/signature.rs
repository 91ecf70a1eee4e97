//! A call as Celery writes it into another message, and the options that Celery's own `apply_async` would send it by.
//! Pure: the time and new ids come in.
//!
//! An option that this worker can't pass on makes the call unreadable: to send it without would be to send another call.

use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::client::{describe_args, describe_kwargs, lifetime};
use crate::clock::{after, iso, parse_iso};
use crate::transport::{Headers, Publishing, Value};
use crate::wire::{RawJson, TaskMessage, deflate};

/// The farthest time that a call may name, from now: about three thousand years.
const SECONDS_MAX: f64 = 1e11;

/// Options that say how Celery publishes, and nothing about the message.
const HOW_TO_PUBLISH: [&str; 8] = [
    "retry",
    "retry_policy",
    "timeout",
    "confirm_timeout",
    "mandatory",
    "immediate",
    "route_name",
    "add_to_parent",
];

/// A task to publish.
#[derive(Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) message: TaskMessage,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    expiration: Option<String>,
    delivery_mode: Option<u8>,
    is_compressed: bool,
    /// Over those of the message itself.
    headers: Vec<(String, Value)>,
    /// Whether the result of the task that it follows names it among its children.
    pub(crate) is_child: bool,
}

impl Step {
    pub(crate) fn publishing(&self) -> Publishing {
        let (mut properties, mut body) = self.message.encode();
        properties.expiration.clone_from(&self.expiration);
        properties.delivery_mode = self.delivery_mode.or(properties.delivery_mode);
        for (name, value) in &self.headers {
            properties.headers.insert(name.clone(), value.clone());
        }
        if self.is_compressed {
            properties.headers.insert("compression", "application/x-gzip");
            body = deflate(&body).into();
        }
        let (exchange, routing_key) = (self.exchange.as_str().into(), self.routing_key.clone());
        Publishing { exchange, routing_key, properties, body, mandatory: true }
    }
}

/// A call, its options unread.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Signature {
    pub(crate) task: String,
    pub(crate) args: Vec<RawJson>,
    pub(crate) kwargs: Vec<(String, RawJson)>,
    options: Vec<(String, RawJson)>,
    /// What it is when it isn't one task: `chain`, `group` or another of Celery's words.
    pub(crate) kind: Option<String>,
    pub(crate) immutable: bool,
}

/// The options that Celery's `apply_async` takes.
#[derive(Debug, Clone, Default, PartialEq)]
struct Options {
    task_id: Option<String>,
    reply_to: Option<String>,
    group_id: Option<String>,
    group_index: Option<i64>,
    link: Option<Vec<RawJson>>,
    link_error: Option<Vec<RawJson>>,
    chain: Option<Vec<RawJson>>,
    chord: Option<RawJson>,
    queue: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    countdown: Option<f64>,
    eta: Option<String>,
    expires: Option<Expires>,
    time_limit: Option<f64>,
    soft_time_limit: Option<f64>,
    ignore_result: Option<bool>,
    retries: Option<u32>,
    shadow: Option<String>,
    argsrepr: Option<String>,
    kwargsrepr: Option<String>,
    origin: Option<String>,
    priority: Option<u8>,
    delivery_mode: Option<u8>,
    is_compressed: bool,
    is_no_child: bool,
    headers: Vec<(String, Value)>,
}

/// Not after.
#[derive(Debug, Clone, PartialEq)]
enum Expires {
    /// As Celery writes times.
    At(String),
    /// In seconds from the sending.
    In(f64),
}

impl Signature {
    /// Reads a call.
    pub(crate) fn read(text: &RawJson) -> Result<Self, String> {
        let broken = |error| format!("a following step can't be read: {error}");
        let mut signature = Self::default();
        for (name, value) in text.to_entries().map_err(broken)? {
            if value.is_null() {
                continue;
            }
            match name.as_str() {
                "task" => signature.task = value.to().map_err(broken)?,
                "args" => signature.args = value.to_elements().map_err(broken)?,
                "kwargs" => signature.kwargs = value.to_entries().map_err(broken)?,
                "options" => signature.options = value.to_entries().map_err(broken)?,
                "immutable" => signature.immutable = value.to().map_err(broken)?,
                "subtask_type" => signature.kind = Some(value.to().map_err(broken)?),
                _ => {}
            }
        }
        if signature.task.is_empty() {
            return Err("a following step names no task".to_owned());
        }
        Ok(signature)
    }

    /// The calls that a chain or a group consists of.
    pub(crate) fn members(&self) -> Result<Vec<Self>, String> {
        let tasks = self.kwargs.iter().find(|(name, _)| name == "tasks");
        let tasks = tasks.and_then(|(_, tasks)| tasks.to_elements().ok());
        let tasks = tasks.filter(|tasks| !tasks.is_empty());
        tasks.ok_or("a following step consists of nothing")?.iter().map(Self::read).collect()
    }

    /// An option, unless it is null.
    pub(crate) fn option(&self, name: &str) -> Option<&RawJson> {
        let (_, value) = self.options.iter().find(|(own, _)| own == name)?;
        Some(value).filter(|value| !value.is_null())
    }

    pub(crate) fn text_option(&self, name: &str) -> Option<String> {
        self.option(name).and_then(to)
    }

    pub(crate) fn take_option(&mut self, name: &str) -> Option<RawJson> {
        let at = self.options.iter().position(|(own, _)| own == name)?;
        Some(self.options.remove(at).1).filter(|value| !value.is_null())
    }

    pub(crate) fn set_option(&mut self, name: &str, value: RawJson) {
        self.take_option(name);
        self.options.push((name.to_owned(), value));
    }

    /// Gives it all options of the chain or group that it is in; they count before its own.
    pub(crate) fn inherit(&mut self, options: &Self) {
        for (name, value) in options.options.iter().filter(|(_, value)| !value.is_null()) {
            self.set_option(name, value.clone());
        }
    }

    /// Adds to an option that is a list of calls.
    pub(crate) fn extend_option(&mut self, name: &str, more: &RawJson) {
        let own = self.take_option(name);
        let calls: Vec<RawJson> = own.iter().chain([more]).filter_map(list).flatten().collect();
        self.set_option(name, RawJson::array(calls.iter()));
    }

    /// Its id; gives it a new one if it has none.
    pub(crate) fn id(&mut self, new_id: &mut dyn FnMut() -> String) -> String {
        if let Some(id) = self.text_option("task_id") {
            return id;
        }
        let id = new_id();
        self.set_option("task_id", text(&id));
        id
    }

    /// The call as it travels in another message.
    pub(crate) fn to_json(&self) -> RawJson {
        let object = |entries: &[(String, RawJson)]| {
            RawJson::object(entries.iter().map(|(name, value)| (name.as_str(), value)))
        };
        let kind = self.kind.as_deref().map_or_else(RawJson::null, text);
        let immutable = if self.immutable { "true" } else { "false" };
        let parts = [
            ("task", text(&self.task)),
            ("args", RawJson::array(self.args.iter())),
            ("kwargs", object(&self.kwargs)),
            ("options", object(&self.options)),
            ("subtask_type", kind),
            ("immutable", RawJson::parse(immutable).unwrap_or_else(|_| RawJson::null())),
        ];
        RawJson::object(parts.iter().map(|(name, value)| (*name, value)))
    }

    /// The message that calls it after `parent`, with `first` as its first argument unless it is immutable. Without a
    /// queue of its own it goes to `queue`.
    pub(crate) fn step(
        self,
        queue: &str,
        parent: &TaskMessage,
        first: Option<&RawJson>,
        now: SystemTime,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Step, String> {
        let Self { task, args, kwargs, options, kind, immutable } = self;
        if let Some(kind) = kind {
            return Err(format!("a following step is a {kind}, which this worker can't go on with"));
        }
        let options = Options::read(options)?;
        let mut message = TaskMessage::new(task, options.task_id.unwrap_or_else(new_id));
        message.args = first.filter(|_| !immutable).cloned().into_iter().chain(args).collect();
        message.kwargs = kwargs;
        message.argsrepr = options.argsrepr.or_else(|| Some(describe_args(&message.args)));
        message.kwargsrepr = options.kwargsrepr.or_else(|| Some(describe_kwargs(&message.kwargs)));
        message.root_id = parent.root_id.clone().or_else(|| Some(parent.id.clone()));
        message.parent_id = Some(parent.id.clone());
        message.group = options.group_id;
        message.group_index = options.group_index;
        message.retries = options.retries.unwrap_or_default();
        message.origin = options.origin;
        message.shadow = options.shadow;
        message.reply_to = options.reply_to;
        message.priority = options.priority;
        // Who runs it knows whether it has a result when the caller doesn't say.
        message.ignore_result = options.ignore_result;
        message.timelimit = (options.time_limit, options.soft_time_limit);
        message.embed.callbacks = options.link;
        message.embed.errbacks = options.link_error;
        message.embed.chain = options.chain;
        message.embed.chord = options.chord;
        // As in Celery, a countdown of nothing is none, and one counts before an ETA.
        let countdown = options.countdown.filter(|countdown| *countdown != 0.0);
        message.eta = countdown.map(|countdown| iso(from_now(now, countdown))).or(options.eta);
        let expires = options.expires.map(|expires| match expires {
            Expires::At(time) => time,
            Expires::In(seconds) => iso(from_now(now, seconds)),
        });
        // One that is too late already goes without a time to live: the broker would throw it away unless a worker
        // waits for it at that moment, and nobody would hear of it.
        let left = expires.as_deref().and_then(parse_iso).and_then(|at| at.duration_since(now).ok());
        message.expires = expires;
        let (exchange, routing_key) = match (options.exchange, options.routing_key, options.queue) {
            (Some(exchange), Some(key), _) if !exchange.is_empty() => (exchange, key),
            // Celery's exchanges are direct: without both of these it is the queue that counts.
            (_, _, own) => (String::new(), own.unwrap_or_else(|| queue.to_owned())),
        };
        Ok(Step {
            message,
            exchange,
            routing_key,
            expiration: left.and_then(lifetime),
            delivery_mode: options.delivery_mode,
            is_compressed: options.is_compressed,
            headers: options.headers,
            is_child: !options.is_no_child,
        })
    }
}

impl Options {
    fn read(entries: Vec<(String, RawJson)>) -> Result<Self, String> {
        let stamped = entries.iter().find(|(name, value)| name == "stamped_headers" && !value.is_null());
        let stamped = stamped.map(|(_, names)| names.to::<Vec<String>>()).transpose();
        let stamped = stamped.map_err(|error| format!("a following step has wrong stamps: {error}"))?;
        let (mut options, mut stamps, mut headers) = (Self::default(), Headers::default(), Vec::new());
        for (name, value) in entries {
            let is_stamp = stamped.as_ref().is_some_and(|stamped| stamped.contains(&name));
            let taken = match name.as_str() {
                _ if is_stamp => header(&value).map(|value| drop(stamps.insert(name.clone(), value))),
                // The ids are those of the task that it follows.
                "stamped_headers" | "root_id" | "parent_id" => Some(()),
                _ if value.is_null() => Some(()),
                "headers" => table(&value).map(|own| headers = own),
                _ => options.take(&name, &value),
            };
            taken.ok_or_else(|| {
                let shown: String = value.as_str().chars().take(64).collect();
                format!("a following step has the option {name}, {shown}, which this worker can't pass on")
            })?;
        }
        if let Some(stamped) = stamped {
            let names = stamped.into_iter().map(Value::Text).collect();
            options.headers.push(("stamped_headers".to_owned(), Value::List(names)));
            options.headers.push(("stamps".to_owned(), Value::Table(stamps)));
        }
        // The caller's own headers count before all others.
        options.headers.extend(headers);
        Ok(options)
    }

    /// Takes an option that isn't null; none when it isn't one that can be passed on.
    fn take(&mut self, name: &str, value: &RawJson) -> Option<()> {
        match name {
            "task_id" => self.task_id = Some(to(value)?),
            "reply_to" => self.reply_to = Some(to(value)?),
            "group_id" => self.group_id = Some(to(value)?),
            "group_index" => self.group_index = Some(to(value)?),
            "link" => self.link = Some(list(value)?),
            "link_error" => self.link_error = Some(list(value)?),
            "chain" => self.chain = Some(value.to_elements().ok()?),
            "chord" => self.chord = Some(value.clone()),
            "queue" => self.queue = Some(to(value)?),
            "exchange" => self.exchange = Some(to(value)?),
            "routing_key" => self.routing_key = Some(to(value)?),
            "exchange_type" => return (to::<String>(value)? == "direct").then_some(()),
            "countdown" => self.countdown = Some(seconds(value)?),
            "eta" => self.eta = Some(time(value)?),
            "expires" => {
                self.expires = Some(match seconds(value) {
                    Some(seconds) => Expires::In(seconds),
                    None => Expires::At(time(value)?),
                });
            }
            "time_limit" => self.time_limit = Some(seconds(value)?),
            "soft_time_limit" => self.soft_time_limit = Some(seconds(value)?),
            "ignore_result" => self.ignore_result = Some(to(value)?),
            "retries" => self.retries = Some(to(value)?),
            "shadow" => self.shadow = Some(to(value)?),
            "argsrepr" => self.argsrepr = Some(to(value)?),
            "kwargsrepr" => self.kwargsrepr = Some(to(value)?),
            "origin" => self.origin = Some(to(value)?),
            "replaced_task_nesting" => {
                self.headers.push((name.to_owned(), Value::Int(to(value)?)));
            }
            "priority" => self.priority = Some(to(value)?),
            "delivery_mode" => self.delivery_mode = Some(delivery_mode(&to(value)?)?),
            "serializer" => return (to::<String>(value)? == "json").then_some(()),
            "compression" => {
                let known = ["gzip", "zlib", "application/x-gzip"];
                self.is_compressed = known.contains(&to::<String>(value)?.as_str()).then_some(true)?;
            }
            name if HOW_TO_PUBLISH.contains(&name) => {
                self.is_no_child |= name == "add_to_parent" && value.as_str() == "false";
            }
            _ => return None,
        }
        Some(())
    }
}

/// A text as JSON.
pub(crate) fn text(text: &str) -> RawJson {
    // A text always has a JSON form.
    RawJson::of(text).unwrap_or_else(|_| RawJson::null())
}

fn to<T: DeserializeOwned>(value: &RawJson) -> Option<T> {
    value.to().ok()
}

/// One call, or several.
fn list(value: &RawJson) -> Option<Vec<RawJson>> {
    let one = || value.to_entries().ok().map(|_| vec![value.clone()]);
    value.to_elements().ok().or_else(one)
}

fn seconds(value: &RawJson) -> Option<f64> {
    to::<f64>(value).filter(|seconds| seconds.abs() <= SECONDS_MAX)
}

/// A time as its text: ISO 8601, or what Celery's JSON makes of a `datetime`.
fn time(value: &RawJson) -> Option<String> {
    let text = match to::<Json>(value)? {
        Json::String(text) => text,
        Json::Object(typed) if typed.get("__type__")? == "datetime" => {
            typed.get("__value__")?.as_str()?.to_owned()
        }
        _ => return None,
    };
    parse_iso(&text).is_some().then_some(text)
}

fn from_now(now: SystemTime, seconds: f64) -> SystemTime {
    let distance = Duration::from_secs_f64(seconds.abs());
    if seconds < 0.0 { now.checked_sub(distance).unwrap_or(now) } else { after(now, distance) }
}

fn delivery_mode(value: &Json) -> Option<u8> {
    match value {
        Json::String(name) if name == "transient" => Some(1),
        Json::String(name) if name == "persistent" => Some(2),
        Json::Number(mode) => mode.as_u64().and_then(|mode| u8::try_from(mode).ok()),
        _ => None,
    }
}

fn table(value: &RawJson) -> Option<Vec<(String, Value)>> {
    let entries = value.to_entries().ok()?.into_iter();
    entries.map(|(name, value)| Some((name, header(&value)?))).collect()
}

/// A value as a header carries it.
fn header(value: &RawJson) -> Option<Value> {
    Some(match to::<Json>(value)? {
        Json::Null => Value::Null,
        Json::Bool(truth) => Value::Bool(truth),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None if number.is_f64() => Value::Double(number.as_f64()?),
            None => return None,
        },
        Json::String(text) => Value::Text(text),
        Json::Array(_) => Value::List(value.to_elements().ok()?.iter().map(header).collect::<Option<_>>()?),
        Json::Object(_) => Value::Table(table(value)?.into_iter().collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &str) -> Result<Step, String> {
        let call = format!(r#"{{"task": "next", "args": [], "options": {options}, "subtask_type": null}}"#);
        let signature = Signature::read(&RawJson::parse(&call).unwrap())?;
        let parent = TaskMessage::new("first", "id");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        signature.step("usual", &parent, None, now, &mut || "new".to_owned())
    }

    #[test]
    fn times_are_those_of_celery() {
        let (early, late) = ("1970-01-01T00:16:30+00:00", "1970-01-01T00:16:50+00:00");
        let typed = format!(r#"{{"__type__": "datetime", "__value__": "{late}"}}"#);
        let table = [
            (r#"{"countdown": 1.5}"#.to_owned(), Some("1970-01-01T00:16:41.500000+00:00"), None, None),
            (format!(r#"{{"countdown": 0, "eta": "{early}"}}"#), Some(early), None, None),
            (format!(r#"{{"countdown": null, "eta": {typed}}}"#), Some(late), None, None),
            (
                format!(r#"{{"countdown": -10, "eta": "{late}"}}"#),
                Some("1970-01-01T00:16:30.000000+00:00"),
                None,
                None,
            ),
            (format!(r#"{{"expires": {typed}}}"#), None, Some(late), Some("10000")),
            (r#"{"expires": 2}"#.to_owned(), None, Some("1970-01-01T00:16:42.000000+00:00"), Some("2000")),
            (format!(r#"{{"expires": "{early}"}}"#), None, Some(early), None),
            (r#"{"expires": 5e8}"#.to_owned(), None, Some("1985-11-05T01:10:00.000000+00:00"), None),
        ];
        for (options, eta, expires, expiration) in table {
            let step = read(&options).unwrap();
            let told = (step.message.eta.as_deref(), step.message.expires.as_deref());
            assert_eq!((told, step.expiration.as_deref()), ((eta, expires), expiration), "{options}");
        }
    }

    #[test]
    fn a_queue_counts_unless_there_are_an_exchange_and_a_key() {
        let table = [
            ("{}", ("", "usual")),
            (r#"{"queue": "q"}"#, ("", "q")),
            (r#"{"routing_key": "k"}"#, ("", "usual")),
            (r#"{"queue": "q", "routing_key": "k"}"#, ("", "q")),
            (r#"{"queue": "q", "exchange": "x", "routing_key": "k"}"#, ("x", "k")),
            (r#"{"exchange": "x"}"#, ("", "usual")),
            (r#"{"exchange": "", "routing_key": "k", "queue": "q"}"#, ("", "q")),
        ];
        for (options, route) in table {
            let step = read(options).unwrap();
            assert_eq!((step.exchange.as_str(), step.routing_key.as_str()), route, "{options}");
        }
    }

    #[test]
    fn what_cant_be_passed_on_is_said() {
        let table = [
            ("serializer", r#""pickle""#),
            ("compression", r#""bzip2""#),
            ("user_id", r#""somebody""#),
            ("priority", "256"),
            ("expires", r#""tomorrow""#),
            ("countdown", "1e300"),
            ("exchange_type", r#""topic""#),
            ("headers", r#"{"a": 18446744073709551615}"#),
        ];
        for (name, value) in table {
            let reason = read(&format!(r#"{{"{name}": {value}}}"#)).unwrap_err();
            let expected =
                format!("a following step has the option {name}, {value}, which this worker can't pass on");
            assert_eq!(reason, expected);
        }
    }

    #[test]
    fn stamps_and_headers_go_along() {
        let step =
            read(r#"{"stamped_headers": ["who"], "who": "me", "headers": {"shadow": "x", "n": [1, 2.5]}}"#);
        let headers = step.unwrap().publishing().properties.headers;
        let list = |values: &[Value]| Some(Value::List(values.to_vec()));
        assert_eq!(headers.get("stamped_headers").cloned(), list(&["who".into()]));
        let stamps = [("who".to_owned(), Value::from("me"))].into_iter().collect();
        assert_eq!(headers.get("stamps"), Some(&Value::Table(stamps)));
        assert_eq!(headers.get("n").cloned(), list(&[Value::Int(1), Value::Double(2.5)]));
        assert_eq!(headers.get("shadow"), Some(&Value::from("x")), "they count before the message's own");
    }
}
