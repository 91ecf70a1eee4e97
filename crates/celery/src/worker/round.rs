//! The worker's loop: thin hands around [`Slots`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, SelectAll};
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::emitter::{Emitter, Pulse};
use crate::error::WorkerError;
use crate::transport::{Consumer, Delivery, Envelope, Incoming, Settler};
use crate::wire::ControlRequest;
use crate::worker::aside;
use crate::worker::execution::{self, Accepted, Ending, Execution, Ran};
use crate::worker::hands::{self, Hands};
use crate::worker::intake::{self, Asker, Intake, Order};
use crate::worker::options::{Phase, WorkerEnd};
use crate::worker::remote::Pidbox;
use crate::worker::slots::{Command, Input, Key, Settlement, Slots, Trial};

/// How many events the loop takes at once.
const LOT: usize = 64;

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
    work: Work,
    voice: Option<Voice>,
    pidbox: Option<Pidbox>,
    phase: watch::Sender<Phase>,
    pub(crate) slots: Slots,
    commands: Vec<Command>,
    /// Kept for its room alone.
    events: Vec<Event>,
    next_key: Key,
    /// Jobs that wait for a slot.
    pub(crate) waiting: HashMap<Key, Accepted>,
    /// Deliveries that came too early, until it is decided what becomes of them.
    early: HashMap<Key, Early>,
    /// Executions that run.
    pub(crate) running: HashMap<Key, Arc<Execution>>,
    /// Deliveries of tasks that run or ran already, to be settled with those.
    doubles: HashMap<Key, (Arc<str>, Settler)>,
    /// Finished executions, by task.
    pub(crate) total: HashMap<String, u64>,
    pub(crate) processed: u64,
    pub(crate) began: Instant,
    /// Fires when remote control asks for the shutdown.
    pub(crate) asked: CancellationToken,
}

/// A delivery whose time hasn't come.
struct Early {
    id: Arc<str>,
    envelope: Envelope,
    eta: SystemTime,
    settler: Settler,
}

/// Something for the loop to handle.
#[expect(clippy::large_enum_variant, reason = "it lives for one turn of the loop; a box for each costs more")]
enum Event {
    Delivery(Option<Delivery>),
    Ended(Key, Box<Ending>),
    Settled(Key, Settlement),
    Control(Box<ControlRequest>),
    Lost,
    Quiet,
    Kill,
}

/// Where the loop's work comes from.
struct Work {
    consumers: SelectAll<Consumer>,
    executions: JoinSet<(Key, Ran)>,
    /// What is being published and settled; polled by the loop itself, which then wakes once for all of it.
    settling: FuturesUnordered<BoxFuture<'static, (Key, Settlement)>>,
}

impl Work {
    /// Waits until there are events, and takes at most a lot of them.
    async fn ready(&mut self, events: &mut Vec<Event>) {
        std::future::poll_fn(|context| self.poll(context, events)).await;
    }

    /// What frees slots goes before what fills them.
    fn poll(&mut self, context: &mut Context<'_>, events: &mut Vec<Event>) -> Poll<()> {
        while events.len() < LOT
            && let Poll::Ready(Some(joined)) = self.executions.poll_join_next(context)
        {
            match joined {
                Ok((key, Ran::Ended(ending))) => events.push(Event::Ended(key, ending)),
                Ok((key, Ran::Settled(how))) => events.push(Event::Settled(key, how)),
                // Executions catch their panics, and only a kill aborts them.
                Err(error) => tracing::error!(%error, "an execution vanished"),
            }
        }
        while events.len() < LOT
            && let Poll::Ready(Some((key, how))) = self.settling.poll_next_unpin(context)
        {
            events.push(Event::Settled(key, how));
        }
        while events.len() < LOT
            && !self.consumers.is_empty()
            && let Poll::Ready(incoming) = self.consumers.poll_next_unpin(context)
        {
            events.push(match incoming {
                Some(Incoming::Delivery(delivery)) => Event::Delivery(Some(delivery)),
                Some(Incoming::Lost) => Event::Lost,
                Some(Incoming::Renewed) => continue,
                None => Event::Delivery(None),
            });
        }
        if events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
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
            work: Work { consumers, executions: JoinSet::new(), settling: FuturesUnordered::new() },
            voice,
            pidbox,
            phase,
            slots,
            commands: Vec::new(),
            events: Vec::new(),
            next_key: 0,
            waiting: HashMap::new(),
            early: HashMap::new(),
            running: HashMap::new(),
            doubles: HashMap::new(),
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
            let mut events = std::mem::take(&mut self.events);
            // What comes by the thousands is polled last and taken in lots, so that the rest of the loop, which
            // looks at everything else each time, costs little for each of them.
            tokio::select! {
                biased;
                () = &mut kill => events.push(Event::Kill),
                () = &mut quiet, if !is_quiet => events.push(Event::Quiet),
                () = &mut asked, if !is_quiet => { end = Ok(WorkerEnd::Asked); events.push(Event::Quiet) }
                Some(request) = next_control(&mut self.pidbox) => events.push(Event::Control(Box::new(request))),
                () = self.work.ready(&mut events) => {}
            }
            for event in events.drain(..) {
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
            self.events = events;
            self.pulse();
        }
    }

