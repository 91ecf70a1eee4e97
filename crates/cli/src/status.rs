//! `regatta status`: how the broker, its queues and the workers are. What is looked at and shown is `console`'s.

use regatta_console::status as look;

use crate::args::{Format, LookArgs};
use crate::error::CliError;
use crate::exit::Exit;
use crate::surroundings::broker_url;
use regatta_console::Color;

/// The queue that runs and workers use when none is named.
const USUAL_QUEUE: &str = "regatta";

/// Looks, and says what to do where all is not well.
pub(crate) async fn status(args: LookArgs, color: Color) -> Result<Exit, CliError> {
    let Some(url) = broker_url(&args.broker)? else {
        return Err(CliError::usage("there is no broker to look at")
            .hint("name it with --broker amqp://user@host/vhost or in REGATTA_BROKER")
            .hint("the embedded broker lives and dies with its run"));
    };
    let mut wanted = args.status;
    if wanted.queues.is_empty() && wanted.workers.is_empty() {
        wanted.queues.push(USUAL_QUEUE.to_owned());
    }
    let options = args.broker.options("regatta status");
    let found = look(&url, options, &wanted, "regatta worker -Q").await;
    found
        .print(args.format == Format::Json, color.on_stdout())
        .map_err(|error| CliError::from_error(Exit::Fault, "the standard output can't be written", &error))?;
    Ok(if found.is_ok() { Exit::Passed } else { Exit::Fault })
}
