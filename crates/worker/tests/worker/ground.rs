//! A worker on an embedded broker, two small adapters, and a dispatcher's view of what comes back.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use regatta_adapters::{
    Adapter, AdapterError, Ended, Exit, Invocation, Listing, Place, Runner, TestProcess, WarmFact,
    WarmSession,
};
use regatta_celery::transport::{Broker, Exchange, Queue, Topology};
use regatta_celery::wire::{ResultMessage, State};
use regatta_celery::{Client, ClientOptions, Replies, ReplyRoute, Task, WorkerEnd};
use regatta_model::{
    BatchOrder, BatchReport, Digest, Fact, Item, Lease, OrderItem, Outcome, Output, PROTOCOL, Progress,
    RESULTS_EXCHANGE, Record, RunId, Suite, TASK_NAME, Time, Token, Unit,
};
use regatta_worker::{BaseEnv, Fence, RunError, Worked, WorkerConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here may take on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const QUEUE: &str = "tests";
pub(crate) const RUN: &str = "run-1";

/// A worker and who sends it batches.
pub(crate) struct Ground {
    pub(crate) broker: Broker,
    pub(crate) client: Client,
    pub(crate) tree: tempfile::TempDir,
    replies: Replies,
}

/// A worker at work.
pub(crate) struct Working {
    pub(crate) quiet: CancellationToken,
    pub(crate) kill: CancellationToken,
    task: JoinHandle<Result<Worked, RunError>>,
}

impl Ground {
    pub(crate) async fn new() -> Self {
        Self::on(Broker::embedded()).await
    }

    pub(crate) async fn on(broker: Broker) -> Self {
        let exchange = Topology::default().exchange(Exchange::topic(RESULTS_EXCHANGE).durable());
        broker.declare(&exchange).await.unwrap();
        let route = ReplyRoute {
            exchange: RESULTS_EXCHANGE.into(),
            queue: Queue::quorum("results", 20),
            binding_key: format!("*.{RUN}"),
            reply_to: RUN.into(),
        };
        let queue = Topology::default().queue(Queue::quorum(QUEUE, 20));
        broker.declare(&queue).await.unwrap();
        let (client, replies) = Client::with_reply(&broker, ClientOptions::default(), route).await.unwrap();
        Self { broker, client, replies, tree: tempfile::tempdir().unwrap() }
    }

    /// A tree of processes that sleeps and ignores SIGTERM, and a look at it.
    pub(crate) fn sleeper(&self) -> Sleeper {
        let fifo = self.tree.path().join("trace");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let (tell, began) = oneshot::channel();
        let dead = tokio::task::spawn_blocking(move || {
            let mut trace = std::fs::File::open(fifo).unwrap();
            trace.read_exact(&mut [0]).unwrap();
            tell.send(()).unwrap();
            trace.read_to_end(&mut Vec::new()).unwrap();
        });
        let script =
            "exec 9>trace; trap '' TERM; setsid sh -c 'echo >&9; sleep 1000; true' & sleep 1000; true";
        Sleeper { script, began, dead }
    }

    pub(crate) fn config(&self, name: &str, slots: usize) -> WorkerConfig {
        let env = BaseEnv::new(std::env::vars_os().filter(|(name, _)| name == "PATH"));
        WorkerConfig {
            ahead: None,
            own: false,
            name: name.into(),
            queues: vec![QUEUE.into()],
            tree: self.tree.path().to_owned(),
            adapters: vec![Arc::new(Scripts), Arc::new(Peer)],
            slots,
            fence: Fence { grace: Duration::from_millis(100), ..Fence::new(PATIENCE, env) },
        }
    }

    pub(crate) fn work(&self, name: &str, slots: usize) -> Working {
        self.work_as(self.config(name, slots))
    }

    /// A run's own worker: it doesn't rest when it has refused something.
    pub(crate) fn work_alone(&self, name: &str, slots: usize) -> Working {
        self.work_as(WorkerConfig { own: true, ..self.config(name, slots) })
    }

    pub(crate) fn work_as(&self, config: WorkerConfig) -> Working {
        let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
        let broker = self.broker.clone();
        let tokens = (quiet.clone(), kill.clone());
        let work = async move { regatta_worker::run(&broker, config, tokens.0, tokens.1).await };
        Working { quiet, kill, task: tokio::spawn(work) }
    }

    pub(crate) async fn send(&self, order: &serde_json::Value) -> String {
        self.client.post(Task::new(TASK_NAME).queue(QUEUE).kwarg("order", order)).await.unwrap()
    }

    /// Takes away the queue of the run's results, as a run does at its end.
    pub(crate) async fn end_run(&self) {
        self.replies.cancel();
        self.broker.delete_queue("results").await.unwrap();
    }

    /// Whether nothing waits for a worker.
    pub(crate) async fn is_idle(&self) -> bool {
        self.broker.declare_passive(QUEUE).await.unwrap().ready == 0
    }

    /// The next message about any batch.
    pub(crate) async fn next(&mut self) -> ResultMessage {
        let reply =
            tokio::time::timeout(PATIENCE, self.replies.next()).await.expect("something comes").unwrap();
        assert_eq!(reply.routing_key.split_once('.').unwrap().1, RUN);
        let message = reply.message.as_ref().unwrap().clone();
        reply.accept().await.unwrap();
        message
    }

    /// Runs a batch to its end: all its facts, and its report.
    pub(crate) async fn batch(&mut self, order: &serde_json::Value) -> (Vec<Fact>, BatchReport) {
        let id = self.send(order).await;
        self.follow(&id).await
    }

    pub(crate) async fn follow(&mut self, id: &str) -> (Vec<Fact>, BatchReport) {
        let mut facts = Vec::new();
        loop {
            let message = self.next().await;
            assert_eq!(message.task_id, id);
            match message.status {
                State::Success => return (facts, message.result.to().unwrap()),
                State::Custom(state) if state == regatta_worker::PROGRESS => {
                    let progress: Progress = message.result.to().unwrap();
                    facts.extend(progress.facts);
                }
                other => panic!("{other:?}: {}", message.result.as_str()),
            }
        }
    }
}

impl Working {
    pub(crate) async fn end(self) -> WorkerEnd {
        self.worked().await.end
    }

    pub(crate) async fn worked(self) -> Worked {
        tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").unwrap().unwrap()
    }
}

/// See [`Ground::sleeper`].
pub(crate) struct Sleeper {
    pub(crate) script: &'static str,
    began: oneshot::Receiver<()>,
    dead: JoinHandle<()>,
}

impl Sleeper {
    /// Waits until all of it has begun.
    pub(crate) async fn await_begin(&mut self) {
        tokio::time::timeout(PATIENCE, &mut self.began).await.expect("it begins").unwrap();
    }

    /// Waits until nothing of it is alive.
    pub(crate) async fn await_end(self) {
        tokio::time::timeout(PATIENCE, self.dead).await.expect("all of it dies").unwrap();
    }
}

/// An order for tests (`t…`) and units (`u…`), with their place as token.
pub(crate) fn order(suite: &str, items: &[&str]) -> serde_json::Value {
    let item = |(token, name): (u64, &&str)| OrderItem {
        token: Token(token),
        attempt: 1,
        item: if name.starts_with("u ") { Item::Unit((*name).into()) } else { Item::Test((*name).into()) },
    };
    let order = BatchOrder {
        protocol: PROTOCOL,
        run: RunId(RUN.into()),
        lease: Lease(7),
        sent: now(),
        suite: suite.into(),
        prepared: None,
        test_timeout_ms: 10_000,
        beat_ms: 1_000,
        items: (0..).zip(items).map(item).collect(),
    };
    serde_json::to_value(order).unwrap()
}

pub(crate) fn now() -> Time {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    Time::default().after(now.unwrap())
}

/// Facts in a line each: `started t`, `passed t`, …
pub(crate) fn say(facts: &[Fact]) -> Vec<String> {
    let said = facts.iter().map(|fact| match fact {
        Fact::Collected { unit, tests } => format!("collected {unit}: {}", tests.join(", ")),
        Fact::Started { test, .. } => format!("started {test}"),
        Fact::Finished { test, record, .. } => {
            format!("{} {test}", format!("{:?}", record.outcome).to_lowercase())
        }
        Fact::UnitFinished { unit } => format!("done {unit}"),
    });
    said.collect()
}

fn record(outcome: Outcome, ended: &Ended) -> Record {
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let output = Output { text, bytes_omitted: ended.bytes_omitted };
    let duration_us = u64::try_from(ended.duration.as_micros()).unwrap();
    Record { output, ..Record::new(outcome, ended.started, duration_us) }
}

fn outcome(exit: Exit) -> Outcome {
    match exit {
        Exit::Code(0) => Outcome::Passed,
        Exit::Code(_) => Outcome::Failed,
        Exit::Signal(_) | Exit::Cancelled => Outcome::Crashed,
        Exit::TimedOut { .. } => Outcome::TimedOut,
    }
}

fn shell(tree: &Path, script: &str) -> Invocation {
    let args = ["-c", script].map(str::to_owned).into();
    let (env, env_defaults, stdin) = (Vec::new(), Vec::new(), Vec::new());
    Invocation { program: "sh".into(), args, cwd: tree.into(), env, env_defaults, stdin }
}

/// Each test is its own script.
struct Scripts;

impl Adapter for Scripts {
    fn suite(&self) -> Suite {
        Suite { name: "scripts".into(), adapter: "scripts".into() }
    }

    fn list(&self) -> Box<dyn Listing> {
        unimplemented!("workers don't list")
    }

    fn unit_digest(&self, _: &Unit) -> Option<Digest> {
        None
    }

    fn runner(&self, place: Place<'_>, prepared: Option<&Digest>) -> Result<Runner, AdapterError> {
        match prepared {
            Some(digest) => Err(AdapterError::NotPrepared(format!("no manifest {digest}"))),
            None => Ok(Runner::Each(Box::new(Script(place.tree.into())))),
        }
    }
}

struct Script(std::path::PathBuf);

impl TestProcess for Script {
    fn invocation(&self, test: &str) -> Result<Invocation, AdapterError> {
        match test {
            "no such test" => Err(AdapterError::NotPrepared(format!("{test}!"))),
            "no such program" => Ok(Invocation { program: "no-such-program".into(), ..shell(&self.0, "") }),
            "panic" => panic!("the adapter's own fault"),
            script => Ok(shell(&self.0, script)),
        }
    }

    fn known(&self, test: &str, now: Time) -> Option<Record> {
        (test == "ignored").then(|| Record::new(Outcome::Skipped, now, 0))
    }

    fn judge(&self, _: &str, ended: &Ended) -> Record {
        record(outcome(ended.exit), ended)
    }
}

/// A warm process whose tests are scripts that it evaluates itself; `u a|b` is a unit of the tests `a` and `b`. It says
/// its process number as the first line of each test's output.
struct Peer;

/// Requests are items, one a tab; records have a tab between their fields.
const PEER: &str = r#"
    say() { printf '%s\t' "$@" >&"$REGATTA_RECORD_FD"; echo >&"$REGATTA_RECORD_FD"; }
    t() { say started "$1"; eval "$1"; say finished "$1" $?; }
    IFS='	'
    echo $$ >> begun
    [ -e broken ] && { echo no module >&2; exit 1; }
    say ready
    while read -r line <&"$REGATTA_REQUEST_FD"; do
        for item in $line; do
            case "$item" in
                "u "*)
                    names=${item#u }
                    case "$names" in crash*) kill -9 $$;; esac
                    IFS='|'
                    set -- $names
                    IFS='	'
                    say collected "$item" "$@"
                    for name in "$@"; do t "$name"; done
                    say unit "$item";;
                *) t "$item";;
            esac
        done
        say done
    done
    [ -e stuck ] && { echo would not go; say torn "the database is stuck"; exit 1; }
    say torn"#;

