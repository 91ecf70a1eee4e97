//! `regatta worker`: one machine's part in a fleet.

use regatta_console::node_name;
use regatta_worker::{Fence, WorkerConfig};
use tokio_util::sync::CancellationToken;

use crate::args::WorkerArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::project::{self, Project, Trees};
use crate::signals::Signals;
use crate::surroundings::{base_env, broker_url, connect, cores};

/// The limit of what is not a test; each batch brings its tests' own.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3_600);

/// Works until a signal: the first lets it finish what it has, the second ends that too.
pub(crate) async fn work(args: WorkerArgs) -> Result<Exit, CliError> {
    let mut signals = Signals::listen();
    let Some(url) = broker_url(&args.broker)? else {
        return Err(CliError::usage("a worker needs a broker")
            .hint("name it with --broker amqp://user@host/vhost or in REGATTA_BROKER")
            .hint("on one machine, regatta run works without: it brings its own"));
    };
    let project = Project::open(&args.place, Trees::One)?;
    if project.suites.is_empty() {
        return Err(project.nothing_here());
    }
    let name = args.name.unwrap_or_else(|| format!("regatta-{}", std::process::id()));
    let name = node_name(&name);
    let broker = connect(&url, &args.broker, &name).await?;
    let config = WorkerConfig {
        ahead: None,
        own: false,
        name: name.clone(),
        queues: args.queues,
        tree: project.tree.clone(),
        adapters: project.suites.into_iter().map(|suite| suite.adapter).collect(),
        slots: args.slots.map_or_else(cores, usize::from),
        fence: Fence::new(TIMEOUT, base_env(&project::pairs(&project.config.env))),
    };
    tracing::info!(worker = %name, queues = ?config.queues, slots = config.slots, "working");
    let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
    let mut work = std::pin::pin!(regatta_worker::run(&broker, config, quiet.clone(), kill.clone()));
    let end = loop {
        tokio::select! {
            end = &mut work => break end,
            _ = signals.next() => {
                if quiet.is_cancelled() {
                    kill.cancel();
                }
                tracing::info!(worker = %name, "taking no more; a second signal ends what runs");
                quiet.cancel();
            }
        }
    };
    end.map_err(|error| CliError::from_error(Exit::Fault, format!("worker {name} could not go on"), &error))?;
    broker.close().await;
    Ok(Exit::Passed)
}
