//! Application, worker and client together, on both brokers: what becomes of a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{client, on_both_brokers, options, start};
use regatta_celery::transport::{Broker, Properties, Publishing, Queue, Topology};
use regatta_celery::wire::{RawJson, TaskMessage};
use regatta_celery::{
    App, Context, Prefetch, Retry, Task, TaskError, TaskFailure, TaskOptions, Update, WorkerEnd, WorkerError,
    WorkerOptions,
};
use serde::Deserialize;
use tokio::sync::Semaphore;

on_both_brokers! {
    results_come_back_with_their_facts
    arguments_that_dont_fit_are_a_failure
    a_panic_is_a_failure_and_the_worker_goes_on
    errors_carry_their_name_and_message
    a_result_may_be_read_again_and_as_another_type
    a_result_that_cant_be_read_ends_the_wait
    what_isnt_its_own_is_refused_and_dead_lettered
    thousands_of_handles_at_once
    slots_bound_what_runs
    a_busy_worker_leaves_its_other_queues_to_whoever_is_idle
    a_worker_consumes_queues_of_all_kinds_together
    states_come_before_the_result
    a_countdown_holds_no_slot
    a_following_step_waits_for_its_countdown
    expired_tasks_are_revoked
    an_expiry_may_be_far_away
    time_limits_end_a_task
    a_revoked_task_doesnt_run
    an_ignored_result_isnt_sent
    quiet_finishes_what_runs_and_leaves_the_rest
    kill_gives_back_what_runs
    a_closed_broker_ends_workers_and_the_waiting_for_results
    blocking_handlers_dont_stop_the_others
}

async fn results_come_back_with_their_facts(broker: Broker) {
    let app = App::new("test").task("add", |context: Context, (x, y): (i64, i64)| async move {
        assert_eq!((context.task_name(), context.queue(), context.retries()), ("add", "facts", 0));
        Ok::<_, TaskError>(x + y)
    });
    let _worker = start(&app, &broker, options("facts")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("add").args(&(1, 2)).queue("facts")).await.unwrap();
    let result = handle.get::<i64>().await.unwrap();
    assert_eq!(result.value, 3);
    assert_eq!(result.facts.worker.as_deref(), Some("facts@test"));
    assert_eq!(result.facts.retries, Some(0));
    assert!(result.facts.run_time().is_some(), "{:?}", result.facts);
    assert_eq!(handle.state(), "SUCCESS");
}

#[derive(Deserialize)]
struct Greeting {
    name: String,
    #[serde(default)]
    loud: bool,
}

async fn arguments_that_dont_fit_are_a_failure(broker: Broker) {
    let app = App::new("test").task_with(
        "greet",
        // A retry could not make the arguments fit, so the policy must not bring one.
        TaskOptions::new().retry(Retry::max(3)),
        |_: Context, greeting: Greeting| async move {
            Ok::<_, TaskError>(format!("hello {}{}", greeting.name, if greeting.loud { "!" } else { "" }))
        },
    );
    let _worker = start(&app, &broker, options("fit")).await;
    let client = client(&broker).await;
    let good = Task::new("greet").arg(&"ann").kwarg("loud", &true).queue("fit");
    assert_eq!(client.send(good).await.unwrap().get::<String>().await.unwrap().value, "hello ann!");
    let table = [
        (Task::new("greet"), "greet is missing a required argument: 'name'"),
        (Task::new("greet").kwarg("nmae", &"x"), "greet got an unexpected keyword argument 'nmae'"),
        (
            Task::new("greet").arg(&7),
            "greet got a wrong argument 'name': invalid type: integer `7`, expected a string at line 1 column 1",
        ),
    ];
    for (task, message) in table {
        let error = remote(client.send(task.queue("fit")).await.unwrap().get::<String>().await);
        assert_eq!((error.exc_type.as_str(), error.exc_module.as_str()), ("TypeError", "builtins"));
        assert_eq!(error.message, message);
    }
}

