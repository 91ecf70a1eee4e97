//! Remote control: requests to workers and their answers (Celery's "pidbox").

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{RawJson, Refusal, json_text, pattern};
use crate::transport::{Properties, Publishing, Value};

/// Where answers go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// A question or a command to workers.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlRequest {
    /// What is asked: `ping`, `stats`, `revoke` and so on.
    pub method: String,
    /// Its arguments; unknown ones are ignored.
    pub arguments: Map<String, Json>,
    /// The workers that it is for, by name; none for all.
    pub destination: Option<Vec<String>>,
    /// The workers that it is for, by pattern.
    pub pattern: Option<String>,
    /// How the pattern is read: `glob` or `pcre`.
    pub matcher: Option<String>,
    /// What answers carry back.
    pub ticket: String,
    /// Where answers go; none when none is wanted.
    pub reply_to: Option<ReplyAddress>,
    /// Lamport's clock of whoever asks.
    pub clock: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct RequestBody {
    method: String,
    #[serde(default)]
    arguments: Option<Map<String, Json>>,
    #[serde(default)]
    destination: Option<Vec<String>>,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    matcher: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<ReplyAddress>,
}

impl ControlRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn decode(properties: &Properties, body: &[u8]) -> Result<Self, Refusal> {
        let text = json_text(properties, body).map_err(refusal)?;
        let body: RequestBody = serde_json::from_str(text)
            .map_err(|error| refusal(format!("the request can't be read: {error}")))?;
        Ok(Self {
            method: body.method,
            arguments: body.arguments.unwrap_or_default(),
            destination: body.destination,
            pattern: body.pattern,
            matcher: body.matcher,
            ticket: body.ticket.unwrap_or_default(),
            reply_to: body.reply_to,
            clock: clock(properties),
        })
    }

    /// Whether a worker of this name is meant. As in kombu (`pidbox.Node.handle_message`): names go before a pattern, a
    /// pattern without a matcher says nothing, and one that can't be read means nobody.
    pub fn is_for(&self, name: &str) -> bool {
        if let Some(names) = self.destination.as_ref().filter(|names| !names.is_empty()) {
            return names.iter().any(|listed| listed == name);
        }
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (given(&self.pattern), given(&self.matcher).as_deref()) {
            (Some(pattern), Some(matcher)) => pattern::matches(matcher, &pattern, name),
            _ => true,
        }
    }

    /// The message that carries it.
    pub fn publishing(&self, exchange: &str) -> Publishing {
        let wants_reply = self.reply_to.is_some();
        let body = RequestBody {
            method: self.method.clone(),
            arguments: Some(self.arguments.clone()),
            destination: self.destination.clone(),
            pattern: self.pattern.clone(),
            matcher: self.matcher.clone(),
            ticket: wants_reply.then(|| self.ticket.clone()),
            reply_to: self.reply_to.clone(),
        };
        let mut properties = Properties { priority: Some(0), ..Properties::json(2) };
        properties.headers.insert("clock", as_header(self.clock.unwrap_or(0)));
        properties.headers.insert("expires", Value::Int(0));
        let (exchange, body) = (exchange.into(), write(&body));
        Publishing { exchange, routing_key: String::new(), properties, body, mandatory: false }
    }
}

/// What workers answer: each one's value by its name.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlReply {
    /// The request's ticket.
    pub ticket: String,
    /// Lamport's clock of whoever answers.
    pub clock: u64,
    /// The answers by node name.
    pub nodes: Map<String, Json>,
}

impl ControlReply {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn decode(properties: &Properties, body: &[u8]) -> Result<Self, Refusal> {
        let ticket = properties.headers.get("ticket").and_then(Value::as_str);
        let ticket = ticket.ok_or_else(|| refusal("header ticket is missing".to_owned()))?.to_owned();
        let text = json_text(properties, body).map_err(refusal)?;
        let nodes = serde_json::from_str(text)
            .map_err(|error| refusal(format!("the answer can't be read: {error}")))?;
        Ok(Self { ticket, clock: clock(properties).unwrap_or(0), nodes })
    }

    /// The message that carries it.
    pub fn publishing(&self, to: &ReplyAddress) -> Publishing {
        let mut properties = Properties { priority: Some(0), ..Properties::json(1) };
        properties.headers.insert("ticket", self.ticket.as_str());
        properties.headers.insert("clock", as_header(self.clock));
        let (exchange, routing_key) = (to.exchange.as_str().into(), to.routing_key.clone());
        Publishing { exchange, routing_key, properties, body: write(&self.nodes), mandatory: false }
    }
}

fn refusal(reason: String) -> Refusal {
    Refusal { reason, id: None, reply_to: None, correlation_id: None }
}

fn clock(properties: &Properties) -> Option<u64> {
    properties.headers.get("clock").and_then(Value::as_i64).and_then(|clock| u64::try_from(clock).ok())
}

fn as_header(clock: u64) -> Value {
    Value::Int(i64::try_from(clock).unwrap_or(i64::MAX))
}

fn write(body: &impl Serialize) -> Bytes {
    let json = RawJson::of(body).unwrap_or_else(|_| RawJson::null());
    Bytes::copy_from_slice(json.as_str().as_bytes())
}
