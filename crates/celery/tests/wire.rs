//! The wire against messages that Celery 5.7 was seen to send. Each file of `fixtures/` is one capture; a body's text
//! there is byte-exact.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::path::PathBuf;

use bytes::Bytes;
use proptest::prelude::*;
use regatta_celery::transport::{Headers, Properties, Value};
use regatta_celery::wire::{
    ControlReply, ControlRequest, Event, RawJson, ReplyAddress, ResultMessage, TaskMessage,
};
use serde_json::Value as Json;

/// A captured message.
struct Captured {
    file: String,
    routing_key: String,
    properties: Properties,
    body: Bytes,
}

fn fixtures(prefix: &str) -> Vec<(String, Json)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found: Vec<(String, Json)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().to_string_lossy().into_owned(), serde_json::from_str(&text).unwrap())
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(truth) => (*truth).into(),
        Json::Number(number) => number.as_i64().map_or_else(|| number.as_f64().unwrap().into(), Value::Int),
        Json::String(text) => text.as_str().into(),
        Json::Array(values) => Value::List(values.iter().map(value).collect()),
        Json::Object(_) => Value::Table(headers(json)),
    }
}

fn headers(json: &Json) -> Headers {
    json.as_object()
        .map(|object| object.iter().map(|(name, json)| (name.clone(), value(json))).collect())
        .unwrap_or_default()
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(digit).collect();
    let mut bytes = Vec::new();
    for group in digits.chunks(4) {
        let bits =
            group.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}

fn captured(file: &str, message: &Json) -> Captured {
    let given = &message["properties"];
    let text = |name: &str| given[name].as_str().map(str::to_owned);
    let byte = |name: &str| given[name].as_u64().map(|number| u8::try_from(number).unwrap());
    let body = match (message["body_text"].as_str(), message["body_base64"].as_str()) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, Some(text)) => base64(text),
        (None, None) => panic!("{file}: a message without a body"),
    };
    Captured {
        file: file.to_owned(),
        routing_key: message["routing_key"].as_str().unwrap_or_default().to_owned(),
        properties: Properties {
            content_type: text("content_type").map(Into::into),
            content_encoding: text("content_encoding").map(Into::into),
            headers: headers(&message["headers"]),
            delivery_mode: byte("delivery_mode"),
            priority: byte("priority"),
            correlation_id: text("correlation_id"),
            reply_to: text("reply_to"),
            expiration: text("expiration"),
            ..Properties::default()
        },
        body: body.into(),
    }
}

fn messages(prefix: &str) -> Vec<Captured> {
    let mut all = Vec::new();
    for (file, json) in fixtures(prefix) {
        let parts = ["messages", "published", "delivered"];
        let found: Vec<&Json> = parts.iter().filter_map(|part| json[part].as_array()).flatten().collect();
        assert!(!found.is_empty(), "{file} has no messages");
        for message in found {
            all.push(captured(&file, message));
        }
    }
    all
}

fn is_task(message: &Captured) -> bool {
    message.properties.headers.get("task").is_some()
}

fn is_result(message: &Captured) -> bool {
    message.body.starts_with(b"{\"status\"")
}

fn names(properties: &Properties) -> Vec<&str> {
    properties.headers.iter().map(|(name, _)| name).collect()
}

/// What Celery's default `accept_content` refuses as well, and compressions that are said to be not supported.
fn is_foreign(message: &Captured) -> Option<&'static str> {
    let compression = message.properties.headers.get("compression").and_then(Value::as_str);
    if message.properties.content_type.as_deref() != Some("application/json") {
        return Some("content type");
    }
    compression.filter(|kind| *kind != "application/x-gzip").map(|_| "compression")
}

#[test]
fn every_task_is_read_and_written_as_it_came() {
    let mut seen = std::collections::BTreeSet::new();
    for message in messages("task-").iter().filter(|message| is_task(message)) {
        let file = &message.file;
        let read = TaskMessage::decode(&message.properties, &message.body);
        if let Some(why) = is_foreign(message) {
            let refusal = read.expect_err(file);
            assert!(refusal.reason.contains(why), "{file}: {}", refusal.reason);
            assert!(refusal.id.is_some(), "{file}: its caller can be told");
            seen.insert(file.clone());
            continue;
        }
        let task = read.unwrap_or_else(|refusal| panic!("{file}: {}", refusal.reason));
        let (properties, body) = task.encode();
        assert_eq!(properties, message.properties, "{file}");
        assert_eq!(names(&properties), names(&message.properties), "{file}: the order of the headers");
        if message.properties.headers.get("compression").is_some() {
            // Two zlib streams of one text may differ; what is in them may not.
            let again = TaskMessage::decode(&properties, &body).unwrap();
            assert_eq!(again, task, "{file}");
        } else {
            assert_eq!(String::from_utf8_lossy(&body), String::from_utf8_lossy(&message.body), "{file}");
        }
        seen.insert(file.clone());
    }
    let without_task = ["task-proto1.json"];
    for (file, _) in fixtures("task-") {
        assert!(seen.contains(&file) || without_task.contains(&file.as_str()), "{file} was not tested");
    }
}

