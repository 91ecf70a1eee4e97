//! A whole run over a broker, with workers that are scripted: what a worker's sandboxes do is another crate's concern.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use regatta_celery::transport::{Broker, BrokerUrl, ConnectOptions};
use regatta_celery::{App, Context, Prefetch, ResultRoute, TaskError, UpdateError, WorkerOptions};
use regatta_dispatch::{Input, Ledger, run};
use regatta_model::{
    BatchEnd, BatchOrder, BatchReport, Fact, Fault, FaultKind, Item, Knowledge, Listed, OrderItem, Outcome,
    Policy, Progress, REFUSED, RESULTS_EXCHANGE, Record, RunEvent, RunOrder, RunRecord, Stamped, Suite,
    SuiteOrder, TASK_NAME, TestId, Time, Units, WorkerName,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Arguments {
    order: BatchOrder,
}

/// A worker that reports every test: names with `bad` fail at their first attempt.
fn app() -> App {
    App::new("scripted").task(TASK_NAME, |context: Context, Arguments { order }: Arguments| async move {
        let worker = context.worker_name().into();
        let mut facts = Vec::new();
        for item in &order.items {
            let Item::Test(name) = &item.item else { continue };
            let failed = name.contains("bad") && item.attempt == 1;
            let outcome = if failed { Outcome::Failed } else { Outcome::Passed };
            let record = Record::new(outcome, Time(1), 1);
            facts.push(Fact::Finished { test: name.clone(), token: item.token, record });
        }
        if context.redelivered() {
            return Ok::<_, TaskError>(BatchReport { lease: order.lease, worker, end: BatchEnd::Returned });
        }
        context.update_state("PROGRESS", &Progress { lease: order.lease, worker, facts }).await?;
        let worker = context.worker_name().into();
        Ok(BatchReport { lease: order.lease, worker, end: BatchEnd::Done })
    })
}

/// The hour of a worker that falls silent: each of its moments comes once.
#[derive(Clone, Default)]
struct Silence {
    taken: Arc<AtomicBool>,
    given_up: CancellationToken,
    told_late: CancellationToken,
}

/// Workers of which the one with the first batch says nothing until the run has given it up, and then that all of it
/// failed. The others say that they live, until that was said, and then that all of theirs passed.
fn app_with(silence: Silence) -> App {
    App::new("scripted").task(TASK_NAME, move |context: Context, Arguments { order }: Arguments| {
        let silence = silence.clone();
        async move {
            let worker = WorkerName::from(context.worker_name());
            let tell = move |context: Context, outcome: Option<Outcome>| {
                let finished = |item: &OrderItem, outcome| {
                    let Item::Test(test) = item.item.clone() else { unreachable!("tests alone were listed") };
                    Fact::Finished { test, token: item.token, record: Record::new(outcome, Time(1), 1) }
                };
                let facts =
                    outcome.map(|outcome| order.items.iter().map(move |item| finished(item, outcome)));
                let facts = facts.into_iter().flatten().collect();
                let progress = Progress { lease: order.lease, worker: worker.clone(), facts };
                let end = BatchReport { lease: order.lease, worker: worker.clone(), end: BatchEnd::Done };
                async move { context.update_state("PROGRESS", &progress).await.map(|()| end) }
            };
            if !silence.taken.swap(true, Ordering::SeqCst) {
                // Whoever gives it up revokes it too; a frozen one doesn't hear that.
                let late = tokio::spawn(async move {
                    tell(context.clone(), None).await.unwrap();
                    silence.given_up.cancelled().await;
                    let end = tell(context, Some(Outcome::Failed)).await.unwrap();
                    silence.told_late.cancel();
                    end
                });
                return Ok::<_, TaskError>(late.await.unwrap());
            }
            let mut beats = tokio::time::interval(Duration::from_millis(300));
            while !silence.told_late.is_cancelled() {
                beats.tick().await;
                tell(context.clone(), None).await?;
            }
            Ok(tell(context, Some(Outcome::Passed)).await?)
        }
    })
}

/// Workers that beat for longer than a lease before they say that all passed, and tell when they have.
fn app_that_beats(beaten: std::sync::mpsc::Sender<()>) -> App {
    App::new("scripted").task(TASK_NAME, move |context: Context, Arguments { order }: Arguments| {
        let beaten = beaten.clone();
        async move {
            let worker = WorkerName::from(context.worker_name());
            let mut beats = tokio::time::interval(Duration::from_millis(300));
            for _ in 0..15 {
                beats.tick().await;
                let beat = Progress { lease: order.lease, worker: worker.clone(), facts: Vec::new() };
                context.update_state("PROGRESS", &beat).await?;
            }
            passed(&context, &order, worker.clone()).await?;
            // Nobody waits any more when a later batch is done.
            let _ = beaten.send(());
            Ok::<_, TaskError>(BatchReport { lease: order.lease, worker, end: BatchEnd::Done })
        }
    })
}

/// Says that all of a batch passed.
async fn passed(context: &Context, order: &BatchOrder, worker: WorkerName) -> Result<(), UpdateError> {
    let finished = |item: &OrderItem| {
        let Item::Test(test) = item.item.clone() else { unreachable!("tests alone were listed") };
        Fact::Finished { test, token: item.token, record: Record::new(Outcome::Passed, Time(1), 1) }
    };
    let facts = order.items.iter().map(finished).collect();
    context.update_state("PROGRESS", &Progress { lease: order.lease, worker, facts }).await
}

/// A worker that refuses the first batch, and doesn't end its task before the run has noted that.
fn app_that_refuses(noted: CancellationToken) -> App {
    let refused = Arc::new(AtomicBool::new(false));
    App::new("scripted").task(TASK_NAME, move |context: Context, Arguments { order }: Arguments| {
        let (noted, first) = (noted.clone(), !refused.swap(true, Ordering::SeqCst));
        async move {
            let worker = WorkerName::from(context.worker_name());
            if first {
                let fault = Fault { kind: FaultKind::CannotRun, message: "another tree".into() };
                let report = BatchReport { lease: order.lease, worker, end: BatchEnd::Faulted(fault) };
                context.update_state(REFUSED, &report).await?;
                noted.cancelled().await;
                return Ok::<_, TaskError>(report);
            }
            passed(&context, &order, worker.clone()).await?;
            Ok(BatchReport { lease: order.lease, worker, end: BatchEnd::Done })
        }
    })
}

async fn work(app: App, broker: Broker, queue: String, quiet: CancellationToken) {
    let options = WorkerOptions {
        prefetch: Prefetch::Slots,
        results: ResultRoute::Exchange { exchange: RESULTS_EXCHANGE.into(), key_prefix: "w".into() },
        ..WorkerOptions::new(format!("{queue}@test"), [queue]).slots(2)
    };
    app.worker(&broker, options).run(quiet, CancellationToken::new()).await.unwrap();
}

fn order(queue: &str) -> RunOrder {
    RunOrder {
        run: regatta_testbed::unique("run").as_str().into(),
        regatta: "0".into(),
        tree: "tree".into(),
        broker: "test".into(),
        suites: vec![SuiteOrder {
            suite: Suite { name: "s".into(), adapter: "commands".into() },
            queue: queue.into(),
            routes: Vec::new(),
            units: Units::Free,
            held: false,
        }],
        filtered: false,
        policy: Policy {
            retries: 1,
            backoff_ms: 10,
            backoff_max_ms: 10,
            fail_fast: false,
            test_timeout_ms: 1_000,
            beat_ms: 1_000,
            losses_max: 2,
        },
        slots_hint: 2,
        known: Knowledge::default(),
        nobody_after_ms: 6_000,
        own_worker: false,
    }
}

struct Facts<'a> {
    facts: &'a mut Vec<Stamped>,
    /// Fired once a worker is lost, or a batch refused.
    given_up: CancellationToken,
    /// Where there is one: the first batch that begins stops the dispatcher's thread until something comes.
    stopped_until: Option<std::sync::mpsc::Receiver<()>>,
}

