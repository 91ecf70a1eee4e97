//! `worker`: one worker, until it is told to stop.

use regatta_celery::{App, Broker, WorkerOptions};
use tokio_util::sync::CancellationToken;

use crate::args::WorkerArgs;
use crate::error::ConsoleError;
use crate::name::node_name;
use crate::signals::Signals;
use crate::{Crew, outside};

pub(crate) async fn run(app: &App, crew: &[Crew], args: &WorkerArgs) -> Result<bool, ConsoleError> {
    let owner = crew.iter().find(|one| one.queue == args.queue).map(|one| one.worker.to_owned());
    let name = args.name.clone().or(owner).unwrap_or_else(|| format!("worker-{}", args.queue));
    let name = node_name(&name);
    let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
    let mut signals = Signals::listen()?;
    let broker = Broker::connect(&outside(&args.broker)?, args.broker.options(&name)).await?;
    let worker = app.worker(&broker, WorkerOptions::new(&name, [&args.queue]).slots(args.slots));
    let stop = async {
        for (told, token) in [("finishing what is in hand", &quiet), ("ending at once", &kill)] {
            signals.next().await;
            tracing::info!(worker = %name, "told to stop: {told}");
            token.cancel();
        }
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = Box::pin(worker.run(quiet.clone(), kill.clone())) => ended,
        () = stop => return Ok(false),
    };
    broker.close().await;
    let end = ended?;
    tracing::info!(worker = %name, ?end, "ended");
    Ok(true)
}
