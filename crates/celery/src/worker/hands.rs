//! What a worker publishes and how it settles: results, states, retries, refusals. The one place that decides when a
//! delivery is acknowledged: after the broker has confirmed what follows from it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::app::App;
use crate::client::{Facts, new_id};
use crate::clock::{LogicalClock, iso, seconds};
use crate::emitter::{Emitter, json};
use crate::error::{CELERY_MODULE, TaskError};
use crate::transport::{Envelope, PublishError, Publishing, Queue, Settle, SettleError, Settler, Value};
use crate::wire::{RawJson, ResultMessage, State};
use crate::worker::aside::Aside;
use crate::worker::callers::Callers;
use crate::worker::conclude::Conclusion;
use crate::worker::execution::Execution;
use crate::worker::follow::{self, Following};
use crate::worker::intake::Asker;
use crate::worker::options::{DeadLetter, ResultRoute, WorkerOptions};
use crate::worker::outbox::{Outbox, is_final};
use crate::worker::signature::Step;
use crate::worker::slots::Settlement;

/// The time between two tries to reach a reply queue that isn't there.
const CALLER_RETRY: Duration = Duration::from_millis(250);

/// How long a worker waits before it gives a task back whose result the broker didn't take, so that no hot loop comes of
/// it.
const GIVE_BACK_PAUSE: Duration = Duration::from_secs(1);

/// The longest representation of a value in an event; Celery's own limit.
const REPR_LIMIT: usize = 1024;

