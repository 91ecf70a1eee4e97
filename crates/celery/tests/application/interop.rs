//! Celery 5.7 in Python on the other side: its clients, workers and tools, over RabbitMQ.

use std::time::Duration;

use crate::python::{EventDump, Peer, PythonWorker, celery};
use crate::support::{DEADLINE, client, options, rabbitmq, run, start};
use regatta_celery::{
    App, Client, ClientOptions, Context, Inspect, Retry, Task, TaskError, TaskFailure, TaskOptions, Update,
};
use serde_json::{Value, json};

fn app() -> App {
    let quick = Retry::max(3).backoff(Duration::from_millis(10), Duration::from_millis(50));
    App::new("rust")
        .task("rust.add", |_: Context, (x, y): (i64, i64)| async move { Ok::<_, TaskError>(x + y) })
        .task("rust.fail", |_: Context, text: String| async move {
            Err::<(), _>(TaskError::failed(text).python("ValueError", "builtins"))
        })
        .task_with("rust.flaky", TaskOptions::new().retry(quick), |context: Context, x: i64| async move {
            if context.retries() == 0 { Err(TaskError::failed("flaky").named("Flaky")) } else { Ok(x) }
        })
        .task("rust.progress", |context: Context, (): ()| async move {
            context.update_state("PROGRESS", &json!({"done": 3})).await?;
            Ok::<_, TaskError>("ready")
        })
        .task("rust.endless", |_: Context, (): ()| std::future::pending::<Result<(), TaskError>>())
}

#[test]
fn a_python_client_and_a_rust_worker() {
    run(async {
        let broker = rabbitmq().await;
        let _worker = start(&app(), &broker, options("rust")).await;
        let mut peer = Peer::start().await;
        let mut call = async |task: &str, args: Value, kwargs: Value, options: Value| {
            let command = json!({
                "do": "call", "task": task, "args": args, "kwargs": kwargs, "queue": "rust", "options": options
            });
            peer.ask(&command).await
        };
        let answer = call("rust.add", json!([1, 2]), json!({}), json!({})).await;
        assert_eq!((&answer["value"], &answer["state"]), (&json!(3), &json!("SUCCESS")), "{answer}");

        let answer = call("rust.fail", json!(["it broke"]), json!({}), json!({})).await;
        assert_eq!(
            answer["error"],
            json!({"type": "ValueError", "module": "builtins", "args": "('it broke',)"})
        );

        let answer = call("rust.add", json!([1]), json!({"z": 2}), json!({})).await;
        assert_eq!(answer["error"]["type"], "TypeError", "{answer}");

        let answer = call("rust.nobody", json!([]), json!({}), json!({})).await;
        assert_eq!(answer["error"]["type"], "NotRegistered", "{answer}");
        assert_eq!(answer["error"]["module"], "celery.exceptions", "{answer}");

        let answer = call("rust.flaky", json!([7]), json!({}), json!({})).await;
        assert_eq!(answer["value"], 7, "{answer}");
        let states: Vec<&Value> =
            answer["states"].as_array().unwrap().iter().map(|state| &state[0]).collect();
        assert_eq!(states, ["RETRY", "SUCCESS"]);
        assert_eq!(answer["children"], json!([[[[answer["id"], null], null]], []]), "a try sends the next");

        let answer = call("rust.progress", json!([]), json!({}), json!({})).await;
        assert_eq!(answer["states"][0], json!(["PROGRESS", {"done": 3}]), "{answer}");
        assert_eq!(answer["value"], "ready");

        let answer = call("rust.add", json!([1, 2]), json!({}), json!({"countdown": 0.2})).await;
        assert_eq!(answer["value"], 3, "{answer}");
        assert!(answer["seconds"].as_f64().unwrap() >= 0.2, "{answer}");

        let late = json!({"expires": "2020-01-01T00:00:00+00:00"});
        let answer = call("rust.add", json!([1, 2]), json!({}), json!({"headers": late})).await;
        assert_eq!(answer["error"]["type"], "TaskRevokedError", "{answer}");
    });
}

