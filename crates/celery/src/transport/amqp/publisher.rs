//! The channels that messages leave by: one for each exchange. RabbitMQ answers a publishing that it refuses (no such
//! exchange, no right to write to it) by closing the channel, with everything that is still unconfirmed on it; with a
//! channel of its own, an exchange that is refused takes no other's messages along.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ErrorKind};
use tokio::sync::Mutex;

use super::super::{Properties, Publishing, TransportError};
use super::convert::{name, to_properties};
use super::session::from_broker;

/// How many exchanges keep a channel. Others send names of exchanges (where an answer shall go, where a task's next step
/// waits), and RabbitMQ allows 2,047 channels on a connection.
const CHANNELS_MAX: usize = 64;

/// The channels of one connection.
#[derive(Default)]
pub(super) struct Publishers(Mutex<Kept<Publisher>>);

/// Channels by exchange, at most [`CHANNELS_MAX`]: the one that was used longest ago goes first. It is closed when nobody
/// publishes on it any more.
struct Kept<C> {
    channels: HashMap<Arc<str>, (C, u64)>,
    uses: u64,
}

impl<C> Default for Kept<C> {
    fn default() -> Self {
        Self { channels: HashMap::new(), uses: 0 }
    }
}

impl<C: Clone> Kept<C> {
    fn get(&mut self, exchange: &str) -> Option<C> {
        let (channel, used) = self.channels.get_mut(exchange)?;
        self.uses += 1;
        *used = self.uses;
        Some(channel.clone())
    }

    fn put(&mut self, exchange: Arc<str>, channel: C, is_open: impl Fn(&C) -> bool) {
        self.channels.retain(|_, (kept, _)| is_open(kept));
        while self.channels.len() >= CHANNELS_MAX
            && let Some((oldest, _)) = self.channels.iter().min_by_key(|(_, (_, used))| *used)
        {
            let oldest = Arc::clone(oldest);
            self.channels.remove(&oldest);
        }
        self.uses += 1;
        self.channels.insert(exchange, (channel, self.uses));
    }
}

/// One exchange's channel. Clones share it.
#[derive(Clone)]
struct Publisher {
    channel: Channel,
    /// Whether a message was confirmed on it. Until then an error that closes it is about all that it was used for;
    /// later it is about what the exchange has become, and an older message may have arrived.
    proven: Arc<AtomicBool>,
    /// How many messages were sent on it and not confirmed. An error that closes it is about one of them.
    unconfirmed: Arc<AtomicUsize>,
}

/// Why a message isn't known to be at the broker.
pub(super) enum Unsent {
    /// It is not there, and won't be.
    Refused(TransportError),
    /// The channel ended before the confirm.
    Lost(lapin::Error),
}

impl Publishers {
    /// Publishes on the exchange's channel, and waits for the confirm.
    pub(super) async fn publish(
        &self,
        connection: &Connection,
        publishing: &Publishing,
    ) -> Result<Confirmation, Unsent> {
        let Publishing { exchange, routing_key, properties, body, mandatory } = publishing;
        let what = || format!("publishing to exchange {exchange:?} with routing key {routing_key:?}");
        let names = (name(exchange), name(routing_key));
        let (Ok(exchange_name), Ok(key)) = names else {
            let reason = "AMQP carries names of at most 255 bytes".to_owned();
            return Err(Unsent::Refused(TransportError::Other { what: what(), reason }));
        };
        let options = BasicPublishOptions { mandatory: *mandatory, immediate: false };
        let publisher = self.of(connection, exchange).await.map_err(Unsent::Lost)?;
        // Whoever stops waiting leaves his behind: it is still on its way.
        publisher.unconfirmed.fetch_add(1, Ordering::Relaxed);
        let sent = async {
            let properties = to_properties(properties);
            publisher.channel.basic_publish(exchange_name, key, options, body, properties).await?.await
        };
        match sent.await {
            Ok(confirmation) => {
                publisher.unconfirmed.fetch_sub(1, Ordering::Relaxed);
                publisher.proven.store(true, Ordering::Relaxed);
                Ok(confirmation)
            }
            Err(error) => Err(publisher.unsent(error, what(), properties, body.len())),
        }
    }

