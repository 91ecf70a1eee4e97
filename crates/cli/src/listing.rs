//! Lists suites, each in a thread of its own: what is found first is handed on first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regatta_adapters::{Adapter, Ended, Invocation, ListingStep};
use regatta_model::{Digest, Fault, FaultKind, Input, Listed, Route, TestId, Unit};
use regatta_store::Store;
use regatta_worker::{BaseEnv, Cancel, Fence, execute};

use crate::filter::{Filter, UnitMatch, is_cut};
use crate::surroundings::cores;

/// The limit for listing (and building) a suite, unless the configuration says otherwise.
pub(crate) const LIST_TIMEOUT: Duration = Duration::from_secs(3_600);

/// How much output of a listing or a build is read.
const OUTPUT_BYTES: usize = 256 << 20;

/// How many units one process names at most, and for how many at least another is worth its start.
const NAMED_UNITS_MAX: usize = 500;
const NAMED_UNITS_MIN: usize = 16;

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

/// What is to be done with units.
#[derive(Default)]
struct Sorted {
    /// Tests that are remembered, all that their units held.
    named: Vec<Listed>,
    /// Their units.
    remembered: Vec<Unit>,
    /// All of their tests are meant, and nobody knows them: they are named by whoever runs them.
    open: Vec<Unit>,
    /// Their tests must be named first.
    ask: Vec<Unit>,
    /// The same, where by what is remembered none is meant.
    ask_last: Vec<Unit>,
}

/// The limits of listing processes.
pub(crate) fn fence(timeout: Duration, env: BaseEnv) -> Fence {
    Fence { output_bytes: OUTPUT_BYTES, ..Fence::new(timeout, env) }
}

impl Listing {
    /// Lists a suite to its end; `emit` gets what it found, and always the end. Blocks.
    pub(crate) fn list(&self, adapter: &dyn Adapter, routes: &[Route], emit: &mut dyn FnMut(Input)) {
        let suite = adapter.suite().name;
        let fault = match self.steps(adapter, routes, emit) {
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

    fn steps(
        &self,
        adapter: &dyn Adapter,
        routes: &[Route],
        emit: &mut dyn FnMut(Input),
    ) -> Result<Option<Digest>, String> {
        let mut listing = adapter.list();
        loop {
            match listing.next().map_err(|error| error.to_string())? {
                ListingStep::Run(invocation) => {
                    let ended = self.execute(&invocation)?;
                    listing.ended(&ended).map_err(|error| error.to_string())?;
                }
                ListingStep::Found { mut tests, units } => {
                    tests.retain(|listed| self.filter.test(&listed.test));
                    let Sorted { named, open, remembered, ask, ask_last } = self.sort(adapter, routes, units);
                    tests.extend(named);
                    if !tests.is_empty() || !open.is_empty() {
                        emit(Input::Listed { tests, units: open, remembered });
                    }
                    self.ask(adapter, &ask, emit);
                    self.ask(adapter, &ask_last, emit);
                }
                ListingStep::Done { prepared } => return Ok(prepared),
            }
        }
    }

    fn execute(&self, invocation: &Invocation) -> Result<Ended, String> {
        execute(invocation, &self.fence, &self.cancel).map_err(|error| error.with_causes())
    }

    /// What is to be done with units. Which tests a unit holds is never taken from memory alone: a file's tests may come
    /// from elsewhere. Where all of them are meant, whoever runs them corrects it; where a part is, somebody is asked.
    fn sort(&self, adapter: &dyn Adapter, routes: &[Route], units: Vec<Unit>) -> Sorted {
        let mut sorted = Sorted::default();
        for unit in units {
            let meant = self.filter.unit(&unit);
            if meant == UnitMatch::None {
                continue;
            }
            let names = self.remembered(adapter, &unit);
            let named: Vec<Listed> = self.named(&unit, &names).collect();
            // Of one that held nothing nobody would notice that it holds something now.
            if self.by_name {
                sorted.ask.push(unit);
            } else if meant == UnitMatch::Whole && (named.is_empty() || named.len() < names.len()) {
                // A unit goes to one queue, whatever the routes say of its tests.
                if is_cut(routes, &unit) { &mut sorted.ask } else { &mut sorted.open }.push(unit);
            } else if meant == UnitMatch::Whole {
                sorted.named.extend(named);
                sorted.remembered.push(unit);
            } else if named.is_empty() && !names.is_empty() {
                sorted.ask_last.push(unit);
            } else {
                sorted.ask.push(unit);
            }
        }
        sorted
    }

    /// The tests that a unit of this content had; none where nobody remembers.
    fn remembered(&self, adapter: &dyn Adapter, unit: &Unit) -> Vec<String> {
        let Some(digest) = adapter.unit_digest(unit) else { return Vec::new() };
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let names = store.as_ref().and_then(|store| store.unit_tests(unit, &digest).ok().flatten());
        drop(store);
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(unit.clone(), digest);
        names.unwrap_or_default()
    }

    /// Those that are meant.
    fn named<'a>(&'a self, unit: &'a Unit, names: &'a [String]) -> impl Iterator<Item = Listed> + 'a {
        let tests = names.iter().map(|name| TestId { suite: unit.suite.clone(), name: name.clone() });
        tests.filter(|test| self.filter.test(test)).map(|test| Listed { test, unit: Some(unit.clone()) })
    }

