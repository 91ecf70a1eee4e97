//! The broker in this process: thin hands around [`Model`]. One lock, taken for microseconds; nobody is woken while it
//! is held. Nothing is durable: what the process forgets is gone.

mod model;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::watch;

use self::model::{Effect, Model};
use super::delivery::{ConsumerKind, SettlerKind};
use super::{
    BrokerUrl, Consume, Consumer, Delivery, Envelope, Link, PublishError, Publishing, QueueDepth, Settle,
    SettleError, Settler, Share, Topology, TransportError,
};

/// An embedded broker.
pub(super) struct Hub {
    state: Mutex<State>,
    link: watch::Sender<Link>,
    url: BrokerUrl,
}

#[derive(Default)]
struct State {
    model: Model,
    inboxes: HashMap<u64, Arc<Inbox>>,
    /// When a timer is set for.
    alarm: Option<Instant>,
}

/// Where deliveries wait for a consumer to read them.
#[derive(Debug, Default)]
struct Inbox(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    deliveries: VecDeque<(u64, Envelope)>,
    waker: Option<Waker>,
    ended: bool,
}

impl Hub {
    pub(super) fn new() -> Self {
        let (link, _) = watch::channel(Link::Up { generation: 1 });
        Self { state: Mutex::default(), link, url: BrokerUrl::embedded() }
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    pub(super) fn url(&self) -> &BrokerUrl {
        &self.url
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The model doesn't panic; should it, the others may still settle what they hold.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the model, hands out what follows, and wakes whoever got something.
    fn change<T>(self: &Arc<Self>, change: impl FnOnce(&mut Model, Instant) -> T) -> T {
        let now = Instant::now();
        let mut wakers = Vec::new();
        let (value, alarm) = {
            let mut state = self.lock();
            let value = change(&mut state.model, now);
            state.hand_out(&mut wakers);
            (value, state.next_alarm())
        };
        wakers.into_iter().for_each(Waker::wake);
        if let Some(at) = alarm {
            tokio::spawn(ring(Arc::downgrade(self), at));
        }
        value
    }

    pub(super) fn declare(self: &Arc<Self>, topology: &Topology) -> Result<(), TransportError> {
        self.change(|model, now| model.declare(now, topology))
    }

    pub(super) fn depth(&self, queue: &str) -> Result<QueueDepth, TransportError> {
        self.lock().model.depth(queue)
    }

    pub(super) fn delete_queue(self: &Arc<Self>, queue: &str) {
        self.change(|model, _| model.delete_queue(queue));
    }

    pub(super) fn publish(self: &Arc<Self>, publishing: Publishing) -> Result<(), PublishError> {
        self.change(|model, now| model.publish(now, publishing))
    }

    /// Ends all consumers.
    pub(super) fn close(self: &Arc<Self>) {
        self.change(|model, now| model.cancel_all(now));
    }

    pub(super) fn consume(
        self: &Arc<Self>,
        spec: &Consume,
        share: Option<&Share>,
    ) -> Result<Consumer, TransportError> {
        let inbox = Arc::new(Inbox::default());
        let no_ack = spec.no_ack;
        let id = {
            let mut state = self.lock();
            let id = state.model.consume(spec, share)?;
            state.inboxes.insert(id, Arc::clone(&inbox));
            id
        };
        // Only now can what waits be handed out.
        self.change(|model, now| model.pump(now, &spec.queue));
        Ok(Consumer {
            kind: ConsumerKind::Embedded(Subscription { hub: Arc::clone(self), id, inbox, no_ack }),
        })
    }
}

impl State {
    fn hand_out(&mut self, wakers: &mut Vec<Waker>) {
        for effect in self.model.effects() {
            match effect {
                Effect::Deliver { consumer, tag, envelope } => {
                    if let Some(inbox) = self.inboxes.get(&consumer) {
                        let mut waiting = inbox.lock();
                        waiting.deliveries.push_back((tag, *envelope));
                        wakers.extend(waiting.waker.take());
                    }
                }
                Effect::End { consumer } => {
                    if let Some(inbox) = self.inboxes.remove(&consumer) {
                        let mut waiting = inbox.lock();
                        waiting.ended = true;
                        wakers.extend(waiting.waker.take());
                    }
                }
            }
        }
    }

    /// A new timer, when something is due before the one that is set.
    fn next_alarm(&mut self) -> Option<Instant> {
        let due = self.model.next_due()?;
        if self.alarm.is_some_and(|alarm| alarm <= due) {
            return None;
        }
        self.alarm = Some(due);
        Some(due)
    }
}

async fn ring(hub: Weak<Hub>, at: Instant) {
    tokio::time::sleep_until(at.into()).await;
    if let Some(hub) = hub.upgrade() {
        hub.lock().alarm.take_if(|alarm| *alarm <= at);
        hub.change(|model, now| model.tick(now));
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A consumer of the embedded broker.
pub(super) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    inbox: Arc<Inbox>,
    no_ack: bool,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({})", self.id)
    }
}

impl Subscription {
    pub(super) fn cancel(&self) {
        self.hub.change(|model, now| model.cancel(now, self.id));
    }

    pub(super) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Delivery>> {
        let next = {
            let mut waiting = self.inbox.lock();
            match waiting.deliveries.pop_front() {
                Some(next) => next,
                None if waiting.ended => return Poll::Ready(None),
                None => {
                    waiting.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        let (tag, envelope) = next;
        let kind = if self.no_ack {
            self.hub.change(|model, now| model.taken(now, self.id, tag));
            SettlerKind::NoAck
        } else {
            SettlerKind::Embedded(Claim { hub: Arc::clone(&self.hub), tag: Some(tag) })
        };
        Poll::Ready(Some(Delivery { envelope, settler: Settler { kind } }))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.cancel();
        let unread = std::mem::take(&mut self.inbox.lock().deliveries);
        for (tag, _) in unread {
            // Whether it was still there doesn't matter any more.
            let _settled = self.hub.change(|model, now| model.settle(now, tag, Settle::Requeue));
        }
    }
}

/// The claim on one delivery.
pub(super) struct Claim {
    hub: Arc<Hub>,
    tag: Option<u64>,
}

impl Claim {
    pub(super) fn settle(mut self, how: Settle) -> Result<(), SettleError> {
        let Some(tag) = self.tag.take() else { return Ok(()) };
        let settled = self.hub.change(|model, now| model.settle(now, tag, how));
        if settled { Ok(()) } else { Err(SettleError::Lost { reason: "its queue was deleted".to_owned() }) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(tag) = self.tag.take() {
            let _settled = self.hub.change(|model, now| model.settle(now, tag, Settle::Requeue));
        }
    }
}
