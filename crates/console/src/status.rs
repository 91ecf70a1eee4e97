//! `status`: whether broker, queues and workers are well, and what to do if not. docs/status.md describes it.

use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use regatta_celery::transport::{PublishError, QueueDepth};
use regatta_celery::{
    Answer, Broker, BrokerUrl, Client, ClientError, ClientOptions, ConnectOptions, Inspect,
};
use serde::Serialize;

use crate::args::seconds;
use crate::show::{self, Screen};

/// The version of the form of `status --format json`.
pub const STATUS_SCHEMA: u32 = 2;

/// How long workers that are named have to answer; all of them are waited for no longer than they take.
const NAMED_TIMEOUT: Duration = Duration::from_secs(5);

/// How long workers have to answer when nobody says how many there should be: Celery's own time.
const ANYBODY_TIMEOUT: Duration = Duration::from_secs(1);

/// What to look at: the arguments that every binary's `status` has.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct StatusArgs {
    /// A queue that must be there and have a consumer; again, or after a comma, for each.
    #[arg(short = 'Q', long = "queue", alias = "queues", value_name = "QUEUE", value_delimiter = ',')]
    pub queues: Vec<String>,
    /// A worker that must be there, as NAME (on any host) or NAME@HOST, and the queue that it must consume; again for
    /// each.
    #[arg(long = "worker", value_name = "WORKER[=QUEUE]")]
    pub workers: Vec<Expected>,
    /// Don't ask the workers, which takes more rights than a worker's own broker user has: the consumers of their queues
    /// decide.
    #[arg(long)]
    pub no_ask: bool,
    /// How long to wait for the workers' answers, in seconds [default: 5, or 1 when no worker is named].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

/// A worker that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its name, with its host or for any host.
    pub worker: String,
    /// The queue that it must consume, if that matters.
    pub queue: Option<String>,
}

impl FromStr for Expected {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (worker, queue) = match text.split_once('=') {
            Some((worker, queue)) => (worker, Some(queue)),
            None => (text, None),
        };
        if worker.is_empty() || queue == Some("") {
            return Err("write WORKER or WORKER=QUEUE, such as worker-a=queue_a".to_owned());
        }
        Ok(Self { worker: worker.to_owned(), queue: queue.map(str::to_owned) })
    }
}

/// How everything is. Serialized, it is what `status --format json` prints.
#[derive(Debug, Serialize)]
pub struct Status {
    schema: u32,
    ok: bool,
    broker: String,
    latency_s: Option<f64>,
    queues: Vec<QueueLine>,
    asked: bool,
    workers: Vec<WorkerLine>,
    notes: Vec<String>,
    advice: Vec<String>,
}

#[derive(Debug, Serialize)]
struct QueueLine {
    queue: String,
    ready: Option<u32>,
    consumers: Option<u32>,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct WorkerLine {
    worker: String,
    /// Unknown when it wasn't asked.
    alive: Option<bool>,
    queues: Vec<String>,
    ok: bool,
}

/// Looks. `start` is the command that starts a worker on the queue whose name follows it, for advice.
pub async fn status(url: &BrokerUrl, connect: ConnectOptions, args: &StatusArgs, start: &str) -> Status {
    let mut status = Status {
        schema: STATUS_SCHEMA,
        ok: false,
        broker: url.to_string(),
        latency_s: None,
        queues: Vec::new(),
        asked: false,
        workers: Vec::new(),
        notes: Vec::new(),
        advice: Vec::new(),
    };
    match Broker::connect(url, connect).await {
        Ok(broker) => {
            let start = |queue: &str| format!("{start} {queue} --broker {url}");
            status.look_at_queues(&broker, args, &start).await;
            status.look_at_workers(&broker, args, &start).await;
            if status.latency_s.is_none() {
                // No queue was to be looked at. That there is none of this name is an answer too.
                let began = Instant::now();
                let _answer = broker.declare_passive("regatta").await;
                status.latency_s = Some(began.elapsed().as_secs_f64());
            }
            broker.close().await;
        }
        Err(error) => status.advice.push(error.to_string()),
    }
    status.ok = status.advice.is_empty();
    status
}

impl Status {
    /// Whether all is well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// Prints it to the standard output: as JSON, or as tables, in colours or not.
    ///
    /// # Errors
    /// When the standard output can't be written. A reader that went away is no error.
    pub fn print(&self, json: bool, color: bool) -> io::Result<()> {
        let mut screen = Screen::new(color);
        if json {
            screen.line(&serde_json::to_string(self)?);
        } else {
            self.tables(&mut screen);
        }
        screen.finish()
    }

    async fn look_at_queues(&mut self, broker: &Broker, args: &StatusArgs, start: &impl Fn(&str) -> String) {
        let expected = args.workers.iter().filter_map(|expected| expected.queue.as_ref());
        for queue in args.queues.iter().chain(expected) {
            if self.queues.iter().any(|line| line.queue == *queue) {
                continue;
            }
            let began = Instant::now();
            let seen = broker.declare_passive(queue).await;
            self.latency_s.get_or_insert(began.elapsed().as_secs_f64());
            match &seen {
                Ok(QueueDepth { consumers: 0, .. }) => {
                    self.advice.push(format!("nobody consumes {queue}; start a worker: {}", start(queue)));
                }
                Ok(_) => {}
                Err(error) if error.is_no_queue() => self.advice.push(format!(
                    "queue {queue} is not there; it comes with its first worker: {}",
                    start(queue)
                )),
                Err(error) => self.advice.push(error.to_string()),
            }
            let (ready, consumers) = match seen {
                Ok(depth) => (Some(depth.ready), Some(depth.consumers)),
                Err(_) => (None, None),
            };
            let ok = consumers.is_some_and(|count| count > 0);
            self.queues.push(QueueLine { queue: queue.clone(), ready, consumers, ok });
        }
    }

