//! What a handler knows about the task that it runs, and what it can say while it does.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::transport::PublishError;
use crate::wire::{JsonError, RawJson, State};
use crate::worker::Execution;

/// The task in hand. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    execution: Arc<Execution>,
}

impl Context {
    pub(crate) fn new(execution: Arc<Execution>) -> Self {
        Self { execution }
    }

    /// The task's id.
    pub fn task_id(&self) -> &str {
        &self.execution.id
    }

    /// The task's name.
    pub fn task_name(&self) -> &str {
        &self.execution.name
    }

    /// How many retries came before this try; 0 for the first.
    pub fn retries(&self) -> u32 {
        self.execution.retries
    }

    /// Whether the broker delivered it before, perhaps to a worker that died.
    pub fn redelivered(&self) -> bool {
        self.execution.redelivered
    }

    /// The queue that it came out of.
    pub fn queue(&self) -> &str {
        &self.execution.queue
    }

    /// The name of the worker that runs it.
    pub fn worker_name(&self) -> &str {
        self.execution.worker_name()
    }

    /// Where its result goes; `None` when nobody wants it.
    pub fn reply_to(&self) -> Option<&str> {
        self.execution.reply_to()
    }

    /// Fires when the task is revoked with `terminate`, passes its hard time limit, or the worker is killed. An async
    /// handler is dropped then; a blocking one must look.
    pub fn revoked(&self) -> CancellationToken {
        self.execution.revoked.clone()
    }

    /// Fires when the task is revoked without `terminate` while it runs. As with Celery it goes on; a handler that
    /// works through a list may end early.
    pub fn unwanted(&self) -> CancellationToken {
        self.execution.unwanted.clone()
    }

    /// Fires at the soft time limit.
    pub fn soft_limit(&self) -> CancellationToken {
        self.execution.soft.clone()
    }

    /// Tells the caller a state of the application's own, such as `PROGRESS`, along the way that the result takes. It
    /// has arrived at the broker when this returns.
    ///
    /// # Errors
    /// When `meta` can't be written as JSON or the broker doesn't take the message. A task whose caller is gone may
    /// go on nevertheless.
    pub async fn update_state(&self, state: &str, meta: &impl Serialize) -> Result<(), UpdateError> {
        let state_of = || state.to_owned();
        let meta = RawJson::of(meta).map_err(|source| UpdateError::Encode { state: state_of(), source })?;
        self.execution
            .tell(State::from(state), meta)
            .await
            .map_err(|source| UpdateError::Publish { state: state_of(), source })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("task_id", &self.task_id())
            .field("task_name", &self.task_name())
            .field("retries", &self.retries())
            .finish_non_exhaustive()
    }
}

/// Why a state update didn't go out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Its data can't be written as JSON.
    #[error("the data of state {state} can't be written as JSON")]
    Encode {
        /// The state.
        state: String,
        /// Why.
        #[source]
        source: JsonError,
    },
    /// The broker didn't take it.
    #[error("state {state} was not taken by the broker")]
    Publish {
        /// The state.
        state: String,
        /// Why.
        #[source]
        source: PublishError,
    },
}
