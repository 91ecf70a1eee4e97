//! `regatta status`: whether the broker answers, how full its queues are, and who works.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use regatta_celery::{Broker, Client, ClientOptions, Inspect};
use serde::Serialize;

use crate::args::{Format, StatusArgs};
use crate::error::CliError;
use crate::exit::Exit;
use crate::surroundings::{broker_url, connect};

/// How long workers have to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Serialize)]
struct Status {
    broker: String,
    round_trip_ms: f64,
    queues: Vec<QueueStatus>,
    /// The queues of each worker that answered.
    workers: BTreeMap<String, Vec<String>>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct QueueStatus {
    name: String,
    waiting: Option<u32>,
    consumers: Option<u32>,
}

/// Looks, and says what to do where all is not well.
pub(crate) async fn status(args: StatusArgs) -> Result<Exit, CliError> {
    let Some(url) = broker_url(&args.broker)? else {
        return Err(CliError::usage("there is no broker to look at")
            .hint("name it with --broker amqp://user@host/vhost or in REGATTA_BROKER")
            .hint("the embedded broker lives and dies with its run"));
    };
    let broker = connect(&url, &args.broker, "regatta status").await?;
    let mut status = Status { broker: url.to_string(), ..Status::default() };
    for queue in &args.queues {
        let began = Instant::now();
        let seen = broker.declare_passive(queue).await;
        status.round_trip_ms = began.elapsed().as_secs_f64() * 1_000.0;
        let (waiting, consumers) = match seen {
            Ok(depth) => (Some(depth.ready), Some(depth.consumers)),
            Err(error) => {
                tracing::debug!(%error, queue, "not there");
                (None, None)
            }
        };
        match consumers {
            None => status.problems.push(format!(
                "queue {queue} is not there; it comes with the first worker: regatta worker -Q {queue} --broker {url}"
            )),
            Some(0) => status.problems.push(format!(
                "nobody works on queue {queue}; start a worker: regatta worker -Q {queue} --broker {url}"
            )),
            Some(_) => {}
        }
        status.queues.push(QueueStatus { name: queue.clone(), waiting, consumers });
    }
    ask_workers(&broker, &args, &mut status).await;
    show(&status, args.format);
    broker.close().await;
    Ok(if status.problems.is_empty() { Exit::Passed } else { Exit::Fault })
}

async fn ask_workers(broker: &Broker, args: &StatusArgs, status: &mut Status) {
    let answers = match Client::new(broker, ClientOptions::default()).await {
        Ok(client) => client
            .inspect(Inspect::ActiveQueues, &args.workers, ANSWER_TIMEOUT)
            .await
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let answers = answers.unwrap_or_else(|error| {
        status.problems.push(format!("the workers can't be asked: {error}"));
        Vec::new()
    });
    for answer in answers {
        let queues = answer.value.as_array().into_iter().flatten();
        let names = queues.filter_map(|queue| queue["name"].as_str().map(str::to_owned));
        status.workers.insert(answer.node, names.collect());
    }
    for worker in &args.workers {
        if !status.workers.contains_key(worker) {
            status.problems.push(format!("worker {worker} doesn't answer; look at its log, or start it"));
        }
    }
}

fn show(status: &Status, format: Format) {
    let mut out = std::io::stdout().lock();
    // Whoever reads no more has what he wants.
    let _ = match format {
        Format::Json => {
            serde_json::to_string(status).map_err(Into::into).and_then(|text| writeln!(out, "{text}"))
        }
        Format::Human => table(&mut out, status),
    };
}

fn table(out: &mut impl Write, status: &Status) -> std::io::Result<()> {
    writeln!(out, "broker  {}  answers in {:.1} ms", status.broker, status.round_trip_ms)?;
    for queue in &status.queues {
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        writeln!(
            out,
            "queue   {}  {} waiting, {} consumers",
            queue.name,
            number(queue.waiting),
            number(queue.consumers)
        )?;
    }
    for (name, queues) in &status.workers {
        writeln!(out, "worker  {name}  on {}", queues.join(", "))?;
    }
    status.problems.iter().try_for_each(|problem| writeln!(out, "problem {problem}"))
}
