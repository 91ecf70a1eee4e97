//! `dispatch`: every task out, every result in, shown and recorded.

use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use regatta_celery::{
    App, Broker, Client, ClientOptions, Facts, Handle, TaskFailure, WorkerEnd, WorkerError, WorkerOptions,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Crew;
use crate::args::{Color, DispatchArgs, Format};
use crate::error::ConsoleError;
use crate::record::{Execution, Record, SCHEMA, Statistics};
use crate::show::{self, Screen};

pub(crate) async fn run(
    app: &App,
    crew: &[Crew],
    args: &DispatchArgs,
    color: Color,
) -> Result<bool, ConsoleError> {
    let human = args.format == Format::Human;
    let mut screen = Screen::new(color);
    let broker = args.broker.connect(app.name()).await?;
    let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
    let mut workers = if broker.url().is_embedded() {
        embark(app, crew, &broker, args.slots, &quiet, &kill)
    } else {
        JoinSet::new()
    };
    let client = Client::new(&broker, ClientOptions::default()).await?;
    if human {
        screen.line("Dispatching tasks...")?;
    }
    let record = send_and_collect(app, &client, args, human.then_some(&mut screen)).await?;
    quiet.cancel();
    if record.tasks.iter().any(|task| task.state == "UNKNOWN") {
        // What didn't end in time isn't waited for.
        kill.cancel();
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    drop(client);
    broker.close().await;
    let path = record.write(&args.results)?;
    if human {
        summary(&mut screen, &record)?;
        screen.line(&format!("Record: {}", path.display()))?;
    } else {
        screen.line(&serde_json::to_string(&record)?)?;
    }
    Ok(record.statistics.succeeded == record.statistics.tasks)
}

/// Starts the workers inside this process.
fn embark(
    app: &App,
    crew: &[Crew],
    broker: &Broker,
    slots: usize,
    quiet: &CancellationToken,
    kill: &CancellationToken,
) -> JoinSet<Result<WorkerEnd, WorkerError>> {
    let mut workers = JoinSet::new();
    for one in crew {
        let worker = app.worker(broker, WorkerOptions::new(one.worker, [one.queue]).slots(slots));
        workers.spawn(worker.run(quiet.clone(), kill.clone()));
    }
    workers
}

async fn send_and_collect(
    app: &App,
    client: &Client,
    args: &DispatchArgs,
    mut screen: Option<&mut Screen>,
) -> Result<Record, ConsoleError> {
    let (began, started) = (Instant::now(), Timestamp::now());
    let mut sent = Vec::new();
    for _ in 0..args.count {
        for name in app.names() {
            let task = app.call(name).kwarg("wait", &args.wait.as_secs_f64());
            let at = Timestamp::now();
            sent.push((name.to_owned(), at, client.send(task).await?));
        }
    }
    let mut tasks = Vec::new();
    for (name, at, handle) in sent {
        let left = args.timeout.saturating_sub(began.elapsed());
        let queue = app.queue_of(&name).to_owned();
        let done = collect(name, queue, at, handle, left).await;
        if let Some(screen) = screen.as_deref_mut() {
            screen.line(&line(&done))?;
        }
        tasks.push(done);
    }
    let statistics = Statistics::of(&tasks, began.elapsed().as_secs_f64());
    let (app, broker) = (app.name().to_owned(), client.broker().url().to_string());
    Ok(Record { schema: SCHEMA, app, broker, started, finished: Timestamp::now(), tasks, statistics })
}

async fn collect(
    task: String,
    queue: String,
    sent: Timestamp,
    mut handle: Handle,
    left: std::time::Duration,
) -> Execution {
    let id = handle.id().to_owned();
    let (state, facts, result, error) = match handle.get_within::<serde_json::Value>(left).await {
        Ok(result) => ("SUCCESS", result.facts, Some(result.value), None),
        Err(failure) => {
            let error = Some(failure.to_string());
            match failure {
                TaskFailure::Remote { facts, .. } => ("FAILURE", *facts, None, error),
                TaskFailure::Revoked { .. } => ("REVOKED", Facts::default(), None, error),
                _ => ("UNKNOWN", Facts::default(), None, error),
            }
        }
    };
    let stamp = |time: Option<SystemTime>| time.and_then(|time| Timestamp::try_from(time).ok());
    let (started, finished) = (stamp(facts.started), stamp(facts.finished));
    Execution {
        id,
        task,
        queue,
        attempts: facts.retries.map(|retries| retries.saturating_add(1)),
        sent,
        started,
        finished,
        wait_s: started.map(|started| started.duration_since(sent).as_secs_f64().max(0.0)),
        run_s: facts.run_time().map(|time| time.as_secs_f64()),
        worker: facts.worker,
        state,
        result,
        error,
    }
}

fn line(done: &Execution) -> String {
    match (&done.result, &done.error) {
        (Some(serde_json::Value::String(text)), _) => format!("Result from {}: {text}", done.task),
        (Some(value), _) => format!("Result from {}: {value}", done.task),
        (None, error) => format!("No result from {}: {}", done.task, error.as_deref().unwrap_or("unknown")),
    }
}

fn summary(screen: &mut Screen, record: &Record) -> Result<(), ConsoleError> {
    let rows = record.tasks.iter().map(|task| {
        vec![
            task.task.clone(),
            task.queue.clone(),
            task.worker.clone().unwrap_or_else(|| "-".to_owned()),
            task.attempts.map_or_else(|| "-".to_owned(), |attempts| attempts.to_string()),
            show::time(task.wait_s),
            show::time(task.run_s),
            task.state.to_owned(),
        ]
    });
    screen.line("")?;
    screen.table(&["task", "queue", "worker", "attempts", "wait", "run time", "state"], rows.collect())?;
    let numbers = &record.statistics;
    screen.line("")?;
    screen.line(&format!("{} of {} tasks succeeded", numbers.succeeded, numbers.tasks))?;
    screen.line(&format!(
        "wall time {}, sum of run times {}, speed-up {:.2}, {:.1} tasks/s, run time p50 {}, p95 {}",
        show::time(Some(numbers.wall_s)),
        show::time(Some(numbers.run_sum_s)),
        numbers.speed_up,
        numbers.throughput,
        show::time(numbers.run_p50_s),
        show::time(numbers.run_p95_s),
    ))
}