#[test]
fn protocol_1_is_read() {
    let message = &messages("task-proto1")[0];
    let task = TaskMessage::decode(&message.properties, &message.body).unwrap();
    assert_eq!((task.task.as_str(), task.id.as_str(), task.args.len()), ("proj.add", "p1-1", 2));
}

#[test]
fn a_new_task_has_the_headers_and_the_body_that_celery_writes() {
    let message = messages("task-simple").into_iter().find(is_task).unwrap();
    let theirs = TaskMessage::decode(&message.properties, &message.body).unwrap();
    let mut ours = TaskMessage::new("proj.add", theirs.id.clone());
    ours.args = [2, 3].map(|number| RawJson::of(&number).unwrap()).to_vec();
    ours.argsrepr = Some("(2, 3)".into());
    ours.origin.clone_from(&theirs.origin);
    ours.reply_to.clone_from(&theirs.reply_to);
    ours.priority = Some(0);
    let (properties, body) = ours.encode();
    assert_eq!(properties, message.properties);
    assert_eq!(names(&properties), names(&message.properties), "the order of the headers");
    assert_eq!(body, message.body);

    ours.is_brief = true;
    let (brief, body) = ours.encode();
    let left_out: Vec<&str> =
        names(&properties).into_iter().filter(|name| brief.headers.get(name).is_none()).collect();
    let optional = ["shadow", "eta", "expires", "group_index", "timelimit"];
    assert_eq!(left_out, [&optional[..], &["replaced_task_nesting", "stamped_headers", "stamps"]].concat());
    let read = TaskMessage::decode(&brief, &body).unwrap();
    assert_eq!((read.timelimit, read.eta, &read.args), ((None, None), None, &ours.args));
    ours.timelimit = (Some(2.5), None);
    assert!(ours.encode().0.headers.get("timelimit").is_some(), "what says something is written");
}

#[test]
fn every_result_is_read_and_written_as_it_came() {
    let mut seen = std::collections::BTreeSet::new();
    for message in messages("result-").iter().chain(&messages("task-")).filter(|message| is_result(message)) {
        let file = &message.file;
        let read = ResultMessage::decode(&message.properties, &message.body);
        let result = read.unwrap_or_else(|refusal| panic!("{file}: {}", refusal.reason));
        let (properties, body) = result.encode();
        assert_eq!(String::from_utf8_lossy(&body), String::from_utf8_lossy(&message.body), "{file}");
        assert_eq!(properties.correlation_id, message.properties.correlation_id, "{file}");
        assert_eq!(properties.delivery_mode, message.properties.delivery_mode, "{file}");
        seen.insert(file.clone());
    }
    for (file, _) in fixtures("result-") {
        assert!(seen.contains(&file), "{file} was not tested");
    }
}

#[test]
fn a_new_result_has_the_body_that_celery_writes() {
    let message = messages("result-success.json").into_iter().find(is_result).unwrap();
    let theirs = ResultMessage::decode(&message.properties, &message.body).unwrap();
    let mut ours = ResultMessage::new(theirs.task_id.clone(), theirs.status.clone(), theirs.result.clone());
    ours.date_done.clone_from(&theirs.date_done);
    ours.parent_id.clone_from(&theirs.parent_id);
    assert_eq!(String::from_utf8_lossy(&ours.encode().1), String::from_utf8_lossy(&message.body));
}

