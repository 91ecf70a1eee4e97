//! The limit that the broker benchmarks compare with: the bytes of Celery's tasks and results moved by the AMQP client
//! alone, with the same confirms and acknowledgements, and no codec, no headers, no states, no supervision.
//!
//! `bare_amqp worker URL` answers each message with one of the same size to its `reply_to`, and acknowledges after the
//! answer's confirm. `bare_amqp throughput URL N` sends N messages, up to a window at a time, and prints messages per
//! second. `bare_amqp roundtrip URL N` sends one at a time, and prints the median in microseconds.

#![expect(clippy::print_stdout, reason = "its output is its result")]

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::stream::{FuturesUnordered, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// The queue of its own.
const QUEUE: &str = "bare";

/// The size of bodies: that of a small Celery task with its result.
const BODY: [u8; 500] = [b'x'; 500];

/// How many messages are on their way at once.
const WINDOW: usize = 500;

/// How many deliveries its worker holds: two slots would hold two, and this is the limit, not a worker.
const PREFETCH: u16 = 500;

/// The longest that one answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["worker", url] => worker(url).await,
        ["throughput", url, count] => {
            let per_second = throughput(url, count.parse()?).await?;
            println!("{per_second:.0}");
            Ok(())
        }
        ["roundtrip", url, count] => {
            println!("{}", roundtrip(url, count.parse()?).await?.as_micros());
            Ok(())
        }
        _ => bail!("usage: bare_amqp worker URL | throughput URL N | roundtrip URL N"),
    }
}

async fn channel(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let connection =
        Connection::connect(url, ConnectionProperties::default()).await.context("no connection")?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn declare(channel: &Channel) -> anyhow::Result<()> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), options, FieldTable::default()).await?;
    Ok(())
}

async fn publish(channel: &Channel, key: &str, properties: BasicProperties) -> anyhow::Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel.basic_publish("".into(), key.into(), options, &BODY, properties).await?.await?;
    match confirm {
        Confirmation::Ack(None) => Ok(()),
        other => bail!("not confirmed: {other:?}"),
    }
}

async fn worker(url: &str) -> anyhow::Result<()> {
    let (_publishing, out) = channel(url).await?;
    let (_consuming, taken) = channel(url).await?;
    declare(&taken).await?;
    taken.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut deliveries = taken
        .basic_consume(QUEUE.into(), "bare".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    println!("ready");
    let mut answers = FuturesUnordered::new();
    loop {
        tokio::select! {
            delivery = deliveries.next() => {
                let delivery = delivery.context("the queue is gone")??;
                let out = out.clone();
                answers.push(async move {
                    let reply_to = delivery.properties.reply_to().clone().context("no reply_to")?;
                    publish(&out, reply_to.as_str(), BasicProperties::default().with_delivery_mode(1)).await?;
                    delivery.ack(BasicAckOptions::default()).await?;
                    anyhow::Ok(())
                });
            }
            Some(done) = answers.next() => done?,
        }
    }
}

struct Caller {
    out: Channel,
    answers: lapin::Consumer,
    properties: BasicProperties,
    _connections: [Connection; 2],
}

impl Caller {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let (publishing, out) = channel(url).await?;
        let (consuming, taken) = channel(url).await?;
        declare(&taken).await?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let replies = taken.queue_declare("".into(), options, FieldTable::default()).await?;
        let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let name = replies.name().clone();
        let answers =
            taken.basic_consume(name.clone(), "replies".into(), no_ack, FieldTable::default()).await?;
        let properties = BasicProperties::default().with_delivery_mode(2).with_reply_to(name);
        Ok(Self { out, answers, properties, _connections: [publishing, consuming] })
    }

    async fn answer(&mut self) -> anyhow::Result<()> {
        let answer = tokio::time::timeout(ANSWER_MAX, self.answers.next()).await.context("no answer")?;
        answer.context("the reply queue is gone")??;
        Ok(())
    }
}

async fn throughput(url: &str, count: usize) -> anyhow::Result<f64> {
    let mut caller = Caller::connect(url).await?;
    let began = Instant::now();
    let (mut sent, mut answered) = (0, 0);
    let mut confirms = FuturesUnordered::new();
    while answered < count {
        while sent < count && sent - answered < WINDOW {
            let (out, properties) = (caller.out.clone(), caller.properties.clone());
            confirms.push(async move { publish(&out, QUEUE, properties).await });
            sent += 1;
        }
        tokio::select! {
            Some(confirmed) = confirms.next() => confirmed?,
            answer = caller.answer() => {
                answer?;
                answered += 1;
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of messages are far below 2^52")]
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

async fn roundtrip(url: &str, count: usize) -> anyhow::Result<Duration> {
    let mut caller = Caller::connect(url).await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        publish(&caller.out, QUEUE, caller.properties.clone()).await?;
        caller.answer().await?;
        times.push(began.elapsed());
    }
    times.sort();
    times.get(times.len() / 2).copied().context("no round trip was asked for")
}
