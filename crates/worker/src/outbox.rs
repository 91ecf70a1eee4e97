//! Facts on their way from a slot's thread to whoever publishes them. A test costs two of them; so neither a message
//! nor a wake-up may be paid for each.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use regatta_model::{Fact, Record};
use tokio::sync::Notify;

/// How many bytes of facts may wait. A slot that has more waits for the broker, until its lease is over.
const BYTES_MAX: usize = 64 << 20;

/// How many facts go into one message at most. A round number for people who read messages; the limit that counts is
/// [`MESSAGE_BYTES_MAX`].
pub(crate) const MESSAGE_FACTS_MAX: usize = 64;

/// How many bytes of facts go into one message, unless a single one is larger.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// What a fact takes besides its texts.
const FACT_BYTES: usize = 128;

/// How often a slot that waits for room looks whether it is still wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Waiting {
    pub(crate) facts: usize,
    /// About so many bytes.
    pub(crate) bytes: usize,
    /// Whether the batch's first result is among them.
    pub(crate) first_result: bool,
}

impl Waiting {
    /// Whether it fills a message.
    pub(crate) fn is_full(self) -> bool {
        self.facts >= MESSAGE_FACTS_MAX || self.bytes >= MESSAGE_BYTES_MAX
    }
}

/// The facts of one batch.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    facts: Mutex<Facts>,
    room: Condvar,
    /// Rung when there is something after nothing, the first result, or a message full.
    bell: Notify,
}

#[derive(Debug, Default)]
struct Facts {
    facts: std::collections::VecDeque<Fact>,
    bytes: usize,
    first_result: FirstResult,
}

/// Where the batch's first result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum FirstResult {
    #[default]
    Unknown,
    Waits,
    Taken,
}

impl Outbox {
    /// Puts a fact in. Waits for room while it is `wanted`.
    pub(crate) fn push(&self, fact: Fact, wanted: impl Fn() -> bool) {
        let mut facts = self.lock();
        while facts.bytes > BYTES_MAX && wanted() {
            facts = self.room.wait_timeout(facts, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
        let before = facts.waiting();
        facts.bytes += size(&fact);
        if facts.first_result == FirstResult::Unknown && is_result(&fact) {
            facts.first_result = FirstResult::Waits;
        }
        facts.facts.push_back(fact);
        let now = facts.waiting();
        drop(facts);
        if before.facts == 0
            || (now.first_result && !before.first_result)
            || (now.is_full() && !before.is_full())
        {
            self.bell.notify_one();
        }
    }

    /// Waits until there is something to look at.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    pub(crate) fn waiting(&self) -> Waiting {
        self.lock().waiting()
    }

    /// Whether there ever was a result.
    pub(crate) fn had_result(&self) -> bool {
        self.lock().first_result != FirstResult::Unknown
    }

    /// Takes out a message full.
    pub(crate) fn take(&self) -> Vec<Fact> {
        let mut facts = self.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < MESSAGE_FACTS_MAX {
            let Some(fact) = facts.facts.pop_front() else { break };
            let more = size(&fact);
            if bytes + more > MESSAGE_BYTES_MAX && !taken.is_empty() {
                facts.facts.push_front(fact);
                break;
            }
            facts.bytes -= more;
            bytes += more;
            if is_result(&fact) {
                facts.first_result = FirstResult::Taken;
            }
            taken.push(fact);
        }
        drop(facts);
        self.room.notify_one();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    fn waiting(&self) -> Waiting {
        let first_result = self.first_result == FirstResult::Waits;
        Waiting { facts: self.facts.len(), bytes: self.bytes, first_result }
    }
}

fn is_result(fact: &Fact) -> bool {
    matches!(fact, Fact::Finished { .. })
}

/// About how many bytes a fact takes in a message.
fn size(fact: &Fact) -> usize {
    let of_record = |record: &Record| {
        record.output.text.len() + record.message.as_ref().map_or(0, String::len) + record.phases.len() * 48
    };
    FACT_BYTES
        + match fact {
            Fact::Collected { unit, tests } => {
                unit.len() + tests.iter().map(|test| test.len() + 3).sum::<usize>()
            }
            Fact::Started { test, .. } => test.len(),
            Fact::Finished { test, record, .. } => test.len() + of_record(record),
            Fact::UnitFinished { unit } => unit.len(),
        }
}

#[cfg(test)]
mod tests {
    use regatta_model::{Outcome, Output, Time, Token};

    use super::*;

    fn finished(bytes: usize) -> Fact {
        let output = Output { text: "x".repeat(bytes), bytes_omitted: 0 };
        let record = Record { output, ..Record::new(Outcome::Passed, Time(0), 1) };
        Fact::Finished { test: "t".into(), token: Token(1), record }
    }

    #[test]
    fn messages_have_limits_and_nothing_is_lost() {
        let table = [
            (vec![10; 3], vec![3]),
            (vec![10; 130], vec![64, 64, 2]),
            (vec![100 << 10; 5], vec![2, 2, 1]),
            (vec![1 << 20, 10, 10], vec![1, 2]),
        ];
        for (sizes, expected) in table {
            let outbox = Outbox::default();
            sizes.iter().for_each(|&bytes| outbox.push(finished(bytes), || true));
            let taken = std::iter::from_fn(|| Some(outbox.take().len()).filter(|&len| len > 0));
            assert_eq!(taken.collect::<Vec<_>>(), expected);
            assert_eq!(outbox.waiting(), Waiting::default());
        }
    }

    #[test]
    fn the_first_result_is_told_from_all_others() {
        let outbox = Outbox::default();
        let push = |fact| {
            outbox.push(fact, || true);
            outbox.waiting().first_result
        };
        let started = || Fact::Started { test: "t".into(), token: Token(1) };
        assert!(!push(started()));
        assert!(push(finished(1)));
        assert!(push(started()), "it still waits");
        outbox.take();
        assert!(!outbox.waiting().first_result);
        assert!(![started(), finished(1)].map(push).contains(&true), "it was the second");
    }

    #[test]
    fn a_slot_waits_for_room_while_it_is_wanted() {
        let outbox = Outbox::default();
        outbox.push(finished(BYTES_MAX), || true);
        outbox.push(finished(1), || false);
        assert_eq!(outbox.waiting().facts, 2, "nobody wants it: it doesn't wait");
        std::thread::scope(|scope| {
            let pushed = scope.spawn(|| outbox.push(finished(1), || true));
            assert_eq!(outbox.take().len(), 1);
            pushed.join().unwrap();
        });
        assert_eq!(outbox.waiting().facts, 2);
    }
}
