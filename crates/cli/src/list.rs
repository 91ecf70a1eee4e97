//! `regatta list`.

use std::sync::{Arc, Mutex};

use regatta_model::{Input, Unit};
use regatta_report::name as shown;
use regatta_store::{State, Store};
use regatta_worker::Cancel;

use crate::args::{Format, ListArgs};
use crate::error::CliError;
use crate::exit::Exit;
use crate::listing::{LIST_TIMEOUT, Listing, fence};
use crate::out::Out;
use crate::project::{self, Project, Trees};
use crate::surroundings::base_env;

/// How many files are named that could not be collected; the list has all of them.
const NAMED_MAX: usize = 10;

/// Lists tests, suite by suite.
pub(crate) fn list(args: &ListArgs) -> Result<Exit, CliError> {
    let mut project = Project::open(&args.selection.place, Trees::One)?;
    project.select(&args.selection.suite)?;
    if project.suites.is_empty() {
        return Err(project.nothing_here());
    }
    let store = State::find(&project.tree).and_then(|state| Store::open(&state.store_file()).ok());
    let known = store.as_ref().and_then(|store| store.knowledge().ok()).unwrap_or_default();
    let cancel = Cancel::new().map_err(|error| CliError::from_error(Exit::Fault, "can't list", &error))?;
    let listing = Listing {
        filter: Arc::new(project.filter(&args.selection, &known)?),
        store: Arc::new(Mutex::new(store)),
        fence: fence(
            project.config.list_timeout.unwrap_or(LIST_TIMEOUT),
            base_env(&project::pairs(&project.config.env)),
        ),
        cancel,
        by_name: true,
        digests: Arc::default(),
    };
    let mut out = Out::new();
    let (mut found, mut empty, mut faults) = (0, None, Vec::new());
    let mut uncollected = Vec::new();
    for suite in &project.suites {
        let before = found;
        let mut emit = |input| match input {
            Input::Listed { tests, units, .. } => {
                found += tests.len() + units.len();
                let tests =
                    tests.iter().map(|listed| (&listed.test.suite, &listed.test.name, listed.unit.as_ref()));
                let files = units.iter().map(|unit| (&unit.suite, &unit.name, Some(unit)));
                for (suite, name, unit) in tests.chain(files) {
                    out.line(&match args.format {
                        Format::Human => format!("{suite} {}", shown(name)),
                        Format::Json => {
                            let unit = unit.map(|unit| &unit.name);
                            serde_json::json!({ "suite": suite, "name": name, "unit": unit }).to_string()
                        }
                    });
                }
                uncollected.extend(units);
            }
            Input::ListingEnded { fault, .. } => faults.extend(fault),
            _ => {}
        };
        listing.list(suite.adapter.as_ref(), &suite.order.routes, &mut emit);
        if found == before {
            empty = empty.or(Some(suite.order.suite.name.clone()));
        }
    }
    out.end()?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(CliError::new(Exit::Fault, fault.message));
    }
    if !uncollected.is_empty() {
        return Err(not_collected(&uncollected));
    }
    if found == 0 {
        return Err(CliError::no_tests(None, args.selection.failed));
    }
    match empty.filter(|_| !project.is_filtered(&args.selection)) {
        Some(suite) => Err(CliError::no_tests(Some(&suite), false)),
        None => Ok(Exit::Passed),
    }
}

/// What can't be collected stands in the list as a file, which must not look like a test of that name.
fn not_collected(units: &[Unit]) -> CliError {
    let mut named: Vec<String> =
        units.iter().take(NAMED_MAX).map(|unit| format!("{} {}", unit.suite, shown(&unit.name))).collect();
    if units.len() > NAMED_MAX {
        named.push(format!("and {} more", units.len() - NAMED_MAX));
    }
    let named = named.join(", ");
    CliError::new(Exit::Fault, format!("listed as files, since their tests could not be collected: {named}"))
        .hint("regatta run says for each of them what is wrong")
        .hint("one that takes longer than `list-timeout` is not waited for")
}