    async fn look_at_workers(&mut self, broker: &Broker, args: &StatusArgs, start: &impl Fn(&str) -> String) {
        let answers = if args.no_ask { Ok(None) } else { ask(broker, args).await };
        match answers {
            Ok(Some(answers)) => {
                self.asked = true;
                self.judge(&args.workers, &answers, start);
            }
            Ok(None) => {
                let why = if args.no_ask { "as you wish" } else { "the broker's user may not ask them" };
                self.notes.push(format!(
                    "the workers were not asked ({why}); the consumers of their queues decide"
                ));
                self.take_consumers_for_workers(&args.workers);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                self.advice.push(format!("the workers can't be asked: {error}{}", cause.unwrap_or_default()));
            }
        }
    }

    fn judge(&mut self, expected: &[Expected], answers: &[Answer], start: &impl Fn(&str) -> String) {
        for Expected { worker, queue } in expected {
            let mut found = answers.iter().filter(|answer| answer.is_of(worker)).peekable();
            if found.peek().is_none() {
                self.advice.push(format!("worker {worker} doesn't answer; look at its log, or start it"));
                let worker = worker.clone();
                self.workers.push(WorkerLine { worker, alive: Some(false), queues: Vec::new(), ok: false });
            }
            for answer in found {
                let queues = consumed(answer);
                let ok = queue.as_ref().is_none_or(|queue| queues.contains(queue));
                if let (false, Some(queue)) = (ok, queue) {
                    self.advice.push(format!(
                        "worker {} doesn't consume {queue}; start it anew: {}",
                        answer.node,
                        start(queue)
                    ));
                }
                self.workers.push(WorkerLine { worker: answer.node.clone(), alive: Some(true), queues, ok });
            }
        }
        if expected.is_empty() {
            self.workers.extend(answers.iter().map(|answer| WorkerLine {
                worker: answer.node.clone(),
                alive: Some(true),
                queues: consumed(answer),
                ok: true,
            }));
        }
    }

    fn take_consumers_for_workers(&mut self, expected: &[Expected]) {
        for Expected { worker, queue } in expected {
            let consumed = |queue| self.queues.iter().any(|line| Some(&line.queue) == queue && line.ok);
            let ok = consumed(queue.as_ref());
            if queue.is_none() {
                self.advice.push(format!(
                    "whether worker {worker} is there can't be told; name its queue (--worker {worker}=QUEUE), or ask \
                     with a broker user that may use remote control"
                ));
            }
            self.workers.push(WorkerLine { worker: worker.clone(), alive: None, queues: Vec::new(), ok });
        }
    }

    fn tables(&self, screen: &mut Screen) {
        let word = |ok: bool| if ok { "ok" } else { "bad" }.to_owned();
        let number = |count: Option<u32>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        match self.latency_s {
            Some(latency) => {
                screen.line(&format!("broker {} answers in {}", self.broker, show::time(Some(latency))));
            }
            None => screen.line(&format!("broker {} can't be used", self.broker)),
        }
        if !self.queues.is_empty() {
            let rows = self.queues.iter().map(|line| {
                vec![line.queue.clone(), number(line.ready), number(line.consumers), word(line.ok)]
            });
            screen.table(&["queue", "ready", "consumers", "state"], rows.collect());
        }
        if !self.workers.is_empty() {
            let alive = |alive| match alive {
                Some(true) => "yes",
                Some(false) => "no",
                None => "not asked",
            };
            let rows = self.workers.iter().map(|line| {
                vec![line.worker.clone(), alive(line.alive).to_owned(), line.queues.join(", "), word(line.ok)]
            });
            screen.table(&["worker", "alive", "queues", "state"], rows.collect());
        }
        for note in &self.notes {
            screen.line(&format!("note: {note}"));
        }
        for advice in &self.advice {
            screen.line(&format!("! {advice}"));
        }
    }
}

/// What the workers say; nothing when the user may not ask.
async fn ask(broker: &Broker, args: &StatusArgs) -> Result<Option<Vec<Answer>>, ClientError> {
    let names: Vec<String> = args.workers.iter().map(|expected| expected.worker.clone()).collect();
    let usual = if names.is_empty() { ANYBODY_TIMEOUT } else { NAMED_TIMEOUT };
    let asked = match Client::new(broker, ClientOptions::default()).await {
        Ok(client) => client.inspect(Inspect::ActiveQueues, &names, args.timeout.unwrap_or(usual)).await,
        Err(error) => Err(error),
    };
    match asked {
        Err(error) if is_refusal(&error) => Ok(None),
        other => other.map(Some),
    }
}

/// Whether the user lacks a right.
fn is_refusal(error: &ClientError) -> bool {
    match error {
        ClientError::Transport { source, .. }
        | ClientError::Publish { source: PublishError::Transport(source), .. } => source.is_access_refused(),
        _ => false,
    }
}

fn consumed(answer: &Answer) -> Vec<String> {
    let queues = answer.value.as_array().into_iter().flatten();
    queues.filter_map(|queue| queue["name"].as_str().map(str::to_owned)).collect()
}