#[test]
fn what_is_set_on_a_result_that_came_is_written() {
    let message = messages("result-success.json").into_iter().find(is_result).unwrap();
    let mut result = ResultMessage::decode(&message.properties, &message.body).unwrap();
    result.parent_id = Some("p".into());
    result.extra.push(("worker".into(), RawJson::of("w1@lab").unwrap()));
    let (properties, body) = result.encode();
    let text = String::from_utf8_lossy(&body).into_owned();
    assert!(text.contains(r#""parent_id": "p", "worker": "w1@lab", "task_id""#), "{text}");
    let again = ResultMessage::decode(&properties, &body).unwrap();
    assert_eq!((again.parent_id, again.extra), (result.parent_id, result.extra));
}

/// Python puts a lone surrogate where a file name isn't UTF-8. The failure must reach its caller all the same.
#[test]
fn a_traceback_that_is_not_unicode_is_read_and_written_as_it_came() {
    let body = br#"{"status": "FAILURE", "result": {"exc_type": "OSError", "exc_message": ["\udcff"], "exc_module": "builtins"}, "traceback": "File \"\udcff.py\"", "children": [], "date_done": null, "task_id": "a"}"#;
    let result = ResultMessage::decode(&Properties::json(1), body).unwrap();
    assert_eq!(result.traceback.as_deref(), Some("File \"\u{fffd}.py\""));
    assert_eq!(String::from_utf8_lossy(&result.encode().1), String::from_utf8_lossy(body));
    let other = result.with_traceback(Some("none".into()));
    assert!(String::from_utf8_lossy(&other.encode().1).contains(r#""traceback": "none""#));
}

#[test]
fn malformed_messages_are_refused_and_whoever_can_be_told_is_known() {
    let fixture = fixtures("malformed-messages").remove(0).1;
    // The worker itself knows tasks and times; the message is well-formed there.
    let well_formed = ["bad-eta", "bad-expires", "unknown-task"];
    for case in fixture["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let message = captured(name, &case["message"]);
        match TaskMessage::decode(&message.properties, &message.body) {
            Ok(_) => assert!(well_formed.contains(&name), "{name} was taken"),
            Err(refusal) => {
                assert!(!well_formed.contains(&name), "{name}: {}", refusal.reason);
                assert!(!refusal.reason.is_empty());
                assert_eq!(refusal.reply_to, message.properties.reply_to, "{name}");
                assert_eq!(refusal.correlation_id, message.properties.correlation_id, "{name}");
                let id = message.properties.headers.get("id").and_then(Value::as_str);
                assert_eq!(refusal.id.as_deref(), id, "{name}");
            }
        }
    }
}

#[test]
fn events_are_read_and_written_again() {
    let mut seen = std::collections::BTreeSet::new();
    for message in messages("event-") {
        let file = &message.file;
        if message.routing_key.is_empty() || !message.body.windows(7).any(|part| part == b"\"type\":") {
            continue;
        }
        let events = Event::decode(&message.properties, &message.body)
            .unwrap_or_else(|refusal| panic!("{file}: {}", refusal.reason));
        let again = if message.body.starts_with(b"[") {
            Event::publishing_many("celeryev", &events)
        } else {
            events[0].publishing("celeryev")
        };
        assert_eq!(again.routing_key, message.routing_key, "{file}");
        assert_eq!(again.properties, message.properties, "{file}");
        assert_eq!(String::from_utf8_lossy(&again.body), String::from_utf8_lossy(&message.body), "{file}");
        seen.insert(file.clone());
    }
    for (file, _) in fixtures("event-") {
        assert!(seen.contains(&file), "{file} was not tested");
    }
}

/// What another program's event leaves open stays open, as in Celery's own receiver.
#[test]
fn an_event_needs_neither_clock_nor_process() {
    let body = br#"{"type": "task-x", "hostname": "h", "timestamp": 1, "pid": null, "clock": null}"#;
    let event = Event::decode(&Properties::json(1), body).unwrap().remove(0);
    assert_eq!((event.clock, event.pid, event.timestamp.to_bits()), (0, 0, 1_f64.to_bits()));
}

#[test]
fn control_requests_and_replies_are_read_and_written_again() {
    for (file, json) in fixtures("inspect-").into_iter().chain(fixtures("control-")) {
        assert!(json["request"].is_object(), "{file} has no request");
        let message = captured(&file, &json["request"]);
        let request = ControlRequest::decode(&message.properties, &message.body)
            .unwrap_or_else(|refusal| panic!("{file}: {}", refusal.reason));
        let again = request.publishing("celery.pidbox");
        assert_eq!(String::from_utf8_lossy(&again.body), String::from_utf8_lossy(&message.body), "{file}");
        for reply in json["replies"].as_array().into_iter().flatten() {
            let message = captured(&file, reply);
            let read = ControlReply::decode(&message.properties, &message.body);
            let read = read.unwrap_or_else(|refusal| panic!("{file}: {}", refusal.reason));
            assert!(!read.nodes.is_empty(), "{file}");
            let to = ReplyAddress {
                exchange: reply["exchange"].as_str().unwrap().to_owned(),
                routing_key: message.routing_key.clone(),
            };
            let again = read.publishing(&to);
            assert_eq!(again.properties, message.properties, "{file}");
            assert_eq!(
                String::from_utf8_lossy(&again.body),
                String::from_utf8_lossy(&message.body),
                "{file}"
            );
        }
    }
}

#[test]
fn a_request_without_arguments_is_taken() {
    let request = ControlRequest::decode(&Properties::json(2), br#"{"method": "ping", "arguments": null}"#);
    assert!(request.unwrap().arguments.is_empty());
}

#[test]
fn requests_are_for_whom_they_name() {
    let request =
        |destination: Option<Vec<String>>, pattern: Option<&str>, matcher: Option<&str>| ControlRequest {
            method: "ping".into(),
            arguments: serde_json::Map::new(),
            destination,
            pattern: pattern.map(str::to_owned),
            matcher: matcher.map(str::to_owned),
            ticket: String::new(),
            reply_to: None,
            clock: None,
        };
    let table = [
        (request(None, None, None), true),
        (request(Some(vec![]), None, None), true),
        (request(Some(vec!["w1@lab".into()]), None, None), true),
        (request(Some(vec!["w2@lab".into()]), None, None), false),
        (request(None, Some("w*@lab"), Some("glob")), true),
        (request(None, Some("x*"), Some("glob")), false),
        (request(None, Some("^w[0-9]@"), Some("pcre")), true),
        (request(None, Some("1@"), Some("pcre")), false),
        (request(None, Some("("), Some("pcre")), false),
        (request(None, Some("w[12]@lab"), Some("glob")), true),
        (request(None, Some("x*"), None), true),
        (request(None, Some("w*"), Some("soundex")), false),
    ];
    for (request, expected) in table {
        assert_eq!(request.is_for("w1@lab"), expected, "{request:?}");
    }
}

/// The headers that mean something, and one that doesn't.
const HEADERS: [&str; 14] = [
    "task",
    "id",
    "retries",
    "eta",
    "expires",
    "timelimit",
    "group_index",
    "ignore_result",
    "root_id",
    "shadow",
    "ticket",
    "clock",
    "stamps",
    "build",
];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        "\\PC{0,4}".prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..4).prop_map(Value::Bytes),
        any::<u64>().prop_map(Value::Timestamp),
        (any::<u8>(), any::<u32>()).prop_map(|(scale, value)| Value::Decimal { scale, value }),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::List),
            inner.prop_map(|value| Value::Table([("k".to_owned(), value)].into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..64), id in "\\PC{0,8}", kind in 0..4) {
        let mut properties = Properties::json(2);
        properties.headers.insert("id", id);
        properties.headers.insert("task", match kind { 0 => Value::Null, 1 => 7.into(), _ => "t".into() });
        if kind == 3 {
            properties.headers.insert("compression", "application/x-gzip");
        }
        let _any = TaskMessage::decode(&properties, &body);
        let _any = ResultMessage::decode(&properties, &body);
        let _any = Event::decode(&properties, &body);
        let _any = ControlRequest::decode(&properties, &body);
        let _any = ControlReply::decode(&properties, &body);
    }

    #[test]
    fn no_headers_make_it_panic(values in prop::collection::vec((0..HEADERS.len(), any_value()), 0..12)) {
        let mut properties = Properties::json(2);
        for (name, value) in values {
            properties.headers.insert(HEADERS[name], value);
        }
        for body in [&b"[[1], {\"a\": NaN}, {\"chain\": []}]"[..], b"{}", b"null"] {
            if let Ok(task) = TaskMessage::decode(&properties, body) {
                let (again, body) = task.encode();
                prop_assert_eq!(again.headers.len(), properties.headers.len());
                prop_assert!(TaskMessage::decode(&again, &body).is_ok());
            }
            let _any = ControlRequest::decode(&properties, body);
            let _any = ControlReply::decode(&properties, body);
            let _any = Event::decode(&properties, body);
        }
    }

    #[test]
    fn no_json_makes_it_panic(text in "[\\[\\]{}:,\"a1 ]{0,40}") {
        let mut properties = Properties::json(2);
        properties.headers.insert("id", "i");
        properties.headers.insert("task", "t");
        let _any = TaskMessage::decode(&properties, text.as_bytes());
        let _any = ResultMessage::decode(&properties, text.as_bytes());
    }
}
