//! What a worker does with the deliveries in its hand: which runs now, which waits, which goes back. Pure: inputs come
//! in, commands go out; it knows no broker, no clock and no message.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many revoked ids a worker remembers; the oldest are forgotten first. Celery's own limit.
pub(crate) const REVOKED_LIMIT: usize = 50_000;

/// How many finished tasks whose acknowledgement was lost, or may have been, a worker remembers.
pub(crate) const FINISHED_LIMIT: usize = 10_000;

/// How long after it was written an acknowledgement can still be lost: a broker that dies has perhaps not read it, or not
/// kept it. A connection whose peer is silent is given up sooner.
const ACK_DOUBT: Duration = Duration::from_secs(60);

/// Names a delivery for as long as this worker has it.
pub(crate) type Key = u64;

/// One message of a task. All deliveries with the same are deliveries of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Trial {
    pub(crate) id: Arc<str>,
    /// How often the task was tried before.
    pub(crate) retries: u32,
    /// How often it was put aside before, since it came too early.
    pub(crate) waits: u32,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// A delivery came in that may run.
    Arrived { key: Key, task: Trial, redelivered: bool },
    /// A delivery came in whose time hasn't come.
    Early { key: Key, task: Trial, redelivered: bool },
    /// A delivery came in that won't run: it is only answered and settled.
    Aside { key: Key },
    /// The execution ended. Its result is on its way to the broker.
    Ended { key: Key },
    /// The delivery is out of our hands.
    Settled { key: Key, how: Settlement },
    /// Somebody revoked a task; `terminate` means also when it runs already.
    Revoked { id: Arc<str>, terminate: bool },
    /// The connection was lost: what hasn't started will be delivered again.
    Lost,
    /// Take no more, finish what runs.
    Quiet,
    /// End now.
    Kill,
}

/// How a delivery left our hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Settled: the broker has been told.
    Acked,
    /// The result is confirmed, but the acknowledgement came too late: the broker delivers the task again.
    AckLost,
    /// It goes back to the queue, since its result could not be published.
    GivenBack,
}

/// Something to do for the hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Execute it.
    Start(Key),
    /// Put it where it waits without being held.
    Postpone(Key),
    /// Answer `REVOKED` and settle it.
    Revoke(Key),
    /// Interrupt its execution; it ends as `REVOKED`.
    Terminate(Key),
    /// Tell its handler that nobody wants the rest; the execution goes on.
    Dismiss(Key),
    /// Keep it without executing it: this worker has the same task in hand, or ran it. An `Ack` or `Requeue` follows.
    Double(Key),
    /// Acknowledge it: its result is confirmed already.
    Ack(Key),
    /// Give it back to the queue.
    Requeue(Key),
    /// Drop it: the broker has it back already.
    Forget(Key),
    /// Cancel the consumers.
    StopConsuming,
    /// Nothing is left to do.
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Prefetched. Next: `Running`, or it goes back.
    Waiting,
    /// Takes a slot. Next: `Settling`.
    Running,
    /// Being answered and settled. Next: gone.
    Settling,
    /// The same task as another delivery in hand. Next: `Settling`, as that one was settled.
    Double,
}

#[derive(Debug)]
struct Held {
    stage: Stage,
    /// `None` for what is only answered and settled.
    task: Option<Trial>,
    /// Later deliveries of the same task, to be settled with this one.
    adopted: Vec<Key>,
}

/// The deliveries in a worker's hand and its slots.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: usize,
    running: usize,
    held: HashMap<Key, Held>,
    waiting: VecDeque<Key>,
    revoked: Remembered<Arc<str>>,
    finished: Remembered<Trial>,
    /// The newest tasks that were acknowledged, and when.
    acked: VecDeque<(Instant, Trial)>,
    quiet: bool,
    done: bool,
}