    /// Names the tests of units without running them, on all cores. What can't be named is handed on as a unit: running it
    /// will tell what is wrong with it.
    fn ask(&self, adapter: &dyn Adapter, units: &[Unit], emit: &mut dyn FnMut(Input)) {
        let each = units.len().div_ceil(cores()).clamp(NAMED_UNITS_MIN, NAMED_UNITS_MAX);
        for units in units.chunks(each * cores()) {
            std::thread::scope(|scope| {
                let asked =
                    units.chunks(each).map(|units| (units, scope.spawn(move || self.name(adapter, units))));
                // All of them are begun before the first is waited for.
                let asked: Vec<_> = asked.collect();
                for (units, names) in asked {
                    self.answered(units, names.join().unwrap_or_default(), emit);
                }
            });
        }
    }

    fn answered(&self, units: &[Unit], mut names: HashMap<Unit, Vec<String>>, emit: &mut dyn FnMut(Input)) {
        let (named, unnamed): (Vec<Unit>, Vec<Unit>) =
            units.iter().cloned().partition(|unit| names.contains_key(unit));
        let list = |unit: Unit| (unit.clone(), names.remove(&unit).unwrap_or_default());
        let lists: Vec<(Unit, Vec<String>)> = named.into_iter().map(list).collect();
        self.remember(&lists);
        let tests: Vec<Listed> = lists.iter().flat_map(|(unit, names)| self.named(unit, names)).collect();
        if !tests.is_empty() || !unnamed.is_empty() {
            emit(Input::Listed { tests, units: unnamed, remembered: Vec::new() });
        }
    }

    /// Asks one process for all, and where it didn't come to its end, one for each half: one file that ends the
    /// interpreter must not hide the others. Nor must one that can't be collected beside another: what a process could
    /// not name is asked again without the rest, as long as that helps.
    fn name(&self, adapter: &dyn Adapter, units: &[Unit]) -> HashMap<Unit, Vec<String>> {
        let Some(invocation) = adapter.naming(units) else { return HashMap::new() };
        if units.is_empty() || self.cancel.is_killed() {
            return HashMap::new();
        }
        match self.execute(&invocation).ok().and_then(|ended| adapter.names(units, &ended)) {
            Some(mut names) => {
                let rest: Vec<Unit> =
                    units.iter().filter(|unit| !names.contains_key(unit)).cloned().collect();
                if !names.is_empty() {
                    names.extend(self.name(adapter, &rest));
                }
                names
            }
            None if units.len() > 1 => {
                let (left, right) = units.split_at(units.len() / 2);
                let mut names = self.name(adapter, left);
                names.extend(self.name(adapter, right));
                names
            }
            None => HashMap::new(),
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
