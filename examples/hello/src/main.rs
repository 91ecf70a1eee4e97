//! Two tasks, two queues, two workers that share nothing but the broker.
//!
//! ```text
//! hello dispatch                                  # no broker: both workers run in this process
//! hello worker --queue queue_a --broker amqp://…  # one worker, in its own process
//! hello dispatch --broker amqp://…                # the same words, over RabbitMQ
//! hello status --broker amqp://…                  # how broker, queues and workers are
//! ```

use std::process::ExitCode;
use std::time::Duration;

use regatta_celery::{App, Context, TaskError, TaskOptions};
use regatta_console::Crew;
use serde::Deserialize;

/// Each worker consumes the one queue that is its own.
const CREW: [Crew; 2] =
    [Crew { worker: "worker-a", queue: "queue_a" }, Crew { worker: "worker-b", queue: "queue_b" }];

/// The tasks' keyword arguments.
#[derive(Deserialize)]
struct Greeting {
    /// How long to wait before the answer, in seconds.
    #[serde(default)]
    wait: f64,
}

fn main() -> ExitCode {
    // A task has a name, a queue to go to, and a handler with typed arguments.
    let app = App::new("hello")
        .task_with("task_a", TaskOptions::new().queue("queue_a"), |_: Context, greeting: Greeting| {
            hello("Task A", greeting)
        })
        .task_with("task_b", TaskOptions::new().queue("queue_b"), |_: Context, greeting: Greeting| {
            hello("Task B", greeting)
        });
    // The console gives it `dispatch`, `worker`, `status` and `setup`.
    regatta_console::main(&app, &CREW)
}

/// What both tasks do. A wait that isn't a time is the caller's mistake, and no retry mends it.
async fn hello(who: &str, greeting: Greeting) -> Result<String, TaskError> {
    let wait =
        Duration::try_from_secs_f64(greeting.wait).map_err(|error| TaskError::fatal(error.to_string()))?;
    tokio::time::sleep(wait).await;
    Ok(format!("Hello from {who}"))
}
