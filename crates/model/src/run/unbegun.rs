//! Batches at a queue that has consumers, none of which begins them: sent again, and in the end given up.
//!
//! A queue that was emptied or lost says nothing, nor does a worker that hangs before its first word, nor a consumer that
//! is none of ours and throws away what it doesn't know. A batch that merely waits must be told from those: behind tests
//! of this run, whose workers beat; behind those of other runs, in a queue that isn't empty; or in the hand of a worker
//! whose slots are busy with other queues, who answers for it when it is revoked.

use std::time::Duration;

use super::{Batch, Command, Run, Work, sorted};
use crate::{BatchId, Fault, FaultKind, RunEvent, Time};

/// How long a batch may wait, while nobody works for this run on its queue, before it is sent again; twice as long for
/// each time that it was sent before and not heard of.
const UNBEGUN_MAX: Duration = Duration::from_secs(60);

/// How often a batch is sent, and each time taken and not heard of, before its queue is given up: after 15 minutes.
const SENDS_MAX: u32 = 4;

/// What is known of a queue that has consumers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Somebody {
    /// Since when it has, or when one of them last gave a sign of life to this run.
    since: Time,
    /// When something was last seen to wait there.
    filled: Time,
}

impl Somebody {
    fn is_overdue(self, now: Time, batch: &Batch) -> bool {
        let since = self.since.max(batch.sent);
        // The first time it is sent again wherever it is: a revocation may free a worker that hangs. After that it
        // keeps its place for as long as it may be in the queue, and its time begins when it must have been taken.
        let since = if batch.unheard == 0 { since } else { since.max(self.filled) };
        now.since(since) >= UNBEGUN_MAX * 2_u32.saturating_pow(batch.unheard)
    }
}

impl Run {
    /// A queue with consumers was looked at: what none of them begins is sent again, or given up with the queue.
    pub(super) fn send_unbegun(&mut self, now: Time, queue: &str, consumers: u32, ready: u32) {
        let fresh = Somebody { since: now, filled: now };
        let somebody = self.somebody.entry(queue.to_owned()).or_insert(fresh);
        if ready > 0 {
            somebody.filled = now;
        }
        let somebody = *somebody;
        let unbegun = |batch: &Batch| {
            batch.lane.queue == queue && batch.worker.is_none() && somebody.is_overdue(now, batch)
        };
        let unbegun: Vec<BatchId> =
            (self.batches.iter()).filter(|(_, batch)| unbegun(batch)).map(|(id, _)| id.clone()).collect();
        for id in unbegun {
            let sends = self.batches.get(&id).map_or(0, |batch| batch.unheard + 1);
            if sends >= SENDS_MAX {
                return self.give_up_queue(queue, &nobody_answers(queue, consumers, sends));
            }
            self.send_again(now, &id, consumers);
        }
    }

    fn send_again(&mut self, now: Time, id: &BatchId, consumers: u32) {
        let Some(batch) = self.batches.remove(id) else { return };
        let suite = batch.lane.suite.clone();
        let work: Vec<Work> = sorted(&batch.open)
            .into_iter()
            .filter_map(|item| {
                let attempt = self.subjects.get(&(suite.clone(), item.clone()))?.attempt;
                Some(Work { item, attempt, together: None, expected: None, urgent: true })
            })
            .collect();
        let (queue, waited_s) = (&batch.lane.queue, now.since(batch.sent).as_secs());
        let reason =
            format!("none of {consumers} consumers of queue {queue} began batch {id} in {waited_s} s");
        let (lost, tests) = (id.clone(), work.len());
        self.record(RunEvent::WorkerLost { worker: None, batch: lost, tests, reason });
        self.commands.push(Command::Revoke { batch: id.clone(), terminate: true });
        let again = self.send(now, batch.lane, work);
        if let Some(again) = again.and_then(|again| self.batches.get_mut(&again)) {
            again.instead_of = Some(id.clone());
            again.unheard = batch.unheard + 1;
        }
    }

    /// A worker revoked a batch that this run has sent again meanwhile: it lives, and would have run it sometime.
    pub(super) fn held_by_somebody(&mut self, now: Time, id: &BatchId) {
        let again = self.batches.values_mut().find(|batch| batch.instead_of.as_ref() == Some(id));
        let Some(again) = again else { return };
        again.unheard = 1;
        let queue = again.lane.queue.clone();
        self.heard_from(now, &queue);
    }

    /// A worker gave a sign of life for a batch of this queue.
    pub(super) fn heard_from(&mut self, now: Time, queue: &str) {
        if let Some(somebody) = self.somebody.get_mut(queue) {
            somebody.since = now;
        }
    }
}

fn nobody_answers(queue: &str, consumers: u32, sends: u32) -> Fault {
    let (whose, is) = match consumers {
        1 => ("the consumer".to_owned(), "is"),
        _ => (format!("the {consumers} consumers"), "are"),
    };
    Fault {
        kind: FaultKind::NobodyWorks,
        message: format!(
            "{whose} of queue {queue} took a batch {sends} times and never answered; look who that {is} \
             (`rabbitmqctl list_consumers`): each must be a `regatta worker` that may write to regatta.results"
        ),
    }
}
