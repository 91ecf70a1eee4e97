//! Exchanges, queues and bindings, as declarations.

use std::fmt;
use std::time::Duration;

/// How an exchange routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// By the exact routing key.
    Direct,
    /// By a pattern of words: `*` for one, `#` for any number.
    Topic,
    /// To all.
    Fanout,
}

/// An exchange to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    pub(super) name: String,
    pub(super) kind: ExchangeKind,
    pub(super) durable: bool,
}

impl Exchange {
    fn new(name: &str, kind: ExchangeKind) -> Self {
        Self { name: name.to_owned(), kind, durable: false }
    }

    /// A direct exchange that doesn't survive the broker's restart.
    pub fn direct(name: &str) -> Self {
        Self::new(name, ExchangeKind::Direct)
    }

    /// A topic exchange that doesn't survive the broker's restart.
    pub fn topic(name: &str) -> Self {
        Self::new(name, ExchangeKind::Topic)
    }

    /// A fanout exchange that doesn't survive the broker's restart.
    pub fn fanout(name: &str) -> Self {
        Self::new(name, ExchangeKind::Fanout)
    }

    /// The same, surviving.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }
}

/// A queue to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    pub(super) name: String,
    pub(super) durable: bool,
    pub(super) exclusive: bool,
    pub(super) auto_delete: bool,
    pub(super) quorum: bool,
    pub(super) delivery_limit: Option<u32>,
    pub(super) max_priority: Option<u8>,
    pub(super) ttl: Option<Duration>,
    pub(super) expires: Option<Duration>,
    pub(super) dead_letter: Option<(String, String)>,
}

/// How long an unused reply queue lives: Celery's `result_expires`.
const REPLY_EXPIRY: Duration = Duration::from_secs(86_400);

impl Queue {
    fn new(name: &str, durable: bool) -> Self {
        Self {
            name: name.to_owned(),
            durable,
            exclusive: false,
            auto_delete: false,
            quorum: false,
            delivery_limit: None,
            max_priority: None,
            ttl: None,
            expires: None,
            dead_letter: None,
        }
    }

    /// A task queue exactly as Celery declares it: durable, classic, without arguments.
    pub fn celery(name: &str) -> Self {
        Self::new(name, true)
    }

    /// A reply queue as Celery 5.7's `rpc://` declares it.
    pub fn reply(name: &str) -> Self {
        Self { auto_delete: true, ..Self::new(name, true) }.expires(REPLY_EXPIRY)
    }

    /// A queue that doesn't survive the broker's restart.
    pub fn transient(name: &str) -> Self {
        Self::new(name, false)
    }

    /// A replicated queue; a message that came back `delivery_limit` times is dead-lettered or dropped.
    pub fn quorum(name: &str, delivery_limit: u32) -> Self {
        Self { quorum: true, delivery_limit: Some(delivery_limit), ..Self::new(name, true) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Only for this connection, and gone with it.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// Gone with its last consumer.
    #[must_use]
    pub fn auto_delete(mut self) -> Self {
        self.auto_delete = true;
        self
    }

    /// With priorities up to `most`.
    #[must_use]
    pub fn max_priority(mut self, most: u8) -> Self {
        self.max_priority = Some(most);
        self
    }

    /// Messages live so long in it, in whole milliseconds.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Gone when unused for so long, in whole milliseconds.
    #[must_use]
    pub fn expires(mut self, expires: Duration) -> Self {
        self.expires = Some(expires);
        self
    }

    /// What expires or is dead-lettered goes to this exchange under this routing key.
    #[must_use]
    pub fn dead_letter(mut self, exchange: &str, routing_key: &str) -> Self {
        self.dead_letter = Some((exchange.to_owned(), routing_key.to_owned()));
        self
    }
}

/// A binding to declare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) routing_key: String,
}

impl Binding {
    /// What comes to `exchange` under `routing_key` goes into `queue`.
    pub fn new(exchange: &str, queue: &str, routing_key: &str) -> Self {
        Self { exchange: exchange.to_owned(), queue: queue.to_owned(), routing_key: routing_key.to_owned() }
    }
}

/// Declarations, in order: exchanges, queues, bindings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    pub(super) exchanges: Vec<Exchange>,
    pub(super) queues: Vec<Queue>,
    pub(super) bindings: Vec<Binding>,
}

