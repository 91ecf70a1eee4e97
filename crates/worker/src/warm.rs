//! A warm process and the batches that it is asked for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use regatta_adapters::{Ended, Exit, WarmFact, WarmSession};
use regatta_model::{BatchEnd, Item, OrderItem, Output};
use regatta_sandbox::{Cancel, Event, Fence, LINE_BYTES_MAX, SandboxError, Session, Why};

use crate::asking::Asking;
use crate::execute::{command, ended};
use crate::gate::{Gate, Pass};
use crate::slot::{Sink, cannot_run, errored, since};

/// How long a process may take, beyond the limit of a test, until it reports something: to start and import, to collect
/// a file, to tear down what many tests shared.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A suite's warm process, which is started when it is needed.
pub(crate) struct Warm {
    warm: Box<dyn WarmSession>,
    /// Not before `session`: it is told by it how to read.
    session: Option<Session>,
    /// Held while the process is one that was started ahead and that no batch has met yet.
    ahead: Option<Pass>,
    gate: Arc<Gate>,
    /// What went wrong of late and no test is to blame for: a process ended while none ran, or could not take down what
    /// its tests shared.
    failed: Vec<Failed>,
}

/// A message, and what was printed.
pub(crate) type Failed = (String, Output);

/// How long a process may take to take down what its tests shared, and to end.
const TEARDOWN_MAX: Duration = Duration::from_secs(60);

/// Whether there is a process that waits for a request.
enum Had {
    /// As before.
    Kept,
    /// A new one, which holds its pass until it has shown its first work.
    Started(Pass),
    /// None, and none is wanted any more.
    Over,
}

/// How a process's part of a batch ended.
enum Parted {
    /// It did all that it was asked for.
    Done,
    /// The batch was cancelled, and nothing is to be taken down.
    Cancelled,
    /// No further test was wanted: it is to end in good order.
    Stopped(Leaving),
    /// It is gone.
    Gone {
        how: Why,
        /// Whether it had ever said that it can take requests.
        ready: bool,
        /// How long it might have been silent.
        limit: Duration,
        /// When the test began that ran then.
        test: Option<(SystemTime, Instant)>,
        /// Why it had to go, when it didn't go by itself.
        reason: Option<String>,
    },
}

/// A process on its way to its end.
struct Leaving {
    /// When it must be over.
    deadline: Instant,
    /// What it said of its teardown, so far.
    said: Option<Option<String>>,
}

impl Leaving {
    fn now() -> Self {
        Self { deadline: Instant::now() + TEARDOWN_MAX, said: None }
    }
}

/// What is known of a process while it works on a request.
struct Watch {
    /// Whether it has ever said that it can take requests.
    ready: bool,
    /// Whether it has done anything that it may have to take down.
    has_worked: bool,
    /// When the test began that runs.
    test: Option<(SystemTime, Instant)>,
    /// The limit of a test.
    timeout: Duration,
    /// When it must have said something.
    deadline: Instant,
    /// Since no further test is wanted.
    leaving: Option<Leaving>,
}

impl Watch {
    fn new(fresh: bool, timeout: Duration) -> Self {
        let deadline = Instant::now() + timeout + SILENCE_MAX;
        Self { ready: !fresh, has_worked: !fresh, test: None, timeout, deadline, leaving: None }
    }

    fn heard(&mut self, fact: &WarmFact) {
        self.has_worked |= !matches!(fact, WarmFact::Ready);
        match (fact, &mut self.leaving) {
            (WarmFact::Ready, _) => self.ready = true,
            (WarmFact::Started { .. }, _) => self.test = Some((SystemTime::now(), Instant::now())),
            (WarmFact::Finished { .. }, leaving) => {
                self.test = None;
                // From here on it takes down.
                *leaving = leaving.as_ref().map(|_| Leaving::now());
            }
            (WarmFact::TornDown { error }, Some(leaving)) => leaving.said = Some(error.clone()),
            (
                WarmFact::Collected { .. }
                | WarmFact::UnitFinished { .. }
                | WarmFact::TornDown { .. }
                | WarmFact::RequestDone,
                _,
            ) => {}
        }
        self.deadline = Instant::now() + self.limit();
    }