#[test]
fn a_rust_client_and_a_python_worker() {
    run(async {
        let broker = rabbitmq().await;
        let _python = PythonWorker::start("python").await;
        let client = client(&broker).await;
        let task = |name: &str| Task::new(name).queue("python");
        let mut handle = client.send(task("peer.add").arg(&40).kwarg("y", &2)).await.unwrap();
        assert_eq!(handle.get::<i64>().await.unwrap().value, 42);

        let brief = ClientOptions { brief_headers: true, ..ClientOptions::default() };
        let brief = Client::new(&broker, brief).await.unwrap();
        let mut handle = brief.send(task("peer.add").arg(&1).kwarg("y", &2)).await.unwrap();
        assert_eq!(handle.get::<i64>().await.unwrap().value, 3);

        match client.send(task("peer.fail").arg(&"boom")).await.unwrap().get::<Value>().await {
            Err(TaskFailure::Remote { error, .. }) => {
                assert_eq!(error.to_string(), "ValueError: boom, 42");
                assert!(error.traceback.is_some_and(|text| text.contains("raise ValueError(text, 42)")));
            }
            other => panic!("expected a ValueError, got {other:?}"),
        }

        let mut handle = client.send(task("peer.progress")).await.unwrap();
        let Some(Update::State { state, meta, .. }) = handle.next_update().await else {
            panic!("no state came")
        };
        assert_eq!(
            (state.as_str(), meta.to::<Value>().unwrap()),
            ("PROGRESS", json!({"done": 3, "total": 10}))
        );
        assert_eq!(handle.get::<String>().await.unwrap().value, "ready");

        let mut handle = client.send(task("peer.once_more").arg(&"x")).await.unwrap();
        let Some(Update::State { state, .. }) = handle.next_update().await else { panic!("no state came") };
        assert_eq!(state, "RETRY");
        assert_eq!(handle.get::<(String, u32)>().await.unwrap().value, ("x".to_owned(), 1));

        let answers = {
            // Other tests' workers share the broker.
            let nodes = ["python@peer".to_owned()];
            client.inspect(Inspect::Ping, &nodes, DEADLINE).await.unwrap()
        };
        let nodes: Vec<&str> = answers.iter().map(|answer| answer.node.as_str()).collect();
        assert_eq!((nodes, &answers[0].value), (vec!["python@peer"], &json!({"ok": "pong"})));
    });
}

#[test]
fn a_pickled_result_is_an_error_and_no_wait() {
    run(async {
        let broker = rabbitmq().await;
        let _python = PythonWorker::writing("python_pickle", "pickle").await;
        let client = client(&broker).await;
        let mut handle = client.send(Task::new("peer.add").arg(&1).queue("python_pickle")).await.unwrap();
        let failure = handle.get::<i64>().await.unwrap_err();
        assert!(matches!(failure, TaskFailure::Unreadable { .. }), "{failure:?}");
    });
}

