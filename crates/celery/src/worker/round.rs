//! The worker's loop: thin hands around [`Slots`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use futures::stream::SelectAll;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::emitter::{Emitter, Pulse};
use crate::error::WorkerError;
use crate::transport::{Consumer, Delivery, Link, Settler};
use crate::wire::ControlRequest;
use crate::worker::execution::{self, Execution, Job};
use crate::worker::hands::{self, Hands};
use crate::worker::intake::{self, Asker, Intake, Order};
use crate::worker::options::{Phase, WorkerEnd};
use crate::worker::remote::Pidbox;
use crate::worker::slots::{Command, Input, Key, Settlement, Slots};

/// How many ended executions may wait for the loop to hear of them.
const ENDED_LIMIT: usize = 1024;

/// How long a worker that leaves waits for its last events to go out.
const FAREWELL: Duration = Duration::from_secs(2);

/// The event exchange, as the loop holds it.
pub(crate) struct Voice {
    pub(crate) emitter: Arc<Emitter>,
    pub(crate) pulse: watch::Sender<Pulse>,
    pub(crate) beat: Duration,
    pub(crate) task: JoinHandle<()>,
}

/// A worker at work.
pub(crate) struct Round {
    pub(crate) hands: Arc<Hands>,
    consumers: SelectAll<Consumer>,
    voice: Option<Voice>,
    pidbox: Option<Pidbox>,
    phase: watch::Sender<Phase>,
    pub(crate) slots: Slots,
    commands: Vec<Command>,
    next_key: Key,
    /// Jobs that wait for a slot.
    pub(crate) waiting: HashMap<Key, Job>,
    /// Executions that run.
    pub(crate) running: HashMap<Key, Arc<Execution>>,
    /// Deliveries of tasks that run or ran already, to be settled with those.
    doubles: HashMap<Key, (Arc<str>, Settler)>,
    executions: JoinSet<(Key, Settlement)>,
    ended: (mpsc::Sender<Key>, mpsc::Receiver<Key>),
    /// Finished executions, by task.
    pub(crate) total: HashMap<String, u64>,
    pub(crate) processed: u64,
    pub(crate) began: Instant,
    /// Fires when remote control asks for the shutdown.
    pub(crate) asked: CancellationToken,
}

/// Something for the loop to handle.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one turn of the loop; a box for each delivery costs more"
)]
enum Event {
    Delivery(Option<Delivery>),
    Ended(Key),
    Settled(Key, Settlement),
    Control(Box<ControlRequest>),
    Lost,
    Quiet,
    Kill,
}

impl Round {
    pub(crate) fn new(
        hands: Arc<Hands>,
        consumers: SelectAll<Consumer>,
        voice: Option<Voice>,
        pidbox: Option<Pidbox>,
        phase: watch::Sender<Phase>,
    ) -> Self {
        let slots = Slots::new(hands.options.slots);
        Self {
            hands,
            consumers,
            voice,
            pidbox,
            phase,
            slots,
            commands: Vec::new(),
            next_key: 0,
            waiting: HashMap::new(),
            running: HashMap::new(),
            doubles: HashMap::new(),
            executions: JoinSet::new(),
            ended: mpsc::channel(ENDED_LIMIT),
            total: HashMap::new(),
            processed: 0,
            began: Instant::now(),
            asked: CancellationToken::new(),
        }
    }

