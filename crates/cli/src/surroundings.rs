//! What the process finds around itself: environment, host, cores, the broker's password; and its logs.

use std::ffi::OsString;

use regatta_celery::{Broker, BrokerUrl};
use regatta_console::BrokerArgs;
use regatta_worker::BaseEnv;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command, LogFormat};
use crate::error::CliError;
use crate::exit::Exit;

/// What every variable of ours begins with. Tests get none of them: one holds a password.
const OURS: &str = "REGATTA_";

/// Starts to log to standard error.
///
/// # Errors
/// When what was typed is no filter.
pub(crate) fn start_logs(args: &Args) -> Result<(), CliError> {
    let quiet = if matches!(args.command, Command::Worker(_)) { "info" } else { "error" };
    let filter = args.log.as_deref().unwrap_or(quiet);
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        CliError::from_error(Exit::Usage, format!("the log filter {filter:?} can't be used"), &error)
            .hint("a level (error, warn, info, debug, trace, off), or such as regatta_worker=debug,info")
            .hint("it comes from --log or REGATTA_LOG")
    })?;
    regatta_console::log(filter, matches!(args.log_format, LogFormat::Json));
    Ok(())
}

/// The environment in which tests start.
pub(crate) fn base_env(set: &[(String, String)]) -> BaseEnv {
    let inherited = std::env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with(OURS));
    let mut vars: Vec<(OsString, OsString)> = inherited.collect();
    vars.retain(|(name, _)| set.iter().all(|(own, _)| name != own.as_str()));
    vars.extend(set.iter().map(|(name, value)| (name.into(), value.into())));
    BaseEnv::new(vars)
}

/// How many cores there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The broker that was asked for; none for the embedded one.
pub(crate) fn broker_url(args: &BrokerArgs) -> Result<Option<BrokerUrl>, CliError> {
    let url = args.url().map_err(|error| {
        CliError::from_error(Exit::Usage, "the broker that was named can't be used", &error)
    })?;
    Ok(Some(url).filter(|url| !url.is_embedded()))
}

/// Connects.
pub(crate) async fn connect(url: &BrokerUrl, args: &BrokerArgs, name: &str) -> Result<Broker, CliError> {
    Broker::connect(url, args.options(name)).await.map_err(|error| {
        CliError::from_error(Exit::Fault, format!("the broker {url} can't be reached"), &error).hint(
            "is it running, and are user, password and virtual host right? regatta status --broker URL tells",
        )
    })
}
