//! What a worker publishes and how it settles: results, states, retries, refusals. The one place that decides when a
//! delivery is acknowledged: after the broker has confirmed what follows from it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::app::App;
use crate::client::{Facts, new_id};
use crate::clock::{LogicalClock, iso, seconds};
use crate::emitter::{Emitter, json};
use crate::error::{CELERY_MODULE, TaskError};
use crate::transport::{
    Broker, Envelope, PublishError, Publishing, Queue, Settle, SettleError, Settler, Value,
};
use crate::wire::{RawJson, ResultMessage, State};
use crate::worker::aside::{Aside, ensure};
use crate::worker::conclude::Conclusion;
use crate::worker::execution::Execution;
use crate::worker::follow::{self, Step};
use crate::worker::intake::Asker;
use crate::worker::options::{DeadLetter, ResultRoute, WorkerOptions};
use crate::worker::slots::Settlement;

/// How long a worker tries to reach a reply queue that isn't there: its owner may be reconnecting. After that the
/// caller is taken for gone, as Celery takes it at once.
const CALLER_GONE_AFTER: Duration = Duration::from_secs(5);

/// The time between two such tries.
const CALLER_RETRY: Duration = Duration::from_millis(250);

/// How long a worker waits before it gives a task back whose result the broker didn't take, so that a broken exchange
/// doesn't make a hot loop of it.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

/// The longest representation of a value in an event; Celery's own limit.
const REPR_LIMIT: usize = 1024;

/// Everything that the executions of one worker share.
pub(crate) struct Hands {
    /// Says where following steps go.
    pub(crate) app: App,
    pub(crate) broker: Broker,
    pub(crate) options: WorkerOptions,
    pub(crate) clock: Arc<LogicalClock>,
    /// `None` when the worker sends no events at all.
    pub(crate) emitter: Option<Arc<Emitter>>,
    /// The queues beside the task queues: for delays and for dead letters.
    pub(crate) aside: Aside,
}

