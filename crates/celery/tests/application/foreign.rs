//! Messages of others that are legitimate and unlike ours: with a user that isn't the worker's, with an expiry, with text
//! that isn't UTF-8.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::python::Peer;
use crate::support::{client, options, rabbitmq, run, start};
use regatta_celery::transport::Link;
use regatta_celery::wire::RawJson;
use regatta_celery::{App, Broker, BrokerUrl, ConnectOptions, Context, Retry, Task, TaskError, TaskOptions};
use regatta_testbed::{shared_node, unique};
use serde_json::json;
use tokio::sync::Semaphore;

fn app() -> App {
    let quick = Retry::max(3).backoff(Duration::from_millis(10), Duration::from_millis(50));
    App::new("foreign")
        .task("echo", |_: Context, (x,): (RawJson,)| async move { Ok::<_, TaskError>(x) })
        .task_with(
            "flaky",
            TaskOptions::new().retry(quick),
            |context: Context, (x,): (RawJson,)| async move {
                if context.retries() == 0 { Err(TaskError::failed("not yet")) } else { Ok(x) }
            },
        )
}

/// A broker as another user than the one who sends.
async fn other_user() -> Broker {
    let (node, user) = (shared_node(), unique("worker"));
    node.add_user(&user, "pass", ".*", ".*", ".*");
    let url: BrokerUrl = node.url_of(&user, "pass").parse().unwrap();
    Broker::connect(&url, ConnectOptions::default()).await.unwrap()
}

#[test]
fn what_is_published_again_does_not_say_that_it_is_its_senders() {
    run(async {
        let broker = other_user().await;
        let _worker = start(&app(), &broker, options("others").slots(1)).await;
        let mut peer = Peer::start().await;
        // RabbitMQ checks this name against the user of the connection that publishes.
        for (task, options) in [
            ("echo", json!({"user_id": "guest"})),
            ("echo", json!({"user_id": "guest", "countdown": 0.2})),
            ("flaky", json!({"user_id": "guest"})),
        ] {
            let command =
                json!({"do": "call", "task": task, "args": [7], "queue": "others", "options": options});
            let answer = peer.ask(&command).await;
            assert_eq!(answer["value"], 7, "{options}: {answer}");
        }
        let malformed = json!({"headers": {}, "properties": {"user_id": "guest"}, "body_text": "[]"});
        peer.ask(&json!({"do": "raw", "message": malformed, "queue": "others", "expect": false})).await;
        let dead = peer.ask(&json!({"do": "take", "queue": "others.dead"})).await;
        assert!(dead["properties"]["user_id"].is_null(), "{dead}");
        assert_eq!(dead["headers"]["dead-letter-user"], "guest", "{dead}");
    });
}

#[test]
fn a_dead_letter_does_not_expire() {
    run(async {
        let broker = rabbitmq().await;
        let _worker = start(&app(), &broker, options("brief")).await;
        let mut peer = Peer::start().await;
        let malformed = json!({"headers": {}, "properties": {"expiration": "60000"}, "body_text": "[]"});
        peer.ask(&json!({"do": "raw", "message": malformed, "queue": "brief", "expect": false})).await;
        let dead = peer.ask(&json!({"do": "take", "queue": "brief.dead"})).await;
        assert_eq!(dead["headers"]["dead-letter-queue"], "brief");
        assert!(dead["properties"]["expiration"].is_null(), "{dead}");
    });
}

#[test]
fn a_file_name_that_is_not_utf_8_is_an_argument_like_others() {
    run(async {
        let broker = rabbitmq().await;
        let _worker = start(&app(), &broker, options("names")).await;
        let mut peer = Peer::start().await;
        let name = "61ff62";
        let command = json!({"do": "call", "task": "echo", "file_name": name, "queue": "names"});
        let answer = peer.ask(&command).await;
        assert_eq!(answer["value"], name, "{answer}");
    });
}

#[test]
fn a_message_that_the_amqp_client_cannot_parse_costs_no_connection() {
    run(async {
        let broker = rabbitmq().await;
        let _worker = start(&app(), &broker, options("odd")).await;
        let mut peer = Peer::start().await;
        for (odd, state) in [
            ("correlation_id", "SUCCESS"),
            ("name", "SUCCESS"),
            ("nested", "SUCCESS"),
            ("deep", "FAILURE"),
            ("large", "FAILURE"),
            ("nothing", "SUCCESS"),
        ] {
            let message = json!({
                "headers": {"task": "echo", "id": odd},
                "properties": {
                    "content_type": "application/json", "content_encoding": "utf-8", "correlation_id": odd
                },
                "body_text": "[[7], {}, {}]",
            });
            let command =
                json!({"do": "raw", "message": message, "queue": "odd", "expect": true, "odd": odd});
            let answer = peer.ask(&command).await;
            let answer = &answer["answers"][0];
            assert_eq!((&answer["status"], &answer["task_id"]), (&json!(state), &json!(odd)), "{answer}");
        }
        for words in ["nest too deep", "the header has 6"] {
            let dead = peer.ask(&json!({"do": "take", "queue": "odd.dead"})).await;
            let why = dead["headers"]["unreadable-headers"].as_str().unwrap();
            assert!(why.contains(words), "{dead}");
            assert!(dead["headers"]["dead-letter-reason"].as_str().unwrap().contains(why), "{dead}");
        }
        assert_eq!(*broker.link().borrow(), Link::Up { generation: 1 });
    });
}

#[test]
fn a_task_that_waits_is_not_copied_again_to_who_got_a_copy() {
    run(async {
        let broker = rabbitmq().await;
        let (executions, executed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let shared = (Arc::clone(&executions), Arc::clone(&executed));
        let app = app().task("count", move |_: Context, (): ()| {
            let (executions, executed) = shared.clone();
            async move {
                executions.fetch_add(1, Ordering::SeqCst);
                executed.add_permits(1);
                Ok::<_, TaskError>(())
            }
        });
        let mut options = options("copies");
        options.queues.push("copies.2".to_owned());
        let _worker = start(&app, &broker, options).await;
        let mut peer = Peer::start().await;
        let copied = json!({"countdown": 0.5, "headers": {"CC": ["copies.2"]}});
        let command =
            json!({"do": "call", "task": "count", "args": [], "queue": "copies", "options": copied});
        let answer = peer.ask(&command).await;
        assert_eq!(answer["state"], "SUCCESS", "{answer}");
        executed.acquire_many(2).await.unwrap().forget();
        // What would be too many stands before these.
        let client = client(&broker).await;
        for queue in ["copies", "copies.2"] {
            client.send(Task::new("echo").arg(&1).queue(queue)).await.unwrap().get::<i64>().await.unwrap();
        }
        assert_eq!(executions.load(Ordering::SeqCst), 2, "one for each queue");
    });
}
