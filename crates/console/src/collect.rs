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
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::args::DispatchArgs;
use crate::error::ConsoleError;
use crate::progress::Progress;
use crate::record::{Execution, Record, SCHEMA, Statistics};
use crate::show::{self, Screen};

/// How often the live view is drawn, and the broker asked for the depth of the queues.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// How often the broker is asked where there is no live view, and for how long nobody may consume a queue before it is told.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const NOBODY_SAID_AFTER: Duration = Duration::from_secs(4);

/// How many sent tasks, or depths, may wait to be noticed.
const NEWS_LIMIT: usize = 1024;

/// A task that the broker has.
struct Sent {
    task: String,
    queue: String,
    at: Timestamp,
    handle: Handle,
}

/// What came of a dispatch.
pub(crate) struct Collected {
    pub(crate) record: Record,
    /// Why not every task was sent.
    pub(crate) trouble: Option<ConsoleError>,
}

/// Sends every task and collects the results, until `stop` says that nobody waits any longer. Their lines are printed in
/// the order of the sending.
///
/// # Errors
/// When a result could not be waited for. What can't be sent is in [`Collected::trouble`]: what was sent before has
/// results.
pub(crate) async fn send_and_collect(
    app: &App,
    client: &Client,
    args: &DispatchArgs,
    screen: Option<&mut Screen>,
    stop: &CancellationToken,
) -> Result<Collected, ConsoleError> {
    let (began, started) = (Instant::now(), Timestamp::now());
    let mut board = Board::new(app, args, screen);
    let queues: BTreeSet<String> = app.names().map(|name| app.queue_of(name).to_owned()).collect();
    let live = board.is_live();
    let (_watch, mut depths) = watch(client.broker(), queues, if live { DRAW_EVERY } else { LOOK_EVERY });
    let mut nobody = Nobody::default();
    let (tell, mut sent) = mpsc::channel(NEWS_LIMIT);
    let mut sending = pin!(stop.run_until_cancelled(send(app, client, args, tell)));
    let (mut is_sending, mut trouble) = (true, None);
    let mut results = JoinSet::new();
    let mut late = Late { broker: client.broker(), app: app.name(), known: HashMap::new() };
    let mut tick = interval(DRAW_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, and what is over before the second needs no view.
    tick.tick().await;
    while is_sending || !sent.is_empty() || !results.is_empty() {
        tokio::select! {
            ended = &mut sending, if is_sending => {
                is_sending = false;
                trouble = ended.and_then(Result::err);
            }
            Some(sent) = sent.recv() => {
                let (index, left) = (board.sent(), args.timeout.saturating_sub(began.elapsed()));
                let stop = stop.clone();
                results.spawn(async move { (index, collect(sent, left, &stop).await) });
            }
            Some(ended) = results.join_next() => {
                let (index, mut done) = ended?;
                if done.state == "UNKNOWN" && done.error.is_none() {
                    late.explain(&mut done, args.timeout).await;
                }
                board.ended(index, done);
            }
            Some((queue, depth)) = depths.recv() => {
                // The live view shows it.
                if nobody.is_news(&queue, depth, began.elapsed()) && !live {
                    let app = app.name();
                    tracing::warn!(queue, "nobody consumes it; its tasks wait for {app} worker --queue {queue}");
                }
                board.progress.seen(&queue, depth);
            }
            _ = tick.tick(), if live => board.draw(began.elapsed()),
        }
    }
    let tasks: Vec<Execution> = board.tasks.into_iter().flatten().collect();
    let statistics = Statistics::of(&tasks, began.elapsed().as_secs_f64());
    let (app, broker) = (app.name().to_owned(), client.broker().url().to_string());
    let record =
        Record { schema: SCHEMA, app, broker, started, finished: Timestamp::now(), tasks, statistics };
    Ok(Collected { record, trouble })
}

/// What has ended so far, and what of it was shown.
struct Board<'a> {
    /// The tasks in the order of the sending; none where the result isn't there.
    tasks: Vec<Option<Execution>>,
    shown: usize,
    progress: Progress,
    screen: Option<&'a mut Screen>,
}