impl Adapter for Peer {
    fn suite(&self) -> Suite {
        Suite { name: "peer".into(), adapter: "peer".into() }
    }

    fn list(&self) -> Box<dyn Listing> {
        unimplemented!("workers don't list")
    }

    fn unit_digest(&self, _: &Unit) -> Option<Digest> {
        None
    }

    fn starts_ahead(&self) -> bool {
        true
    }

    fn runner(&self, place: Place<'_>, _: Option<&Digest>) -> Result<Runner, AdapterError> {
        Ok(Runner::Warm(Box::new(Warm(place.tree.into()))))
    }
}

struct Warm(std::path::PathBuf);

impl WarmSession for Warm {
    fn invocation(&self) -> Invocation {
        shell(&self.0, PEER)
    }

    fn request(&self, items: &[Item]) -> Vec<u8> {
        let names = items.iter().map(|item| match item {
            Item::Test(name) | Item::Unit(name) => name.as_str(),
        });
        names.collect::<Vec<_>>().join("\t").into()
    }

    fn record(&mut self, line: &[u8]) -> Result<Vec<WarmFact>, AdapterError> {
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.trim_end_matches('\t').split('\t').collect();
        let name = words.get(1).map(|&name| name.to_owned()).unwrap_or_default();
        Ok(vec![match words[0] {
            "ready" => WarmFact::Ready,
            "collected" => WarmFact::Collected {
                unit: name,
                tests: words[2..].iter().map(|&word| word.into()).collect(),
            },
            "started" => WarmFact::Started { test: name },
            "finished" => {
                let outcome = if words[2] == "0" { Outcome::Passed } else { Outcome::Failed };
                let record = Record::new(outcome, Time(1), 1);
                WarmFact::Finished { test: name, record }
            }
            "unit" => WarmFact::UnitFinished { unit: name },
            "done" => WarmFact::RequestDone,
            "torn" => WarmFact::TornDown { error: (!name.is_empty()).then_some(name) },
            other => return Err(AdapterError::NotPrepared(format!("{other:?} is no record"))),
        }])
    }

    fn crashed(&self, _: &str, ended: &Ended) -> Record {
        let outcome = match outcome(ended.exit) {
            Outcome::TimedOut => Outcome::TimedOut,
            _ => Outcome::Crashed,
        };
        record(outcome, ended)
    }
}
