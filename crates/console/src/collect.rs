//! Tasks out, results in: sends while the first results come, and shows how far it is.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use regatta_celery::transport::QueueDepth;
use regatta_celery::{App, Broker, Client, Facts, Handle, TaskFailure};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::args::DispatchArgs;
use crate::error::ConsoleError;
use crate::progress::Progress;
use crate::record::{Execution, Record, SCHEMA, Statistics};
use crate::show::{self, Screen};

/// How often the live view is drawn, and the broker asked for the depth of the queues.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// How many sent tasks, or depths, may wait to be noticed.
const NEWS_LIMIT: usize = 1024;

/// A task that the broker has.
struct Sent {
    task: String,
    queue: String,
    at: Timestamp,
    handle: Handle,
}

/// Sends every task and collects the results; their lines are printed in the order of the sending.
pub(crate) async fn send_and_collect(
    app: &App,
    client: &Client,
    args: &DispatchArgs,
    mut screen: Option<&mut Screen>,
) -> Result<Record, ConsoleError> {
    let (began, started) = (Instant::now(), Timestamp::now());
    let mut progress = Progress::default();
    for name in app.names() {
        progress.expect(app.queue_of(name), usize::try_from(args.count).unwrap_or(usize::MAX));
    }
    let live = screen.as_ref().is_some_and(|screen| screen.is_live());
    let queues: BTreeSet<String> = app.names().map(|name| app.queue_of(name).to_owned()).collect();
    let (_watch, mut depths) = if live { watch(client.broker(), queues) } else { (None, mpsc::channel(1).1) };
    let (tell, mut sent) = mpsc::channel(NEWS_LIMIT);
    let mut sending = pin!(send(app, client, args, tell));
    let mut is_sending = true;
    let mut results = JoinSet::new();
    let mut tasks: Vec<Option<Execution>> = Vec::new();
    let (mut shown, mut late) = (0, Late { broker: client.broker(), app: app.name(), known: HashMap::new() });
    let mut tick = interval(DRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, and what is over within the second needs no view.
    tick.tick().await;
    loop {
        tokio::select! {
            ended = &mut sending, if is_sending => {
                ended?;
                is_sending = false;
            }
            Some(sent) = sent.recv() => {
                let (index, left) = (tasks.len(), args.timeout.saturating_sub(began.elapsed()));
                tasks.push(None);
                results.spawn(async move { (index, collect(sent, left).await) });
            }
            Some(ended) = results.join_next() => {
                let (index, mut done) = ended?;
                if done.state == "UNKNOWN" && done.error.is_none() {
                    late.explain(&mut done, args.timeout).await;
                }
                progress.ended(&done.queue, done.state == "SUCCESS");
                tasks[index] = Some(done);
            }
            Some((queue, depth)) = depths.recv() => progress.seen(&queue, depth),
            _ = tick.tick(), if live => {
                if let Some(screen) = screen.as_deref_mut() {
                    screen.draw(|color| progress.draw(began.elapsed(), color));
                }
            }
            else => break,
        }
        while let Some(Some(done)) = tasks.get(shown) {
            shown += 1;
            if let Some(screen) = screen.as_deref_mut() {
                screen.line(&line(done));
            }
        }
        if !is_sending && sent.is_empty() && results.is_empty() {
            break;
        }
    }
    let tasks: Vec<Execution> = tasks.into_iter().flatten().collect();
    let statistics = Statistics::of(&tasks, began.elapsed().as_secs_f64());
    let (app, broker) = (app.name().to_owned(), client.broker().url().to_string());
    Ok(Record { schema: SCHEMA, app, broker, started, finished: Timestamp::now(), tasks, statistics })
}

async fn send(
    app: &App,
    client: &Client,
    args: &DispatchArgs,
    tell: mpsc::Sender<Sent>,
) -> Result<(), ConsoleError> {
    for _ in 0..args.count {
        for name in app.names() {
            let task = app.call(name).kwarg("wait", &args.wait.as_secs_f64());
            let at = Timestamp::now();
            let handle = client.send(task).await?;
            let (task, queue) = (name.to_owned(), app.queue_of(name).to_owned());
            // Its reader lives as long as this future.
            let _told = tell.send(Sent { task, queue, at, handle }).await;
        }
    }
    Ok(())
}

/// Asks for the queues' depths again and again, until its handle is dropped.
fn watch(
    broker: &Broker,
    queues: BTreeSet<String>,
) -> (Option<AbortOnDropHandle<()>>, mpsc::Receiver<(String, QueueDepth)>) {
    let (tell, depths) = mpsc::channel(NEWS_LIMIT);
    let broker = broker.clone();
    let task = tokio::spawn(async move {
        let mut tick = interval(DRAW_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for queue in &queues {
                // A queue that isn't there yet, or a broker that is gone for a moment: the next tick asks again.
                if let Ok(depth) = broker.declare_passive(queue).await
                    && tell.send((queue.clone(), depth)).await.is_err()
                {
                    return;
                }
            }
        }
    });
    (Some(AbortOnDropHandle::new(task)), depths)
}

async fn collect(sent: Sent, left: Duration) -> Execution {
    let Sent { task, queue, at: sent, mut handle } = sent;
    let id = handle.id().to_owned();
    let (state, facts, result, error) = match handle.get_within::<serde_json::Value>(left).await {
        Ok(result) => ("SUCCESS", result.facts, Some(result.value), None),
        Err(failure) => {
            let error = Some(failure.to_string());
            match failure {
                // What to do then takes a look at the queue.
                TaskFailure::Timeout { .. } => ("UNKNOWN", Facts::default(), None, None),
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

/// Says of tasks without a result what to do. Each queue is looked at once, however many of its tasks are late.
struct Late<'a> {
    broker: &'a Broker,
    app: &'a str,
    known: HashMap<String, String>,
}

impl Late<'_> {
    async fn explain(&mut self, task: &mut Execution, timeout: Duration) {
        let queue = &task.queue;
        if !self.known.contains_key(queue) {
            let advice = match self.broker.declare_passive(queue).await {
                Ok(QueueDepth { consumers: 0, .. }) => format!(
                    "nobody consumes it; it runs when a worker comes: {} worker --queue {queue} --broker URL",
                    self.app
                ),
                Ok(QueueDepth { consumers, ready }) => format!(
                    "it is at work or waits its turn (consumers of the queue: {consumers}, waiting tasks: {ready}); \
                     look at the worker's log, or give more time: --timeout SECONDS"
                ),
                Err(error) => error.to_string(),
            };
            self.known.insert(queue.clone(), advice);
        }
        let advice = self.known.get(queue).map_or("", String::as_str);
        let within = show::time(Some(timeout.as_secs_f64()));
        task.error =
            Some(format!("nothing came of task {} on queue {queue} within {within}; {advice}", task.id));
    }
}

fn line(done: &Execution) -> String {
    match (&done.result, &done.error) {
        (Some(serde_json::Value::String(text)), _) => format!("Result from {}: {text}", done.task),
        (Some(value), _) => format!("Result from {}: {value}", done.task),
        (None, error) => format!("No result from {}: {}", done.task, error.as_deref().unwrap_or("unknown")),
    }
}