impl Slots {
    /// With room for `slots` executions at a time.
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            running: 0,
            held: HashMap::new(),
            waiting: VecDeque::new(),
            revoked: Remembered::new(REVOKED_LIMIT),
            finished: Remembered::new(FINISHED_LIMIT),
            acked: VecDeque::new(),
            quiet: false,
            done: false,
        }
    }

    /// How many executions run.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// The deliveries that wait for a slot, oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Key> + '_ {
        self.waiting.iter().copied()
    }

    /// The ids that this worker won't run, oldest first.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = &Arc<str>> {
        self.revoked.order.iter()
    }

    /// Takes an input and appends what is to be done to `out`.
    pub(crate) fn on(&mut self, now: Instant, input: Input, out: &mut Vec<Command>) {
        match input {
            Input::Arrived { key, task, redelivered } => self.arrived(key, task, redelivered, out),
            Input::Early { key, task, redelivered } => {
                if !self.is_known(key, &task, redelivered, out) {
                    self.hold(key, Stage::Settling, Some(task));
                    out.push(Command::Postpone(key));
                }
            }
            Input::Aside { key } => self.hold(key, Stage::Settling, None),
            Input::Ended { key } => self.ended(key, out),
            Input::Settled { key, how } => self.settled(now, key, how, out),
            Input::Revoked { id, terminate } => self.revoke(&id, terminate, out),
            Input::Lost => {
                for (at, task) in std::mem::take(&mut self.acked) {
                    if now.saturating_duration_since(at) <= ACK_DOUBT {
                        self.finished.remember(task);
                    }
                }
                for key in std::mem::take(&mut self.waiting) {
                    let doubles = self.held.remove(&key).map(|held| held.adopted).unwrap_or_default();
                    for key in std::iter::once(key).chain(doubles) {
                        self.held.remove(&key);
                        out.push(Command::Forget(key));
                    }
                }
            }
            Input::Quiet if self.quiet => {}
            Input::Quiet => {
                self.quiet = true;
                out.push(Command::StopConsuming);
                for key in std::mem::take(&mut self.waiting) {
                    self.give_back(key, out);
                }
            }
            Input::Kill => {
                self.quiet = true;
                self.held.clear();
                self.waiting.clear();
                self.running = 0;
            }
        }
        if self.quiet && self.held.is_empty() && !self.done {
            self.done = true;
            out.push(Command::Done);
        }
    }

    fn hold(&mut self, key: Key, stage: Stage, task: Option<Trial>) {
        self.held.insert(key, Held { stage, task, adopted: Vec::new() });
    }

    /// Whether a delivery is dealt with, since its message is in hand or was settled.
    fn is_known(&mut self, key: Key, task: &Trial, redelivered: bool, out: &mut Vec<Command>) -> bool {
        if !redelivered {
            // Another message with the same id: what is known of the first says nothing of it.
            self.finished.forget(task);
            return false;
        }
        self.adopt(key, task, out)
    }

    fn arrived(&mut self, key: Key, task: Trial, redelivered: bool, out: &mut Vec<Command>) {
        if self.is_known(key, &task, redelivered, out) {
            return;
        }
        if self.quiet {
            self.hold(key, Stage::Waiting, None);
            return self.give_back(key, out);
        }
        if self.revoked.has(&task.id) {
            self.hold(key, Stage::Settling, None);
            return out.push(Command::Revoke(key));
        }
        self.hold(key, Stage::Waiting, Some(task));
        self.waiting.push_back(key);
        self.fill(out);
    }

    /// Settles a task that came again, without a second execution, where this worker has it in hand or has confirmed its
    /// result already.
    fn adopt(&mut self, key: Key, task: &Trial, out: &mut Vec<Command>) -> bool {
        if self.finished.has(task) {
            self.finished.forget(task);
            self.hold(key, Stage::Settling, Some(task.clone()));
            out.extend([Command::Double(key), Command::Ack(key)]);
            return true;
        }
        let same =
            |(_, held): &(&Key, &mut Held)| held.stage != Stage::Double && held.task.as_ref() == Some(task);
        let Some((&first, held)) = self.held.iter_mut().find(same) else { return false };
        if held.stage != Stage::Waiting {
            held.adopted.push(key);
            self.hold(key, Stage::Double, Some(task.clone()));
            out.push(Command::Double(key));
            return true;
        }
        // Neither has begun. The newer delivery is the one that can still be settled, should the older one's channel be
        // gone, and it alone says that somebody else may have begun the task.
        held.stage = Stage::Double;
        let mut adopted = std::mem::take(&mut held.adopted);
        adopted.push(first);
        self.held.insert(key, Held { stage: Stage::Waiting, task: Some(task.clone()), adopted });
        self.waiting.iter_mut().filter(|waiting| **waiting == first).for_each(|waiting| *waiting = key);
        out.push(Command::Double(first));
        true
    }

    fn ended(&mut self, key: Key, out: &mut Vec<Command>) {
        if let Some(held) = self.held.get_mut(&key)
            && held.stage == Stage::Running
        {
            held.stage = Stage::Settling;
            self.running -= 1;
            self.fill(out);
        }
    }

    fn settled(&mut self, now: Instant, key: Key, how: Settlement, out: &mut Vec<Command>) {
        let Some(held) = self.held.remove(&key) else {
            return;
        };
        if held.stage == Stage::Running {
            self.running -= 1;
            self.fill(out);
        }
        let adopted_any = !held.adopted.is_empty();
        for again in held.adopted {
            if let Some(double) = self.held.get_mut(&again) {
                double.stage = Stage::Settling;
            }
            out.push(match how {
                Settlement::Acked | Settlement::AckLost => Command::Ack(again),
                Settlement::GivenBack => Command::Requeue(again),
            });
        }
        match (how, held.task) {
            (Settlement::Acked, Some(task)) => {
                self.acked.push_back((now, task));
                if self.acked.len() > FINISHED_LIMIT {
                    self.acked.pop_front();
                }
            }
            (Settlement::AckLost, Some(task)) if !adopted_any => self.finished.remember(task),
            _ => {}
        }
    }

    fn revoke(&mut self, id: &Arc<str>, terminate: bool, out: &mut Vec<Command>) {
        self.revoked.remember(Arc::clone(id));
        for (key, held) in &mut self.held {
            if held.task.as_ref().is_none_or(|task| task.id != *id) {
                continue;
            }
            match held.stage {
                Stage::Waiting => {
                    held.stage = Stage::Settling;
                    self.waiting.retain(|waiting| waiting != key);
                    out.push(Command::Revoke(*key));
                }
                Stage::Running if terminate => out.push(Command::Terminate(*key)),
                Stage::Running => out.push(Command::Dismiss(*key)),
                Stage::Settling | Stage::Double => {}
            }
        }
    }

    fn give_back(&mut self, key: Key, out: &mut Vec<Command>) {
        if let Some(held) = self.held.get_mut(&key) {
            held.stage = Stage::Settling;
            out.push(Command::Requeue(key));
        }
    }

    fn fill(&mut self, out: &mut Vec<Command>) {
        while self.running < self.slots
            && let Some(key) = self.waiting.pop_front()
        {
            if let Some(held) = self.held.get_mut(&key) {
                held.stage = Stage::Running;
                self.running += 1;
                out.push(Command::Start(key));
            }
        }
    }
}

