//! The arguments that say where the broker is, for every binary. No error here shows what was typed: it may hold a
//! password.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;

use regatta_celery::transport::UrlError;
use regatta_celery::{BrokerUrl, ConnectOptions};

/// The broker that a process brings along.
const EMBEDDED: &str = "embedded";

/// Where the broker is, and how to be let in.
#[derive(Clone, clap::Args)]
pub struct BrokerArgs {
    // Kept as text and parsed by us: clap would show a value that it can't parse, with its password.
    /// Where the broker is: `embedded`, `amqp://user@host:5672/vhost` or `amqps://…`. A password belongs into a file or the
    /// environment.
    #[arg(
        long,
        env = "REGATTA_BROKER",
        hide_env_values = true,
        default_value = EMBEDDED,
        value_name = "URL"
    )]
    broker: String,
    /// A file that holds the broker's password.
    #[arg(long, env = "REGATTA_BROKER_PASSWORD_FILE", value_name = "FILE", value_parser = file)]
    password_file: Option<PathBuf>,
    /// A file with the certificates (PEM) that sign the broker's, for amqps://.
    #[arg(long, env = "REGATTA_BROKER_CA_FILE", value_name = "FILE", value_parser = file)]
    ca_file: Option<PathBuf>,
}

/// A file, or nothing: a variable that is set to nothing, as one of a secret that isn't there, is one that isn't set. Clap
/// refuses an empty path, and doesn't say which variable held it.
#[expect(clippy::unnecessary_wraps, reason = "clap wants a result")]
fn file(text: &str) -> Result<PathBuf, Infallible> {
    Ok(PathBuf::from(text))
}

/// What was named, unless that is nothing.
fn named(file: Option<&PathBuf>) -> Option<&PathBuf> {
    file.filter(|path| !path.as_os_str().is_empty())
}

/// Why the arguments name no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerArgsError {
    /// The place can't be understood.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The password's file can't be read.
    #[error("can't read the password file {}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl BrokerArgs {
    /// The place, with the password of the file if there is one.
    ///
    /// # Errors
    /// When the place can't be understood, or the file can't be read.
    pub fn url(&self) -> Result<BrokerUrl, BrokerArgsError> {
        let url: BrokerUrl = if self.broker.is_empty() { EMBEDDED } else { &self.broker }.parse()?;
        let Some(path) = named(self.password_file.as_ref()) else { return Ok(url) };
        let password = std::fs::read_to_string(path)
            .map_err(|source| BrokerArgsError::PasswordFile { path: path.clone(), source })?;
        Ok(url.with_password(password.trim_end_matches(['\r', '\n'])))
    }

    /// How to connect as `name`.
    #[must_use]
    pub fn options(&self, name: &str) -> ConnectOptions {
        let (ca_file, client_name) = (named(self.ca_file.as_ref()).cloned(), name.to_owned());
        ConnectOptions { ca_file, client_name, ..ConnectOptions::default() }
    }
}

impl fmt::Debug for BrokerArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerArgs").field("password_file", &self.password_file).finish_non_exhaustive()
    }
}
