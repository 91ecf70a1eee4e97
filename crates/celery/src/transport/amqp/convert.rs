//! Between the AMQP client's types and ours.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};

use super::super::{Headers, Properties, TransportError, Value};

pub(super) fn to_table(headers: &Headers) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in headers.iter() {
        table.insert(short(name), to_amqp(value));
    }
    table
}

/// The most bytes that a name may have (AMQP 0-9-1, `shortstr`).
const NAME_MAX: usize = 255;

/// The name of something at the broker.
///
/// # Errors
/// When AMQP can't carry it.
pub(super) fn name(text: &str) -> Result<ShortString, TransportError> {
    ShortString::try_new(text).map_err(|_| TransportError::Other {
        what: format!("the name {}…", text.chars().take(40).collect::<String>()),
        reason: format!("it has {} bytes, and AMQP carries names of at most {NAME_MAX}", text.len()),
    })
}

/// A text of at most 255 bytes that names nothing; a longer one is cut.
fn short(text: &str) -> ShortString {
    let mut end = text.len().min(NAME_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

fn to_amqp(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(truth) => AMQPValue::Boolean(*truth),
        // Old clients of Celery's can't read 64-bit integers well; small ones travel as they would send them.
        Value::Int(number) => match i32::try_from(*number) {
            Ok(number) => AMQPValue::LongInt(number),
            Err(_) => AMQPValue::LongLongInt(*number),
        },
        Value::Double(number) => AMQPValue::Double(*number),
        Value::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
        Value::Bytes(bytes) => AMQPValue::ByteArray(bytes.clone().into()),
        Value::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        Value::Decimal { scale, value } => {
            AMQPValue::DecimalValue(DecimalValue { scale: *scale, value: *value })
        }
        Value::List(values) => {
            AMQPValue::FieldArray(FieldArray::from(values.iter().map(to_amqp).collect::<Vec<_>>()))
        }
        Value::Table(table) => AMQPValue::FieldTable(to_table(table)),
    }
}

fn from_table(table: &FieldTable) -> Headers {
    Headers::of_distinct(table.inner().iter().map(|(name, value)| (name.as_str(), from_amqp(value))))
}

fn from_amqp(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(truth) => Value::Bool(*truth),
        AMQPValue::ShortShortInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortShortUInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortInt(number) => Value::Int((*number).into()),
        AMQPValue::ShortUInt(number) => Value::Int((*number).into()),
        AMQPValue::LongInt(number) => Value::Int((*number).into()),
        AMQPValue::LongUInt(number) => Value::Int((*number).into()),
        AMQPValue::LongLongInt(number) => Value::Int(*number),
        AMQPValue::Float(number) => Value::Double((*number).into()),
        AMQPValue::Double(number) => Value::Double(*number),
        AMQPValue::DecimalValue(decimal) => Value::Decimal { scale: decimal.scale, value: decimal.value },
        AMQPValue::ShortString(text) => Value::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::FieldArray(values) => Value::List(values.as_slice().iter().map(from_amqp).collect()),
        AMQPValue::Timestamp(seconds) => Value::Timestamp(*seconds),
        AMQPValue::FieldTable(table) => Value::Table(from_table(table)),
        AMQPValue::ByteArray(bytes) => Value::Bytes(bytes.as_slice().to_vec()),
    }
}

pub(super) fn to_properties(ours: &Properties) -> BasicProperties {
    let mut theirs = BasicProperties::default().with_headers(to_table(&ours.headers));
    let text = |text: &Option<String>| text.as_deref().map(short);
    if let Some(value) = &ours.content_type {
        theirs = theirs.with_content_type(short(value));
    }
    if let Some(value) = &ours.content_encoding {
        theirs = theirs.with_content_encoding(short(value));
    }
    if let Some(value) = ours.delivery_mode {
        theirs = theirs.with_delivery_mode(value);
    }
    if let Some(value) = ours.priority {
        theirs = theirs.with_priority(value);
    }
    if let Some(value) = text(&ours.correlation_id) {
        theirs = theirs.with_correlation_id(value);
    }
    if let Some(value) = text(&ours.reply_to) {
        theirs = theirs.with_reply_to(value);
    }
    if let Some(value) = text(&ours.expiration) {
        theirs = theirs.with_expiration(value);
    }
    if let Some(value) = text(&ours.message_id) {
        theirs = theirs.with_message_id(value);
    }
    if let Some(value) = ours.timestamp {
        theirs = theirs.with_timestamp(value);
    }
    if let Some(value) = text(&ours.kind) {
        theirs = theirs.with_type(value);
    }
    if let Some(value) = text(&ours.user_id) {
        theirs = theirs.with_user_id(value);
    }
    if let Some(value) = text(&ours.app_id) {
        theirs = theirs.with_app_id(value);
    }
    theirs
}

pub(super) fn from_properties(theirs: &BasicProperties) -> Properties {
    let text = |text: &Option<ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
    Properties {
        content_type: theirs.content_type().as_ref().map(|text| Properties::content(text.as_str())),
        content_encoding: theirs.content_encoding().as_ref().map(|text| Properties::content(text.as_str())),
        headers: theirs.headers().as_ref().map(from_table).unwrap_or_default(),
        delivery_mode: *theirs.delivery_mode(),
        priority: *theirs.priority(),
        correlation_id: text(theirs.correlation_id()),
        reply_to: text(theirs.reply_to()),
        expiration: text(theirs.expiration()),
        message_id: text(theirs.message_id()),
        timestamp: *theirs.timestamp(),
        kind: text(theirs.kind()),
        user_id: text(theirs.user_id()),
        app_id: text(theirs.app_id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_and_headers_survive_the_way_to_the_client_and_back() {
        let mut inner = Headers::default();
        inner.insert("deep", "text");
        let headers: Headers = [
            ("null", Value::Null),
            ("bool", true.into()),
            ("small", 7.into()),
            ("large", i64::MAX.into()),
            ("double", 1.5.into()),
            ("text", "ü".into()),
            ("bytes", Value::Bytes(vec![0xff, 0xfe])),
            ("time", Value::Timestamp(1)),
            ("decimal", Value::Decimal { scale: 2, value: 110 }),
            ("list", Value::List(vec![Value::Null, 1.into()])),
            ("table", Value::Table(inner)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let ours = Properties {
            headers,
            priority: Some(3),
            correlation_id: Some("c".into()),
            reply_to: Some("r".into()),
            expiration: Some("5".into()),
            message_id: Some("m".into()),
            timestamp: Some(9),
            kind: Some("k".into()),
            user_id: Some("u".into()),
            app_id: Some("a".into()),
            ..Properties::json(2)
        };
        assert_eq!(from_properties(&to_properties(&ours)), ours);
    }

    #[test]
    fn names_that_are_too_long_are_cut_at_a_letter() {
        let name = "ü".repeat(200);
        assert_eq!(short(&name).as_str().len(), 254);
    }
}