impl Hands {
    fn event(&self, kind: &'static str, id: &str, fields: impl FnOnce() -> Vec<(&'static str, RawJson)>) {
        if let Some(emitter) = &self.emitter {
            emitter.task(kind, id, fields);
        }
    }

    /// A task came in.
    pub(crate) fn received(&self, execution: &Execution) {
        let message = &execution.message;
        self.event("task-received", &execution.id, || {
            vec![
                ("name", json(&message.task)),
                ("args", json(&message.argsrepr)),
                ("kwargs", json(&message.kwargsrepr)),
                ("root_id", json(&message.root_id)),
                ("parent_id", json(&message.parent_id)),
                ("retries", json(&message.retries)),
                ("eta", json(&message.eta)),
                ("expires", json(&message.expires)),
            ]
        });
    }

    /// The line of an attempt that has ended, with the fields that logs are searched by (docs/logs.md).
    fn log_end(&self, execution: &Execution, state: &State, error: Option<&TaskError>, finished: SystemTime) {
        tracing::info!(
            worker = self.options.name,
            task = execution.name,
            task_id = &*execution.id,
            queue = &*execution.queue,
            attempt = execution.attempt(),
            duration_s = execution.facts(Some(finished)).run_time().map(|time| time.as_secs_f64()),
            state = state.as_str(),
            error = error.map(tracing::field::display),
            "task ended"
        );
    }

    /// Its execution begins.
    pub(crate) async fn started(&self, execution: &Execution) {
        self.event("task-started", &execution.id, Vec::new);
        if self.options.track_started {
            let meta = json(&serde_json::json!({"pid": std::process::id(), "hostname": self.options.name}));
            if let Err(error) = self.tell(execution, State::Started, meta).await {
                tracing::warn!(task_id = %execution.id, %error, "the state STARTED was not published");
            }
        }
    }

    /// Publishes a state before the result.
    pub(crate) async fn tell(
        &self,
        execution: &Execution,
        state: State,
        meta: RawJson,
    ) -> Result<(), PublishError> {
        if ignores_result(execution) {
            return Ok(());
        }
        let Some(reply_to) = execution.reply_to() else { return Ok(()) };
        let message = ResultMessage::new(&*execution.id, state, meta);
        let correlation = execution.message.correlation_id.as_deref();
        self.broker.publish(self.addressed(&message, reply_to, correlation, &execution.facts(None))).await
    }

    /// Does what follows from an execution, and settles its delivery.
    pub(crate) async fn finish(
        &self,
        execution: &Execution,
        conclusion: Conclusion,
        settler: Settler,
    ) -> Settlement {
        let finished = SystemTime::now();
        let published = match conclusion {
            Conclusion::Succeed(result) => self.succeed(execution, result, finished).await,
            Conclusion::Fail(error) => self.fail(execution, &error, finished).await,
            Conclusion::Retry(error, delay) => self.retry(execution, &error, delay, finished).await,
            Conclusion::Revoke(reason) => self.revoke(execution, reason, finished).await,
            Conclusion::Refuse(error) => {
                let asker = super::intake::asker(&execution.message);
                return self.refuse(&asker, &error, &execution.envelope, &execution.queue, settler).await;
            }
        };
        self.settle(published, &execution.id, settler).await
    }

    /// Acknowledges what is published, gives back what is not.
    async fn settle(&self, published: Result<(), PublishError>, id: &str, settler: Settler) -> Settlement {
        match published {
            Ok(()) => self.acknowledge(id, settler).await,
            Err(error) => {
                tracing::error!(task_id = %id, %error, "what follows from a task was not published; it goes back to its queue");
                self.give_back(id, settler).await
            }
        }
    }

    /// Acknowledges; the answer to "has the broker heard it?" is part of the result.
    pub(crate) async fn acknowledge(&self, id: &str, settler: Settler) -> Settlement {
        match settler.settle(Settle::Ack).await {
            Ok(()) => Settlement::Acked,
            Err(error) => {
                tracing::warn!(task_id = %id, %error, "the acknowledgement came too late; the broker delivers the task again");
                Settlement::AckLost
            }
        }
    }

    async fn give_back(&self, id: &str, settler: Settler) -> Settlement {
        tokio::time::sleep(GIVE_BACK_PAUSE).await;
        requeue(id, settler).await
    }

    async fn succeed(
        &self,
        execution: &Execution,
        result: RawJson,
        finished: SystemTime,
    ) -> Result<(), PublishError> {
        let steps = follow::after_success(&self.app, &execution.message, &result, &mut new_id);
        let followed = match steps {
            Ok(steps) if steps.is_empty() => Ok(()),
            Ok(steps) => self.publish_steps(steps).await?,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = followed {
            return self.fail(execution, &TaskError::fatal(reason).named("FollowError"), finished).await;
        }
        let shown = self.emitter.as_ref().filter(|emitter| emitter.tells_of_tasks()).map(|_| repr(&result));
        let message = ResultMessage::new(&*execution.id, State::Success, result);
        self.answer(execution, message, finished).await?;
        self.log_end(execution, &State::Success, None, finished);
        let run_time = execution.facts(Some(finished)).run_time().map(|time| time.as_secs_f64());
        self.event("task-succeeded", &execution.id, || {
            vec![("result", json(&shown)), ("runtime", json(&run_time))]
        });
        Ok(())
    }

    async fn fail(
        &self,
        execution: &Execution,
        error: &TaskError,
        finished: SystemTime,
    ) -> Result<(), PublishError> {
        let message = ResultMessage::new(&*execution.id, State::Failure, error.to_wire());
        let message = message.with_traceback(error.traceback.clone());
        self.answer(execution, message, finished).await?;
        self.log_end(execution, &State::Failure, Some(error), finished);
        self.event("task-failed", &execution.id, || exception_fields(error));
        self.follow_failure(execution, error).await
    }

    /// Publishes following steps. The inner error says which has no queue; trying again would not help that.
    async fn publish_steps(&self, steps: Vec<Step>) -> Result<Result<(), String>, PublishError> {
        for Step { mut message, exchange, routing_key } in steps {
            message.origin = Some(self.options.name.clone());
            let publishing = || {
                let (properties, body) = message.encode();
                let (exchange, routing_key) = (exchange.as_str().into(), routing_key.clone());
                Publishing { exchange, routing_key, properties, body, mandatory: true }
            };
            let mut published = self.broker.publish(publishing()).await;
            if matches!(published, Err(PublishError::Unroutable { .. })) && exchange.is_empty() {
                ensure(&self.broker, Queue::celery(&routing_key)).await.map_err(PublishError::from)?;
                published = self.broker.publish(publishing()).await;
            }
            match published {
                Err(PublishError::Unroutable { .. }) => {
                    return Ok(Err(format!(
                        "the following task {} has no queue {routing_key}",
                        message.task
                    )));
                }
                other => other?,
            }
        }
        Ok(Ok(()))
    }

    /// Publishes what is linked to the failure, and tells those who wait for the later steps of its chain.
    async fn follow_failure(&self, execution: &Execution, error: &TaskError) -> Result<(), PublishError> {
        let steps = follow::after_failure(&self.app, &execution.message, &mut new_id);
        let followed = match steps {
            Ok(steps) if steps.is_empty() => Ok(()),
            Ok(steps) => self.publish_steps(steps).await?,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = followed {
            tracing::warn!(task_id = %execution.id, reason, "what is linked to a failure can't follow");
        }
        for (id, reply_to) in follow::waiting_for_chain(&execution.message) {
            let asker = Asker { id: Some(id), reply_to: Some(reply_to), correlation_id: None };
            self.answer_asker(&asker, State::Failure, error).await?;
        }
        Ok(())
    }

    async fn revoke(
        &self,
        execution: &Execution,
        reason: &str,
        finished: SystemTime,
    ) -> Result<(), PublishError> {
        let error = revoked_error(reason);
        self.answer(execution, ResultMessage::new(&*execution.id, State::Revoked, error.to_wire()), finished)
            .await?;
        self.log_end(execution, &State::Revoked, Some(&error), finished);
        self.revoked_event(&execution.id, reason);
        Ok(())
    }

    fn revoked_event(&self, id: &str, reason: &str) {
        self.event("task-revoked", id, || {
            let terminated = reason == "terminated";
            vec![
                ("terminated", json(&terminated)),
                ("signum", json(&terminated.then_some(15))),
                ("expired", json(&(reason == "expired"))),
            ]
        });
    }

    /// Publishes the task again, first; then the state, which is worth less than the task.
    async fn retry(
        &self,
        execution: &Execution,
        error: &TaskError,
        delay: Duration,
        now: SystemTime,
    ) -> Result<(), PublishError> {
        self.aside.retry(&self.broker, execution, delay, now).await?;
        let message = ResultMessage::new(&*execution.id, State::Retry, error.to_wire());
        let message = message.with_traceback(error.traceback.clone());
        if let Err(failed) = self.answer(execution, message, now).await {
            tracing::warn!(task_id = %execution.id, error = %failed, "the state RETRY was not published");
        }
        self.log_end(execution, &State::Retry, Some(error), now);
        self.event("task-retried", &execution.id, || exception_fields(error));
        Ok(())
    }

    async fn answer(
        &self,
        execution: &Execution,
        message: ResultMessage,
        at: SystemTime,
    ) -> Result<(), PublishError> {
        if ignores_result(execution) {
            return Ok(());
        }
        let Some(reply_to) = execution.reply_to() else { return Ok(()) };
        let mut message = message;
        if message.status.is_final() {
            message.date_done = Some(iso(at));
        }
        message.group_id.clone_from(&execution.message.group);
        message.parent_id.clone_from(&execution.message.parent_id);
        let correlation = execution.message.correlation_id.as_deref();
        let facts = execution.facts(Some(at));
        self.deliver(reply_to, || self.addressed(&message, reply_to, correlation, &facts)).await
    }

    /// Publishes to a caller who may be reconnecting, or gone.
    async fn deliver(&self, reply_to: &str, publishing: impl Fn() -> Publishing) -> Result<(), PublishError> {
        let mut patience = None;
        loop {
            match self.broker.publish(publishing()).await {
                Err(PublishError::Unroutable { .. }) => {
                    let began = *patience.get_or_insert_with(Instant::now);
                    if began.elapsed() >= CALLER_GONE_AFTER {
                        tracing::warn!(reply_to, "a result has no reply queue: its caller is gone");
                        return Ok(());
                    }
                    tokio::time::sleep(CALLER_RETRY).await;
                }
                other => return other,
            }
        }
    }

    fn addressed(
        &self,
        message: &ResultMessage,
        reply_to: &str,
        correlation: Option<&str>,
        facts: &Facts,
    ) -> Publishing {
        let (mut properties, body) = message.encode();
        properties.correlation_id = Some(correlation.unwrap_or(&message.task_id).to_owned());
        facts.write(&mut properties.headers);
        let (exchange, routing_key) = match &self.options.results {
            ResultRoute::Reply => (String::new(), reply_to.to_owned()),
            ResultRoute::Exchange { exchange, key_prefix } => {
                // The broker checks the name, so a reader may trust it (RabbitMQ, "Validated User-ID").
                properties.user_id =
                    Some(self.broker.url().user().to_owned()).filter(|user| !user.is_empty());
                (exchange.clone(), format!("{key_prefix}.{reply_to}"))
            }
        };
        Publishing { exchange: exchange.into(), routing_key, properties, body, mandatory: true }
    }

    /// Answers what can't be run and dead-letters it.
    pub(crate) async fn refuse(
        &self,
        asker: &Asker,
        error: &TaskError,
        envelope: &Envelope,
        queue: &str,
        settler: Settler,
    ) -> Settlement {
        let id = asker.id.as_deref().unwrap_or("unknown");
        tracing::warn!(worker = self.options.name, task_id = id, queue, reason = %error, "a message was refused and dead-lettered");
        let mut how = self.options.dead_letter;
        if how == DeadLetter::Queue
            && let Err(failed) =
                self.aside.dead_letter(&self.broker, envelope, queue, &error.to_string()).await
        {
            if !failed.is_refusal() {
                return self.settle(Err(failed), id, settler).await;
            }
            // To give it back would be to get it again at once, for ever.
            tracing::error!(worker = self.options.name, task_id = id, queue, error = %failed, "this worker's user may not dead-letter; the message is rejected, and is kept only if its queue has a dead-letter exchange (a policy)");
            how = DeadLetter::Broker;
        }
        let answered = self.answer_asker(asker, State::Failure, error).await;
        self.event("task-failed", id, || exception_fields(error));
        match (answered, how) {
            (Ok(()), DeadLetter::Broker) => match settler.settle(Settle::DeadLetter).await {
                Ok(()) => Settlement::Acked,
                Err(_) => Settlement::AckLost,
            },
            (answered, _) => self.settle(answered, id, settler).await,
        }
    }

    /// Answers a task that was revoked, or is too old, before it began.
    pub(crate) async fn revoke_unstarted(&self, asker: &Asker, reason: &str, settler: Settler) -> Settlement {
        let id = asker.id.as_deref().unwrap_or("unknown");
        let answered = self.answer_asker(asker, State::Revoked, &revoked_error(reason)).await;
        self.revoked_event(id, reason);
        self.settle(answered, id, settler).await
    }

    async fn answer_asker(&self, asker: &Asker, state: State, error: &TaskError) -> Result<(), PublishError> {
        let (Some(id), Some(reply_to)) = (&asker.id, asker.reply_to.as_deref().filter(|to| !to.is_empty()))
        else {
            return Ok(());
        };
        let mut message = ResultMessage::new(id.as_str(), state, error.to_wire());
        message.date_done = Some(iso(SystemTime::now()));
        let facts = Facts { worker: Some(self.options.name.clone()), ..Facts::default() };
        let correlation = asker.correlation_id.as_deref();
        self.deliver(reply_to, || self.addressed(&message, reply_to, correlation, &facts)).await
    }

    /// Puts a task that came too early where it waits without being held.
    pub(crate) async fn postpone(
        &self,
        id: &str,
        envelope: &Envelope,
        queue: &str,
        eta: SystemTime,
        settler: Settler,
    ) -> Settlement {
        let delay = eta.duration_since(SystemTime::now()).unwrap_or_default();
        let published = self.aside.postpone(&self.broker, envelope, queue, delay).await;
        self.settle(published, id, settler).await
    }
}

/// Gives a delivery back to its queue.
pub(crate) async fn requeue(id: &str, settler: Settler) -> Settlement {
    if let Err(error @ SettleError::Lost { .. }) = settler.settle(Settle::Requeue).await {
        tracing::debug!(task_id = %id, %error, "the broker has the task back already");
    }
    Settlement::GivenBack
}

fn ignores_result(execution: &Execution) -> bool {
    execution.message.ignore_result.unwrap_or(execution.ignores_by_default)
}

fn revoked_error(reason: &str) -> TaskError {
    TaskError::fatal(reason).python("TaskRevokedError", CELERY_MODULE)
}

fn exception_fields(error: &TaskError) -> Vec<(&'static str, RawJson)> {
    let shown = format!("{}({})", error.exc_type, quoted(&error.message));
    vec![("exception", json(&shown)), ("traceback", json(&error.traceback.as_deref().unwrap_or("")))]
}

/// A text as Python shows it.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(REPR_LIMIT).collect();
    format!("'{}'", shown.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
}

/// A result as an event shows it: its JSON text, cut.
fn repr(result: &RawJson) -> String {
    result.as_str().chars().take(REPR_LIMIT).collect()
}

/// The header that says why a message was dead-lettered.
pub(crate) const REASON_HEADER: &str = "dead-letter-reason";

/// The header that says which queue it came out of.
pub(crate) const QUEUE_HEADER: &str = "dead-letter-queue";

/// The header that says when, in seconds since 1970.
pub(crate) const TIME_HEADER: &str = "dead-letter-time";

/// What is written on a dead letter.
pub(crate) fn dead_letter_headers(queue: &str, reason: &str, now: SystemTime) -> [(&'static str, Value); 3] {
    let reason: String = reason.chars().take(REPR_LIMIT).collect();
    [
        (REASON_HEADER, Value::from(reason.as_str())),
        (QUEUE_HEADER, Value::from(queue)),
        (TIME_HEADER, Value::Double(seconds(now))),
    ]
}