#[test]
fn celerys_own_tools_see_a_rust_worker() {
    run(async {
        let broker = rabbitmq().await;
        let mut seen = options("seen");
        seen.name = "rust@seen".to_owned();
        seen.remote_control = true;
        seen.heartbeat = Some(Duration::from_millis(500));
        let worker = start(&app(), &broker, seen).await;
        let client = client(&broker).await;
        let running = client.send(Task::new("rust.endless").queue("seen")).await.unwrap();

        let status = celery(&["status"]).await;
        assert!(status.contains("rust@seen: OK"), "{status}");
        let ping = celery(&["inspect", "ping"]).await;
        assert!(ping.contains("rust@seen: OK") && ping.contains("pong"), "{ping}");

        let mut peer = Peer::start().await;
        let mut inspect = async |method: &str| {
            let answer =
                peer.ask(&json!({"do": "inspect", "method": method, "destination": ["rust@seen"]})).await;
            answer["nodes"]["rust@seen"].clone()
        };
        let active = inspect("active").await;
        assert_eq!(
            (&active[0]["id"], &active[0]["name"]),
            (&json!(running.id()), &json!("rust.endless")),
            "{active}"
        );
        let registered = inspect("registered").await;
        let names = ["rust.add", "rust.endless", "rust.fail", "rust.flaky", "rust.progress"];
        assert_eq!(registered, json!(names));
        let stats = inspect("stats").await;
        assert_eq!(stats["pool"]["max-concurrency"], 4, "{stats}");
        assert!(stats["broker"].is_object() && stats["total"].is_object(), "{stats}");
        let queues = inspect("active_queues").await;
        assert_eq!(queues[0]["name"], "seen", "{queues}");
        for method in ["reserved", "scheduled", "revoked"] {
            assert_eq!(inspect(method).await, json!([]), "{method}");
        }
        for method in ["conf", "report", "clock"] {
            assert!(inspect(method).await.is_object(), "{method}");
        }
        assert!(!inspect("stats").await.to_string().contains("guest:"), "no password");

        peer.ask(&json!({"do": "revoke", "id": running.id(), "terminate": true})).await;
        let mut running = running;
        let failure = running.get::<()>().await.unwrap_err();
        assert!(matches!(failure, TaskFailure::Revoked { .. }), "{failure:?}");
        worker.quiet().await;
    });
}

#[test]
fn celery_events_show_workers_and_tasks() {
    run(async {
        let broker = rabbitmq().await;
        let mut dump = EventDump::start().await;
        let mut heard = options("heard");
        heard.name = "rust@heard".to_owned();
        heard.events = true;
        heard.heartbeat = Some(Duration::from_millis(200));
        let worker = start(&app(), &broker, heard).await;
        dump.wait_for(&["] heartbeat"]).await;
        let client = client(&broker).await;
        client
            .send(Task::new("rust.add").args(&(1, 2)).queue("heard"))
            .await
            .unwrap()
            .get::<i64>()
            .await
            .unwrap();
        client
            .send(Task::new("rust.flaky").arg(&1).queue("heard"))
            .await
            .unwrap()
            .get::<i64>()
            .await
            .unwrap();
        let _failure =
            client.send(Task::new("rust.fail").arg(&"x").queue("heard")).await.unwrap().get::<()>().await;
        worker.quiet().await;
        let told = [
            "task received: rust.add",
            "task started",
            "task succeeded",
            "task retried",
            "task failed",
            "] shutdown",
        ];
        dump.wait_for(&told).await;
    });
}

#[test]
fn malformed_messages_are_answered_and_the_worker_lives() {
    let fixture = include_str!("../fixtures/malformed-messages.json");
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    run(async {
        let broker = rabbitmq().await;
        let proj =
            app().task("proj.add", |_: Context, (x, y): (i64, i64)| async move { Ok::<_, TaskError>(x + y) });
        let _worker = start(&proj, &broker, options("malformed")).await;
        let mut peer = Peer::start().await;
        let mut refused = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let has_id = case["message"]["headers"]["id"].is_string();
            let command = json!({
                "do": "raw", "message": case["message"], "queue": "malformed", "expect": has_id
            });
            let answer = peer.ask(&command).await;
            let states: Vec<&str> = answer["answers"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|answer| answer["status"].as_str())
                .collect();
            if has_id {
                assert_eq!(states.len(), 1, "{name}: one answer, got {answer}");
                refused += u32::from(states != ["SUCCESS"]);
            } else {
                refused += 1;
            }
        }
        let client = client(&broker).await;
        let mut handle = client.send(Task::new("rust.add").args(&(1, 2)).queue("malformed")).await.unwrap();
        assert_eq!(handle.get::<i64>().await.unwrap().value, 3, "the worker still works");
        assert!(refused > 10, "{refused} cases were refused");
        let dead = broker.declare_passive("malformed.dead").await.unwrap().ready;
        assert!(dead >= refused - 4, "{dead} of {refused} refused messages were dead-lettered");
    });
}