impl Ledger for Facts<'_> {
    fn write(&mut self, fact: &Stamped) -> std::io::Result<()> {
        if matches!(fact.event, RunEvent::WorkerLost { .. } | RunEvent::BatchFaulted { .. }) {
            self.given_up.cancel();
        }
        if matches!(fact.event, RunEvent::BatchStarted { .. })
            && let Some(until) = self.stopped_until.take()
        {
            until.recv_timeout(DEADLINE).map_err(std::io::Error::other)?;
        }
        self.facts.push(fact.clone());
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn whole_run(
    broker: &Broker,
    order: RunOrder,
    tests: usize,
    given_up: CancellationToken,
    stopped_until: Option<std::sync::mpsc::Receiver<()>>,
) -> (RunRecord, Vec<Stamped>) {
    let (tell, inputs) = mpsc::channel(8);
    let name = |n: usize| if n % 10 == 3 { format!("bad{n}") } else { format!("t{n}") };
    let tests = (0..tests).map(|n| Listed { test: TestId::new("s", name(n)), unit: None }).collect();
    tell.send(Input::Listed { tests, units: Vec::new(), remembered: Vec::new() }).await.unwrap();
    tell.send(Input::ListingEnded { suite: "s".into(), fault: None }).await.unwrap();
    let mut facts = Vec::new();
    let mut ledger = Facts { facts: &mut facts, given_up, stopped_until };
    let record =
        tokio::time::timeout(DEADLINE, run(broker, order, inputs, &mut ledger, CancellationToken::new()))
            .await
            .unwrap()
            .unwrap();
    (record, facts)
}

async fn every_test_has_one_verdict_and_failures_are_retried(broker: Broker) {
    let order = order(&regatta_testbed::unique("q"));
    let queue = order.suites[0].queue.clone();
    let quiet = CancellationToken::new();
    let run = order.run.clone();
    let whole = async {
        let whole = whole_run(&broker, order, 200, CancellationToken::new(), None).await;
        quiet.cancel();
        whole
    };
    let working = work(app(), broker.clone(), queue.clone(), quiet.clone());
    let (record, facts) = tokio::join!(whole, working).0;
    let totals = record.totals();
    assert_eq!((totals.tests, totals.passed, totals.flaky), (200, 180, 20), "{totals:?}");
    assert!(matches!(facts.first().unwrap().event, RunEvent::RunStarted { .. }));
    assert!(matches!(facts.last().unwrap().event, RunEvent::RunFinished));
    let sent = facts.iter().position(|fact| matches!(fact.event, RunEvent::BatchSent { .. }));
    let began = facts.iter().position(|fact| matches!(fact.event, RunEvent::BatchStarted { .. }));
    assert!(sent < began, "the ledger knows a batch before anybody can begin it");
    let left = broker.declare_passive(&format!("regatta.run.{run}")).await;
    assert!(left.unwrap_err().is_no_queue(), "the run's own queue is taken away");
    broker.delete_queue(&queue).await.unwrap();
}

async fn a_silent_workers_late_result_changes_nothing(broker: Broker) {
    let order = order(&regatta_testbed::unique("q"));
    let queue = order.suites[0].queue.clone();
    let (quiet, silence) = (CancellationToken::new(), Silence::default());
    let whole = async {
        let whole = whole_run(&broker, order, 20, silence.given_up.clone(), None).await;
        quiet.cancel();
        whole
    };
    let working = work(app_with(silence.clone()), broker.clone(), queue.clone(), quiet.clone());
    let (record, facts) = tokio::join!(whole, working).0;
    let totals = record.totals();
    assert_eq!(
        (totals.tests, totals.passed),
        (20, 20),
        "one verdict each, and none from the silence: {totals:?}"
    );
    assert_eq!(record.losses.len(), 1, "{:?}", record.losses);
    let late: Vec<_> =
        facts.iter().filter(|fact| matches!(fact.event, RunEvent::LateResult { .. })).collect();
    assert!(!late.is_empty() && late.len() == record.late.len(), "what came late is in the ledger");
    broker.delete_queue(&queue).await.unwrap();
}

async fn a_refusal_is_heard_while_its_slot_rests_and_counts_once(broker: Broker) {
    let order = order(&regatta_testbed::unique("q"));
    let queue = order.suites[0].queue.clone();
    let (quiet, noted) = (CancellationToken::new(), CancellationToken::new());
    let whole = async {
        let whole = whole_run(&broker, order, 20, noted.clone(), None).await;
        quiet.cancel();
        whole
    };
    let working = work(app_that_refuses(noted.clone()), broker.clone(), queue.clone(), quiet.clone());
    let (record, facts) = tokio::join!(whole, working).0;
    assert_eq!(record.totals().passed, 20, "{:?}", record.totals());
    let refused = facts.iter().filter(|fact| matches!(fact.event, RunEvent::BatchFaulted { .. })).count();
    assert_eq!(refused, 1);
    broker.delete_queue(&queue).await.unwrap();
}

async fn a_run_that_nobody_works_on_says_so_and_ends(broker: Broker) {
    let order = order(&regatta_testbed::unique("q"));
    let queue = order.suites[0].queue.clone();
    let (record, facts) = whole_run(&broker, order, 3, CancellationToken::new(), None).await;
    assert_eq!(record.totals().unjudged, 3);
    let said = facts.iter().find_map(|fact| match &fact.event {
        RunEvent::NobodyWorks { queue, for_ms } => Some((queue.clone(), *for_ms)),
        _ => None,
    });
    let (of, for_ms) = said.expect("it is said");
    assert_eq!(of, queue);
    assert!(for_ms <= 10_000, "{for_ms} ms");
    broker.delete_queue(&queue).await.unwrap();
}

async fn a_dispatcher_that_was_stopped_takes_in_what_was_said_meanwhile(broker: Broker) {
    let order = order(&regatta_testbed::unique("q"));
    let queue = order.suites[0].queue.clone();
    let quiet = CancellationToken::new();
    let (beaten, stopped_until) = std::sync::mpsc::channel();
    // The worker goes on while the dispatcher's thread is stopped.
    let working = std::thread::spawn({
        let (broker, queue, quiet) = (broker.clone(), queue.clone(), quiet.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let embedded = broker.url().user().is_empty();
                let own = if embedded { broker } else { rabbitmq().await };
                work(app_that_beats(beaten), own, queue, quiet).await;
            });
        }
    });
    let whole = whole_run(&broker, order, 2, CancellationToken::new(), Some(stopped_until)).await;
    quiet.cancel();
    tokio::task::spawn_blocking(|| working.join().unwrap()).await.unwrap();
    let totals = whole.0.totals();
    assert_eq!((totals.tests, totals.passed), (2, 2), "{totals:?}");
    assert!(whole.0.losses.is_empty() && whole.0.late.is_empty(), "{:?}", whole.0.losses);
    broker.delete_queue(&queue).await.unwrap();
}

macro_rules! on_both_brokers {
    ($($scenario:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $scenario() { super::$scenario(super::Broker::embedded()).await; })*
        }
        mod rabbitmq {
            $(#[tokio::test] async fn $scenario() { super::$scenario(super::rabbitmq().await).await; })*
        }
    };
}

on_both_brokers! {
    every_test_has_one_verdict_and_failures_are_retried
    a_silent_workers_late_result_changes_nothing
    a_dispatcher_that_was_stopped_takes_in_what_was_said_meanwhile
    a_refusal_is_heard_while_its_slot_rests_and_counts_once
    a_run_that_nobody_works_on_says_so_and_ends
}

async fn rabbitmq() -> Broker {
    let node = tokio::task::spawn_blocking(regatta_testbed::shared_node).await.unwrap();
    let url: BrokerUrl = node.url().parse().unwrap();
    Broker::connect(&url, ConnectOptions::default()).await.unwrap()
}
