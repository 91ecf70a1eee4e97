//! A RabbitMQ node of one's own: own name, ports and data, on loopback, gone with its handle, whatever happens to the
//! process that holds it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// The server's own scripts: those on `PATH` change to another user, who can't write to our folder.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// The longest that a node may take to start.
const START_MAX: Duration = Duration::from_secs(120);

/// The certificates of a node that speaks TLS.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The file of the authority that signed the node's.
    pub ca: PathBuf,
    port: u16,
}

/// A running node. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: TempDir,
    port: u16,
    distribution_port: u16,
    tls: Option<Tls>,
    server: Option<Child>,
    /// Ends the server's process group when its input ends: by a kill of ours, or with this process, however it dies.
    guardian: Option<Child>,
}

/// The node that all tests of one process share. Tests use queues of their own names ([`crate::unique`]).
///
/// # Panics
/// When RabbitMQ isn't installed or doesn't start.
pub fn shared_node() -> &'static Node {
    static NODE: OnceLock<Node> = OnceLock::new();
    NODE.get_or_init(Node::start)
}

impl Node {
    /// Starts a node and waits until it takes connections.
    ///
    /// # Panics
    /// When RabbitMQ isn't installed or doesn't start.
    #[must_use]
    pub fn start() -> Self {
        Self::make(false)
    }

    /// Starts a node that also speaks TLS, by certificates made for it.
    ///
    /// # Panics
    /// As [`Node::start`], and when `openssl` isn't there.
    #[must_use]
    pub fn start_with_tls() -> Self {
        Self::make(true)
    }

    fn make(with_tls: bool) -> Self {
        assert!(Path::new(SCRIPTS).exists(), "RabbitMQ is not installed: run `make install`");
        let folder =
            tempfile::Builder::new().prefix("regatta-node-").tempdir().expect("a folder for the node");
        let (port, distribution_port) = (free_port(), free_port());
        let mut conf = format!(
            "listeners.tcp.default = 127.0.0.1:{port}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n"
        );
        let tls = with_tls.then(|| {
            let tls = make_certificates(folder.path());
            conf.push_str(&tls_conf(folder.path(), tls.port));
            tls
        });
        std::fs::write(folder.path().join("rabbitmq.conf"), conf).expect("the node's configuration");
        std::fs::write(folder.path().join("enabled_plugins"), "[].").expect("the node's plugins");
        let name = format!("regatta-{port}@localhost");
        let mut node = Self { name, folder, port, distribution_port, tls, server: None, guardian: None };
        node.boot();
        node
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens, for its administrator.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of("guest", "guest")
    }

    /// Where it listens, for a user.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/%2f", self.port)
    }

    /// Where it listens for TLS, and the file of its authority.
    ///
    /// # Panics
    /// When it was started without.
    #[must_use]
    pub fn tls(&self) -> (String, PathBuf) {
        let tls = self.tls.as_ref().expect("a node started with TLS");
        (format!("amqps://guest:guest@localhost:{}/%2f", tls.port), tls.ca.clone())
    }

    /// Makes a user and gives it rights (patterns for configure, write and read) on the virtual host `/`.
    ///
    /// # Panics
    /// When the node refuses.
    pub fn add_user(&self, user: &str, password: &str, configure: &str, write: &str, read: &str) {
        self.ctl(&["add_user", user, password]);
        self.ctl(&["set_permissions", "-p", "/", user, configure, write, read]);
    }

    /// Runs `rabbitmqctl` on this node and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        let output = command.arg("-q").args(arguments).output().expect("rabbitmqctl");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "rabbitmqctl {arguments:?} failed: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Kills it as a power cut would.
    ///
    /// # Panics
    /// When it can't be waited for.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            self.signal(Signal::SIGKILL);
            let group = Pid::from_raw(server.id().cast_signed());
            // The group may be gone already, which is what is wanted.
            let _gone = killpg(group, Signal::SIGKILL);
            server.wait().expect("the node's end");
        }
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.stdin.take());
            guardian.wait().expect("the guardian's end");
        }
    }

    /// Kills it and starts it again on the same data.
    ///
    /// # Panics
    /// When it doesn't come back.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.boot();
    }

    /// Stops its process without ending it: it keeps its sockets and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let id = std::fs::read_to_string(self.folder.path().join("pid")).unwrap_or_default();
        if let Ok(id) = id.trim().parse() {
            // It may have ended by itself.
            let _gone = kill(Pid::from_raw(id), signal);
        }
    }

    fn boot(&mut self) {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(Path::new(SCRIPTS).join("rabbitmq-server"));
        self.environment(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut server = spawn_for_ever(command);
        self.guardian = Some(guard(server.id()));
        let (tell, heard) = mpsc::sync_channel(64);
        let lines = BufReader::new(server.stdout.take().expect("a pipe"));
        // The thread reads to the end, so that the node never waits for a reader.
        std::thread::spawn(move || {
            lines.lines().map_while(Result::ok).for_each(|line| drop(tell.try_send(line)));
        });
        self.server = Some(server);
        let mut said = Vec::new();
        loop {
            match heard.recv_timeout(START_MAX) {
                Ok(line) if line.contains("completed with") => return,
                Ok(line) => said.push(line),
                Err(_) => panic!("RabbitMQ did not start; it said:\n{}", said.join("\n")),
            }
        }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(Path::new(SCRIPTS).join(script));
        self.environment(&mut command);
        command.stdin(Stdio::null());
        command
    }

    fn environment(&self, command: &mut Command) {
        let folder = |name: &str| self.folder.path().join(name);
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder("data"))
            .env("RABBITMQ_LOG_BASE", folder("log"))
            .env("RABBITMQ_CONFIG_FILE", folder("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", folder("pid"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a command from a thread that never ends. The kernel kills a child with a parent-death signal when the
/// *thread* that started it ends, and a test's thread ends with its test.
fn spawn_for_ever(mut command: Command) -> Child {
    let (tell, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let started = command.spawn();
        drop(tell.send(started));
        loop {
            std::thread::park();
        }
    });
    heard.recv().expect("the starting thread").expect("RabbitMQ's server and setpriv")
}

/// Waits for the end of its input, which only this process holds, and then kills a group. The start script's own
/// parent-death signal doesn't reach the emulator that it forks.
fn guard(group: u32) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read -r _; kill -KILL \"-$1\" 2>/dev/null", "guardian", &group.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.spawn().expect("sh")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn make_certificates(folder: &Path) -> Tls {
    let script = "set -e
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=Regatta test authority' -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout node.key -out node.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > node.ext
openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile node.ext -out node.pem";
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("sh");
    assert!(
        made.status.success(),
        "no certificates (is openssl installed?): {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Tls { ca: folder.join("ca.pem"), port: free_port() }
}

fn tls_conf(folder: &Path, port: u16) -> String {
    let file = |name: &str| folder.join(name).display().to_string();
    format!(
        "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
        file("ca.pem"),
        file("node.pem"),
        file("node.key")
    )
}