#[test]
fn a_client_asks_rust_workers_too() {
    run(async {
        let broker = rabbitmq().await;
        let mut asked = options("asked");
        asked.remote_control = true;
        let _worker = start(&app(), &broker, asked).await;
        let client = Client::new(&broker, ClientOptions::default()).await.unwrap();
        let node = ["asked@test".to_owned()];
        let answers = client.inspect(Inspect::ActiveQueues, &node, DEADLINE).await.unwrap();
        assert_eq!(answers[0].node, "asked@test");
        assert_eq!(answers[0].value[0]["name"], "asked");
        let anywhere = client.inspect(Inspect::Ping, &["asked".to_owned()], DEADLINE).await.unwrap();
        assert!(anywhere.len() == 1 && anywhere[0].is_of("asked") && !anywhere[0].is_of("ask"));
        let nobody =
            client.inspect(Inspect::Ping, &["nobody@test".to_owned()], Duration::from_millis(100)).await;
        assert_eq!(nobody.unwrap(), []);
    });
}

#[test]
fn a_chain_runs_across_both_languages() {
    run(async {
        let broker = rabbitmq().await;
        let _rust = start(&app(), &broker, options("rust_steps")).await;
        let _python = PythonWorker::start("python_steps").await;
        let mut peer = Peer::start().await;
        let steps = json!([
            ["rust.add", [1, 2], "rust_steps"],
            ["peer.add", [10], "python_steps"],
            ["rust.add", [100], "rust_steps"],
        ]);
        let answer = peer.ask(&json!({"do": "chain", "steps": steps})).await;
        assert_eq!(answer["value"], 113, "{answer}");
        let steps = json!([["rust.fail", ["first step"], "rust_steps"], ["peer.add", [1], "python_steps"]]);
        let answer = peer.ask(&json!({"do": "chain", "steps": steps})).await;
        assert_eq!(answer["error"], "ValueError('first step')", "who waits for a later step hears of it");

        let members = json!({"group": [
            ["peer.add", [10], "python_steps"],
            {"chain": [["rust.add", [100], "rust_steps"], ["peer.add", [1000], "python_steps"]]},
        ]});
        let steps = json!([["rust.add", [1, 2], "rust_steps"], members]);
        let answer = peer.ask(&json!({"do": "chain", "steps": steps})).await;
        assert_eq!(answer["value"], json!([13, 1103]), "{answer}");
        let steps = json!([["rust.fail", ["no group"], "rust_steps"], members]);
        let answer = peer.ask(&json!({"do": "chain", "steps": steps})).await;
        assert_eq!(answer["error"], "ValueError('no group')", "who waits for a group hears of it");
    });
}

