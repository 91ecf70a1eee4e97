//! One channel for several consumers, so that they share a prefetch: RabbitMQ counts the unsettled deliveries of a whole
//! channel when `basic.qos` is `global`.
//!
//! Quorum queues know no such limit, and RabbitMQ ends the connection of whoever asks them for it. And a consumer that is
//! refused costs its channel, here everybody's. After either, each consumer has a channel and the prefetch for itself.

use std::sync::atomic::{AtomicBool, Ordering};

use lapin::Channel;
use lapin::options::BasicQosOptions;
use tokio::sync::Mutex;

use super::super::TransportError;
use super::acks::{Acks, Lots};
use super::session::{Session, within};

/// The channel of consumers that share a prefetch.
#[derive(Debug, Default)]
pub(in super::super) struct Lane {
    apart: AtomicBool,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    generation: u64,
    channel: Channel,
    acks: Acks,
}

impl Lane {
    /// Whether each has a channel of its own by now.
    pub(super) fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// From now on each has a channel of its own.
    pub(super) fn part(&self) {
        self.apart.store(true, Ordering::Relaxed);
    }

    /// The channel on this session; the first who asks makes it.
    pub(super) async fn channel(
        &self,
        session: &Session,
        prefetch: u16,
        what: &str,
    ) -> Result<(Channel, Acks), TransportError> {
        let mut open = self.open.lock().await;
        if let Some(open) = &*open
            && open.generation == session.generation
            && open.channel.status().connected()
        {
            return Ok((open.channel.clone(), open.acks.clone()));
        }
        let channel = session.channel(what).await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: true });
        within(session.timeout(), what, qos).await?;
        // Its consumers are read in any order, so a tag says nothing about older ones.
        let acks = Acks::of(channel.clone(), session.timeout(), Lots::Single);
        let generation = session.generation;
        *open = Some(Open { generation, channel: channel.clone(), acks: acks.clone() });
        Ok((channel, acks))
    }

    /// Closes the channel for all: it may carry a consumer that nobody reads, and that would use up the prefetch.
    pub(super) async fn close(&self) {
        if let Some(open) = self.open.lock().await.take() {
            // On a connection that is gone it went by itself.
            let _closed = open.channel.close(200, "done".into()).await;
        }
    }
}
