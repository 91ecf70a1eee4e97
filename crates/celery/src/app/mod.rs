//! The tasks that an application knows: names, handlers, options and routes. It knows no broker.

mod arguments;
mod options;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::arguments::{Arguments, Mismatch};
pub use self::options::TaskOptions;
use crate::client::Task;
use crate::context::Context;
use crate::error::TaskError;
use crate::transport::Broker;
use crate::wire::RawJson;
use crate::worker::{Worker, WorkerOptions};

/// The queue of tasks that have no route: Celery's default.
pub const DEFAULT_QUEUE: &str = "celery";

/// What runs a task, with the types of its arguments and its result erased.
pub(crate) type Handler = Arc<dyn Fn(Context, Arguments) -> BoxFuture<'static, Ended> + Send + Sync>;

/// A result, or why there is none.
pub(crate) type Ended = Result<RawJson, TaskError>;

/// A registered task.
pub(crate) struct Registered {
    pub(crate) handler: Handler,
    pub(crate) options: TaskOptions,
    /// It runs on a thread, which goes on when its future is dropped.
    pub(crate) blocking: bool,
}

/// An application: its tasks and where each of them goes.
///
/// ```
/// use regatta_celery::{App, Context, Retry, TaskError, TaskOptions};
///
/// let app = App::new("shop")
///     .task("add", |_: Context, (x, y): (i64, i64)| async move { Ok::<_, TaskError>(x + y) })
///     .task_with(
///         "charge",
///         TaskOptions::new().queue("money").retry(Retry::max(5)),
///         |context: Context, card: String| async move {
///             tracing::info!(id = context.task_id(), "charging");
///             if card.is_empty() { Err(TaskError::fatal("no card")) } else { Ok(()) }
///         },
///     );
/// assert_eq!(app.queue_of("charge"), "money");
/// ```
#[derive(Clone)]
pub struct App {
    name: String,
    tasks: BTreeMap<String, Arc<Registered>>,
    routes: BTreeMap<String, String>,
}

impl App {
    /// An application without tasks.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), tasks: BTreeMap::new(), routes: BTreeMap::new() }
    }

    /// Registers an async handler. Its arguments are read by the rules of [`Arguments`]; arguments that don't fit are
    /// a `FAILURE` (`TypeError`), which no retry follows. A handler that blocks its thread belongs into
    /// [`App::blocking_task`].
    #[must_use]
    pub fn task<A, R, F, Fut>(self, name: impl Into<String>, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
    {
        self.task_with(name, TaskOptions::new(), handler)
    }

    /// The same with options.
    #[must_use]
    pub fn task_with<A, R, F, Fut>(self, name: impl Into<String>, options: TaskOptions, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
    {
        let name = name.into();
        let task: Arc<str> = name.as_str().into();
        let blocking = options.blocking;
        let erased = move |context: Context, arguments: Arguments| match arguments.read::<A>() {
            Err(mismatch) => std::future::ready(Err(type_error(&task, &mismatch))).boxed(),
            Ok(read) if blocking => on_a_thread(handler(context, read).map(|ended| write(&ended?))).boxed(),
            Ok(read) => handler(context, read).map(|ended| write(&ended?)).boxed(),
        };
        self.register(name, options, blocking, Arc::new(erased))
    }

    /// Registers a handler that blocks: it runs on a thread of the runtime's blocking pool. Such a thread can't be
    /// ended from outside: after a time limit or a termination its result no longer counts, but its slot is taken
    /// until it returns. It should look at [`Context::revoked`].
    #[must_use]
    pub fn blocking_task<A, R, F>(self, name: impl Into<String>, options: TaskOptions, handler: F) -> Self
    where
        A: DeserializeOwned + Send + 'static,
        R: Serialize,
        F: Fn(Context, A) -> Result<R, TaskError> + Send + Sync + 'static,
    {
        let name = name.into();
        let task: Arc<str> = name.as_str().into();
        let handler = Arc::new(handler);
        let erased = move |context: Context, arguments: Arguments| {
            let (task, handler) = (Arc::clone(&task), Arc::clone(&handler));
            let work = move || {
                let read = arguments.read::<A>().map_err(|mismatch| type_error(&task, &mismatch))?;
                write(&handler(context, read)?)
            };
            joined(work).boxed()
        };
        self.register(name, options, true, Arc::new(erased))
    }

    fn register(mut self, name: String, options: TaskOptions, blocking: bool, handler: Handler) -> Self {
        if let Some(queue) = &options.queue {
            self.routes.insert(name.clone(), queue.clone());
        }
        self.tasks.insert(name, Arc::new(Registered { handler, options, blocking }));
        self
    }

    /// Says which queue a task goes to. A worker refuses it when it comes out of another one.
    #[must_use]
    pub fn route(mut self, task: impl Into<String>, queue: impl Into<String>) -> Self {
        self.routes.insert(task.into(), queue.into());
        self
    }

    /// The application's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the registered tasks, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    /// The queue that a task's route names; [`DEFAULT_QUEUE`] without one.
    pub fn queue_of(&self, task: &str) -> &str {
        self.route_of(task).unwrap_or(DEFAULT_QUEUE)
    }

    /// A call of a task, addressed to the queue that its route names.
    pub fn call(&self, task: impl Into<String>) -> Task {
        let task = task.into();
        let queue = self.queue_of(&task).to_owned();
        Task::new(task).queue(queue)
    }

    /// A worker for these tasks. Nothing happens before [`Worker::run`].
    pub fn worker(&self, broker: &Broker, options: WorkerOptions) -> Worker {
        Worker::new(self.clone(), broker.clone(), options)
    }

    pub(crate) fn route_of(&self, task: &str) -> Option<&str> {
        self.routes.get(task).map(String::as_str)
    }

    pub(crate) fn registered(&self, task: &str) -> Option<&Arc<Registered>> {
        self.tasks.get(task)
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("name", &self.name)
            .field("tasks", &self.tasks.keys().collect::<Vec<_>>())
            .field("routes", &self.routes)
            .finish()
    }
}

/// Drives a future that may block on a thread of the blocking pool.
async fn on_a_thread(work: impl Future<Output = Ended> + Send + 'static) -> Ended {
    let runtime = tokio::runtime::Handle::current();
    joined(move || runtime.block_on(work)).await
}

/// Runs `work` on the blocking pool; its panic goes on here.
async fn joined(work: impl FnOnce() -> Ended + Send + 'static) -> Ended {
    match tokio::task::spawn_blocking(work).await {
        Ok(ended) => ended,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(TaskError::failed("the runtime ended before the task")),
        },
    }
}

fn write<R: Serialize>(result: &R) -> Ended {
    RawJson::of(result).map_err(|error| {
        TaskError::fatal(format!("the result can't be written as JSON: {error}")).named("EncodeError")
    })
}

fn type_error(task: &str, mismatch: &Mismatch) -> TaskError {
    TaskError::fatal(format!("{task} {mismatch}")).python("TypeError", "builtins")
}
