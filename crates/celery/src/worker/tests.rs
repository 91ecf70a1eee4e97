//! What a worker does when the broker does not do what it is asked: never take a message, take it late, die.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use regatta_testbed::Node;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Prefetch, ResultRoute, WorkerOptions};
use crate::app::App;
use crate::clock::iso;
use crate::context::Context;
use crate::error::TaskError;
use crate::transport::{Broker, ConnectOptions, Consume, Consumer, Publishing, Queue, Topology};
use crate::wire::{RawJson, ResultMessage, TaskMessage};

/// Generous: nothing here takes a third of it on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await });
    ended.expect("the test takes longer than its deadline")
}

async fn connect(url: &str) -> Broker {
    Broker::connect(&url.parse().unwrap(), ConnectOptions::default()).await.unwrap()
}

async fn declare(broker: &Broker, queue: Queue) {
    broker.declare(&Topology::default().queue(queue)).await.unwrap();
}

/// Publishes a task to `queue`.
async fn send(broker: &Broker, queue: &str, task: &TaskMessage) {
    let (properties, body) = task.encode();
    let routing_key = queue.to_owned();
    let publishing = Publishing { exchange: "".into(), routing_key, properties, body, mandatory: true };
    broker.publish(publishing).await.unwrap();
}

/// A worker called `one@test` on `queue`, silent, killed when the guard is dropped.
fn start(app: &App, broker: &Broker, queue: &str) -> DropGuard {
    start_with(app, broker, options(queue))
}

fn options(queue: &str) -> WorkerOptions {
    WorkerOptions { remote_control: false, heartbeat: None, ..WorkerOptions::new("one@test", [queue]) }
}

fn start_with(app: &App, broker: &Broker, options: WorkerOptions) -> DropGuard {
    let kill = CancellationToken::new();
    tokio::spawn(app.worker(broker, options).run(CancellationToken::new(), kill.clone()));
    kill.drop_guard()
}

/// Reads what comes to `answers`, which it makes.
async fn answers(broker: &Broker) -> Consumer {
    declare(broker, Queue::transient("answers")).await;
    let tag = "t".to_owned();
    let spec = Consume { queue: "answers".to_owned(), prefetch: 0, no_ack: true, exclusive: false, tag };
    broker.consume(spec).await.unwrap()
}

async fn answer(answers: &mut Consumer) -> ResultMessage {
    let (envelope, _) = answers.next().await.unwrap().split();
    ResultMessage::decode(&envelope.properties, &envelope.body).unwrap()
}

/// A task with the id `name` that answers to `answers`.
fn asked(name: &str) -> TaskMessage {
    let mut task = TaskMessage::new(name, name);
    task.reply_to = Some("answers".to_owned());
    task
}

/// A call of the task `x`, as Celery links it to another.
fn call(exchange: &str, routing_key: &str) -> RawJson {
    let options = serde_json::json!({"exchange": exchange, "routing_key": routing_key});
    RawJson::of(&serde_json::json!({"task": "x", "args": [], "kwargs": {}, "options": options})).unwrap()
}

/// An application whose tasks are counted: `good` returns 1, `large` returns 300 kB, `bad` fails with as much.
fn counted() -> (App, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counter = |count: &Arc<AtomicU32>| {
        let count = Arc::clone(count);
        move || count.fetch_add(1, Ordering::SeqCst)
    };
    let (good, large, bad) = (counter(&count), counter(&count), counter(&count));
    let text = || "x".repeat(300_000);
    let app = App::new("test")
        .task("good", move |_: Context, (): ()| {
            good();
            async move { Ok::<_, TaskError>(1) }
        })
        .task("large", move |_: Context, (): ()| {
            large();
            async move { Ok::<_, TaskError>(text()) }
        })
        .task("bad", move |_: Context, (): ()| {
            bad();
            async move { Err::<(), _>(TaskError::failed(text())) }
        });
    (app, count)
}