    /// Handles an event and what follows from it. True when nothing is left to do.
    async fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Delivery(Some(delivery)) => self.take(delivery),
            Event::Delivery(None) => self.decide(Input::Quiet),
            Event::Ended(key, ending) => {
                self.count(key);
                self.settle(async move { (key, execution::finish(*ending).await) });
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
        done
    }

    /// Answers and settles a delivery on the side.
    fn settle(&mut self, settling: impl Future<Output = (Key, Settlement)> + Send + 'static) {
        self.work.settling.push(settling.boxed());
    }

    pub(crate) fn decide(&mut self, input: Input) {
        self.slots.on(Instant::now(), input, &mut self.commands);
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start(key) => {
                if let Some(accepted) = self.waiting.remove(&key) {
                    self.running.insert(key, Arc::clone(&accepted.execution));
                    self.work.executions.spawn(execution::run(accepted));
                }
            }
            Command::Postpone(key) => {
                if let Some(Early { id, envelope, eta, settler }) = self.early.remove(&key) {
                    let hands = Arc::clone(&self.hands);
                    self.settle(async move { (key, hands.postpone(&id, &envelope, eta, settler).await) });
                }
            }
            Command::Revoke(key) => {
                if let Some(accepted) = self.waiting.remove(&key) {
                    let hands = Arc::clone(&self.hands);
                    self.settle(async move {
                        let (execution, settler) = (accepted.execution, accepted.settler);
                        let asker = intake::asker(&execution.message);
                        (key, hands.revoke_unstarted(&asker, "revoked", &execution.envelope, settler).await)
                    });
                }
            }
            Command::Terminate(key) => {
                if let Some(execution) = self.running.get(&key) {
                    execution.revoked.cancel();
                }
            }
            Command::Dismiss(key) => {
                if let Some(execution) = self.running.get(&key) {
                    execution.unwanted.cancel();
                }
            }
            Command::Double(key) => {
                if let Some(accepted) = self.waiting.remove(&key) {
                    self.doubles.insert(key, (Arc::clone(&accepted.execution.id), accepted.settler));
                } else if let Some(early) = self.early.remove(&key) {
                    self.doubles.insert(key, (early.id, early.settler));
                }
            }
            Command::Ack(key) => {
                if let Some((id, settler)) = self.doubles.remove(&key) {
                    let hands = Arc::clone(&self.hands);
                    self.settle(async move { (key, hands.acknowledge(&id, settler).await) });
                }
            }
            Command::Requeue(key) => {
                let double = self.doubles.remove(&key);
                let unsettled = double.or_else(|| {
                    self.waiting
                        .remove(&key)
                        .map(|accepted| (Arc::clone(&accepted.execution.id), accepted.settler))
                });
                if let Some((id, settler)) = unsettled {
                    self.settle(async move { (key, hands::requeue(&id, settler).await) });
                }
            }
            Command::Forget(key) => drop((self.waiting.remove(&key), self.doubles.remove(&key))),
            Command::StopConsuming => {
                self.phase.send_replace(Phase::Quiet);
                self.say("worker-offline");
                for consumer in &self.work.consumers {
                    consumer.cancel();
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
        let hands = Arc::clone(&self.hands);
        match intake::read(&self.hands.app, &envelope, &envelope.queue, SystemTime::now()) {
            Intake::Run(order) => self.accept(key, *order, envelope, settler),
            Intake::Early(message, eta) => {
                let (id, redelivered) = (Arc::<str>::from(message.id), envelope.redelivered);
                let waits = aside::waits(&envelope);
                let task = Trial { id: Arc::clone(&id), retries: message.retries, waits };
                self.early.insert(key, Early { id, envelope, eta, settler });
                self.decide(Input::Early { key, task, redelivered });
            }
            Intake::Expired(message) => {
                self.decide(Input::Aside { key });
                self.settle(async move {
                    let asker = intake::asker(&message);
                    (key, hands.revoke_unstarted(&asker, "expired", &envelope, settler).await)
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
        envelope: Envelope,
        settler: Settler,
    ) {
        self.decide(Input::Aside { key });
        let hands = Arc::clone(&self.hands);
        self.settle(async move { (key, hands.refuse(&asker, &error, &envelope, settler).await) });
    }

    fn accept(&mut self, key: Key, order: Order, envelope: Envelope, settler: Settler) {
        let Order { message, arguments, task, expires } = order;
        let id: Arc<str> = message.id.as_str().into();
        let (retries, redelivered) = (message.retries, envelope.redelivered);
        let waits = aside::waits(&envelope);
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
            unwanted: CancellationToken::new(),
            started: std::sync::OnceLock::new(),
            hands: Arc::clone(&self.hands),
        });
        self.hands.received(&execution);
        self.waiting.insert(key, Accepted { key, execution, task, arguments, settler });
        self.decide(Input::Arrived { key, task: Trial { id, retries, waits }, redelivered });
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
        self.work.executions.shutdown().await;
        self.work.settling.clear();
        self.waiting.clear();
        self.running.clear();
        self.doubles.clear();
        self.work.consumers.clear();
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
