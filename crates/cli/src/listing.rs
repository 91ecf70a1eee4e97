//! Lists suites, each in a thread of its own: what is found first is handed on first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regatta_adapters::{Adapter, Ended, Invocation, ListingStep};
use regatta_model::{Digest, Fault, FaultKind, Input, Listed, TestId, Unit};
use regatta_store::Store;
use regatta_worker::{BaseEnv, Cancel, Fence, execute};

use crate::filter::{Filter, UnitMatch};

/// The limit for listing (and building) a suite, unless the configuration says otherwise.
pub(crate) const LIST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// How much output of a listing or a build is read.
const OUTPUT_BYTES: usize = 256 << 20;

/// How many units one process names.
const NAMED_UNITS_MAX: usize = 500;

/// What listing needs besides the suite.
#[derive(Clone)]
pub(crate) struct Listing {
    /// Which tests are meant.
    pub(crate) filter: Arc<Filter>,
    /// What earlier runs remember of units; none where there is no history.
    pub(crate) store: Arc<Mutex<Option<Store>>>,
    /// The limits of its processes.
    pub(crate) fence: Fence,
    /// Ends its processes.
    pub(crate) cancel: Cancel,
    /// Whether every test must be named, since nothing will be run.
    pub(crate) by_name: bool,
    /// The digests of units, for what is to be remembered.
    pub(crate) digests: Arc<Mutex<HashMap<Unit, Digest>>>,
}

/// The limits of listing processes.
pub(crate) fn fence(timeout: Duration, env: BaseEnv) -> Fence {
    Fence { output_bytes: OUTPUT_BYTES, ..Fence::new(timeout, env) }
}

impl Listing {
    /// Lists a suite to its end; `emit` gets what it found, and always the end. Blocks.
    pub(crate) fn list(&self, adapter: &dyn Adapter, emit: &mut dyn FnMut(Input)) {
        let suite = adapter.suite().name;
        let fault = match self.steps(adapter, emit) {
            Ok(prepared) => {
                emit(Input::Prepared { suite: suite.clone(), digest: prepared });
                None
            }
            Err(message) if self.cancel.is_killed() => {
                tracing::debug!(%message, "the listing was stopped");
                None
            }
            Err(message) => Some(Fault { kind: FaultKind::CannotRun, message }),
        };
        emit(Input::ListingEnded { suite, fault });
    }

    fn steps(&self, adapter: &dyn Adapter, emit: &mut dyn FnMut(Input)) -> Result<Option<Digest>, String> {
        let mut listing = adapter.list();
        loop {
            match listing.next().map_err(|error| error.to_string())? {
                ListingStep::Run(invocation) => {
                    let ended = self.execute(&invocation)?;
                    listing.ended(&ended).map_err(|error| error.to_string())?;
                }
                ListingStep::Found { mut tests, units } => {
                    tests.retain(|listed| self.filter.test(&listed.test));
                    let mut open = Vec::new();
                    let (mut asked, mut remembered) = (Vec::new(), Vec::new());
                    for unit in units {
                        match self.remembered(adapter, &unit) {
                            Some(names) => {
                                tests.extend(self.named(&unit, names));
                                if self.filter.unit(&unit) == UnitMatch::Whole {
                                    remembered.push(unit);
                                }
                            }
                            None => match self.filter.unit(&unit) {
                                UnitMatch::None => {}
                                UnitMatch::Whole if !self.by_name => open.push(unit),
                                UnitMatch::Whole | UnitMatch::Undecided => asked.push(unit),
                            },
                        }
                    }
                    if !tests.is_empty() || !open.is_empty() {
                        emit(Input::Listed { tests, units: open, remembered });
                    }
                    self.ask(adapter, &asked, emit);
                }
                ListingStep::Done { prepared } => return Ok(prepared),
            }
        }
    }

    fn execute(&self, invocation: &Invocation) -> Result<Ended, String> {
        execute(invocation, &self.fence, &self.cancel).map_err(|error| error.with_causes())
    }

    /// The tests that a unit of this content had.
    fn remembered(&self, adapter: &dyn Adapter, unit: &Unit) -> Option<Vec<String>> {
        let digest = adapter.unit_digest(unit)?;
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let names = store.as_ref().and_then(|store| store.unit_tests(unit, &digest).ok().flatten());
        drop(store);
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(unit.clone(), digest);
        // One that held nothing is asked again: nobody would notice that it holds something now.
        names.filter(|names| !names.is_empty())
    }

    fn named<'a>(&'a self, unit: &'a Unit, names: Vec<String>) -> impl Iterator<Item = Listed> + 'a {
        let tests = names.into_iter().map(|name| TestId { suite: unit.suite.clone(), name });
        tests.filter(|test| self.filter.test(test)).map(|test| Listed { test, unit: Some(unit.clone()) })
    }

    /// Names the tests of units without running them. What can't be named is handed on as a unit: running it will tell
    /// what is wrong with it.
    fn ask(&self, adapter: &dyn Adapter, units: &[Unit], emit: &mut dyn FnMut(Input)) {
        for units in units.chunks(NAMED_UNITS_MAX) {
            let mut names = HashMap::new();
            self.name(adapter, units, &mut names);
            let (named, unnamed): (Vec<Unit>, Vec<Unit>) =
                units.iter().cloned().partition(|unit| names.contains_key(unit));
            let list = |unit: Unit| (unit.clone(), names.remove(&unit).unwrap_or_default());
            let lists: Vec<(Unit, Vec<String>)> = named.into_iter().map(list).collect();
            self.remember(&lists);
            let tests = lists.iter().flat_map(|(unit, names)| self.named(unit, names.clone())).collect();
            emit(Input::Listed { tests, units: unnamed, remembered: Vec::new() });
        }
    }

    /// Asks one process for all, and where it didn't come to its end, one for each half: one file that ends the
    /// interpreter must not hide the others.
    fn name(&self, adapter: &dyn Adapter, units: &[Unit], names: &mut HashMap<Unit, Vec<String>>) {
        let Some(invocation) = adapter.naming(units) else { return };
        if units.is_empty() || self.cancel.is_killed() {
            return;
        }
        let named = self.execute(&invocation).ok().and_then(|ended| adapter.names(units, &ended));
        if let Some(named) = named {
            names.extend(named);
        } else if units.len() > 1 {
            let (left, right) = units.split_at(units.len() / 2);
            self.name(adapter, left, names);
            self.name(adapter, right, names);
        }
    }

    /// Remembers what units hold.
    pub(crate) fn remember(&self, lists: &[(Unit, Vec<String>)]) {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lists
            .iter()
            .filter_map(|(unit, names)| Some((unit.clone(), digests.get(unit)?.clone(), names.clone())));
        let known: Vec<_> = known.collect();
        drop(digests);
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = store.as_mut().map(|store| store.remember_units(&known)) {
            tracing::warn!(%error, "the tests of files are not remembered");
        }
    }
}