    /// Works until there is nothing left to do.
    pub(crate) async fn work(
        &mut self,
        quiet: &CancellationToken,
        kill: &CancellationToken,
    ) -> Result<WorkerEnd, WorkerError> {
        let mut link = self.hands.broker.link();
        link.mark_unchanged();
        self.say("worker-online");
        self.phase.send_replace(Phase::Ready);
        let options = &self.hands.options;
        let queues = options.queues.join(",");
        tracing::info!(worker = options.name, queues, slots = options.slots, "ready");
        let asked = self.asked.clone();
        let (mut kill, mut quiet, mut asked) =
            (pin!(kill.cancelled()), pin!(quiet.cancelled()), pin!(asked.cancelled()));
        let mut end = Ok(WorkerEnd::Quiet);
        let mut is_quiet = false;
        loop {
            let event = tokio::select! {
                biased;
                () = &mut kill => Event::Kill,
                () = &mut quiet, if !is_quiet => Event::Quiet,
                () = &mut asked, if !is_quiet => { end = Ok(WorkerEnd::Asked); Event::Quiet }
                Ok(()) = link.changed() => match &*link.borrow_and_update() {
                    Link::Down { .. } => Event::Lost,
                    Link::Up { .. } => continue,
                },
                Some(request) = next_control(&mut self.pidbox) => Event::Control(Box::new(request)),
                Some(key) = self.ended.1.recv() => Event::Ended(key),
                Some(joined) = self.executions.join_next() => match joined {
                    Ok((key, how)) => Event::Settled(key, how),
                    // Executions catch their panics, and only a kill aborts them.
                    Err(error) => { tracing::error!(%error, "an execution vanished"); continue; }
                },
                delivery = self.consumers.next(), if !self.consumers.is_empty() => Event::Delivery(delivery),
            };
            match &event {
                Event::Kill => end = Ok(WorkerEnd::Killed),
                Event::Quiet => is_quiet = true,
                Event::Delivery(None) if !is_quiet => {
                    is_quiet = true;
                    end = Err(WorkerError::NothingToConsume { worker: self.hands.options.name.clone() });
                }
                _ => {}
            }
            if self.handle(event).await {
                return end;
            }
        }
    }

