//! Where a fact goes first: into the ledger, then to the face.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use regatta_model::{RunEvent, Stamped, Time, Unit};
use regatta_store::{Ledger, RunFolder};

use crate::face::Face;

/// Which tests the units held that were collected.
pub(crate) type Collected = Vec<(Unit, Vec<String>)>;

/// Writes facts down before anything follows from them.
pub(crate) struct Recorder {
    ledger: Ledger,
    face: Face,
    collected: Collected,
}

impl Recorder {
    pub(crate) fn new(folder: &RunFolder, face: Face) -> io::Result<Self> {
        Ok(Self { ledger: folder.ledger()?, face, collected: Vec::new() })
    }

    /// The next fact. What leads to a publishing is with the operating system when this returns; the rest follows at the
    /// next tick, in one write for many.
    pub(crate) fn on(&mut self, fact: &Stamped) -> io::Result<()> {
        let line = self.ledger.append(fact)?;
        self.face.on(fact, line);
        if let RunEvent::UnitCollected { unit, tests, .. } | RunEvent::UnitChanged { unit, tests } =
            &fact.event
        {
            self.collected.push((unit.clone(), tests.clone()));
        }
        let leads_on = matches!(
            fact.event,
            RunEvent::RunStarted { .. }
                | RunEvent::BatchSent { .. }
                | RunEvent::Cancelled { .. }
                | RunEvent::RunFinished
        );
        if leads_on { self.ledger.flush() } else { Ok(()) }
    }

    /// Hands what was taken to the operating system, and to a machine that reads along.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.face.flush();
        self.ledger.flush()
    }

    /// Time went on.
    pub(crate) fn tick(&mut self) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.face.tick(Time::default().after(now));
        self.ledger.flush()
    }

    /// Closes the ledger; gives back the face, which tests the units held that were collected, and whether the ledger has
    /// everything.
    pub(crate) fn close(mut self) -> (Face, Collected, io::Result<()>) {
        let flushed = self.ledger.flush();
        (self.face, self.collected, flushed)
    }
}
