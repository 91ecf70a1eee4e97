//! Remote control: the questions and commands of `celery inspect`, `celery control` and Flower.
//!
//! Requests come to all workers through a fanout exchange, so nobody ever addresses a worker's queue by its name. It
//! is `<node name>.<unique>.celery.pidbox` here: an exclusive queue under Celery's own name can't be declared again
//! while the broker hasn't noticed that the old connection is dead. A worker's user needs the rights `configure`,
//! `write` and `read` on `<node name>\..*\.celery\.pidbox`, `configure` and `read` on the exchange `celery.pidbox`, and
//! `write` on `reply.celery.pidbox`.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::clock::seconds;
use crate::transport::{Binding, Broker, Consume, Consumer, Exchange, Queue, Topology, TransportError};
use crate::wire::{ControlReply, ControlRequest};
use crate::worker::execution::Execution;
use crate::worker::round::Round;
use crate::worker::slots::Input;

/// The exchange that carries requests to all workers.
pub(crate) const CONTROL_EXCHANGE: &str = "celery.pidbox";

/// The exchange that carries the answers.
pub(crate) const REPLY_EXCHANGE: &str = "reply.celery.pidbox";

/// How long an unused control or reply queue lives; Celery's own time.
pub(crate) const QUEUE_EXPIRY: Duration = Duration::from_secs(10);

/// How long a request or an answer may lie in its queue; Celery's own time.
pub(crate) const MESSAGE_TTL: Duration = Duration::from_secs(300);

/// How many ids one request may revoke; more are cut off, so that one message can't fill the memory.
const REVOKE_LIMIT: usize = 10_000;

/// The worker's ear for requests.
#[derive(Debug)]
pub(crate) struct Pidbox {
    consumer: Consumer,
    name: String,
}

impl Pidbox {
    pub(crate) async fn open(broker: &Broker, name: &str) -> Result<Self, TransportError> {
        let queue = format!("{name}.{}.{CONTROL_EXCHANGE}", uuid::Uuid::new_v4());
        let topology = Topology::default()
            .exchange(Exchange::fanout(CONTROL_EXCHANGE))
            .exchange(Exchange::direct(REPLY_EXCHANGE))
            .queue(Queue::transient(&queue).exclusive().auto_delete().expires(QUEUE_EXPIRY).ttl(MESSAGE_TTL))
            .binding(Binding::new(CONTROL_EXCHANGE, &queue, ""));
        broker.declare(&topology).await?;
        let tag = queue.clone();
        let consumer =
            broker.consume(Consume { queue, prefetch: 0, no_ack: true, exclusive: false, tag }).await?;
        Ok(Self { consumer, name: name.to_owned() })
    }

    /// The next request that is meant for this worker; `None` when the broker was closed.
    pub(crate) async fn next(&mut self) -> Option<ControlRequest> {
        loop {
            let (envelope, _settled_by_no_ack) = self.consumer.next().await?.split();
            match ControlRequest::decode(&envelope.properties, &envelope.body) {
                Ok(request) if request.is_for(&self.name) => return Some(request),
                Ok(_) => {}
                Err(refusal) => {
                    tracing::warn!(reason = %refusal.reason, "a malformed control request was ignored");
                }
            }
        }
    }
}

impl Round {
    /// Answers a request. The answer goes out in a task of its own: nobody here waits for a slow broker.
    pub(crate) fn control(&mut self, request: ControlRequest) {
        self.hands.clock.adjust(request.clock.unwrap_or(0));
        tracing::debug!(method = request.method, "remote control");
        let value = self.answer(&request);
        let Some(reply_to) = request.reply_to else { return };
        let mut nodes = Map::new();
        nodes.insert(self.hands.options.name.clone(), value);
        let reply = ControlReply { ticket: request.ticket, clock: self.hands.clock.tick(), nodes };
        let publishing = reply.publishing(&reply_to);
        let broker = self.hands.outbox.broker.clone();
        tokio::spawn(async move {
            if let Err(error) = broker.publish(publishing).await {
                tracing::debug!(%error, "an answer to remote control was not published");
            }
        });
    }