#[test]
fn a_following_step_keeps_its_options_whoever_sends_it() {
    run(async {
        let broker = rabbitmq().await;
        let _rust = start(&app(), &broker, options("rust_options")).await;
        let _python = PythonWorker::start("python_options").await;
        let mut peer = Peer::start().await;
        let mut after = async |first: &str, task: &str, options: &Value| {
            let queue = if first.starts_with("rust") { "rust_options" } else { "python_options" };
            let steps = json!([[first, [1, 2], queue], [task, [], "python_options", options]]);
            peer.ask(&json!({"do": "chain", "steps": steps})).await
        };
        let link =
            json!([{"task": "peer.add", "args": [1], "options": {"queue": "nowhere", "countdown": 9}}]);
        let table = [
            json!({}),
            json!({"eta": [-5], "expires": [3600]}),
            json!({"eta": "2020-01-01T00:00:00+00:00", "expires": 3600.5, "priority": 7}),
            json!({"shadow": "other", "argsrepr": "(...)", "kwargsrepr": "{...}", "delivery_mode": 1}),
            json!({"time_limit": 50, "soft_time_limit": 40.5, "retries": 2, "replaced_task_nesting": 1}),
            json!({"headers": {"build": {"number": 7, "of": ["a", 1.5, true, null]}}, "compression": "gzip"}),
            json!({"stamped_headers": ["who", "why"], "who": "me", "why": ["a", "b"]}),
            json!({"group_id": "the group", "group_index": 3, "link": link, "link_error": link[0]}),
            json!({"exchange": "python_options", "routing_key": "python_options", "retry": false}),
            json!({"routing_key": "nowhere"}),
        ];
        for options in table {
            let mut ours = after("rust.add", "peer.request", &options).await;
            let mut theirs = after("peer.add", "peer.request", &options).await;
            if options["expires"].is_f64() {
                for answer in [&mut ours, &mut theirs] {
                    assert!(answer["value"]["expires"].take().is_string(), "{answer}");
                }
            }
            // Python writes a list of one argument in its own form: `(3,)`.
            if options.get("argsrepr").is_none() {
                for answer in [&mut ours, &mut theirs] {
                    answer["value"]["argsrepr"].take();
                }
            }
            assert_eq!(ours, theirs, "after a Rust step with {options}");
        }
        let answer = after("rust.add", "peer.add", &json!({"expires": [-5]})).await;
        assert_eq!(answer["error"], "TaskRevokedError('expired')", "{answer}");
        let began = std::time::SystemTime::now();
        let answer = after("rust.add", "peer.now", &json!({"countdown": 1.5})).await;
        let ran = Duration::from_secs_f64(answer["value"].as_f64().unwrap());
        let began = began.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(ran >= began + Duration::from_millis(1500), "it came too early: {:?}", ran - began);
        for options in [json!({"serializer": "pickle"}), json!({"user_id": "me"}), json!({"queue": {}})] {
            let answer = after("rust.add", "peer.request", &options).await;
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("which this worker can't pass on"), "{error}");
        }
    });
}

#[test]
fn a_result_names_the_tasks_that_follow() {
    run(async {
        let broker = rabbitmq().await;
        let _rust = start(&app(), &broker, options("rust_children")).await;
        let _python = PythonWorker::start("python_children").await;
        let mut peer = Peer::start().await;
        let firsts = [("rust.add", "rust_children"), ("peer.add", "python_children")];
        let next = |options: Value| json!(["peer.add", [1], "python_children", options]);
        let table = [
            ("chain", vec![next(json!({}))], json!([[["last", null], null]])),
            ("chain", vec![next(json!({})), next(json!({}))], json!([[["new", null], null]])),
            ("linked", vec![next(json!({}))], json!([[["link 0", null], null]])),
            ("linked", vec![next(json!({"add_to_parent": false}))], json!([])),
            (
                "linked",
                vec![next(json!({})), next(json!({}))],
                json!([[["new", null], [[["link 0", null], null], [["link 1", null], null]]]]),
            ),
        ];
        let group = json!({"group": [next(json!({})), {"chain": [next(json!({})), next(json!({}))]}]});
        let chain = json!({"chain": [next(json!({})), next(json!({}))]});
        let members = json!([[["member 0", null], null], [["member 1", [["new", null], null]], null]]);
        let members = json!([[["last", null], members]]);
        let table = table.into_iter().chain([
            ("chain", vec![group], members),
            ("linked", vec![chain], json!([[["new", null], null]])),
        ]);
        for (kind, following, children) in table {
            for (first, queue) in firsts {
                let mut steps = vec![json!([first, [1, 2], queue])];
                steps.extend(following.iter().cloned());
                let answer = peer.ask(&json!({"do": kind, "steps": steps})).await;
                assert_eq!(answer["children"], children, "{kind} after {first}: {answer}");
            }
        }
    });
}
