//! What the tests here share: brokers, workers and clients.

use std::future::Future;
use std::time::Duration;

use regatta_celery::{
    App, Broker, BrokerUrl, Client, ClientOptions, ConnectOptions, Phase, Worker, WorkerEnd, WorkerError,
    WorkerOptions,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Generous: nothing here takes a tenth of it on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Runs an async test on a runtime of one thread, within the deadline.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await });
    // A handler that blocks for ever must not hang the test.
    runtime.shutdown_background();
    ended.expect("the test takes longer than its deadline")
}

/// A worker at work in this process. Dropping it kills.
pub(crate) struct Running {
    pub(crate) quiet: CancellationToken,
    pub(crate) kill: CancellationToken,
    join: JoinHandle<Result<WorkerEnd, WorkerError>>,
}

impl Running {
    /// Starts a worker and waits until it consumes.
    pub(crate) async fn start(worker: Worker) -> Self {
        let (quiet, kill) = (CancellationToken::new(), CancellationToken::new());
        let mut phase = worker.phase();
        let join = tokio::spawn(worker.run(quiet.clone(), kill.clone()));
        match phase.wait_for(|phase| *phase == Phase::Ready).await {
            Ok(_) => {}
            Err(_) => panic!("the worker didn't start: {:?}", join.await),
        }
        Self { quiet, kill, join }
    }

    pub(crate) async fn end(self) -> WorkerEnd {
        self.result().await.unwrap()
    }

    pub(crate) async fn result(mut self) -> Result<WorkerEnd, WorkerError> {
        (&mut self.join).await.unwrap()
    }

    pub(crate) async fn quiet(self) -> WorkerEnd {
        self.quiet.cancel();
        self.end().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill.cancel();
        self.join.abort();
    }
}

/// A worker with four slots on its own queue, silent unless the test wants to hear it.
pub(crate) fn options(queue: &str) -> WorkerOptions {
    let mut options = WorkerOptions::new(format!("{queue}@test"), [queue]).slots(4);
    options.heartbeat = None;
    options.remote_control = false;
    options
}

pub(crate) async fn start(app: &App, broker: &Broker, options: WorkerOptions) -> Running {
    Running::start(app.worker(broker, options)).await
}

pub(crate) async fn client(broker: &Broker) -> Client {
    Client::new(broker, ClientOptions { result_timeout: Some(DEADLINE), ..ClientOptions::default() })
        .await
        .unwrap()
}

/// Makes each scenario a test on the embedded broker and one on RabbitMQ.
macro_rules! on_both_brokers {
    ($($(#[$attribute:meta])* $scenario:ident)*) => {
        mod embedded {
            $($(#[$attribute])* #[test] fn $scenario() {
                crate::support::run(super::$scenario(regatta_celery::transport::Broker::embedded()));
            })*
        }
        mod rabbitmq {
            $($(#[$attribute])* #[test] fn $scenario() {
                crate::support::run(async { super::$scenario(crate::support::rabbitmq().await).await });
            })*
        }
    };
}
pub(crate) use on_both_brokers;

/// RabbitMQ, on the node that all tests here share.
pub(crate) async fn rabbitmq() -> Broker {
    let url: BrokerUrl = rabbitmq_url().parse().unwrap();
    Broker::connect(&url, ConnectOptions::default()).await.unwrap()
}

pub(crate) fn rabbitmq_url() -> String {
    regatta_testbed::shared_node().url()
}