    fn answer(&mut self, request: &ControlRequest) -> Value {
        let arguments = &request.arguments;
        match request.method.as_str() {
            "ping" => json!({"ok": "pong"}),
            "stats" => self.stats(),
            "active" => self.running.values().map(|execution| info(execution, true)).collect(),
            "reserved" => self.reserved().collect(),
            // What must wait lies in a delay queue of the broker, not in this worker.
            "scheduled" | "dump_schedule" => json!([]),
            "registered" | "dump_tasks" => self.hands.app.names().collect(),
            "active_queues" => self.hands.options.queues.iter().map(|queue| queue_info(queue)).collect(),
            "query_task" => self.query(arguments.get("ids")),
            "revoked" | "dump_revoked" => self.slots.revoked().map(|id| Value::from(&**id)).collect(),
            "conf" | "dump_conf" => self.conf(),
            "report" => json!({"ok": self.report()}),
            "clock" => json!({"clock": self.hands.clock.now()}),
            "memsample" | "memdump" => Value::Null,
            "hello" => self.hello(arguments),
            "revoke" => self.revoke(arguments, arguments.get("terminate") == Some(&Value::Bool(true))),
            "terminate" => self.revoke(arguments, true),
            "enable_events" => self.switch_events(true),
            "disable_events" => self.switch_events(false),
            "heartbeat" => {
                self.say("worker-heartbeat");
                Value::Null
            }
            "shutdown" => {
                self.asked.cancel();
                Value::Null
            }
            unknown => json!({"error": format!("KeyError('{unknown}')")}),
        }
    }

    fn reserved(&self) -> impl Iterator<Item = Value> + '_ {
        self.slots
            .waiting()
            .filter_map(|key| self.waiting.get(&key))
            .map(|accepted| info(&accepted.execution, false))
    }

    fn stats(&self) -> Value {
        let (hands, pid) = (&self.hands, std::process::id());
        let url = hands.outbox.broker.url();
        json!({
            "total": self.total,
            "pid": pid,
            "clock": hands.clock.now().to_string(),
            "uptime": self.began.elapsed().as_secs(),
            "pool": {
                "implementation": "regatta_celery:Slots",
                "max-concurrency": hands.options.slots,
                "processes": [pid],
                "max-tasks-per-child": "N/A",
                "put-guarded-by-semaphore": true,
                "timeouts": [hands.options.max_timeout.map_or(0, |limit| limit.as_secs()), 0],
                "writes": {},
            },
            "broker": {
                "hostname": url.host(),
                "userid": url.user(),
                "virtual_host": url.vhost(),
                "port": url.port(),
                "transport": if url.is_embedded() { "memory" } else { "amqp" },
                "ssl": url.is_tls(),
            },
            "prefetch_count": hands.options.prefetch.of(hands.options.slots),
            "rusage": "N/A",
        })
    }

    fn query(&self, ids: Option<&Value>) -> Value {
        let mut found = Map::new();
        for id in texts(ids) {
            let running = self.running.values().find(|execution| *execution.id == *id);
            let waiting = self.waiting.values().find(|accepted| *accepted.execution.id == *id);
            if let Some(execution) = running {
                found.insert(id.to_owned(), json!(["active", info(execution, true)]));
            } else if let Some(accepted) = waiting {
                found.insert(id.to_owned(), json!(["reserved", info(&accepted.execution, false)]));
            }
        }
        Value::Object(found)
    }

    fn conf(&self) -> Value {
        let options = &self.hands.options;
        json!({
            "broker_url": self.hands.outbox.broker.url().to_string(),
            "result_backend": "rpc://",
            "task_acks_late": true,
            "task_track_started": options.track_started,
            "worker_concurrency": options.slots,
            "worker_send_task_events": self.voice_tells_of_tasks(),
        })
    }

    fn report(&self) -> String {
        format!(
            "software -> {}:{}\napp -> {}\nbroker -> {}",
            crate::emitter::IDENT,
            env!("CARGO_PKG_VERSION"),
            self.hands.app.name(),
            self.hands.outbox.broker.url()
        )
    }

    /// A neighbour says hello and tells what it knows to be revoked (Celery's "mingle").
    fn hello(&mut self, arguments: &Map<String, Value>) -> Value {
        if arguments.get("from_node").and_then(Value::as_str) == Some(self.hands.options.name.as_str()) {
            return Value::Null;
        }
        let ids: Vec<String> = match arguments.get("revoked") {
            Some(Value::Object(ids)) => ids.keys().take(REVOKE_LIMIT).cloned().collect(),
            other => texts(other).map(str::to_owned).collect(),
        };
        for id in ids {
            self.decide(Input::Revoked { id: id.into(), terminate: false });
        }
        let revoked: Vec<&str> = self.slots.revoked().map(|id| &**id).collect();
        json!({"revoked": revoked, "clock": self.hands.clock.tick()})
    }

    fn revoke(&mut self, arguments: &Map<String, Value>, terminate: bool) -> Value {
        let ids: Vec<String> = texts(arguments.get("task_id")).map(str::to_owned).collect();
        let running = |id: &String| self.running.values().any(|execution| *execution.id == **id);
        let ended: Vec<String> = ids.iter().filter(|id| running(id)).cloned().collect();
        for id in &ids {
            self.decide(Input::Revoked { id: id.as_str().into(), terminate });
        }
        match (terminate, ended.is_empty()) {
            (true, true) => json!({"ok": "terminate: tasks unknown"}),
            (true, false) => json!({"ok": format!("terminate: {}", ended.join(", "))}),
            (false, _) => {
                let shown: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
                json!({"ok": format!("tasks {{{}}} flagged as revoked", shown.join(", "))})
            }
        }
    }

    fn switch_events(&self, on: bool) -> Value {
        let word = if on { "enabled" } else { "disabled" };
        match &self.hands.emitter {
            None => json!({"error": "this worker sends no events"}),
            Some(emitter) if emitter.switch_tasks(on) => json!({"ok": format!("task events {word}")}),
            Some(_) => json!({"ok": format!("task events already {word}")}),
        }
    }

    fn voice_tells_of_tasks(&self) -> bool {
        self.hands.emitter.as_ref().is_some_and(|emitter| emitter.tells_of_tasks())
    }
}