fn remote<T: std::fmt::Debug>(ended: Result<T, TaskFailure>) -> regatta_celery::RemoteError {
    match ended {
        Err(TaskFailure::Remote { error, .. }) => *error,
        other => panic!("expected a remote error, got {other:?}"),
    }
}

async fn a_panic_is_a_failure_and_the_worker_goes_on(broker: Broker) {
    let app = App::new("test")
        .task("late", |_: Context, (): ()| async move {
            tokio::task::yield_now().await;
            if true { panic!("ouch") } else { Ok::<(), TaskError>(()) }
        })
        .task("early", |_: Context, fine: bool| {
            assert!(fine, "not {fine}");
            async move { Ok::<_, TaskError>(fine) }
        })
        .blocking_task("thread", TaskOptions::new(), |_, (): ()| -> Result<(), TaskError> {
            panic!("on a thread")
        });
    let _worker = start(&app, &broker, options("panic")).await;
    let client = client(&broker).await;
    let table = [
        (Task::new("late"), "ouch"),
        (Task::new("early").arg(&false), "not false"),
        (Task::new("thread"), "on a thread"),
    ];
    for (task, message) in table {
        let error = remote(client.send(task.queue("panic")).await.unwrap().get::<()>().await);
        assert_eq!((error.exc_type.as_str(), error.message.as_str()), ("Panic", message));
    }
    let fine = Task::new("early").arg(&true).queue("panic");
    assert!(client.send(fine).await.unwrap().get::<bool>().await.unwrap().value);
}

async fn errors_carry_their_name_and_message(broker: Broker) {
    let app = App::new("test")
        .task("parse", |_: Context, text: String| async move { Ok(text.parse::<i32>()?) })
        .task("named", |_: Context, (): ()| async move {
            Err::<(), _>(TaskError::failed("disk full").named("Disk"))
        });
    let _worker = start(&app, &broker, options("errors")).await;
    let client = client(&broker).await;
    let error =
        remote(client.send(Task::new("parse").arg(&"x").queue("errors")).await.unwrap().get::<i32>().await);
    assert_eq!(error.to_string(), "ParseIntError: invalid digit found in string");
    let error = remote(client.send(Task::new("named").queue("errors")).await.unwrap().get::<()>().await);
    assert_eq!(error.to_string(), "Disk: disk full");
    let mut handle = client.send(Task::new("parse").arg(&"7").queue("errors")).await.unwrap();
    let failure = handle.get::<String>().await.unwrap_err();
    assert!(matches!(failure, TaskFailure::Decode { .. }), "{failure:?}");
}

