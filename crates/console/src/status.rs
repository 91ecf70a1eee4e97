//! `status`: whether broker, queues and workers are well, and what to do if not.

use std::time::Instant;

use regatta_celery::{Answer, Client, ClientOptions, Inspect};
use serde::Serialize;

use crate::Crew;
use crate::args::{Color, Format, StatusArgs};
use crate::error::ConsoleError;
use crate::show::{self, Screen};

/// What `status --format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    ok: bool,
    broker: String,
    latency_s: Option<f64>,
    queues: Vec<QueueLine>,
    workers: Vec<WorkerLine>,
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
    alive: bool,
    queues: Vec<String>,
    ok: bool,
}

pub(crate) async fn run(crew: &[Crew], args: &StatusArgs, color: Color) -> Result<bool, ConsoleError> {
    let expected: Vec<(String, String)> = if args.expect.is_empty() {
        crew.iter().map(|one| (one.worker.to_owned(), one.queue.to_owned())).collect()
    } else {
        args.expect.clone()
    };
    let mut report = Report {
        schema: 1,
        ok: false,
        broker: args.broker.url()?.to_string(),
        latency_s: None,
        queues: Vec::new(),
        workers: Vec::new(),
        advice: Vec::new(),
    };
    if let Err(error) = look(&mut report, &expected, args).await {
        report.advice.push(error.to_string());
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            report.advice.push(cause.to_string());
            source = cause.source();
        }
    }
    report.ok = report.advice.is_empty();
    let mut screen = Screen::new(color.on_stdout());
    match args.format {
        Format::Json => screen.line(&serde_json::to_string(&report)?),
        Format::Human => human(&mut screen, &report),
    }
    screen.finish()?;
    Ok(report.ok)
}

async fn look(
    report: &mut Report,
    expected: &[(String, String)],
    args: &StatusArgs,
) -> Result<(), ConsoleError> {
    let broker = args.broker.connect_outside("status").await?;
    let began = Instant::now();
    for (_, queue) in expected {
        let depth = broker.declare_passive(queue).await;
        report.latency_s.get_or_insert(began.elapsed().as_secs_f64());
        let (ready, consumers) = match depth {
            Ok(depth) => (Some(depth.ready), Some(depth.consumers)),
            Err(error) => {
                report
                    .advice
                    .push(format!("{error}; if the queue is missing, run setup or start its worker"));
                (None, None)
            }
        };
        let ok = consumers.is_some_and(|count| count > 0);
        if consumers == Some(0) {
            report.advice.push(format!("nobody consumes {queue}; start its worker"));
        }
        report.queues.push(QueueLine { queue: queue.clone(), ready, consumers, ok });
    }
    let client = Client::new(&broker, ClientOptions::default()).await?;
    let nodes: Vec<String> = expected.iter().map(|(worker, _)| worker.clone()).collect();
    let answers = client.inspect(Inspect::ActiveQueues, &nodes, args.timeout).await?;
    for (worker, queue) in expected {
        let line = worker_line(worker, queue, &answers);
        if !line.alive {
            report.advice.push(format!("{worker} doesn't answer; look at its log, or start it"));
        } else if !line.ok {
            report.advice.push(format!("{worker} doesn't consume {queue}; start it with --queue {queue}"));
        }
        report.workers.push(line);
    }
    drop(client);
    broker.close().await;
    Ok(())
}

fn worker_line(worker: &str, queue: &str, answers: &[Answer]) -> WorkerLine {
    let answer = answers.iter().find(|answer| answer.node == worker);
    let queues: Vec<String> = answer
        .and_then(|answer| answer.value.as_array())
        .map(|queues| queues.iter().filter_map(|queue| queue["name"].as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let ok = queues.iter().any(|known| known == queue);
    WorkerLine { worker: worker.to_owned(), alive: answer.is_some(), queues, ok }
}

fn human(screen: &mut Screen, report: &Report) {
    let word = |ok: bool| if ok { "ok" } else { "bad" }.to_owned();
    let number = |count: Option<u32>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    match report.latency_s {
        Some(latency) => {
            screen.line(&format!("broker {} answers in {}", report.broker, show::time(Some(latency))));
        }
        None => screen.line(&format!("broker {} can't be used", report.broker)),
    }
    if !report.queues.is_empty() {
        let rows = report
            .queues
            .iter()
            .map(|line| vec![line.queue.clone(), number(line.ready), number(line.consumers), word(line.ok)]);
        screen.table(&["queue", "ready", "consumers", "state"], rows.collect());
    }
    if !report.workers.is_empty() {
        let rows = report
            .workers
            .iter()
            .map(|line| vec![line.worker.clone(), line.queues.join(", "), word(line.ok)]);
        screen.table(&["worker", "queues", "state"], rows.collect());
    }
    for advice in &report.advice {
        screen.line(&format!("! {advice}"));
    }
}