/// One text or a list of texts.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let (one, many) = match value {
        Some(Value::Array(many)) => (None, many.as_slice()),
        Some(Value::String(one)) => (Some(one.as_str()), [].as_slice()),
        _ => (None, [].as_slice()),
    };
    one.into_iter().chain(many.iter().filter_map(Value::as_str)).take(REVOKE_LIMIT)
}

/// A task as `inspect` shows it. The arguments are shown as the sender described them (`argsrepr`), which is what
/// Celery shows too when they are large.
fn info(execution: &Execution, runs: bool) -> Value {
    let message = &execution.message;
    let envelope = &execution.envelope;
    json!({
        "id": &*execution.id,
        "name": message.shadow.as_deref().unwrap_or(&execution.name),
        "type": execution.name,
        "args": message.argsrepr,
        "kwargs": message.kwargsrepr,
        "hostname": execution.worker_name(),
        "time_start": execution.started.get().map(|started: &SystemTime| seconds(*started)),
        "acknowledged": false,
        "delivery_info": {
            "exchange": &*envelope.exchange,
            "routing_key": &*envelope.routing_key,
            "priority": envelope.properties.priority,
            "redelivered": execution.redelivered,
        },
        "worker_pid": runs.then(std::process::id),
    })
}

/// A task queue as `inspect active_queues` shows it.
fn queue_info(queue: &str) -> Value {
    json!({
        "name": queue,
        "exchange": {
            "name": queue, "type": "direct", "arguments": null, "durable": true, "passive": false,
            "auto_delete": false, "delivery_mode": null, "no_declare": false,
        },
        "routing_key": queue,
        "queue_arguments": null, "binding_arguments": null, "consumer_arguments": null,
        "durable": true, "exclusive": false, "auto_delete": false, "no_ack": false, "alias": null,
        "bindings": [], "no_declare": null, "expires": null, "message_ttl": null,
        "max_length": null, "max_length_bytes": null, "max_priority": null,
    })
}
