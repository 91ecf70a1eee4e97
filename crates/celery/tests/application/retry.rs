//! Retries on both brokers: the wait holds nothing, survives the worker, and ends after the policy's last try.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{client, on_both_brokers, options, start};
use regatta_celery::transport::Broker;
use regatta_celery::{App, Context, Retry, Task, TaskError, TaskFailure, TaskOptions, Update};
use tokio::sync::Semaphore;

on_both_brokers! {
    a_failed_task_is_tried_again_until_it_succeeds
    the_last_failure_is_the_result
    a_handler_may_ask_for_its_own_delay
    a_waiting_retry_holds_no_slot_and_outlives_its_worker
}

fn quick(max: u32) -> TaskOptions {
    TaskOptions::new().retry(Retry::max(max).backoff(Duration::from_millis(10), Duration::from_millis(100)))
}

async fn a_failed_task_is_tried_again_until_it_succeeds(broker: Broker) {
    let app = App::new("test").task_with("flaky", quick(5), |context: Context, name: String| async move {
        if context.retries() < 2 {
            return Err(TaskError::failed(format!("not yet, {name}")).named("Flaky"));
        }
        Ok((name, context.retries()))
    });
    let _worker = start(&app, &broker, options("flaky")).await;
    let client = client(&broker).await;
    let mut handle =
        client.send(Task::new("flaky").arg(&"ann").queue("flaky").header("build", "abc")).await.unwrap();
    let mut states = Vec::new();
    while let Some(Update::State { state, meta, facts }) = handle.next_update().await {
        let error = meta.to::<serde_json::Value>().unwrap();
        states.push((state, error["exc_message"][0].as_str().unwrap().to_owned(), facts.retries));
    }
    let retry = |tries| ("RETRY".to_owned(), "not yet, ann".to_owned(), Some(tries));
    assert_eq!(states, [retry(0), retry(1)]);
    let result = handle.get::<(String, u32)>().await.unwrap();
    assert_eq!(result.value, ("ann".to_owned(), 2), "the arguments and the id stay the same");
    assert_eq!(result.facts.retries, Some(2));
}

async fn the_last_failure_is_the_result(broker: Broker) {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let app = App::new("test").task_with("hopeless", quick(2), move |_: Context, (): ()| {
        let count = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Err::<(), _>(TaskError::failed(format!("try {count}"))) }
    });
    let _worker = start(&app, &broker, options("hopeless")).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("hopeless").queue("hopeless")).await.unwrap();
    match handle.get::<()>().await {
        Err(TaskFailure::Remote { error, facts, .. }) => {
            assert_eq!(error.message, "try 3");
            assert_eq!(facts.retries, Some(2));
        }
        other => panic!("expected a failure, got {other:?}"),
    }
    assert_eq!(tries.load(Ordering::SeqCst), 3, "one try and two retries");
}

async fn a_handler_may_ask_for_its_own_delay(broker: Broker) {
    let app = App::new("test").task("asks", |context: Context, (): ()| async move {
        match context.retries() {
            0 => Err(TaskError::retry_in(Duration::from_millis(150), "later")),
            _ => Ok(()),
        }
    });
    let _worker = start(&app, &broker, options("asks")).await;
    let client = client(&broker).await;
    let began = Instant::now();
    client.send(Task::new("asks").queue("asks")).await.unwrap().get::<()>().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(150), "it came too early: {:?}", began.elapsed());
}

async fn a_waiting_retry_holds_no_slot_and_outlives_its_worker(broker: Broker) {
    let failed = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&failed);
    let app = App::new("test")
        .task("twice", move |context: Context, (): ()| {
            let told = Arc::clone(&told);
            async move {
                if context.retries() == 0 {
                    told.add_permits(1);
                    return Err(TaskError::retry_in(Duration::from_millis(500), "once more"));
                }
                Ok(context.worker_name().to_owned())
            }
        })
        .task("other", |_: Context, (): ()| async move { Ok::<_, TaskError>(()) });
    let first = start(&app, &broker, options("outlives").slots(1)).await;
    let client = client(&broker).await;
    let mut handle = client.send(Task::new("twice").queue("outlives")).await.unwrap();
    failed.acquire().await.unwrap().forget();
    // The only slot is free during the wait.
    client.send(Task::new("other").queue("outlives")).await.unwrap().get::<()>().await.unwrap();
    let Some(Update::State { state, .. }) = handle.next_update().await else { panic!("no state came") };
    assert_eq!(state, "RETRY");
    first.kill.cancel();
    first.end().await;
    let mut options = options("outlives");
    options.name = "second@test".to_owned();
    let _second = start(&app, &broker, options).await;
    assert_eq!(handle.get::<String>().await.unwrap().value, "second@test");
}