/// Everything that the executions of one worker share.
pub(crate) struct Hands {
    /// Says where following steps go.
    pub(crate) app: App,
    pub(crate) outbox: Outbox,
    pub(crate) options: WorkerOptions,
    pub(crate) clock: Arc<LogicalClock>,
    /// `None` when the worker sends no events at all.
    pub(crate) emitter: Option<Arc<Emitter>>,
    /// The queues beside the task queues: for delays and for dead letters.
    pub(crate) aside: Aside,
    /// The reply queues that weren't there.
    pub(crate) callers: Mutex<Callers>,
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
        // It is worth less than the wait.
        let publishing = self.addressed(&message, reply_to, correlation, &execution.facts(None));
        self.outbox.broker.publish(publishing).await
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
                return self.refuse(&asker, &error, &execution.envelope, settler).await;
            }
        };
        self.settle(published, &execution.id, &execution.envelope, settler).await
    }

    /// Acknowledges what is published and gives back what is not yet. What can never be published would come back and
    /// be executed for ever, so the message is dead-lettered.
    async fn settle(
        &self,
        published: Result<(), PublishError>,
        id: &str,
        envelope: &Envelope,
        settler: Settler,
    ) -> Settlement {
        let error = match published {
            Ok(()) => return self.acknowledge(id, settler).await,
            Err(error) => error,
        };
        if !is_final(&error) {
            tracing::error!(task_id = %id, %error, "what follows from a task was not published; it goes back to its queue");
            return self.give_back(id, settler).await;
        }
        tracing::error!(task_id = %id, %error, "what follows from a task can't be published; it is dead-lettered");
        let reason = format!("what follows from it can't be published: {error}");
        match self.dead_letter(id, envelope, &reason).await {
            Ok(how) => self.settle_dead(how, id, settler).await,
            Err(error) => {
                tracing::error!(task_id = %id, %error, "a message was not dead-lettered; it goes back to its queue");
                self.give_back(id, settler).await
            }
        }
    }

    /// Dead-letters a message as far as this worker can; what is left to do is said by the answer.
    async fn dead_letter(
        &self,
        id: &str,
        envelope: &Envelope,
        reason: &str,
    ) -> Result<DeadLetter, PublishError> {
        if self.options.dead_letter == DeadLetter::Broker {
            return Ok(DeadLetter::Broker);
        }
        match self.aside.dead_letter(&self.outbox, envelope, reason).await {
            Ok(()) => Ok(DeadLetter::Queue),
            // To give it back would be to get it again at once, for ever.
            Err(error) if is_final(&error) => {
                tracing::error!(worker = self.options.name, task_id = id, queue = %envelope.queue, %error, "this worker can't dead-letter; the message is rejected, and is kept only if its queue has a dead-letter exchange (a policy)");
                Ok(DeadLetter::Broker)
            }
            Err(error) => Err(error),
        }
    }

    /// Settles what [`Self::dead_letter`] has dealt with.
    async fn settle_dead(&self, how: DeadLetter, id: &str, settler: Settler) -> Settlement {
        match how {
            DeadLetter::Queue => self.acknowledge(id, settler).await,
            DeadLetter::Broker => match settler.settle(Settle::DeadLetter).await {
                Ok(()) => Settlement::Acked,
                Err(_) => Settlement::AckLost,
            },
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
        let children = match self.follow_success(execution, &result, finished).await? {
            Ok(children) => children,
            Err(reason) => {
                return self.fail(execution, &TaskError::fatal(reason).named("FollowError"), finished).await;
            }
        };
        let shown = self.emitter.as_ref().filter(|emitter| emitter.tells_of_tasks()).map(|_| repr(&result));
        let mut message = ResultMessage::new(&*execution.id, State::Success, result);
        if !children.is_empty() {
            message.children = json(&children);
        }
        match self.answer(execution, message, finished).await {
            Err(error) if is_final(&error) => {
                let error = TaskError::fatal(format!("the result can't be published: {error}"));
                return self.fail(execution, &error.named("ResultError"), finished).await;
            }
            answered => answered?,
        }
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
        let failure = |error: &TaskError| {
            let message = ResultMessage::new(&*execution.id, State::Failure, error.to_wire());
            message.with_traceback(error.traceback.clone())
        };
        let mut answered = self.answer(execution, failure(error), finished).await;
        if answered.as_ref().is_err_and(is_final)
            && let Some(shorter) = shorter(error)
        {
            answered = self.answer(execution, failure(&shorter), finished).await;
        }
        if answered.as_ref().is_err_and(|error| !is_final(error)) {
            return answered;
        }
        self.log_end(execution, &State::Failure, Some(error), finished);
        self.event("task-failed", &execution.id, || exception_fields(error));
        self.follow_failure(execution, error).await;
        answered
    }

    /// Publishes what follows, and gives what the result tells of it. The inner error says what can't follow.
    async fn follow_success(
        &self,
        execution: &Execution,
        result: &RawJson,
        now: SystemTime,
    ) -> Result<Result<Vec<serde_json::Value>, String>, PublishError> {
        let following = follow::after_success(&self.app, &execution.message, result, now, &mut new_id);
        let Following { steps, children } = match following {
            Ok(following) => following,
            Err(reason) => return Ok(Err(reason)),
        };
        let published = self.publish_steps(steps).await?;
        Ok(published.map(|()| children))
    }

    /// Publishes following steps. The inner error says which can't follow; trying again would not help that.
    async fn publish_steps(&self, steps: Vec<Step>) -> Result<Result<(), String>, PublishError> {
        for mut step in steps {
            step.message.origin.get_or_insert_with(|| self.options.name.clone());
            let publishing = || step.publishing();
            let mut published = self.outbox.publish(publishing).await;
            if matches!(published, Err(PublishError::Unroutable { .. })) && step.exchange.is_empty() {
                published = match self.outbox.ready(&Queue::celery(&step.routing_key)).await {
                    Ok(()) => self.outbox.publish(publishing).await,
                    Err(error) => Err(error),
                };
            }
            match published {
                Err(PublishError::Unroutable { .. }) => {
                    return Ok(Err(format!(
                        "the following task {} has no queue {}",
                        step.message.task, step.routing_key
                    )));
                }
                Err(error) if is_final(&error) => {
                    return Ok(Err(format!(
                        "the following task {} can't be published: {error}",
                        step.message.task
                    )));
                }
                other => other?,
            }
        }
        Ok(Ok(()))
    }

    /// Publishes what is linked to the failure, and tells those who wait for the later steps of its chain. The failure is
    /// known by now: what can't follow is said, but to execute the task again could only bring a second verdict.
    async fn follow_failure(&self, execution: &Execution, error: &TaskError) {
        let followed =
            match follow::after_failure(&self.app, &execution.message, SystemTime::now(), &mut new_id) {
                Ok(steps) if steps.is_empty() => Ok(()),
                Ok(steps) => self.publish_steps(steps).await.unwrap_or_else(|unsent| Err(unsent.to_string())),
                Err(reason) => Err(reason),
            };
        if let Err(reason) = followed {
            tracing::warn!(task_id = %execution.id, reason, "what is linked to a failure can't follow");
        }
        for (id, reply_to) in follow::waiting_for_chain(&execution.message) {
            let asker = Asker { id: Some(id), reply_to: Some(reply_to), correlation_id: None };
            if let Err(unsent) = self.answer_asker(&asker, State::Failure, error).await {
                tracing::warn!(task_id = asker.id, error = %unsent, "who waits for a later step of a chain can't be told of its failure");
            }
        }
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

    /// Publishes the task again, first; then the state, which is worth less than the task. One that can't be published
    /// again has failed.
    async fn retry(
        &self,
        execution: &Execution,
        error: &TaskError,
        delay: Duration,
        now: SystemTime,
    ) -> Result<(), PublishError> {
        match self.aside.retry(&self.outbox, execution, error.kind, delay, now).await {
            Err(refused) if is_final(&refused) => {
                let message = format!("{}; it can't be tried again: {refused}", error.message);
                return self.fail(execution, &TaskError { message, ..error.clone() }, now).await;
            }
            published => published?,
        }
        let mut message = ResultMessage::new(&*execution.id, State::Retry, error.to_wire());
        // As Celery has it: the next try is what this one has sent.
        message.children = json(&[follow::child(&execution.id)]);
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
        loop {
            let published = self.outbox.publish(&publishing).await;
            match published {
                Err(PublishError::Unroutable { .. }) => {
                    if self.callers().missing(Instant::now(), reply_to) {
                        tracing::warn!(reply_to, "a result has no reply queue: its caller is gone");
                        return Ok(());
                    }
                    tokio::time::sleep(CALLER_RETRY).await;
                }
                Ok(()) => {
                    self.callers().heard(reply_to);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
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
                    Some(self.outbox.broker.url().user().to_owned()).filter(|user| !user.is_empty());
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
        settler: Settler,
    ) -> Settlement {
        let id = asker.id.as_deref().unwrap_or("unknown");
        tracing::warn!(worker = self.options.name, task_id = id, queue = %envelope.queue, reason = %error, "a message was refused and dead-lettered");
        let how = match self.dead_letter(id, envelope, &error.to_string()).await {
            Ok(how) => how,
            Err(failed) => return self.settle(Err(failed), id, envelope, settler).await,
        };
        let answered = self.answer_asker(asker, State::Failure, error).await;
        self.event("task-failed", id, || exception_fields(error));
        // It lies among the dead letters: it must not come again for an answer's sake, and lie there twice.
        if let Err(failed) = answered {
            tracing::warn!(task_id = id, error = %failed, "the caller of a refused message can't be told");
        }
        self.settle_dead(how, id, settler).await
    }

    /// Answers a task that was revoked, or is too old, before it began.
    pub(crate) async fn revoke_unstarted(
        &self,
        asker: &Asker,
        reason: &str,
        envelope: &Envelope,
        settler: Settler,
    ) -> Settlement {
        let id = asker.id.as_deref().unwrap_or("unknown");
        let answered = self.answer_asker(asker, State::Revoked, &revoked_error(reason)).await;
        self.revoked_event(id, reason);
        self.settle(answered, id, envelope, settler).await
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
        eta: SystemTime,
        settler: Settler,
    ) -> Settlement {
        let delay = eta.duration_since(SystemTime::now()).unwrap_or_default();
        match self.aside.postpone(&self.outbox, envelope, delay).await {
            // Without the right to make that queue it comes again and again until its time has come: a poor wait, and
            // better than none.
            Err(error) if is_final(&error) => {
                tracing::error!(task_id = %id, %error, "a task that came too early can't be put aside; it goes back to its queue");
                self.give_back(id, settler).await
            }
            published => self.settle(published, id, envelope, settler).await,
        }
    }
}

/// The same error without what can make its message too large for the broker; `None` where that is nothing.
fn shorter(error: &TaskError) -> Option<TaskError> {
    let message: String = error.message.chars().take(REPR_LIMIT).collect();
    let cut = message.len() < error.message.len() || error.traceback.is_some();
    cut.then(|| TaskError { message, traceback: None, ..error.clone() })
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

/// The header that says who sent it, where the message said that and the broker had checked it.
pub(crate) const USER_HEADER: &str = "dead-letter-user";

/// What is written on a dead letter.
pub(crate) fn dead_letter_headers(
    queue: &str,
    reason: &str,
    user: Option<&str>,
    now: SystemTime,
) -> impl Iterator<Item = (&'static str, Value)> {
    let reason: String = reason.chars().take(REPR_LIMIT).collect();
    let always = [
        (REASON_HEADER, Value::from(reason)),
        (QUEUE_HEADER, Value::from(queue)),
        (TIME_HEADER, Value::Double(seconds(now))),
    ];
    always.into_iter().chain(user.map(|user| (USER_HEADER, Value::from(user))))
}
