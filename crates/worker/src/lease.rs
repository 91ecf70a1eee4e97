//! A batch in work, seen from its lease: what is published when, when the worker says that it lives, and when it must
//! give up. Pure: time and what waits come in with each input.
//!
//! A worker that couldn't tell anybody for the time of a lease has lost it: the dispatcher has given the tests to
//! others. Whether the broker is away or the worker itself was stopped and woke up makes no difference. A run's own
//! worker is stopped together with its dispatcher, who has given nothing away then: it keeps what it has until it is told.

use std::time::{Duration, Instant};

use regatta_model::{BatchEnd, Fault, FaultKind};

use crate::outbox::Waiting;

/// How many beats may be missed; the same number as the dispatcher's.
const BEATS: u32 = 3;

/// For how long a run's own worker may be silent: for ever, in the terms of a clock.
const OWN_SILENCE_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest time between two beats, whatever an order says.
const BEAT_MAX: Duration = Duration::from_secs(60 * 60);

/// How long facts wait for company.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

/// How long after a publishing that failed the next one is tried.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Time passed, or there is more to publish.
    Tick,
    /// What was to be published is with the broker.
    Confirmed,
    /// It isn't, and must be published again.
    Failed,
    /// The slot has ended the batch; nothing more will wait.
    Ended(BatchEnd),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Publish what is unconfirmed, or else take what waits, which may be nothing: that is a beat.
    Publish,
    /// Report this end, and drop the batch: what still runs of it is killed.
    Finish(BatchEnd),
}

/// The state of one lease.
#[derive(Debug)]
pub(crate) struct Lease {
    beat: Duration,
    /// For how long nobody may have been told before it is over.
    silence_max: Duration,
    /// When the last publishing began; none before the first.
    sent: Option<Instant>,
    /// When a publishing began that the broker took; at first, when the batch came.
    believed: Instant,
    state: State,
    end: Option<BatchEnd>,
}

/// Where its publishings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// None is under way: the next one goes out when it is due.
    Idle,
    /// One is under way: nothing else is published.
    Publishing,
    /// One failed: it goes out again from then on.
    Again(Instant),
    /// The end is said.
    Over,
}

impl Lease {
    /// A batch that came `now` and wants a beat so often; to a run's `own` worker, or to one that others may replace.
    pub(crate) fn new(now: Instant, beat: Duration, own: bool) -> Self {
        // A beat of nothing would be a loop without a pause, and the clock ends before the longest one.
        let beat = beat.clamp(FLUSH_AFTER, BEAT_MAX);
        let silence_max = if own { OWN_SILENCE_MAX } else { beat * BEATS };
        Self { beat, silence_max, sent: None, believed: now, state: State::Idle, end: None }
    }

    pub(crate) fn on(&mut self, now: Instant, waiting: Waiting, input: Input) -> Option<Command> {
        if self.state == State::Over {
            return None;
        }
        let sent = self.sent.unwrap_or(self.believed);
        match input {
            Input::Tick => {}
            Input::Confirmed => {
                self.believed = sent;
                self.state = State::Idle;
            }
            Input::Failed => self.state = State::Again(now + AGAIN_AFTER),
            Input::Ended(end) => self.end = Some(end),
        }
        if now >= self.over_at() {
            self.state = State::Over;
            return Some(Command::Finish(BatchEnd::Faulted(lost(now - self.believed))));
        }
        match self.state {
            State::Idle if waiting.facts == 0 && self.end.is_some() => {
                self.state = State::Over;
                self.end.take().map(Command::Finish)
            }
            State::Idle if now >= self.due_at(waiting) => Some(self.publish(now)),
            State::Again(at) if now >= at => Some(self.publish(now)),
            State::Idle | State::Again(_) | State::Publishing | State::Over => None,
        }
    }

    /// When to come back with a tick, if nothing else comes before.
    pub(crate) fn wake_at(&self, waiting: Waiting) -> Instant {
        let next = match self.state {
            State::Idle => self.due_at(waiting),
            State::Again(at) => at,
            State::Publishing | State::Over => self.over_at(),
        };
        next.min(self.over_at())
    }

    fn publish(&mut self, now: Instant) -> Command {
        self.sent = Some(now);
        self.state = State::Publishing;
        Command::Publish
    }

    fn over_at(&self) -> Instant {
        self.believed + self.silence_max
    }

    /// When the next publishing is due.
    fn due_at(&self, waiting: Waiting) -> Instant {
        // Whoever looks at a run waits for a first result; it doesn't wait for company.
        let now = waiting.is_full() || waiting.first_result || (waiting.facts > 0 && self.end.is_some());
        match self.sent {
            _ if now => self.sent.unwrap_or(self.believed),
            // If nothing comes soon, the dispatcher hears that we have begun.
            None => self.believed + FLUSH_AFTER,
            Some(sent) if waiting.facts == 0 => sent + self.beat,
            Some(sent) => sent + FLUSH_AFTER,
        }
    }
}

