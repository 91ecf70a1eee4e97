//! The tasks whose results a client still waits for. One small allocation for each; no task, no channel.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::client::Facts;
use crate::wire::{RawJson, ResultMessage};

/// How many state updates of one task are kept for a caller that doesn't read them. The oldest are dropped first.
pub(crate) const UPDATES_LIMIT: usize = 256;

/// What a caller hears of a task before its result.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Update {
    /// A worker told a state: `STARTED`, `RETRY`, or one of the application's own.
    State {
        /// The state's name.
        state: String,
        /// What came with it, such as how far the task is.
        meta: RawJson,
        /// Who said it.
        facts: Facts,
    },
    /// The reply queue was lost with the connection to the broker, or the channel, and declared anew. What was sent to
    /// it meanwhile is gone.
    ReplyLost,
}

/// A task's last word.
#[derive(Debug)]
pub(crate) struct Last {
    /// What a worker told, or why that can't be read, such as a result in another serializer. Whatever else it tells
    /// would come in the same form.
    pub(crate) message: Result<ResultMessage, String>,
    pub(crate) facts: Facts,
}

/// What came for a handle, in the order of its reading.
#[derive(Debug)]
pub(crate) enum News {
    Update(Update),
    Last(Box<Last>),
    Closed,
}

#[derive(Debug, Default)]
struct Mailbox {
    updates: VecDeque<Update>,
    last: Option<Box<Last>>,
    closed: bool,
    waker: Option<Waker>,
}

/// Where one task's news wait for its handle.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Mailbox>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        // Nothing panics while the lock is held, and a half-written mailbox can't be: each change is one statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Mailbox)) {
        let waker = {
            let mut mailbox = self.lock();
            change(&mut mailbox);
            mailbox.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn update(&self, update: Update) {
        self.tell(|mailbox| {
            if mailbox.updates.len() >= UPDATES_LIMIT {
                mailbox.updates.pop_front();
            }
            mailbox.updates.push_back(update);
        });
    }

    fn end(&self, last: Last) {
        self.tell(|mailbox| mailbox.last = Some(Box::new(last)));
    }

    /// The next news; updates first.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<News> {
        let mut mailbox = self.lock();
        if let Some(update) = mailbox.updates.pop_front() {
            return Poll::Ready(News::Update(update));
        }
        if let Some(last) = mailbox.last.take() {
            return Poll::Ready(News::Last(last));
        }
        if mailbox.closed {
            return Poll::Ready(News::Closed);
        }
        mailbox.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// All tasks that have no result yet, by id.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<Arc<str>, Arc<Waiting>>,
    closed: bool,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for `id`. A second wait for the same id takes the first one's place.
    pub(crate) fn expect(&self, id: &Arc<str>) -> Arc<Waiting> {
        let waiting = Arc::new(Waiting::default());
        let mut table = self.lock();
        if table.closed {
            waiting.tell(|mailbox| mailbox.closed = true);
        } else {
            table.waiting.insert(Arc::clone(id), Arc::clone(&waiting));
        }
        waiting
    }

    /// Stops waiting, unless somebody else waits for the same id by now.
    pub(crate) fn forget(&self, id: &str, waiting: &Arc<Waiting>) {
        let mut table = self.lock();
        if table.waiting.get(id).is_some_and(|other| Arc::ptr_eq(other, waiting)) {
            table.waiting.remove(id);
        }
    }

    /// Hands a result message to who waits for it. False when nobody does.
    pub(crate) fn deliver(&self, message: ResultMessage, facts: Facts) -> bool {
        let ends = message.status.is_final();
        let waiting = {
            let mut table = self.lock();
            let id = message.task_id.as_str();
            if ends { table.waiting.remove(id) } else { table.waiting.get(id).cloned() }
        };
        let Some(waiting) = waiting else { return false };
        if ends {
            waiting.end(Last { message: Ok(message), facts });
        } else {
            let state = message.status.as_str().to_owned();
            waiting.update(Update::State { state, meta: message.result, facts });
        }
        true
    }

    /// Ends the wait for `id`: what came for it can't be read. False when nobody waits for it.
    pub(crate) fn unreadable(&self, id: &str, reason: &str) -> bool {
        let waiting = self.lock().waiting.remove(id);
        let Some(waiting) = waiting else { return false };
        waiting.end(Last { message: Err(reason.to_owned()), facts: Facts::default() });
        true
    }

    /// Tells everybody that the reply queue was lost.
    pub(crate) fn reply_lost(&self) {
        let all: Vec<_> = self.lock().waiting.values().cloned().collect();
        for waiting in all {
            waiting.update(Update::ReplyLost);
        }
    }

    /// Tells everybody that nothing will come any more.
    pub(crate) fn close(&self) {
        let all = {
            let mut table = self.lock();
            table.closed = true;
            std::mem::take(&mut table.waiting)
        };
        for waiting in all.into_values() {
            waiting.tell(|mailbox| mailbox.closed = true);
        }
    }

    /// How many tasks are waited for.
    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}