/// A set that forgets its oldest members.
#[derive(Debug)]
struct Remembered<T> {
    limit: usize,
    members: HashSet<T>,
    order: VecDeque<T>,
}

impl<T: Clone + Eq + Hash> Remembered<T> {
    fn new(limit: usize) -> Self {
        Self { limit, members: HashSet::new(), order: VecDeque::new() }
    }

    fn has(&self, member: &T) -> bool {
        !self.members.is_empty() && self.members.contains(member)
    }

    fn remember(&mut self, member: T) {
        if self.members.insert(member.clone()) {
            self.order.push_back(member);
            if self.order.len() > self.limit
                && let Some(oldest) = self.order.pop_front()
            {
                self.members.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, member: &T) {
        if !self.members.is_empty() && self.members.remove(member) {
            self.order.retain(|other| other != member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Command::{
        Ack, Dismiss, Done, Double, Forget, Postpone, Requeue, Revoke, Start, StopConsuming, Terminate,
    };
    use super::Settlement::{AckLost, Acked, GivenBack};
    use super::*;

    fn first(key: Key) -> Input {
        Input::Arrived { key, task: trial(&format!("t{key}"), 0), redelivered: false }
    }

    fn again(key: Key, id: &str) -> Input {
        Input::Arrived { key, task: trial(id, 0), redelivered: true }
    }

    fn early(key: Key, waits: u32, redelivered: bool) -> Input {
        Input::Early { key, task: trial("t", waits), redelivered }
    }

    fn trial(id: &str, waits: u32) -> Trial {
        Trial { id: id.into(), retries: 0, waits }
    }

    fn ended(key: Key) -> Input {
        Input::Ended { key }
    }

    fn settled(key: Key, how: Settlement) -> Input {
        Input::Settled { key, how }
    }

    fn revoked(id: &str, terminate: bool) -> Input {
        Input::Revoked { id: id.into(), terminate }
    }

    fn script(name: &str, slots: usize, lines: Vec<(Input, Vec<Command>)>) {
        let mut machine = Slots::new(slots);
        let began = Instant::now();
        for (line, (input, commands)) in lines.into_iter().enumerate() {
            let mut out = Vec::new();
            // One line each second.
            machine.on(began + Duration::from_secs(line as u64), input.clone(), &mut out);
            assert_eq!(out, commands, "{name}, line {line}: {input:?}");
            let running = machine.held.values().filter(|held| held.stage == Stage::Running).count();
            assert_eq!(machine.running, running, "{name}, line {line}: slots are counted right");
            assert!(machine.running <= slots, "{name}, line {line}: no more executions than slots");
        }
    }

    #[test]
    fn a_slot_is_free_when_its_execution_ends_not_when_it_is_settled() {
        script(
            "two slots",
            2,
            vec![
                (first(1), vec![Start(1)]),
                (first(2), vec![Start(2)]),
                (first(3), vec![]),
                (first(4), vec![]),
                (ended(2), vec![Start(3)]),
                (settled(2, Acked), vec![]),
                (settled(1, GivenBack), vec![Start(4)]),
                (ended(1), vec![]),
            ],
        );
    }

    #[test]
    fn what_only_needs_an_answer_takes_no_slot() {
        script(
            "aside",
            1,
            vec![
                (Input::Aside { key: 1 }, vec![]),
                (first(2), vec![Start(2)]),
                (Input::Quiet, vec![StopConsuming]),
                (ended(2), vec![]),
                (settled(2, Acked), vec![]),
                (settled(1, Acked), vec![Done]),
            ],
        );
    }

    #[test]
    fn quiet_finishes_what_runs_and_gives_back_what_waits() {
        script(
            "quiet",
            1,
            vec![
                (first(1), vec![Start(1)]),
                (first(2), vec![]),
                (Input::Quiet, vec![StopConsuming, Requeue(2)]),
                (first(3), vec![Requeue(3)]),
                (ended(1), vec![]),
                (settled(3, Acked), vec![]),
                (settled(2, Acked), vec![]),
                (Input::Quiet, vec![]),
                (settled(1, Acked), vec![Done]),
            ],
        );
        script("idle", 1, vec![(Input::Quiet, vec![StopConsuming, Done]), (Input::Kill, vec![])]);
        script("kill", 1, vec![(first(1), vec![Start(1)]), (first(2), vec![]), (Input::Kill, vec![Done])]);
    }

    #[test]
    fn revoked_tasks_dont_start_and_running_ones_end_only_by_terminate() {
        script(
            "revoke",
            1,
            vec![
                (revoked("t2", false), vec![]),
                (first(1), vec![Start(1)]),
                (first(2), vec![Revoke(2)]),
                (first(3), vec![]),
                (revoked("t3", false), vec![Revoke(3)]),
                (revoked("t1", false), vec![Dismiss(1)]),
                (revoked("t1", true), vec![Terminate(1)]),
                (ended(1), vec![]),
                (revoked("t1", true), vec![]),
            ],
        );
    }

    #[test]
    fn a_task_that_comes_again_is_not_run_twice_by_the_same_worker() {
        script(
            "still running",
            1,
            vec![
                (first(1), vec![Start(1)]),
                (first(2), vec![]),
                (Input::Lost, vec![Forget(2)]),
                (again(3, "t1"), vec![Double(3)]),
                (again(4, "t2"), vec![]),
                (ended(1), vec![Start(4)]),
                (settled(1, AckLost), vec![Ack(3)]),
                (settled(3, Acked), vec![]),
            ],
        );
        script(
            "finished meanwhile",
            1,
            vec![
                (first(1), vec![Start(1)]),
                (Input::Lost, vec![]),
                (ended(1), vec![]),
                (settled(1, AckLost), vec![]),
                (again(2, "t1"), vec![Double(2), Ack(2)]),
                (settled(2, Acked), vec![]),
                (again(3, "t1"), vec![Start(3)]),
            ],
        );
        script(
            "result not published",
            1,
            vec![
                (first(1), vec![Start(1)]),
                (again(2, "t1"), vec![Double(2)]),
                (ended(1), vec![]),
                (settled(1, GivenBack), vec![Requeue(2)]),
            ],
        );
    }

    #[test]
    fn a_waiting_task_that_comes_again_is_run_once_by_its_newest_delivery() {
        let waiting = || vec![(first(1), vec![Start(1)]), (first(2), vec![]), (first(3), vec![])];
        let twice =
            || [waiting(), vec![(again(4, "t2"), vec![Double(2)]), (again(5, "t2"), vec![Double(4)])]];
        let with = |lines| twice().into_iter().flatten().chain(lines).collect();
        script(
            "it keeps its place, and all are settled together",
            1,
            with(vec![
                (ended(1), vec![Start(5)]),
                (ended(5), vec![Start(3)]),
                (settled(5, Acked), vec![Ack(2), Ack(4)]),
                (settled(2, AckLost), vec![]),
                (settled(4, Acked), vec![]),
            ]),
        );
        script(
            "the channel is gone",
            1,
            with(vec![(Input::Lost, vec![Forget(5), Forget(2), Forget(4), Forget(3)])]),
        );
        script(
            "quiet",
            1,
            with(vec![
                (Input::Quiet, vec![StopConsuming, Requeue(5), Requeue(3)]),
                (settled(5, GivenBack), vec![Requeue(2), Requeue(4)]),
            ]),
        );
        script(
            "revoked",
            1,
            with(vec![(revoked("t2", false), vec![Revoke(5)]), (settled(5, Acked), vec![Ack(2), Ack(4)])]),
        );
    }

    #[test]
    fn an_acknowledgement_is_doubted_when_its_channel_is_lost_soon_after() {
        let run = || vec![(first(1), vec![Start(1)]), (ended(1), vec![]), (settled(1, Acked), vec![])];
        let lost_after = |lines: usize, again: Vec<Command>| {
            let rest = vec![(Input::Aside { key: 9 }, vec![]); lines];
            let end = vec![(Input::Lost, vec![]), (super::tests::again(2, "t1"), again)];
            run().into_iter().chain(rest).chain(end).collect::<Vec<_>>()
        };
        script("at once", 1, lost_after(0, vec![Double(2), Ack(2)]));
        script("much later", 1, lost_after(60, vec![Start(2)]));
        let mut new = lost_after(0, vec![]);
        new.pop();
        let same = Input::Arrived { key: 2, task: trial("t1", 0), redelivered: false };
        new.extend([
            (same, vec![Start(2)]),
            (ended(2), vec![]),
            (settled(2, GivenBack), vec![]),
            (super::tests::again(3, "t1"), vec![Start(3)]),
        ]);
        script("a new message with the same id", 1, new);
        let mut undisturbed = run();
        undisturbed.push((again(2, "t1"), vec![Start(2)]));
        script("never: another message with the same id", 1, undisturbed);
    }

    #[test]
    fn a_task_that_is_put_aside_is_put_there_once() {
        script(
            "its channel is lost before and after the acknowledgement",
            1,
            vec![
                (early(1, 0, false), vec![Postpone(1)]),
                (Input::Lost, vec![]),
                (early(2, 0, true), vec![Double(2)]),
                (settled(1, AckLost), vec![Ack(2)]),
                (settled(2, Acked), vec![]),
                (Input::Lost, vec![]),
                (early(3, 0, true), vec![Double(3), Ack(3)]),
            ],
        );
        let ripe = Input::Arrived { key: 4, task: trial("t", 2), redelivered: true };
        script(
            "what comes out of the delay queue is another message, whoever had it before",
            1,
            vec![
                (early(1, 0, false), vec![Postpone(1)]),
                (settled(1, Acked), vec![]),
                (early(2, 1, true), vec![Postpone(2)]),
                (settled(2, AckLost), vec![]),
                (Input::Lost, vec![]),
                (ripe, vec![Start(4)]),
                (early(3, 1, true), vec![Double(3), Ack(3)]),
            ],
        );
    }

    #[test]
    fn memory_of_ids_is_bounded() {
        let mut remembered = Remembered::new(2);
        for id in ["a", "b", "a", "c"] {
            remembered.remember(id);
        }
        assert!(!remembered.has(&"a") && remembered.has(&"b") && remembered.has(&"c"));
        remembered.forget(&"b");
        assert_eq!(remembered.order, ["c"]);
    }
}
