//! Regatta's side of the broker benchmarks: a Celery application with one task that does nothing, and its caller.
//!
//! `noop worker URL` runs it in two slots. `noop throughput URL N` sends N tasks, up to a window at a time, and prints
//! tasks per second; `noop throughput-whole` the same with every header that Celery writes. `noop roundtrip URL N` sends one at a time, and prints the median in microseconds. The bare loop
//! beside it moves the same bytes without Celery's protocol. Both have one thread of their own beside those of the AMQP
//! client: their tasks do nothing, and the broker needs the cores.

#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::time::Instant;

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use regatta_celery::transport::{Broker, ConnectOptions};
use regatta_celery::{App, Client, ClientOptions, Phase, Prefetch, Task, TaskError, WorkerOptions};
use tokio_util::sync::CancellationToken;

/// The queue of its own.
const QUEUE: &str = "noop";

/// How many tasks are on their way at once: as many as in the bare loop.
const WINDOW: usize = 500;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["worker", url] => worker(url).await,
        ["throughput", url, count] => {
            println!("{:.0}", throughput(url, count.parse()?, true).await?);
            Ok(())
        }
        ["throughput-whole", url, count] => {
            println!("{:.0}", throughput(url, count.parse()?, false).await?);
            Ok(())
        }
        ["roundtrip", url, count] => {
            println!("{}", roundtrip(url, count.parse()?).await?);
            Ok(())
        }
        _ => bail!("usage: noop worker URL | throughput URL N | throughput-whole URL N | roundtrip URL N"),
    }
}

async fn connect(url: &str) -> anyhow::Result<Broker> {
    Ok(Broker::connect(&url.parse()?, ConnectOptions::default()).await?)
}

async fn worker(url: &str) -> anyhow::Result<()> {
    let broker = connect(url).await?;
    let app = App::new("noop").task("noop", |_, ()| async { Ok::<_, TaskError>(()) });
    let mut options = WorkerOptions::new("noop@localhost", [QUEUE]).slots(2);
    // Tasks of microseconds: without a reserve the way to the broker would be measured, not the worker.
    options.prefetch = Prefetch::Fixed(u16::try_from(WINDOW)?);
    let worker = app.worker(&broker, options);
    let mut phase = worker.phase();
    tokio::spawn(async move {
        if phase.wait_for(|phase| *phase == Phase::Ready).await.is_ok() {
            println!("ready");
        }
    });
    worker.run(CancellationToken::new(), CancellationToken::new()).await?;
    Ok(())
}

fn options(brief_headers: bool) -> ClientOptions {
    ClientOptions { brief_headers, ..ClientOptions::default() }
}

async fn call(client: &Client) -> anyhow::Result<()> {
    client.send(Task::new("noop").queue(QUEUE)).await?.get::<()>().await?;
    Ok(())
}

async fn throughput(url: &str, count: usize, brief_headers: bool) -> anyhow::Result<f64> {
    let client = Client::new(&connect(url).await?, options(brief_headers)).await?;
    let began = Instant::now();
    stream::iter(0..count).map(|_| call(&client)).buffer_unordered(WINDOW).try_collect::<Vec<()>>().await?;
    #[expect(clippy::cast_precision_loss, reason = "counts of tasks are far below 2^52")]
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

async fn roundtrip(url: &str, count: usize) -> anyhow::Result<u128> {
    let client = Client::new(&connect(url).await?, options(true)).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        call(&client).await?;
        times.push(began.elapsed().as_micros());
    }
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("no round trip was asked for")
}
