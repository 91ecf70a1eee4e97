//! Acknowledgements of one channel, gathered: those that come together leave as one frame for all deliveries up to the
//! newest of them (`basic.ack` with `multiple`), and the broker settles them at once. It never takes an older delivery
//! along whose claim somebody still holds.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::sync::{mpsc, oneshot};

/// How many acknowledgements wait to leave, and leave together, at most.
const LOT: usize = 1_024;

/// An acknowledgement that is asked for, and who waits for it to be written.
type Asked = (u64, oneshot::Sender<Result<(), String>>);

/// Which acknowledgements may leave as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lots {
    /// All up to the newest: deliveries are read in the order of their tags.
    UpTo,
    /// None: an older delivery may still be unread.
    Single,
}

/// The acknowledgements of one channel. Clones share it; its task ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Acks {
    unsettled: Arc<Mutex<BTreeSet<u64>>>,
    asked: mpsc::Sender<Asked>,
}

impl Acks {
    /// For deliveries of `channel`. `timeout` is the limit for writing one lot.
    pub(super) fn of(channel: Channel, timeout: Duration, lots: Lots) -> Self {
        let (asked, receiver) = mpsc::channel(LOT);
        let unsettled = Arc::default();
        tokio::spawn(write(channel, timeout, lots, Arc::clone(&unsettled), receiver));
        Self { unsettled, asked }
    }

    /// A delivery came in; they come in the order of their tags.
    pub(super) fn delivered(&self, tag: u64) {
        lock(&self.unsettled).insert(tag);
    }

    /// A delivery was settled otherwise, and the broker has been told.
    pub(super) fn settled(&self, tag: u64) {
        lock(&self.unsettled).remove(&tag);
    }

    /// Acknowledges, and waits until that is written. The error is the reason why it isn't.
    pub(super) async fn ack(&self, tag: u64) -> Result<(), String> {
        let (tell, told) = oneshot::channel();
        let gone = || "the connection is gone".to_owned();
        self.asked.send((tag, tell)).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn lock(unsettled: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    unsettled.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(
    channel: Channel,
    timeout: Duration,
    lots: Lots,
    unsettled: Arc<Mutex<BTreeSet<u64>>>,
    mut asked: mpsc::Receiver<Asked>,
) {
    let mut lot = Vec::new();
    while asked.recv_many(&mut lot, LOT).await > 0 {
        let frames = frames(lots, &lock(&unsettled), lot.iter().map(|(tag, _)| *tag));
        let written = async {
            for Frame { tag, multiple } in &frames {
                channel.basic_ack(*tag, BasicAckOptions { multiple: *multiple }).await?;
            }
            Ok(())
        };
        let written = match tokio::time::timeout(timeout, written).await {
            Ok(written) => written.map_err(|error: lapin::Error| error.to_string()),
            Err(_) => Err(format!("not written within {timeout:?}")),
        };
        let mut unsettled = lock(&unsettled);
        for (tag, waiter) in lot.drain(..) {
            unsettled.remove(&tag);
            // Whoever asked may have stopped waiting.
            let _gone = waiter.send(written.clone());
        }
    }
}

/// One `basic.ack`.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    tag: u64,
    /// All older ones that are unsettled go along.
    multiple: bool,
}

/// The fewest frames that acknowledge `asked` and nothing else of `unsettled`.
fn frames(lots: Lots, unsettled: &BTreeSet<u64>, asked: impl Iterator<Item = u64>) -> Vec<Frame> {
    let asked: BTreeSet<u64> = asked.collect();
    let held = match lots {
        Lots::UpTo => unsettled.iter().find(|tag| !asked.contains(tag)).copied().unwrap_or(u64::MAX),
        Lots::Single => 0,
    };
    let together = asked.range(..held).count();
    let first = asked.range(..held).next_back().map(|tag| Frame { tag: *tag, multiple: together > 1 });
    first.into_iter().chain(asked.range(held..).map(|tag| Frame { tag: *tag, multiple: false })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_that_somebody_holds_are_never_taken_along() {
        let one = |tag| Frame { tag, multiple: false };
        let up_to = |tag| Frame { tag, multiple: true };
        let table = [
            ("one", vec![7], vec![7], vec![one(7)]),
            ("all", vec![7, 8, 9], vec![9, 7, 8], vec![up_to(9)]),
            ("the oldest is held", vec![7, 8, 9], vec![8, 9], vec![one(8), one(9)]),
            ("one between is held", vec![5, 6, 7, 8, 9], vec![5, 6, 8, 9], vec![up_to(6), one(8), one(9)]),
            ("newer ones are held", vec![5, 6, 7, 8], vec![5, 6], vec![up_to(6)]),
            ("others are gone already", vec![8], vec![8], vec![one(8)]),
        ];
        for (name, unsettled, asked, expected) in table {
            let unsettled = unsettled.into_iter().collect();
            assert_eq!(frames(Lots::UpTo, &unsettled, asked.into_iter()), expected, "{name}");
        }
        let unread = [7, 9].into_iter().collect();
        assert_eq!(frames(Lots::Single, &unread, [7, 9].into_iter()), [one(7), one(9)], "8 is unread");
    }
}