fn lost(silent: Duration) -> Fault {
    Fault {
        kind: FaultKind::WorkerLost,
        message: format!(
            "it could not tell of its batch for {:.1} s, so it gave the batch up and killed its tests; look whether its \
             machine was suspended or its broker away",
            silent.as_secs_f64()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Waiting = Waiting { facts: 0, bytes: 0, first_result: false };
    const SOME: Waiting = Waiting { facts: 3, bytes: 300, first_result: false };
    const FIRST: Waiting = Waiting { facts: 1, bytes: 100, first_result: true };
    const FULL: Waiting = Waiting { facts: 64, bytes: 6400, first_result: false };
    const BIG: Waiting = Waiting { facts: 1, bytes: 1 << 20, first_result: false };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn done() -> Input {
        Input::Ended(BatchEnd::Done)
    }

    fn finish() -> Option<Command> {
        Some(Command::Finish(BatchEnd::Done))
    }

    /// Plays a story of (time, what waits, input, command, next wake-up) with a beat of a second.
    fn play(story: &[(u64, Waiting, Input, Option<Command>, u64)]) {
        let zero = Instant::now();
        let mut lease = Lease::new(zero, ms(1000), false);
        for (at, waiting, input, expected, wake) in story {
            let command = lease.on(zero + ms(*at), *waiting, input.clone());
            assert_eq!(&command, expected, "at {at}: {input:?}");
            assert_eq!(lease.wake_at(*waiting) - zero, ms(*wake), "wake-up after {at}: {input:?}");
        }
    }

    #[test]
    fn the_first_result_goes_out_at_once_and_all_others_wait_for_company() {
        use Input::{Confirmed, Tick};
        let publish = || Some(Command::Publish);
        play(&[
            (0, NOTHING, Tick, None, 50),
            (10, SOME, Tick, None, 50),
            (12, FIRST, Tick, publish(), 3000),
            (13, NOTHING, Confirmed, None, 1012),
            (20, SOME, Tick, None, 62),
            (62, SOME, Tick, publish(), 3012),
            (63, FULL, Tick, None, 3012),
            (64, FULL, Confirmed, publish(), 3062),
            (65, NOTHING, Confirmed, None, 1064),
            (66, BIG, Tick, publish(), 3064),
            (67, NOTHING, Confirmed, None, 1066),
            (70, SOME, done(), publish(), 3066),
            (71, NOTHING, Confirmed, finish(), 3070),
        ]);
        play(&[
            (50, SOME, Tick, publish(), 3000),
            (51, NOTHING, Confirmed, None, 1050),
            (60, FIRST, Tick, publish(), 3050),
        ]);
        play(&[(5, SOME, done(), publish(), 3000), (6, NOTHING, Confirmed, finish(), 3005)]);
    }

    #[test]
    fn silence_is_broken_by_beats() {
        use Input::{Confirmed, Tick};
        play(&[
            (0, NOTHING, Tick, None, 50),
            (50, NOTHING, Tick, Some(Command::Publish), 3000),
            (51, NOTHING, Confirmed, None, 1050),
            (1049, NOTHING, Tick, None, 1050),
            (1050, NOTHING, Tick, Some(Command::Publish), 3050),
            (1051, NOTHING, Confirmed, None, 2050),
            (1052, NOTHING, done(), finish(), 4050),
        ]);
    }

    #[test]
    fn what_failed_is_published_again_until_the_lease_is_over() {
        use Input::{Confirmed, Failed, Tick};
        let publish = || Some(Command::Publish);
        play(&[
            (0, FIRST, Tick, publish(), 3000),
            (10, SOME, Failed, None, 210),
            (15, SOME, done(), None, 210),
            (210, SOME, Tick, publish(), 3000),
            (220, NOTHING, Confirmed, finish(), 3210),
        ]);
        play(&[
            (0, FIRST, Tick, publish(), 3000),
            (2990, SOME, Failed, None, 3000),
            (3000, SOME, Tick, Some(Command::Finish(BatchEnd::Faulted(lost(ms(3000))))), 3000),
            (3001, SOME, done(), None, 3000),
        ]);
    }

    #[test]
    fn one_that_was_stopped_and_wakes_up_reports_nothing_more() {
        use Input::{Confirmed, Tick};
        play(&[
            (0, FIRST, Tick, Some(Command::Publish), 3000),
            (10, NOTHING, Confirmed, None, 1000),
            (9000, SOME, done(), Some(Command::Finish(BatchEnd::Faulted(lost(ms(9000))))), 3000),
            (9001, SOME, Tick, None, 3000),
            (9002, SOME, Confirmed, None, 3000),
        ]);
    }

    #[test]
    fn a_run_s_own_worker_that_was_stopped_with_its_dispatcher_goes_on() {
        use Input::{Confirmed, Tick};
        let zero = Instant::now();
        let mut lease = Lease::new(zero, ms(1000), true);
        for (at, waiting, input, expected) in [
            (0, FIRST, Tick, Some(Command::Publish)),
            (10, NOTHING, Confirmed, None),
            (90_000, NOTHING, Tick, Some(Command::Publish)),
            (190_000, NOTHING, Tick, None),
            (190_001, SOME, Confirmed, Some(Command::Publish)),
            (191_000, NOTHING, Confirmed, None),
            (300_000, NOTHING, done(), finish()),
        ] {
            assert_eq!(lease.on(zero + ms(at), waiting, input.clone()), expected, "at {at}: {input:?}");
        }
    }
}
