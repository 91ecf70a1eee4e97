//! What a dead letter says of its past, as RabbitMQ writes it (<https://www.rabbitmq.com/docs/dlx>): `x-death`, a list
//! with one table for each pair of queue and reason, the newest first. The time is left out: the model has no clock.

use super::super::super::{Headers, Value};
use super::line::Message;

/// It outlived its time.
pub(super) const EXPIRED: &str = "expired";
/// A consumer sent it away.
pub(super) const REJECTED: &str = "rejected";
/// It came back too often.
pub(super) const DELIVERY_LIMIT: &str = "delivery_limit";

const DEATHS: &str = "x-death";

/// Writes down that a message died in `queue`.
pub(super) fn record(message: &mut Message, queue: &str, reason: &'static str) {
    let properties = &mut message.publishing.properties;
    let mut deaths = match properties.headers.remove(DEATHS) {
        Some(Value::List(deaths)) => deaths,
        _ => Vec::new(),
    };
    let known = deaths.iter().position(|death| is(death, "queue", queue) && is(death, "reason", reason));
    let death = match known.map(|at| deaths.remove(at)) {
        Some(Value::Table(mut death)) => {
            let count = death.get("count").and_then(Value::as_i64).unwrap_or(0);
            death.insert("count", count + 1);
            death
        }
        _ => {
            let mut death = Headers::default();
            death.insert("count", 1);
            death.insert("reason", reason);
            death.insert("queue", queue);
            death.insert("exchange", &*message.exchange);
            death.insert("routing-keys", Value::List(vec![message.publishing.routing_key.as_str().into()]));
            if let Some(expiration) = properties.expiration.take() {
                death.insert("original-expiration", expiration);
            }
            death
        }
    };
    if deaths.is_empty() {
        properties.headers.insert("x-first-death-queue", queue);
        properties.headers.insert("x-first-death-reason", reason);
        properties.headers.insert("x-first-death-exchange", &*message.exchange);
    }
    deaths.insert(0, Value::Table(death));
    properties.headers.insert(DEATHS, Value::List(deaths));
    // Where it goes now it would otherwise expire again.
    properties.expiration = None;
}

/// Whether a message would come to `queue` again without anybody having sent it away since: it would go round for ever.
pub(super) fn is_cycle(message: &Message, queue: &str) -> bool {
    let Some(Value::List(deaths)) = message.publishing.properties.headers.get(DEATHS) else { return false };
    for death in deaths {
        if is(death, "reason", REJECTED) {
            return false;
        }
        if is(death, "queue", queue) {
            return true;
        }
    }
    false
}

fn is(death: &Value, name: &str, text: &str) -> bool {
    let Value::Table(death) = death else { return false };
    death.get(name).and_then(Value::as_str) == Some(text)
}
