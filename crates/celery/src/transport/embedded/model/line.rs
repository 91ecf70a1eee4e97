//! The messages that wait in one queue, in their order, and which of them expires next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::super::super::Publishing;

/// The place of a message in its queue: the higher priority first, then as published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(Reverse<u8>, u64);

impl Place {
    pub(super) fn new(priority: u8, serial: u64) -> Self {
        Self(Reverse(priority), serial)
    }
}

/// A message in a queue.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// The exchange that it came by; a dead letter's is not the one that it was published to.
    pub(super) exchange: Arc<str>,
    pub(super) publishing: Publishing,
    pub(super) redelivered: bool,
    /// How often it was given back.
    pub(super) returns: u32,
    pub(super) expires: Option<Instant>,
}

/// What waits in a queue.
#[derive(Default)]
pub(super) struct Line {
    messages: BTreeMap<Place, Message>,
    expiring: BTreeSet<(Instant, Place)>,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn insert(&mut self, place: Place, message: Message) {
        self.expiring.extend(message.expires.map(|expires| (expires, place)));
        self.messages.insert(place, message);
    }

    /// Takes the first one out.
    pub(super) fn take_first(&mut self) -> Option<(Place, Message)> {
        let (place, message) = self.messages.pop_first()?;
        if let Some(expires) = message.expires {
            self.expiring.remove(&(expires, place));
        }
        Some((place, message))
    }

    /// Takes out what has outlived its time, the oldest end first.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Message> {
        let mut expired = Vec::new();
        while let Some((expires, place)) = self.expiring.first().copied()
            && expires <= now
        {
            self.expiring.pop_first();
            expired.extend(self.messages.remove(&place));
        }
        expired
    }

    /// When the next one will have outlived its time.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.expiring.first().map(|(expires, _)| *expires)
    }
}