#[test]
fn a_following_task_that_can_never_be_published_is_a_failure() {
    run(async {
        let broker = Broker::embedded();
        let (app, count) = counted();
        declare(&broker, Queue::celery("q")).await;
        let mut answers = answers(&broker).await;
        let mut task = asked("good");
        task.embed.callbacks = Some(vec![call("gone", "k")]);
        send(&broker, "q", &task).await;
        let _worker = start(&app, &broker, "q");
        let failure = answer(&mut answers).await;
        assert_eq!(failure.status.as_str(), "FAILURE");
        assert!(failure.result.as_str().contains("gone"), "it says which exchange: {failure:?}");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn an_answer_that_is_too_large_becomes_a_small_failure() {
    run(async {
        let node = Node::start();
        node.ctl(&["eval", "application:set_env(rabbit, max_message_size, 100000)."]);
        let broker = connect(&node.url()).await;
        let (app, count) = counted();
        declare(&broker, Queue::celery("q")).await;
        let mut answers = answers(&broker).await;
        // What the broker refuses closes the channel, with all that is on it; the caller has another one.
        let _worker = start(&app, &connect(&node.url()).await, "q");
        for (name, words) in [("large", "larger than"), ("bad", "xxx")] {
            send(&broker, "q", &asked(name)).await;
            let failure = answer(&mut answers).await;
            assert_eq!((&*failure.task_id, failure.status.as_str()), (name, "FAILURE"));
            assert!(failure.result.as_str().contains(words), "{failure:?}");
        }
        assert_eq!(count.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_task_whose_answer_nobody_may_give_is_dead_lettered() {
    run(async {
        let node = Node::start();
        // It may read, but publish nothing.
        node.add_user("mute", "pass", "", "", ".*");
        let owner = connect(&node.url()).await;
        let (app, count) = counted();
        declare(&owner, Queue::celery("q").dead_letter("", "q.kept")).await;
        declare(&owner, Queue::celery("q.kept")).await;
        declare(&owner, Queue::transient("answers")).await;
        send(&owner, "q", &asked("good")).await;
        let _worker = start(&app, &connect(&node.url_of("mute", "pass")).await, "q");
        let tag = "t".to_owned();
        let kept = Consume { queue: "q.kept".to_owned(), prefetch: 1, no_ack: true, exclusive: false, tag };
        let (envelope, _) = owner.consume(kept).await.unwrap().next().await.unwrap().split();
        assert_eq!(TaskMessage::decode(&envelope.properties, &envelope.body).unwrap().id, "good");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn an_alarm_makes_no_task_run_again_and_no_answer_come_twice() {
    run(async {
        let node = Node::start();
        let caller = connect(&node.url()).await;
        let (app, count) = counted();
        declare(&caller, Queue::celery("q")).await;
        let mut answers = answers(&caller).await;
        send(&caller, "q", &asked("good")).await;
        node.ctl(&["set_vm_memory_high_watermark", "absolute", "1"]);
        let url = node.url().parse().unwrap();
        // What waits for a confirm no longer than this gives up several times in the time below.
        let impatient = ConnectOptions { timeout: Duration::from_secs(1), ..ConnectOptions::default() };
        let broker = Broker::connect(&url, impatient).await.unwrap();
        let _worker = start(&app, &broker, "q");
        let early = tokio::time::timeout(Duration::from_secs(6), answer(&mut answers)).await;
        assert!(early.is_err(), "there was no alarm: {early:?}");
        node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
        assert_eq!(answer(&mut answers).await.status.as_str(), "SUCCESS");
        let mut next = asked("good");
        next.id = "next".to_owned();
        send(&caller, "q", &next).await;
        assert_eq!(&*answer(&mut answers).await.task_id, "next", "the first came once");
        assert_eq!(count.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_broker_that_is_killed_makes_the_same_worker_run_no_task_twice() {
    const TASKS: usize = 2_000;
    run(async {
        let mut node = Node::start();
        let broker = connect(&node.url()).await;
        declare(&broker, Queue::celery("q")).await;
        let counts: Arc<Mutex<HashMap<String, Vec<bool>>>> = Arc::default();
        let (halfway, all) = (CancellationToken::new(), CancellationToken::new());
        let (seen, half, whole) = (Arc::clone(&counts), halfway.clone(), all.clone());
        let app = App::new("test").task("note", move |context: Context, (): ()| {
            let mut seen = seen.lock().unwrap();
            seen.entry(context.task_id().to_owned()).or_default().push(context.redelivered());
            match seen.len() {
                TASKS => whole.cancel(),
                half_of_them if half_of_them == TASKS / 2 => half.cancel(),
                _ => {}
            }
            async move { Ok::<_, TaskError>(()) }
        });
        let numbers: Vec<usize> = (0..TASKS).collect();
        for numbers in numbers.chunks(500) {
            let tasks: Vec<_> =
                numbers.iter().map(|n| TaskMessage::new("note", format!("task {n}"))).collect();
            futures::future::join_all(tasks.iter().map(|task| send(&broker, "q", task))).await;
        }
        let mut options = options("q");
        options.prefetch = Prefetch::Fixed(32);
        let _worker = start_with(&app, &broker, options);
        halfway.cancelled().await;
        node.kill();
        node.kill_and_restart();
        all.cancelled().await;
        // What comes again comes first, so whatever would run twice has.
        let counts = counts.lock().unwrap();
        let twice: Vec<_> = counts.iter().filter(|(_, runs)| runs.len() > 1).collect();
        assert!(
            twice.is_empty(),
            "{} of {TASKS}: {:?}",
            twice.len(),
            twice.iter().take(5).collect::<Vec<_>>()
        );
    });
}

#[test]
fn a_message_whose_refusal_cannot_be_told_lies_among_the_dead_letters_once() {
    run(async {
        let broker = Broker::embedded();
        let (app, _) = counted();
        declare(&broker, Queue::celery("q")).await;
        declare(&broker, Queue::celery("q.dead")).await;
        let mut options = options("q");
        options.results = ResultRoute::Exchange { exchange: "gone".into(), key_prefix: "one".into() };
        send(&broker, "q", &asked("unknown")).await;
        send(&broker, "q", &asked("unheard of")).await;
        let _worker = start_with(&app, &broker, options);
        let tag = "t".to_owned();
        let dead = Consume { queue: "q.dead".to_owned(), prefetch: 0, no_ack: true, exclusive: false, tag };
        let mut dead = broker.consume(dead).await.unwrap();
        for name in ["unknown", "unheard of"] {
            let (envelope, _) = dead.next().await.unwrap().split();
            assert_eq!(TaskMessage::decode(&envelope.properties, &envelope.body).unwrap().id, name);
        }
    });
}

#[test]
fn tasks_of_a_caller_who_is_gone_hold_up_others_once() {
    run(async {
        let broker = Broker::embedded();
        let (app, count) = counted();
        declare(&broker, Queue::celery("q")).await;
        let mut answers = answers(&broker).await;
        for _ in 0..6 {
            let mut task = asked("good");
            task.reply_to = Some("gone".to_owned());
            send(&broker, "q", &task).await;
        }
        send(&broker, "q", &asked("good")).await;
        let began = Instant::now();
        let _worker = start(&app, &broker, "q");
        answer(&mut answers).await;
        // Each of the six would wait for five seconds.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(count.load(Ordering::SeqCst), 7);
    });
}

#[test]
fn a_task_with_an_eta_runs_at_that_time() {
    run(async {
        let broker = Broker::embedded();
        let (app, _) = counted();
        declare(&broker, Queue::celery("q")).await;
        let mut answers = answers(&broker).await;
        // The next step up is 6.1 s.
        let (began, delay) = (Instant::now(), Duration::from_millis(5_200));
        let mut task = asked("good");
        task.eta = Some(iso(SystemTime::now() + delay));
        send(&broker, "q", &task).await;
        let _worker = start(&app, &broker, "q");
        answer(&mut answers).await;
        let late = began.elapsed().checked_sub(delay).expect("it ran too early");
        assert!(late < Duration::from_millis(700), "{late:?} late");
    });
}

#[test]
fn a_failure_is_final_whether_its_followers_can_be_published_or_not() {
    run(async {
        let node = Node::start();
        let broker = connect(&node.url()).await;
        let (app, count) = counted();
        declare(&broker, Queue::celery("q")).await;
        declare(&broker, Queue::celery("full")).await;
        node.ctl(&["set_policy", "full", "^full$", r#"{"max-length": 0, "overflow": "reject-publish"}"#]);
        let mut answers = answers(&broker).await;
        let mut task = asked("bad");
        task.embed.errbacks = Some(vec![call("", "full")]);
        send(&broker, "q", &task).await;
        send(&broker, "q", &asked("good")).await;
        let _worker = start(&app, &broker, "q");
        assert_eq!(answer(&mut answers).await.status.as_str(), "FAILURE");
        node.ctl(&["clear_policy", "full"]);
        assert_eq!(&*answer(&mut answers).await.task_id, "good", "the failure is the only answer");
        assert_eq!(count.load(Ordering::SeqCst), 2);
    });
}