    /// Handles an event and what follows from it. True when nothing is left to do.
    async fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Delivery(Some(delivery)) => self.take(delivery),
            Event::Delivery(None) => self.decide(Input::Quiet),
            Event::Ended(key) => {
                self.count(key);
                self.decide(Input::Ended { key });
            }
            Event::Settled(key, how) => {
                self.count(key);
                self.decide(Input::Settled { key, how });
            }
            Event::Control(request) => self.control(*request),
            Event::Lost => self.decide(Input::Lost),
            Event::Quiet => self.decide(Input::Quiet),
            Event::Kill => self.decide(Input::Kill),
        }
        let mut done = false;
        // What a command leads to may bring further commands; they are few, and each delivery is in them once.
        while !self.commands.is_empty() {
            for command in std::mem::take(&mut self.commands) {
                done |= matches!(command, Command::Done);
                self.obey(command).await;
            }
        }
        self.pulse();
        done
    }

    pub(crate) fn decide(&mut self, input: Input) {
        self.slots.on(input, &mut self.commands);
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start(key) => {
                if let Some(job) = self.waiting.remove(&key) {
                    self.running.insert(key, Arc::clone(&job.execution));
                    self.executions.spawn(execution::run(job, self.ended.0.clone()));
                }
            }
            Command::Revoke(key) => {
                if let Some(job) = self.waiting.remove(&key) {
                    let hands = Arc::clone(&self.hands);
                    self.executions.spawn(async move {
                        let asker = intake::asker(&job.execution.message);
                        (key, hands.revoke_unstarted(&asker, "revoked", job.settler).await)
                    });
                }
            }
            Command::Terminate(key) => {
                if let Some(execution) = self.running.get(&key) {
                    execution.revoked.cancel();
                }
            }
            Command::Double(key) => {
                if let Some(job) = self.waiting.remove(&key) {
                    self.doubles.insert(key, (Arc::clone(&job.execution.id), job.settler));
                }
            }
            Command::Ack(key) => {
                if let Some((id, settler)) = self.doubles.remove(&key) {
                    let hands = Arc::clone(&self.hands);
                    self.executions.spawn(async move { (key, hands.acknowledge(&id, settler).await) });
                }
            }
            Command::Requeue(key) => {
                let double = self.doubles.remove(&key);
                let unsettled = double.or_else(|| {
                    self.waiting.remove(&key).map(|job| (Arc::clone(&job.execution.id), job.settler))
                });
                if let Some((id, settler)) = unsettled {
                    self.executions.spawn(async move { (key, hands::requeue(&id, settler).await) });
                }
            }
            Command::Forget(key) => drop(self.waiting.remove(&key)),
            Command::StopConsuming => {
                self.phase.send_replace(Phase::Quiet);
                self.say("worker-offline");
                for consumer in &self.consumers {
                    consumer.cancel().await;
                }
            }
            Command::Done => {}
        }
    }

    /// Understands a delivery.
    fn take(&mut self, delivery: Delivery) {
        let key = self.next_key;
        self.next_key += 1;
        let (envelope, settler) = delivery.split();
        let queue = Arc::clone(&envelope.queue);
        let hands = Arc::clone(&self.hands);
        match intake::read(&self.hands.app, &envelope, &queue, SystemTime::now()) {
            Intake::Run(order) => self.accept(key, *order, envelope, settler),
            Intake::Early(message, eta) => {
                self.decide(Input::Aside { key });
                self.executions.spawn(async move {
                    (key, hands.postpone(&message.id, &envelope, &queue, eta, settler).await)
                });
            }
            Intake::Expired(message) => {
                self.decide(Input::Aside { key });
                self.executions.spawn(async move {
                    (key, hands.revoke_unstarted(&intake::asker(&message), "expired", settler).await)
                });
            }
            Intake::Refuse(asker, error) => self.refuse(key, asker, error, envelope, settler),
        }
    }

    fn refuse(
        &mut self,
        key: Key,
        asker: Asker,
        error: crate::TaskError,
        envelope: crate::transport::Envelope,
        settler: Settler,
    ) {
        self.decide(Input::Aside { key });
        let (hands, queue) = (Arc::clone(&self.hands), Arc::clone(&envelope.queue));
        self.executions
            .spawn(async move { (key, hands.refuse(&asker, &error, &envelope, &queue, settler).await) });
    }

    fn accept(&mut self, key: Key, order: Order, envelope: crate::transport::Envelope, settler: Settler) {
        let Order { message, arguments, task, expires } = order;
        let id: Arc<str> = message.id.as_str().into();
        let (retries, redelivered) = (message.retries, envelope.redelivered);
        let execution = Arc::new(Execution {
            id: Arc::clone(&id),
            name: message.task.clone(),
            retries,
            queue: Arc::clone(&envelope.queue),
            redelivered,
            ignores_by_default: task.options.ignore_result,
            message,
            envelope,
            expires,
            revoked: CancellationToken::new(),
            soft: CancellationToken::new(),
            started: std::sync::OnceLock::new(),
            hands: Arc::clone(&self.hands),
        });
        self.hands.received(&execution);
        self.waiting.insert(key, Job { key, execution, task, arguments, settler });
        self.decide(Input::Arrived { key, id, retries, redelivered });
    }

    fn count(&mut self, key: Key) {
        if let Some(execution) = self.running.remove(&key) {
            self.processed += 1;
            match self.total.get_mut(&execution.name) {
                Some(count) => *count += 1,
                None => drop(self.total.insert(execution.name.clone(), 1)),
            }
        }
    }

    fn pulse(&self) {
        if let Some(voice) = &self.voice {
            let pulse = Pulse { active: self.slots.running(), processed: self.processed };
            voice.pulse.send_if_modified(|seen| std::mem::replace(seen, pulse) != pulse);
        }
    }

    /// Tells something of the worker itself.
    pub(crate) fn say(&self, kind: &'static str) {
        if let Some(voice) = &self.voice {
            voice.emitter.worker(kind, *voice.pulse.borrow(), voice.beat);
        }
    }

    /// Ends what is left: executions are dropped, the last events go out.
    pub(crate) async fn leave(mut self) {
        for execution in self.running.values() {
            execution.revoked.cancel();
        }
        self.executions.shutdown().await;
        self.waiting.clear();
        self.running.clear();
        self.doubles.clear();
        self.consumers.clear();
        let Some(voice) = self.voice.take() else { return };
        let Voice { emitter, pulse: _, beat: _, mut task } = voice;
        drop((emitter, self));
        // The publishing task ends with its last sender, and that may be a handler's context somewhere.
        if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
        }
    }
}

async fn next_control(pidbox: &mut Option<Pidbox>) -> Option<ControlRequest> {
    match pidbox {
        Some(pidbox) => pidbox.next().await,
        None => std::future::pending().await,
    }
}
