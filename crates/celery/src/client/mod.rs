//! The caller's side: tasks out, results in, and questions to the workers.
//!
//! A client has one reply queue, one task that reads it, and a small table of who waits for which id; so thousands of
//! handles cost neither a thread nor a channel each.

mod facts;
mod handle;
mod inspect;
mod pending;
mod replies;
mod send;
mod task;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

pub use self::facts::Facts;
pub use self::handle::{Handle, TaskResult};
pub use self::inspect::{Answer, Inspect};
use self::pending::Pending;
pub use self::pending::Update;
pub use self::replies::{REPLIES_PREFETCH, Replies, Reply, ReplyRoute};
pub(crate) use self::send::{describe_args, describe_kwargs, lifetime};
pub use self::task::Task;
use crate::error::{ClientError, SendError};
use crate::transport::{Broker, Queue};

/// The options of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// What the client calls itself as the origin of its tasks, `name@host`.
    pub name: String,
    /// How long [`Handle::get`] waits; `None` for ever.
    pub result_timeout: Option<Duration>,
    /// Whether a task queue that doesn't exist is declared, as Celery declares it, by the first task that goes there.
    pub declare_queues: bool,
    /// Whether its tasks go without the optional headers that say nothing, seven of nineteen: a tenth of the work of
    /// a task that does nothing. Celery's own workers take such tasks; other readers of its messages may not.
    pub brief_headers: bool,
}

impl Default for ClientOptions {
    /// Waits for ever, declares missing queues, and writes all headers.
    fn default() -> Self {
        Self {
            name: format!("regatta{}@localhost", std::process::id()),
            result_timeout: None,
            declare_queues: true,
            brief_headers: false,
        }
    }
}

/// Sends tasks and waits for their results. Cheap to clone; the reply queue goes with the last clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) broker: Broker,
    pub(crate) options: ClientOptions,
    /// What tasks carry as `reply_to` when they don't say another.
    pub(crate) reply_to: String,
    pub(crate) pending: Arc<Pending>,
    pub(crate) control: OnceCell<inspect::ControlReplies>,
    /// Reads the reply queue; none when the caller does that itself.
    _reader: Option<AbortOnDropHandle<()>>,
}

impl Client {
    /// A client with an exclusive reply queue of its own, as Celery's `rpc://` has it.
    ///
    /// # Errors
    /// When the broker doesn't let it declare or consume that queue.
    pub async fn new(broker: &Broker, options: ClientOptions) -> Result<Self, ClientError> {
        let reply_to = uuid::Uuid::new_v4().to_string();
        let queue = Queue::transient(&reply_to).exclusive().auto_delete();
        let consumer = replies::own_queue(broker, queue, None, true).await?;
        let pending = Arc::new(Pending::default());
        let reader = tokio::spawn(replies::read(consumer, Arc::clone(&pending)));
        Ok(Self::with(broker, options, reply_to, pending, Some(AbortOnDropHandle::new(reader))))
    }

    /// A client whose results come through a queue that the caller reads itself, by [`Replies`]. Its tasks carry the
    /// route's `reply_to`; their handles never see a result, so send them with [`Client::post`].
    ///
    /// # Errors
    /// When the broker doesn't let it declare, bind or consume the route's queue.
    pub async fn with_reply(
        broker: &Broker,
        options: ClientOptions,
        route: ReplyRoute,
    ) -> Result<(Self, Replies), ClientError> {
        let (reply_to, replies) = Replies::open(broker, route).await?;
        Ok((Self::with(broker, options, reply_to, Arc::default(), None), replies))
    }

    fn with(
        broker: &Broker,
        options: ClientOptions,
        reply_to: String,
        pending: Arc<Pending>,
        reader: Option<AbortOnDropHandle<()>>,
    ) -> Self {
        let control = OnceCell::new();
        let broker = broker.clone();
        Self { inner: Arc::new(Inner { broker, options, reply_to, pending, control, _reader: reader }) }
    }

    /// Sends a task and waits until the broker has it.
    ///
    /// # Errors
    /// [`SendError`]: the task is then nowhere, or, after a time-out or a lost connection, possibly in the queue.
    pub async fn send(&self, task: Task) -> Result<Handle, SendError> {
        let id: Arc<str> = task.id.clone().unwrap_or_else(new_id).into();
        // The result may come back before the confirm, so the waiting begins first.
        let inner = &self.inner;
        let handle = Handle::new(Arc::clone(&id), Arc::clone(&inner.pending), inner.options.result_timeout);
        send::publish(inner, task, &id).await?;
        Ok(handle)
    }

    /// Sends a task whose result comes elsewhere or isn't wanted, and waits until the broker has it. Gives its id.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post(&self, task: Task) -> Result<String, SendError> {
        let id = task.id.clone().unwrap_or_else(new_id);
        send::publish(&self.inner, task, &id).await?;
        Ok(id)
    }

    /// Asks all workers (or those named in `nodes`) and collects what comes back within `timeout`: each worker's name
    /// with its answer, in order of the names. With `nodes` it returns as soon as all of those have answered. A name
    /// without a host (`one`) means that worker on any host (`one@here`), and the first that answers will do.
    ///
    /// # Errors
    /// When the broker doesn't take the question. Nobody answering is an empty list, not an error.
    pub async fn inspect(
        &self,
        inspect: Inspect,
        nodes: &[String],
        timeout: Duration,
    ) -> Result<Vec<Answer>, ClientError> {
        inspect::ask(&self.inner, &inspect, nodes, timeout).await
    }

    /// Tells all workers not to run a task; with `terminate`, also to end it where it runs. Doesn't wait for them.
    ///
    /// # Errors
    /// When the broker doesn't take the request.
    pub async fn revoke(&self, id: &str, terminate: bool) -> Result<(), ClientError> {
        inspect::tell(&self.inner, &Inspect::Revoke { ids: vec![id.to_owned()], terminate }).await
    }

    /// What its tasks carry as `reply_to`.
    pub fn reply_to(&self) -> &str {
        &self.inner.reply_to
    }

    /// How many tasks have no result yet.
    pub fn pending(&self) -> usize {
        self.inner.pending.len()
    }

    /// The broker that it talks to.
    pub fn broker(&self) -> &Broker {
        &self.inner.broker
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("reply_to", &self.inner.reply_to).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pending.close();
    }
}

/// An id that no other task has.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}
