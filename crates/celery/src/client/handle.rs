//! A caller's hold on one task that it sent.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::client::facts::Facts;
use crate::client::pending::{Last, News, Pending, Update, Waiting};
use crate::error::{RemoteError, TaskFailure};
use crate::wire::{RawJson, State};

/// A result, and who made it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskResult<T> {
    /// What the handler returned.
    pub value: T,
    /// Who ran it and when, as far as the worker tells.
    pub facts: Facts,
}

/// One task that was sent. Dropping it only stops the waiting: the task goes on, and its result is thrown away.
#[must_use = "a result that nobody waits for is thrown away"]
pub struct Handle {
    id: Arc<str>,
    waiting: Arc<Waiting>,
    pending: Arc<Pending>,
    timeout: Option<Duration>,
    /// The last state that a worker told.
    state: String,
    last: Option<Box<Last>>,
}

impl Handle {
    pub(crate) fn new(id: Arc<str>, pending: Arc<Pending>, timeout: Option<Duration>) -> Self {
        let waiting = pending.expect(&id);
        Self { id, waiting, pending, timeout, state: State::Pending.as_str().to_owned(), last: None }
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The last state that came in: `PENDING` as long as no worker said anything.
    pub fn state(&self) -> &str {
        &self.state
    }

    /// The next state update; `None` when the result is there, for [`Handle::get`] to read. An update that is read
    /// here isn't seen by [`Handle::get`], which passes over all of them.
    pub async fn next_update(&mut self) -> Option<Update> {
        if self.last.is_some() {
            return None;
        }
        match self.news().await {
            News::Update(update) => Some(update),
            News::Last(last) => {
                self.last = Some(last);
                None
            }
            News::Closed => None,
        }
    }

    /// Waits for the result, for as long as the client's options say. What came stays with the handle and may be read
    /// again, also as another type.
    ///
    /// # Errors
    /// [`TaskFailure`] says what became of the task. After [`TaskFailure::Timeout`] and [`TaskFailure::ReplyLost`]
    /// the caller may wait again.
    pub async fn get<T: DeserializeOwned>(&mut self) -> Result<TaskResult<T>, TaskFailure> {
        let result = self.result(self.timeout).await?;
        self.typed(result)
    }

    /// The same for at most `timeout` this time, whatever the client's options say.
    ///
    /// # Errors
    /// As [`Handle::get`].
    pub async fn get_within<T: DeserializeOwned>(
        &mut self,
        timeout: Duration,
    ) -> Result<TaskResult<T>, TaskFailure> {
        let result = self.result(Some(timeout)).await?;
        self.typed(result)
    }

    /// The result as the exact JSON text that came.
    ///
    /// # Errors
    /// As [`Handle::get`].
    pub async fn raw(&mut self) -> Result<TaskResult<RawJson>, TaskFailure> {
        self.result(self.timeout).await
    }

    fn typed<T: DeserializeOwned>(&self, result: TaskResult<RawJson>) -> Result<TaskResult<T>, TaskFailure> {
        match result.value.to::<T>() {
            Ok(value) => Ok(TaskResult { value, facts: result.facts }),
            Err(source) => Err(TaskFailure::Decode { id: self.id.to_string(), source }),
        }
    }

    async fn result(&mut self, timeout: Option<Duration>) -> Result<TaskResult<RawJson>, TaskFailure> {
        let last = match (self.last.take(), timeout) {
            (Some(last), _) => last,
            (None, None) => self.wait().await?,
            (None, Some(timeout)) => {
                let began = Instant::now();
                let Ok(waited) = tokio::time::timeout(timeout, self.wait()).await else {
                    let (id, last) = (self.id.to_string(), self.state.clone());
                    return Err(TaskFailure::Timeout { id, waited: began.elapsed(), last });
                };
                waited?
            }
        };
        let result = self.read(&last);
        // It comes only once, and the caller may want it as another type.
        self.last = Some(last);
        result
    }

    async fn wait(&mut self) -> Result<Box<Last>, TaskFailure> {
        loop {
            match self.news().await {
                News::Update(Update::State { .. }) => {}
                News::Update(Update::ReplyLost) => {
                    return Err(TaskFailure::ReplyLost { id: self.id.to_string() });
                }
                News::Last(last) => return Ok(last),
                News::Closed => return Err(TaskFailure::Closed { id: self.id.to_string() }),
            }
        }
    }

    async fn news(&mut self) -> News {
        let news = std::future::poll_fn(|context| self.waiting.poll(context)).await;
        match &news {
            News::Update(Update::State { state, .. }) => self.state.clone_from(state),
            News::Last(last) => {
                if let Ok(message) = &last.message {
                    message.status.as_str().clone_into(&mut self.state);
                }
            }
            News::Update(Update::ReplyLost) | News::Closed => {}
        }
        news
    }

    fn read(&self, last: &Last) -> Result<TaskResult<RawJson>, TaskFailure> {
        let id = || self.id.to_string();
        let message = match &last.message {
            Ok(message) => message,
            Err(reason) => return Err(TaskFailure::Unreadable { id: id(), reason: reason.clone() }),
        };
        let facts = last.facts.clone();
        match message.status {
            State::Success => Ok(TaskResult { value: message.result.clone(), facts }),
            State::Revoked => {
                let reason = RemoteError::read(message).message;
                Err(TaskFailure::Revoked { id: id(), reason })
            }
            _ => {
                let error = Box::new(RemoteError::read(message));
                Err(TaskFailure::Remote { id: id(), error, facts: Box::new(facts) })
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pending.forget(&self.id, &self.waiting);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}
