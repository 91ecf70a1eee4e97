//! A RabbitMQ node of the harness's own: its own name, ports and data, on loopback, gone with its handle.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;

use crate::process::{Running, command};

/// The server's own script: the one on `PATH` changes to another user, who can't write to our folder.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// The longest that a node may take to start.
const START_MAX: Duration = Duration::from_secs(90);

/// A running node. Dropping it kills the node and removes its data.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    port: u16,
    distribution_port: u16,
    url: String,
    server: Option<Running>,
}

impl Node {
    /// Starts a node and waits until it takes connections.
    ///
    /// # Errors
    /// When RabbitMQ isn't installed (`make install` does that) or doesn't start; the message holds its last words.
    pub fn start() -> anyhow::Result<Self> {
        let [port, distribution_port] = [free_port()?, free_port()?];
        let name = format!("regatta-lab-{port}@localhost");
        let folder = std::env::temp_dir().join(format!("regatta-node-{port}"));
        std::fs::create_dir_all(&folder)?;
        let conf = format!(
            "listeners.tcp.default = 127.0.0.1:{port}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n"
        );
        std::fs::write(folder.join("rabbitmq.conf"), conf)?;
        std::fs::write(folder.join("enabled_plugins"), "[].")?;
        let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
        let mut node = Self { name, folder, port, distribution_port, url, server: None };
        node.boot()?;
        Ok(node)
    }

    /// Where it listens, with its user's name and password.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it as a power cut would, and starts it again on the same data.
    ///
    /// # Errors
    /// When it doesn't come back.
    pub fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        self.boot()
    }

    fn boot(&mut self) -> anyhow::Result<()> {
        // Should the harness itself be killed, the node goes with it.
        let mut server = self.prepare(command("setpriv", &self.folder));
        server.args(["--pdeathsig", "KILL", SERVER]);
        // The emulator replaces the script, so that its process id is the server's.
        server.env("RABBITMQ_NODE_PORT", self.port.to_string());
        let mut server =
            Running::start(server).context("RabbitMQ isn't installed; `make install` installs it")?;
        server.wait_for(START_MAX, |line| line.contains("completed with"))?;
        self.server = Some(server);
        Ok(())
    }

    fn prepare(&self, mut command: Command) -> Command {
        let folder = |name: &str| self.folder.join(name);
        command
            .env("HOME", &self.folder)
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder("data"))
            .env("RABBITMQ_LOG_BASE", folder("log"))
            .env("RABBITMQ_CONFIG_FILE", folder("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", folder("pid"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none");
        command
    }

    fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            if let Some(id) = emulator(&self.folder) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGKILL);
            }
            drop(server);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

/// The emulator of the node whose data lie in `folder`, by the id that the server wrote down.
fn emulator(folder: &Path) -> Option<i32> {
    std::fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()
}
