//! A warm process and the batches that it is asked for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use regatta_adapters::{Ended, Exit, WarmFact, WarmSession};
use regatta_model::{BatchEnd, Item, OrderItem, Output};
use regatta_sandbox::{Cancel, Event, Fence, SandboxError, Session, Why};

use crate::asking::Asking;
use crate::execute::{command, ended};
use crate::gate::{Gate, Pass};
use crate::slot::{Sink, cannot_run, chain, errored, since};

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
}

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
    /// The batch was cancelled.
    Cancelled,
    /// It is gone.
    Gone {
        how: Why,
        /// Whether it had ever said that it can take requests.
        ready: bool,
        /// When the test began that ran then.
        test: Option<(SystemTime, Instant)>,
        /// Why it had to go, when it didn't go by itself.
        reason: Option<String>,
    },
}

impl Warm {
    pub(crate) fn new(warm: Box<dyn WarmSession>, gate: Arc<Gate>) -> Self {
        Self { warm, session: None, ahead: None, gate }
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

    /// Ends the process in good order, unless `cancel` fires. Gives what went wrong, as a message and what was printed.
    pub(crate) fn finish(&mut self, cancel: &Cancel) -> Option<(String, Output)> {
        // One that no batch has met has nothing to take down.
        let unused = self.ahead.take().is_some();
        let mut session = self.session.take().filter(|_| !unused)?;
        session.forget_output();
        session.no_more_requests();
        let deadline = Instant::now() + TEARDOWN_MAX;
        let mut said = None;
        let why = loop {
            match session.wait(cancel, Some(deadline)) {
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
        let ended = ended(session.end(why));
        let message = match (said, ended.exit) {
            (Some(Some(error)), _) => error,
            (_, Exit::TimedOut) => {
                format!("what its tests shared was not taken down within {} s", TEARDOWN_MAX.as_secs())
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
                Err(error) => return BatchEnd::Faulted(cannot_run(chain(&error))),
                Ok(Parted::Done) => return BatchEnd::Done,
                Ok(Parted::Cancelled) => {
                    self.end(Why::Cancelled);
                    return BatchEnd::Cancelled;
                }
                Ok(Parted::Gone { how, ready, test, reason }) => {
                    let Some(ended) = self.end(how) else { return BatchEnd::Done };
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

    /// Gives the one who is to blame for the end of its process a record.
    fn blame(&self, asking: &mut Asking, ended: &Ended, reason: Option<String>, sink: &Sink<'_>) {
        let Some(name) = asking.blame() else { return };
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
        let mut ready = !fresh;
        let mut test = None;
        let mut deadline = Instant::now() + fence.timeout + SILENCE_MAX;
        loop {
            let gone = |how, reason| Ok(Parted::Gone { how, ready, test, reason });
            let line = match session.wait(sink.cancel(), Some(deadline)) {
                Event::Line(line) => line,
                Event::Ended => return gone(Why::Ended, None),
                Event::DeadlinePassed => return gone(Why::TimedOut, None),
                Event::Cancelled => return Ok(Parted::Cancelled),
                Event::TooLong => {
                    return gone(Why::Cancelled, Some("its process sent an endless record".into()));
                }
            };
            let facts = match warm.record(&line) {
                Ok(facts) => facts,
                Err(error) => return gone(Why::Cancelled, Some(error.to_string())),
            };
            for fact in facts {
                if !matches!(fact, WarmFact::Ready) {
                    drop(starting.take());
                }
                match &fact {
                    WarmFact::Ready => ready = true,
                    WarmFact::RequestDone => return Ok(Parted::Done),
                    WarmFact::Started { .. } => test = Some((SystemTime::now(), Instant::now())),
                    WarmFact::Finished { .. } => {
                        session.forget_output();
                        test = None;
                    }
                    WarmFact::Collected { .. }
                    | WarmFact::UnitFinished { .. }
                    | WarmFact::TornDown { .. } => {}
                }
                let silence = if test.is_some() { Duration::ZERO } else { SILENCE_MAX };
                deadline = Instant::now() + fence.timeout + silence;
                asking.heard(fact).into_iter().for_each(|fact| sink.say(fact));
            }
            if test.is_none() && sink.is_over() {
                return Ok(Parted::Cancelled);
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
            if session.wait(sink.cancel(), Some(Instant::now())) == Event::DeadlinePassed {
                return Ok(Had::Kept);
            }
            self.end(Why::Cancelled);
        }
        let Some(pass) = self.gate.enter(|| sink.is_over()) else { return Ok(Had::Over) };
        self.session = Some(Session::start(&command(&self.warm.invocation()), fence)?);
        Ok(Had::Started(pass))
    }

    fn end(&mut self, why: Why) -> Option<Ended> {
        self.session.take().map(|session| ended(session.end(why)))
    }

    fn program(&self) -> String {
        self.warm.invocation().program.display().to_string()
    }
}

fn never_ready(program: &str, ended: &Ended) -> String {
    let output = [ended.stderr.as_slice(), ended.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&output);
    let how = ended.exit;
    format!("{program} ended ({how:?}) before it could take tests; it said:\n{}", text.trim())
}