    /// How long it may be silent: as long as the test that runs, or longer where none does.
    fn limit(&self) -> Duration {
        self.timeout + if self.test.is_some() { Duration::ZERO } else { SILENCE_MAX }
    }

    fn deadline(&self) -> Instant {
        match &self.leaving {
            Some(leaving) if self.test.is_none() => leaving.deadline,
            _ => self.deadline,
        }
    }

    /// It is gone, or has to go. One that was to end, and had no test in hand, is judged by how it ended.
    fn gone(self, how: Why, reason: Option<String>) -> Parted {
        match self.leaving {
            Some(leaving) if self.test.is_none() && reason.is_none() => Parted::Stopped(leaving),
            _ => Parted::Gone { how, ready: self.ready, limit: self.limit(), test: self.test, reason },
        }
    }
}

impl Warm {
    pub(crate) fn new(warm: Box<dyn WarmSession>, gate: Arc<Gate>) -> Self {
        Self { warm, session: None, ahead: None, gate, failed: Vec::new() }
    }

    /// What went wrong in the last batch and before it, and no test is to blame for.
    pub(crate) fn take_failed(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.failed)
    }

    /// Starts the process before there is a batch, unless too many are starting.
    pub(crate) fn start_ahead(&mut self, fence: &Fence) {
        if self.session.is_some() {
            return;
        }
        let Some(pass) = self.gate.try_enter() else { return };
        match Session::start(&command(&self.warm.invocation()), fence) {
            Ok(session) => (self.session, self.ahead) = (Some(session), Some(pass)),
            // The first batch tries again, and says what it meets.
            Err(error) => tracing::debug!(%error, "a process could not be started ahead"),
        }
    }

    /// Ends the process in good order, unless `cancel` fires. Gives what went wrong.
    pub(crate) fn finish(&mut self, cancel: &Cancel) -> Option<Failed> {
        // One that no batch has met has nothing to take down.
        if self.ahead.take().is_some() {
            self.session = None;
        }
        let session = self.session.as_mut()?;
        session.forget_output();
        session.no_more_requests();
        self.leave(cancel, Leaving::now())
    }

    /// Waits for the end of a process that knows that there are no more requests.
    fn leave(&mut self, cancel: &Cancel, leaving: Leaving) -> Option<Failed> {
        let mut session = self.session.take()?;
        let mut said = leaving.said;
        let why = loop {
            match session.wait(cancel, Some(leaving.deadline)) {
                Event::Line(line) => match self.warm.record(&line) {
                    Ok(facts) => {
                        let torn_down = facts.into_iter().find_map(|fact| match fact {
                            WarmFact::TornDown { error } => Some(error),
                            _ => None,
                        });
                        said = torn_down.or(said);
                    }
                    Err(error) => {
                        said = Some(Some(error.to_string()));
                        break Why::Cancelled;
                    }
                },
                Event::Ended => break Why::Ended,
                Event::DeadlinePassed => break Why::TimedOut,
                Event::TooLong | Event::Cancelled => return None,
            }
        };
        let ended = ended(session.end(why), TEARDOWN_MAX);
        let message = match (said, ended.exit) {
            (Some(Some(error)), _) => error,
            (_, Exit::TimedOut { limit }) => {
                format!("what its tests shared was not taken down within {} s", limit.as_secs())
            }
            (_, Exit::Signal(signal)) => format!("its process was ended by signal {signal} as it was to end"),
            (None, exit) => format!("its process ended ({exit:?}) and did not say that all is taken down"),
            (Some(None), Exit::Code(0)) => return None,
            (Some(None), exit) => format!("its process ended badly ({exit:?}) after all was taken down"),
        };
        Some((message, self.warm.crashed("", &ended).output))
    }

    /// Runs a batch to its end, with as many processes as it takes.
    pub(crate) fn run(&mut self, items: &[OrderItem], fence: &Fence, sink: &Sink<'_>) -> BatchEnd {
        let mut asking = Asking::new(items);
        loop {
            let (request, facts) = asking.request();
            facts.into_iter().for_each(|fact| sink.say(fact));
            if request.is_empty() {
                return BatchEnd::Done;
            }
            if sink.is_over() {
                return BatchEnd::Cancelled;
            }
            match self.ask(&mut asking, &request, fence, sink) {
                Err(error) => return BatchEnd::Faulted(cannot_run(error.with_causes())),
                Ok(Parted::Done) => return BatchEnd::Done,
                Ok(Parted::Cancelled) => {
                    self.kill();
                    return BatchEnd::Cancelled;
                }
                Ok(Parted::Stopped(leaving)) => {
                    let failed = self.leave(sink.cancel(), leaving);
                    self.failed.extend(failed);
                    let (open, facts) = asking.request();
                    facts.into_iter().for_each(|fact| sink.say(fact));
                    return if open.is_empty() { BatchEnd::Done } else { BatchEnd::Cancelled };
                }
                Ok(Parted::Gone { how, ready, limit, test, reason }) => {
                    let Some(ended) = self.end(how, limit) else { return BatchEnd::Done };
                    if !ready {
                        return BatchEnd::Faulted(cannot_run(never_ready(&self.program(), &ended)));
                    }
                    let ended = match test {
                        Some((started, began)) => since(ended, started, began),
                        None => ended,
                    };
                    self.blame(&mut asking, &ended, reason, sink);
                }
            }
        }
    }

    /// Gives the one who is to blame for the end of its process a record. Where nobody is, what its tests shared was lost
    /// all the same.
    fn blame(&mut self, asking: &mut Asking, ended: &Ended, reason: Option<String>, sink: &Sink<'_>) {
        let Some(name) = asking.blame() else {
            let message = reason.unwrap_or_else(|| untimely(ended.exit));
            self.failed.push((message, self.warm.crashed("", ended).output));
            return;
        };
        let ran = asking.running().is_some();
        let mut record = self.warm.crashed(&name, ended);
        if !ran {
            record = errored(record);
        }
        if reason.is_some() {
            record.message = reason;
        }
        asking.finished(name, record).into_iter().for_each(|fact| sink.say(fact));
    }

    /// Asks the process, and listens until it is done or gone.
    fn ask(
        &mut self,
        asking: &mut Asking,
        request: &[Item],
        fence: &Fence,
        sink: &Sink<'_>,
    ) -> Result<Parted, SandboxError> {
        let line = self.warm.request(request);
        let mut starting = match self.session(fence, sink)? {
            Had::Kept => None,
            Had::Started(pass) => Some(pass),
            Had::Over => return Ok(Parted::Cancelled),
        };
        let fresh = starting.is_some();
        let Self { warm, session: Some(session), .. } = self else { return Ok(Parted::Done) };
        if !fresh {
            // What it said between batches is nobody's. What a new one says may be why it can't go on.
            session.forget_output();
        }
        session.send(&line);
        let mut watch = Watch::new(fresh, fence.timeout);
        loop {
            let deadline = Some(watch.deadline());
            let event = match watch.leaving {
                Some(_) => session.wait(sink.cancel(), deadline),
                None => match session.wait_while_wanted(sink.cancel(), sink.unwanted(), deadline) {
                    Some(event) => event,
                    None if !watch.has_worked => return Ok(Parted::Cancelled),
                    None => {
                        // The test that runs is its last: it looks at its requests before each.
                        session.no_more_requests();
                        watch.leaving = Some(Leaving::now());
                        continue;
                    }
                },
            };
            let line = match event {
                Event::Line(line) => line,
                Event::Ended => return Ok(watch.gone(Why::Ended, None)),
                Event::DeadlinePassed => return Ok(watch.gone(Why::TimedOut, None)),
                Event::Cancelled => return Ok(Parted::Cancelled),
                Event::TooLong => {
                    return Ok(watch.gone(Why::Cancelled, Some(too_long())));
                }
            };
            let facts = match warm.record(&line) {
                Ok(facts) => facts,
                Err(error) => return Ok(watch.gone(Why::Cancelled, Some(error.to_string()))),
            };
            for fact in facts {
                if !matches!(fact, WarmFact::Ready) {
                    drop(starting.take());
                }
                if let Err(nonsense) = asking.check(&fact) {
                    return Ok(watch.gone(Why::Cancelled, Some(nonsense.to_string())));
                }
                if matches!(fact, WarmFact::Finished { .. }) {
                    session.forget_output();
                }
                watch.heard(&fact);
                if watch.leaving.is_none() && matches!(fact, WarmFact::RequestDone) {
                    return Ok(Parted::Done);
                }
                asking.heard(fact).into_iter().for_each(|fact| sink.say(fact));
            }
            if let Some(leaving) = watch.leaving.take_if(|leaving| leaving.said.is_some()) {
                return Ok(Parted::Stopped(leaving));
            }
        }
    }

    /// Makes sure that there is a process that waits for a request.
    fn session(&mut self, fence: &Fence, sink: &Sink<'_>) -> Result<Had, SandboxError> {
        if let Some(pass) = self.ahead.take() {
            return Ok(Had::Started(pass));
        }
        if let Some(session) = &mut self.session {
            // Whoever says something without being asked, or has ended since, is not to be trusted with tests.
            match session.wait(sink.cancel(), Some(Instant::now())) {
                Event::DeadlinePassed => return Ok(Had::Kept),
                Event::Cancelled => self.kill(),
                Event::Ended => self.lose(Why::Ended),
                Event::Line(_) | Event::TooLong => self.lose(Why::Cancelled),
            }
        }
        let Some(pass) = self.gate.enter(|| sink.is_over()) else { return Ok(Had::Over) };
        self.session = Some(Session::start(&command(&self.warm.invocation()), fence)?);
        Ok(Had::Started(pass))
    }

    /// Ends a process that nothing was asked of. It takes along what its tests shared, so its end is told.
    fn lose(&mut self, why: Why) {
        let Some(ended) = self.end(why, Duration::ZERO) else { return };
        let message = match why {
            Why::Ended => untimely(ended.exit),
            Why::Cancelled | Why::TimedOut => {
                "its process spoke and nobody had asked it anything, and was ended".to_owned()
            }
        };
        self.failed.push((message, self.warm.crashed("", &ended).output));
    }

    /// Ends it, whatever it does; how it ended is nobody's concern.
    fn kill(&mut self) {
        if let Some(session) = self.session.take() {
            session.end(Why::Cancelled);
        }
    }

    fn end(&mut self, why: Why, limit: Duration) -> Option<Ended> {
        self.session.take().map(|session| ended(session.end(why), limit))
    }

    fn program(&self) -> String {
        self.warm.invocation().program.display().to_string()
    }
}

/// What is to be said of a process that was to live on.
fn untimely(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => {
            format!("its process ended with exit status {code} while no test ran, and nobody had asked it to")
        }
        Exit::Signal(signal) => format!("its process was ended by signal {signal} while no test ran"),
        Exit::TimedOut { limit } => {
            format!("its process said nothing for {} s while no test ran, and was ended", limit.as_secs())
        }
        Exit::Cancelled => "its process was ended while no test ran".to_owned(),
    }
}

/// What is to be said of a record without an end. A test's own is shortened before it is sent, but not the names that a
/// unit has.
fn too_long() -> String {
    format!(
        "its process sent a record of more than {} MiB; if this is a file whose tests have long names, split the file, \
         or give its parameters shorter ids",
        LINE_BYTES_MAX >> 20
    )
}

fn never_ready(program: &str, ended: &Ended) -> String {
    let output = [ended.stderr.as_slice(), ended.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&output);
    let how = ended.exit;
    format!("{program} ended ({how:?}) before it could take tests; it said:\n{}", text.trim())
}