impl<'a> Board<'a> {
    fn new(app: &App, args: &DispatchArgs, screen: Option<&'a mut Screen>) -> Self {
        let mut progress = Progress::default();
        for name in app.names() {
            progress.expect(app.queue_of(name), usize::try_from(args.count).unwrap_or(usize::MAX));
        }
        Self { tasks: Vec::new(), shown: 0, progress, screen }
    }

    fn is_live(&self) -> bool {
        self.screen.as_ref().is_some_and(|screen| screen.is_live())
    }

    /// One more was sent; gives its place.
    fn sent(&mut self) -> usize {
        self.tasks.push(None);
        self.tasks.len() - 1
    }

    /// The task at this place has ended. All lines are printed whose turn has come.
    fn ended(&mut self, index: usize, done: Execution) {
        self.progress.ended(&done.queue, done.state == "SUCCESS");
        self.tasks[index] = Some(done);
        while let Some(Some(done)) = self.tasks.get(self.shown) {
            self.shown += 1;
            if let Some(screen) = self.screen.as_deref_mut() {
                screen.line(&line(done));
            }
        }
    }

    fn draw(&mut self, elapsed: Duration) {
        if let Some(screen) = self.screen.as_deref_mut() {
            screen.draw(|color| self.progress.draw(elapsed, color));
        }
    }
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
    every: Duration,
) -> (AbortOnDropHandle<()>, mpsc::Receiver<(String, QueueDepth)>) {
    let (tell, depths) = mpsc::channel(NEWS_LIMIT);
    let broker = broker.clone();
    let task = tokio::spawn(async move {
        let mut tick = interval(every);
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
    (AbortOnDropHandle::new(task), depths)
}

/// Since when nobody consumes a queue; none where that was told.
#[derive(Default)]
struct Nobody(HashMap<String, Option<Duration>>);

impl Nobody {
    /// Whether it is to be told that nobody consumes a queue on which tasks wait.
    fn is_news(&mut self, queue: &str, depth: QueueDepth, now: Duration) -> bool {
        if depth.consumers > 0 || depth.ready == 0 {
            self.0.remove(queue);
            return false;
        }
        let since = self.0.entry(queue.to_owned()).or_insert(Some(now));
        let is_news = since.is_some_and(|since| now.saturating_sub(since) >= NOBODY_SAID_AFTER);
        if is_news {
            *since = None;
        }
        is_news
    }
}

async fn collect(sent: Sent, left: Duration, stop: &CancellationToken) -> Execution {
    let Sent { task, queue, at: sent, mut handle } = sent;
    let id = handle.id().to_owned();
    let ended = stop.run_until_cancelled(handle.get_within::<serde_json::Value>(left)).await;
    let (state, facts, result, error) = match ended {
        None => {
            let error = format!("interrupted while task {id} was on queue {queue}; it may still run");
            ("UNKNOWN", Facts::default(), None, Some(error))
        }
        Some(Ok(result)) => ("SUCCESS", result.facts, Some(result.value), None),
        Some(Err(failure)) => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_nobody_consumes_a_queue_is_told_once_and_not_at_once() {
        let mut nobody = Nobody::default();
        for (seconds, ready, consumers, is_news) in [
            (0, 1, 0, false),
            (3, 1, 0, false),
            (4, 1, 0, true),
            (9, 1, 0, false),
            // Somebody came and went.
            (10, 1, 1, false),
            (11, 1, 0, false),
            (15, 1, 0, true),
            // Nothing waits.
            (16, 0, 0, false),
            (30, 0, 0, false),
        ] {
            let depth = QueueDepth { ready, consumers };
            assert_eq!(nobody.is_news("q", depth, Duration::from_secs(seconds)), is_news, "{seconds}");
        }
    }
}