    /// The channel of an exchange; a new one when the broker closed the last for an error.
    async fn of(&self, connection: &Connection, exchange: &Arc<str>) -> lapin::Result<Publisher> {
        let mut kept = self.0.lock().await;
        if let Some(publisher) = kept.get(exchange)
            && publisher.is_open()
        {
            return Ok(publisher);
        }
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let publisher = Publisher { channel, proven: Arc::default(), unconfirmed: Arc::default() };
        kept.put(Arc::clone(exchange), publisher.clone(), Publisher::is_open);
        Ok(publisher)
    }
}

impl Publisher {
    fn is_open(&self) -> bool {
        self.channel.status().connected()
    }

    fn unsent(&self, error: lapin::Error, what: String, properties: &Properties, size: usize) -> Unsent {
        let ErrorKind::ProtocolError(words) = error.kind() else { return Unsent::Lost(error) };
        match from_broker(what, words) {
            refused @ (TransportError::AccessRefused { .. } | TransportError::NotFound { .. })
                if !self.proven.load(Ordering::Relaxed) =>
            {
                Unsent::Refused(refused)
            }
            // A message that the broker won't take as it is; the next try would be refused as well.
            TransportError::Mismatch { what, reason }
                if self.unconfirmed.load(Ordering::Relaxed) == 1 || is_about(&reason, properties, size) =>
            {
                Unsent::Refused(TransportError::Other { what, reason })
            }
            _ => Unsent::Lost(error),
        }
    }
}

/// Whether the broker's words about a message that it won't take are about this one, and not about one that was on its
/// way beside it: they quote what is wrong. RabbitMQ looks at the size, the user and the expiry.
fn is_about(words: &str, properties: &Properties, size: usize) -> bool {
    let quotes = |name: &str, value: &Option<String>| {
        value.as_ref().is_some_and(|value| words.contains(&format!("{name} '{value}'")))
    };
    words.contains(&format!("message size {size} "))
        || quotes("user_id property set to", &properties.user_id)
        || quotes("invalid expiration", &properties.expiration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_the_message_that_its_words_quote() {
        let user = Properties { user_id: Some("5".into()), ..Properties::default() };
        let expiry = Properties { expiration: Some("5".into()), ..Properties::default() };
        let table = [
            ("user_id property set to '5' but authenticated user was 'w'", [true, false, false]),
            ("invalid expiration '5': no_integer", [false, true, false]),
            ("message size 5 is larger than configured max size 4", [false, false, true]),
            ("message size 50 is larger than configured max size 5", [false, false, false]),
        ];
        for (words, expected) in table {
            let ours = [(&user, 1), (&expiry, 1), (&Properties::default(), 5)];
            assert_eq!(ours.map(|(properties, size)| is_about(words, properties, size)), expected, "{words}");
        }
    }

    #[test]
    fn closed_channels_are_let_go_and_then_those_used_longest_ago() {
        let mut kept = Kept::default();
        let name = |number: usize| -> Arc<str> { format!("x{number}").into() };
        for closed in 0..CHANNELS_MAX {
            kept.put(name(closed), "closed", |channel| *channel == "open");
        }
        assert_eq!(kept.channels.len(), 1, "a name that is refused leaves nothing behind");
        for open in 0..CHANNELS_MAX {
            kept.put(name(open), "open", |channel| *channel == "open");
        }
        assert_eq!(kept.get("x0"), Some("open"));
        kept.put("one more".into(), "open", |_| true);
        assert_eq!(kept.channels.len(), CHANNELS_MAX);
        assert_eq!(
            (kept.get("x0"), kept.get("x1"), kept.get("one more")),
            (Some("open"), None, Some("open"))
        );
    }
}