async fn a_result_may_be_read_again_and_as_another_type(broker: Broker) {
    let (app, runs, may_end) = gated();
    let app = app.task("fail", |_: Context, (): ()| async move { Err::<(), _>(TaskError::failed("no")) });
    let _worker = start(&app, &broker, options("again")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("gated").queue("again")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    let failure = handle.get_within::<bool>(Duration::ZERO).await.unwrap_err();
    assert!(matches!(failure, TaskFailure::Timeout { .. }), "{failure:?}");
    may_end.add_permits(1);
    // The client's own patience counts again.
    let failure = handle.get::<Vec<u8>>().await.unwrap_err();
    assert!(matches!(failure, TaskFailure::Decode { .. }), "{failure:?}");
    assert_eq!(handle.raw().await.unwrap().value.as_str(), "false");
    assert!(!handle.get::<bool>().await.unwrap().value);
    assert!(handle.next_update().await.is_none());
    let mut handle = client.send(Task::new("fail").queue("again")).await.unwrap();
    for _ in 0..2 {
        assert_eq!(remote(handle.get::<()>().await).message, "no");
    }
}

async fn a_result_that_cant_be_read_ends_the_wait(broker: Broker) {
    let (app, runs, _may_end) = gated();
    let _worker = start(&app, &broker, options("unreadable")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("gated").queue("unreadable")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    let pickled = Properties {
        content_type: Some("application/x-python-serialize".into()),
        correlation_id: Some(handle.id().to_owned()),
        ..Properties::json(1)
    };
    let publishing = Publishing {
        exchange: "".into(),
        routing_key: client.reply_to().to_owned(),
        properties: pickled,
        body: (&b"\x80\x04."[..]).into(),
        mandatory: true,
    };
    broker.publish(publishing).await.unwrap();
    for _ in 0..2 {
        let failure = handle.get::<bool>().await.unwrap_err();
        assert!(
            matches!(&failure, TaskFailure::Unreadable { reason, .. } if reason.contains("x-python-serialize")),
            "{failure:?}"
        );
    }
    assert_eq!(client.pending(), 0);
}

async fn what_isnt_its_own_is_refused_and_dead_lettered(broker: Broker) {
    let app = App::new("test")
        .task_with("a", TaskOptions::new().queue("queue_a"), |_: Context, (): ()| async move {
            Ok::<_, TaskError>("a")
        })
        .task("picky", |_: Context, (): ()| async move { Err::<(), _>(TaskError::refused("not today")) });
    let _worker = start(&app, &broker, options("queue_b")).await;
    let client = client(&broker).await;
    let error = remote(client.send(Task::new("nobody").queue("queue_b")).await.unwrap().get::<()>().await);
    assert_eq!((error.exc_type.as_str(), error.message.as_str()), ("NotRegistered", "nobody"));
    let error = remote(client.send(Task::new("a").queue("queue_b")).await.unwrap().get::<()>().await);
    assert_eq!(error.to_string(), "Reject: task a belongs to queue queue_a, but came out of queue queue_b");
    let error = remote(client.send(Task::new("picky").queue("queue_b")).await.unwrap().get::<()>().await);
    assert_eq!(error.to_string(), "Reject: not today");
    assert_eq!(broker.declare_passive("queue_b.dead").await.unwrap().ready, 3);
}

async fn thousands_of_handles_at_once(broker: Broker) {
    let app = App::new("test").task("double", |_: Context, x: u64| async move { Ok::<_, TaskError>(2 * x) });
    let mut options = options("many");
    options.prefetch = Prefetch::Fixed(100);
    let _worker = start(&app, &broker, options).await;
    let client = client(&broker).await;
    let calls = (0..3000_u64).map(|x| {
        let client = client.clone();
        async move {
            let mut handle = client.send(Task::new("double").arg(&x).queue("many")).await.unwrap();
            assert_eq!(handle.get::<u64>().await.unwrap().value, 2 * x);
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(client.pending(), 0, "nothing is remembered of what is done");
}

async fn slots_bound_what_runs(broker: Broker) {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = (Arc::clone(&now), Arc::clone(&most));
    let app = App::new("test").task("wait", move |_: Context, (): ()| {
        let (now, most) = counted.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, TaskError>(())
        }
    });
    let mut options = options("slots");
    options.prefetch = Prefetch::Fixed(20);
    let _worker = start(&app, &broker, options).await;
    let client = client(&broker).await;
    let mut handles = Vec::new();
    for _ in 0..20 {
        handles.push(client.send(Task::new("wait").queue("slots")).await.unwrap());
    }
    for mut handle in handles {
        handle.get::<()>().await.unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 4, "as many as slots, and no more");
}

async fn a_busy_worker_leaves_its_other_queues_to_whoever_is_idle(broker: Broker) {
    let (app, runs, may_end) = gated();
    let app = app.task("short", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let both = |name: &str| {
        let queues = ["busy_a", "busy_b"].map(str::to_owned).to_vec();
        WorkerOptions { name: format!("{name}@test"), queues, ..options("busy").slots(1) }
    };
    let _one = start(&app, &broker, both("one")).await;
    let client = client(&broker).await;
    let mut long = client.send(Task::new("gated").queue("busy_a")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    let mut short = client.send(Task::new("short").queue("busy_b")).await.unwrap();
    let _two = start(&app, &broker, both("two")).await;
    assert_eq!(short.get::<()>().await.unwrap().facts.worker.as_deref(), Some("two@test"));
    may_end.add_permits(1);
    assert_eq!(long.get::<bool>().await.unwrap().facts.worker.as_deref(), Some("one@test"));
}

async fn a_worker_consumes_queues_of_all_kinds_together(broker: Broker) {
    let app = App::new("test").task("echo", |_: Context, x: u64| async move { Ok::<_, TaskError>(x) });
    let queues = ["kinds_classic", "kinds_quorum"];
    // RabbitMQ knows no shared prefetch for a quorum queue.
    let quorum = Topology::default().queue(Queue::quorum(queues[1], 5));
    broker.declare(&quorum).await.unwrap();
    let queues = queues.map(str::to_owned).to_vec();
    let _worker = start(&app, &broker, WorkerOptions { queues: queues.clone(), ..options("kinds") }).await;
    let client = client(&broker).await;
    for (n, queue) in (0_u64..).zip(queues.iter().cycle().take(6)) {
        let mut echo = client.send(Task::new("echo").arg(&n).queue(queue.clone())).await.unwrap();
        assert_eq!(echo.get::<u64>().await.unwrap().value, n);
    }
}

async fn states_come_before_the_result(broker: Broker) {
    let app = App::new("test").task("steps", |context: Context, (): ()| async move {
        for step in 1..=3 {
            context.update_state("PROGRESS", &serde_json::json!({ "step": step })).await?;
        }
        Ok::<_, TaskError>("ready")
    });
    let mut options = options("states");
    options.track_started = true;
    let _worker = start(&app, &broker, options).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("steps").queue("states")).await.unwrap();
    let mut seen = Vec::new();
    while let Some(update) = handle.next_update().await {
        match update {
            Update::State { state, meta, facts } => {
                assert_eq!(facts.worker.as_deref(), Some("states@test"));
                let step = meta.to::<serde_json::Value>().unwrap()["step"].as_i64();
                seen.push((state, step));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    let expected = [("STARTED", None), ("PROGRESS", Some(1)), ("PROGRESS", Some(2)), ("PROGRESS", Some(3))];
    assert_eq!(seen, expected.map(|(state, step)| (state.to_owned(), step)));
    assert_eq!(handle.get::<String>().await.unwrap().value, "ready");
}

async fn a_countdown_holds_no_slot(broker: Broker) {
    let app = App::new("test").task("now", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let _worker = start(&app, &broker, options("later").slots(1)).await;
    let client = client(&broker).await;
    let began = std::time::Instant::now();
    let delay = Duration::from_millis(300);
    let mut late = client.send(Task::new("now").queue("later").countdown(delay)).await.unwrap();
    let mut soon = client.send(Task::new("now").queue("later")).await.unwrap();
    soon.get::<()>().await.unwrap();
    late.get::<()>().await.unwrap();
    assert!(began.elapsed() >= delay, "it came too early: {:?}", began.elapsed());
}

async fn a_following_step_waits_for_its_countdown(broker: Broker) {
    let (sender, mut ran) = tokio::sync::mpsc::channel(2);
    let app = App::new("test").task("step", move |_: Context, (): ()| {
        let sender = sender.clone();
        async move { Ok::<_, TaskError>(sender.send(std::time::Instant::now()).await?) }
    });
    let _worker = start(&app, &broker, options("follows")).await;
    let mut message = TaskMessage::new("step", "first");
    let next = r#"{"task": "step", "immutable": true, "options": {"queue": "follows", "countdown": 0.3}}"#;
    message.embed.chain = Some(vec![RawJson::parse(next).unwrap()]);
    let (properties, body) = message.encode();
    let (exchange, routing_key) = ("".into(), "follows".to_owned());
    broker.publish(Publishing { exchange, routing_key, properties, body, mandatory: true }).await.unwrap();
    let (first, second) = (ran.recv().await.unwrap(), ran.recv().await.unwrap());
    assert!(second - first >= Duration::from_millis(300), "it came too early: {:?}", second - first);
}

async fn expired_tasks_are_revoked(broker: Broker) {
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ran);
    let app = App::new("test").task("fresh", move |_: Context, (): ()| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { Ok::<_, TaskError>(()) }
    });
    let client = client(&broker).await;
    // The broker itself may throw an expired message away, which nobody can answer; so only the header says it.
    let long_ago = Task::new("fresh").queue("expired").header("expires", "2020-01-01T00:00:00+00:00");
    let mut handle = client.send(long_ago).await.unwrap();
    let _worker = start(&app, &broker, options("expired")).await;
    let failure = handle.get::<()>().await.unwrap_err();
    assert!(matches!(&failure, TaskFailure::Revoked { reason, .. } if reason == "expired"), "{failure:?}");
    assert_eq!(ran.load(Ordering::SeqCst), 0);
}

async fn an_expiry_may_be_far_away(broker: Broker) {
    let app = App::new("test").task("fresh", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let _worker = start(&app, &broker, options("far")).await;
    let client = client(&broker).await;
    // RabbitMQ takes no time to live beyond ten years.
    for expires in [Duration::from_secs(11 * 365 * 24 * 3600), Duration::MAX] {
        let task = Task::new("fresh").queue("far").expires(expires);
        client.send(task).await.unwrap().get::<()>().await.unwrap();
    }
}

async fn time_limits_end_a_task(broker: Broker) {
    let app = App::new("test")
        .task_with(
            "hard",
            TaskOptions::new().timeout(Duration::from_millis(50)).retry(Retry::max(3)),
            |_: Context, (): ()| std::future::pending::<Result<(), TaskError>>(),
        )
        .task("soft", |context: Context, (): ()| async move {
            context.soft_limit().cancelled().await;
            Ok::<_, TaskError>("cut short")
        });
    let _worker = start(&app, &broker, options("limits")).await;
    let client = client(&broker).await;
    let error = remote(client.send(Task::new("hard").queue("limits")).await.unwrap().get::<()>().await);
    assert_eq!((error.exc_type.as_str(), error.message.as_str()), ("TimeLimitExceeded", "0.05"));
    let soft = Task::new("soft").queue("limits").soft_time_limit(Duration::from_millis(50));
    assert_eq!(client.send(soft).await.unwrap().get::<String>().await.unwrap().value, "cut short");
    let own = Task::new("soft").queue("limits").time_limit(Duration::from_millis(20));
    assert_eq!(
        remote(client.send(own).await.unwrap().get::<()>().await).message,
        "0.02",
        "the message's own limit"
    );
}

async fn a_revoked_task_doesnt_run(broker: Broker) {
    let app = App::new("test")
        .task("endless", |_: Context, (): ()| std::future::pending::<Result<(), TaskError>>())
        .task("short", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let mut options = options("revoked").slots(1);
    options.remote_control = true;
    options.prefetch = Prefetch::Fixed(4);
    let _worker = start(&app, &broker, options).await;
    let client = client(&broker).await;
    let mut runs = client.send(Task::new("endless").queue("revoked")).await.unwrap();
    let mut waits = client.send(Task::new("short").queue("revoked").id("waits")).await.unwrap();
    client.revoke("waits", false).await.unwrap();
    let failure = waits.get::<()>().await.unwrap_err();
    assert!(matches!(&failure, TaskFailure::Revoked { reason, .. } if reason == "revoked"), "{failure:?}");
    client.revoke(runs.id(), true).await.unwrap();
    let failure = runs.get::<()>().await.unwrap_err();
    assert!(matches!(&failure, TaskFailure::Revoked { reason, .. } if reason == "terminated"), "{failure:?}");
    let mut next = client.send(Task::new("short").queue("revoked")).await.unwrap();
    next.get::<()>().await.expect("the slot is free again");
}

async fn an_ignored_result_isnt_sent(broker: Broker) {
    let app = App::new("test").task("echo", |_: Context, x: i64| async move { Ok::<_, TaskError>(x) });
    let _worker = start(&app, &broker, options("ignored").slots(1)).await;
    let client = client(&broker).await;
    let mut ignored = client.send(Task::new("echo").arg(&1).queue("ignored").ignore_result()).await.unwrap();
    // With one slot the second result can't come before the first one's.
    let mut wanted = client.send(Task::new("echo").arg(&2).queue("ignored")).await.unwrap();
    assert_eq!(wanted.get::<i64>().await.unwrap().value, 2);
    let failure = ignored.get_within::<i64>(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(&failure, TaskFailure::Timeout { last, .. } if last == "PENDING"), "{failure:?}");
}

/// A task that says when it runs and ends when it may.
fn gated() -> (App, Arc<Semaphore>, Arc<Semaphore>) {
    let (runs, may_end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gates = (Arc::clone(&runs), Arc::clone(&may_end));
    let app = App::new("test").task("gated", move |context: Context, (): ()| {
        let (runs, may_end) = gates.clone();
        async move {
            runs.add_permits(1);
            may_end.acquire().await.map(|permit| permit.forget())?;
            Ok::<_, TaskError>(context.redelivered())
        }
    });
    (app, runs, may_end)
}

async fn quiet_finishes_what_runs_and_leaves_the_rest(broker: Broker) {
    let (app, runs, may_end) = gated();
    let mut one = options("quiet").slots(1);
    one.prefetch = Prefetch::Fixed(2);
    let worker = start(&app, &broker, one).await;
    let client = client(&broker).await;
    let mut first = client.send(Task::new("gated").queue("quiet")).await.unwrap();
    let mut second = client.send(Task::new("gated").queue("quiet")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    worker.quiet.cancel();
    may_end.add_permits(1);
    assert_eq!(worker.end().await, WorkerEnd::Quiet);
    assert!(!first.get::<bool>().await.unwrap().value);
    may_end.add_permits(1);
    let _next = start(&app, &broker, options("quiet")).await;
    second.get::<bool>().await.expect("what only waited goes to another worker");
}

async fn kill_gives_back_what_runs(broker: Broker) {
    let (app, runs, may_end) = gated();
    let worker = start(&app, &broker, options("killed")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("gated").queue("killed")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    worker.kill.cancel();
    assert_eq!(worker.end().await, WorkerEnd::Killed);
    may_end.add_permits(1);
    let _next = start(&app, &broker, options("killed")).await;
    assert!(handle.get::<bool>().await.unwrap().value, "it is delivered again");
}

async fn a_closed_broker_ends_workers_and_the_waiting_for_results(broker: Broker) {
    let (app, runs, may_end) = gated();
    let worker = start(&app, &broker, options("closed")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("gated").queue("closed")).await.unwrap();
    runs.acquire().await.unwrap().forget();
    broker.close().await;
    let failure = handle.get::<bool>().await.unwrap_err();
    assert!(matches!(failure, TaskFailure::Closed { .. }), "{failure}");
    may_end.add_permits(1);
    let error = worker.result().await.unwrap_err();
    assert!(matches!(error, WorkerError::NothingToConsume { .. }), "{error}");
}

async fn blocking_handlers_dont_stop_the_others(broker: Broker) {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let receiver = Arc::new(std::sync::Mutex::new(receiver));
    let app = App::new("test")
        .blocking_task("block", TaskOptions::new(), move |_, (): ()| {
            let ended = receiver.lock().map(|receiver| receiver.recv().is_ok());
            Ok::<_, TaskError>(ended.unwrap_or(false))
        })
        .task("free", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let _worker = start(&app, &broker, options("blocking")).await;
    let client = client(&broker).await;
    let mut blocked = client.send(Task::new("block").queue("blocking")).await.unwrap();
    client.send(Task::new("free").queue("blocking")).await.unwrap().get::<()>().await.unwrap();
    sender.send(()).unwrap();
    assert!(blocked.get::<bool>().await.unwrap().value);
}
