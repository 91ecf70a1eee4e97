//! One loop: whatever can wake it becomes an [`Input`], the brain answers with commands, and they are carried out in
//! order.

use std::time::Instant;

use futures::future::OptionFuture;
use regatta_celery::transport::Broker;
use regatta_model::{Command, Input, Run, RunEvent, RunOrder, RunRecord, Stamped, Time};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::broker::{self, Batches, Results, watch_link, watch_queues};
use crate::clock::Clock;
use crate::{DispatchError, Ledger};

/// How many inputs from the broker's side may wait for the loop.
const NEWS_MAX: usize = 256;

pub(crate) struct Hands<'a> {
    clock: Clock,
    run: Run,
    record: RunRecord,
    ledger: &'a mut dyn Ledger,
    batches: Batches,
    results: Results,
    broker: Broker,
    release: CancellationToken,
}

impl<'a> Hands<'a> {
    pub(crate) async fn new(
        broker: &Broker,
        order: RunOrder,
        ledger: &'a mut dyn Ledger,
        release: CancellationToken,
    ) -> Result<Self, DispatchError> {
        let (batches, results) = broker::open(broker, &order).await?;
        let (run, record) = (Run::new(order), RunRecord::default());
        Ok(Self {
            clock: Clock::new(),
            run,
            record,
            ledger,
            batches,
            results,
            broker: broker.clone(),
            release,
        })
    }

    pub(crate) async fn work(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
    ) -> Result<RunRecord, DispatchError> {
        let (news, mut heard) = mpsc::channel(NEWS_MAX);
        let (queues_told, queues) = tokio::sync::watch::channel(Vec::new());
        let mut watchers = tokio::task::JoinSet::new();
        watchers.spawn(watch_link(self.broker.clone(), news.clone()));
        watchers.spawn(watch_queues(self.broker.clone(), queues, news));
        self.take_in(Input::Started)?;
        while !self.run.is_finished() {
            let alarm = self.run.wake_at().map(|at| self.clock.instant(at));
            tokio::select! {
                biased;
                Some(input) = inputs.recv() => self.take_in(input)?,
                Some(input) = heard.recv() => self.take_in(input)?,
                Some(input) = self.batches.next_failure() => self.take_in(input)?,
                Some(said) = self.results.next() => {
                    if let Some(input) = said.input.clone() {
                        self.take_in(input)?;
                        self.ledger.flush().map_err(DispatchError::Ledger)?;
                    }
                    said.accept();
                }
                Some(()) = OptionFuture::from(alarm.map(until)) => self.take_in(Input::Tick)?,
            }
            queues_told.send_if_modified(|told| {
                let now = self.run.queues();
                let changed = *told != now;
                *told = now;
                changed
            });
        }
        self.batches.flush().await;
        self.results.close().await;
        Ok(self.record)
    }

    fn take_in(&mut self, input: Input) -> Result<(), DispatchError> {
        let now = self.clock.now();
        for command in self.run.on(now, input) {
            match command {
                Command::Record(event) => self.record_fact(now, event)?,
                Command::Publish { batch, queue, order } => self.batches.publish(&batch, &queue, &order),
                Command::Revoke { batch, terminate } => self.batches.revoke(batch, terminate),
                Command::Release => self.release.cancel(),
                Command::Finish => {}
            }
        }
        Ok(())
    }

    fn record_fact(&mut self, at: Time, event: RunEvent) -> Result<(), DispatchError> {
        let fact = Stamped { at, event };
        self.record.apply(&fact);
        self.ledger.write(&fact).map_err(DispatchError::Ledger)
    }
}

async fn until(instant: Instant) {
    tokio::time::sleep_until(instant.into()).await;
}
