//! `dispatch`: every task out, every result in, shown and recorded.

use regatta_celery::{App, Broker, Client, ClientOptions, WorkerEnd, WorkerError, WorkerOptions};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Crew;
use crate::args::{DispatchArgs, Format};
use crate::collect::{Collected, send_and_collect};
use crate::color::Color;
use crate::error::ConsoleError;
use crate::name::node_name;
use crate::record::{Record, make_folder};
use crate::show::{self, Screen};
use crate::signals::Signals;

/// Dispatches. The first signal ends the waiting, and the record is still written; the second ends that too.
pub(crate) async fn run(
    app: &App,
    crew: &[Crew],
    args: &DispatchArgs,
    color: Color,
) -> Result<bool, ConsoleError> {
    let mut signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let twice = async {
        signals.next().await;
        stop.cancel();
        signals.next().await;
    };
    tokio::select! {
        done = Box::pin(dispatch(app, crew, args, color, &stop)) => done,
        () = twice => Err(ConsoleError::Interrupted),
    }
}

async fn dispatch(
    app: &App,
    crew: &[Crew],
    args: &DispatchArgs,
    color: Color,
    stop: &CancellationToken,
) -> Result<bool, ConsoleError> {
    let human = args.format == Format::Human;
    let mut screen = Screen::new(color.on_stdout());
    // Nothing is sent whose record would have no place.
    make_folder(&args.results)?;
    let url = args.broker.url()?;
    let connected = Broker::connect(&url, args.broker.options(app.name()));
    let broker = stop.run_until_cancelled(connected).await.ok_or(ConsoleError::Interrupted)??;
    let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
    let mut workers = if broker.url().is_embedded() {
        embark(app, crew, &broker, args.slots, &quiet, &kill)
    } else {
        JoinSet::new()
    };
    let client = Client::new(&broker, ClientOptions::default()).await?;
    if human {
        screen.line("Dispatching tasks...");
        screen.go_live();
    }
    let collected = send_and_collect(app, &client, args, human.then_some(&mut screen), stop).await;
    screen.end_live();
    let Collected { record, trouble } = collected?;
    quiet.cancel();
    if record.tasks.iter().any(|task| task.state == "UNKNOWN") {
        // What didn't end in time isn't waited for.
        kill.cancel();
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    drop(client);
    let path = record.write(&args.results)?;
    if human {
        summary(&mut screen, &record);
        screen.line(&format!("Record: {}", path.display()));
    } else {
        screen.line(&serde_json::to_string(&record)?);
    }
    broker.close().await;
    screen.finish().map_err(ConsoleError::Output)?;
    match trouble {
        Some(error) => Err(error),
        None if stop.is_cancelled() => Err(ConsoleError::Interrupted),
        None => Ok(record.statistics.succeeded == record.statistics.tasks),
    }
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
        let worker = app.worker(broker, WorkerOptions::new(node_name(one.worker), [one.queue]).slots(slots));
        workers.spawn(worker.run(quiet.clone(), kill.clone()));
    }
    workers
}

fn summary(screen: &mut Screen, record: &Record) {
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
    screen.line("");
    screen.table(&["task", "queue", "worker", "attempts", "wait", "run time", "state"], rows.collect());
    let numbers = &record.statistics;
    screen.line("");
    screen.line(&format!("{} of {} tasks succeeded", numbers.succeeded, numbers.tasks));
    screen.line(&format!(
        "wall time {}, sum of run times {}, speed-up {:.2}, {:.1} tasks/s, run time p50 {}, p95 {}",
        show::time(Some(numbers.wall_s)),
        show::time(Some(numbers.run_sum_s)),
        numbers.speed_up,
        numbers.throughput,
        show::time(numbers.run_p50_s),
        show::time(numbers.run_p95_s),
    ));
}