impl Topology {
    /// With an exchange.
    #[must_use]
    pub fn exchange(mut self, exchange: Exchange) -> Self {
        self.exchanges.push(exchange);
        self
    }

    /// With a queue.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queues.push(queue);
        self
    }

    /// With a binding.
    #[must_use]
    pub fn binding(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// One by one, in the order in which they must be made.
    pub(super) fn declarations(&self) -> impl Iterator<Item = Declaration<'_>> {
        let exchanges = self.exchanges.iter().map(Declaration::Exchange);
        let queues = self.queues.iter().map(Declaration::Queue);
        exchanges.chain(queues).chain(self.bindings.iter().map(Declaration::Binding))
    }

    /// Takes in another's declarations; what is in it already is replaced.
    pub(super) fn merge(&mut self, other: &Self) {
        for exchange in &other.exchanges {
            self.exchanges.retain(|known| known.name != exchange.name);
            self.exchanges.push(exchange.clone());
        }
        for queue in &other.queues {
            self.queues.retain(|known| known.name != queue.name);
            self.queues.push(queue.clone());
        }
        for binding in &other.bindings {
            if !self.bindings.contains(binding) {
                self.bindings.push(binding.clone());
            }
        }
    }

    /// What of it makes one queue: the queue and its bindings. None when it isn't in it.
    pub(super) fn of(&self, queue: &str) -> Option<Self> {
        let own = self.queues.iter().find(|known| known.name == queue)?.clone();
        let bindings = self.bindings.iter().filter(|binding| binding.queue == queue).cloned().collect();
        Some(Self { exchanges: Vec::new(), queues: vec![own], bindings })
    }

    /// Forgets a queue that is deleted.
    pub(super) fn forget(&mut self, queue: &str) {
        self.queues.retain(|known| known.name != queue);
        self.bindings.retain(|binding| binding.queue != queue);
    }
}

/// One thing to declare; shown as what is being done to what.
pub(super) enum Declaration<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
    Binding(&'a Binding),
}

impl fmt::Display for Declaration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(exchange) => write!(f, "declaring exchange {}", exchange.name),
            Self::Queue(queue) => write!(f, "declaring queue {}", queue.name),
            Self::Binding(Binding { exchange, queue, .. }) => {
                write!(f, "binding queue {queue} to exchange {exchange}")
            }
        }
    }
}

/// Whether a topic exchange's pattern takes a routing key.
pub(super) fn topic_matches(pattern: &str, key: &str) -> bool {
    fn words(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => {
                words(rest, key) || key.split_first().is_some_and(|(_, key)| words(pattern, key))
            }
            (Some((&"*", rest)), Some((_, key))) => words(rest, key),
            (Some((word, rest)), Some((letter, key))) => word == letter && words(rest, key),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
    let pattern: Vec<&str> = pattern.split('.').collect();
    let key: Vec<&str> = key.split('.').collect();
    words(&pattern, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_a_queue_is_found_among_everything() {
        let (own, other) = (Binding::new("x", "own", "k"), Binding::new("x", "other", "k"));
        let all = Topology::default()
            .exchange(Exchange::direct("x"))
            .queue(Queue::celery("other"))
            .queue(Queue::celery("own").max_priority(3))
            .binding(other)
            .binding(own.clone());
        let expected = Topology::default().queue(Queue::celery("own").max_priority(3)).binding(own);
        assert_eq!(all.of("own"), Some(expected));
        assert_eq!(all.of("unknown"), None);
    }

    #[test]
    fn topics_match_by_words() {
        let table = [
            ("#", "a.b.c", true),
            ("#.r1", "worker.a.r1", true),
            ("*.r1", "worker.a.r1", false),
            ("*.r1", "w.r1", true),
            ("worker.#", "worker.heartbeat", true),
            ("worker.#", "worker", true),
            ("a.*.c", "a.b.d", false),
            ("a", "b", false),
        ];
        for (pattern, key, expected) in table {
            assert_eq!(topic_matches(pattern, key), expected, "{pattern} on {key}");
        }
    }
}
