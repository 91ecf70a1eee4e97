//! The channels that messages leave by: one for each exchange. RabbitMQ answers a publishing that it refuses (no such
//! exchange, no right to write to it) by closing the channel, with everything that is still unconfirmed on it; with a
//! channel of its own, an exchange that is refused takes no other's messages along.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, Connection, ErrorKind};
use tokio::sync::Mutex;

use super::super::{Publishing, TransportError};
use super::convert::{name, to_properties};
use super::session::from_broker;

/// The channels of one connection.
#[derive(Default)]
pub(super) struct Publishers(Mutex<HashMap<Arc<str>, Publisher>>);

/// One exchange's channel. Clones share it.
#[derive(Clone)]
struct Publisher {
    channel: Channel,
    /// Whether a message was confirmed on it. Until then an error that closes it is about all that it was used for;
    /// later it is about what the exchange has become, and an older message may have arrived.
    proven: Arc<AtomicBool>,
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
        let properties = to_properties(properties);
        let sent = async {
            publisher.channel.basic_publish(exchange_name, key, options, body, properties).await?.await
        };
        match sent.await {
            Ok(confirmation) => {
                publisher.proven.store(true, Ordering::Relaxed);
                Ok(confirmation)
            }
            Err(error) => Err(publisher.unsent(error, what(), body.len())),
        }
    }

    /// The channel of an exchange; a new one when the broker closed the last for an error.
    async fn of(&self, connection: &Connection, exchange: &Arc<str>) -> lapin::Result<Publisher> {
        let mut publishers = self.0.lock().await;
        if let Some(publisher) = publishers.get(exchange)
            && publisher.channel.status().connected()
        {
            return Ok(publisher.clone());
        }
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let publisher = Publisher { channel, proven: Arc::default() };
        publishers.insert(Arc::clone(exchange), publisher.clone());
        Ok(publisher)
    }
}

impl Publisher {
    fn unsent(&self, error: lapin::Error, what: String, size: usize) -> Unsent {
        let ErrorKind::ProtocolError(words) = error.kind() else { return Unsent::Lost(error) };
        match from_broker(what, words) {
            refused @ (TransportError::AccessRefused { .. } | TransportError::NotFound { .. })
                if !self.proven.load(Ordering::Relaxed) =>
            {
                Unsent::Refused(refused)
            }
            // A message that is larger than the broker's limit: its words name the size, so that it is told from those
            // that were on their way beside it.
            TransportError::Mismatch { what, reason } if reason.contains(&size.to_string()) => {
                Unsent::Refused(TransportError::Other { what, reason })
            }
            _ => Unsent::Lost(error),
        }
    }
}
