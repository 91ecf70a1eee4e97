//! `regatta show`: the end of an earlier run, read from its facts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use regatta_model::{EVENTS_SCHEMA, RunId, RunRecord};
use regatta_report::{Style, Summary, SummaryOptions};
use regatta_store::{EVENTS_FILE, State, read_events};

use crate::args::ShowArgs;
use crate::error::CliError;
use crate::exit::Exit;
use crate::out::Out;
use regatta_console::Color;

/// Shows a run, and ends as it ended.
pub(crate) fn show(args: &ShowArgs, color: Color) -> Result<Exit, CliError> {
    let folder = folder(args)?;
    let facts = read_events(&folder.join(EVENTS_FILE)).map_err(|error| {
        let what = unread(&folder, &error);
        CliError::from_error(Exit::Usage, what, &error)
            .hint("regatta show without an argument shows the newest run of this folder")
    })?;
    let mut record = RunRecord::default();
    facts.iter().for_each(|fact| record.apply(fact));
    let options =
        SummaryOptions { style: Style { color: color.on_stdout() }, folder: folder.display().to_string() };
    let mut out = Out::new();
    out.write(Summary::render(&record, &options).as_bytes());
    out.end()?;
    Ok(Exit::of(&record))
}

fn folder(args: &ShowArgs) -> Result<PathBuf, CliError> {
    if let Some(path) = args.run.as_ref().map(PathBuf::from).filter(|path| path.join(EVENTS_FILE).exists()) {
        return Ok(path);
    }
    let nothing = || {
        CliError::usage(format!("there are no runs in {}", args.tree.display())).hint("regatta run makes one")
    };
    let state = State::find(&args.tree).ok_or_else(nothing)?;
    if let Some(run) = &args.run {
        return Ok(state.run_folder(&RunId(run.clone())));
    }
    // A process that was killed before its first fact leaves a folder without any.
    let has_facts =
        |folder: &PathBuf| folder.join(EVENTS_FILE).metadata().is_ok_and(|ledger| ledger.len() > 0);
    let runs = state.runs().unwrap_or_default();
    runs.iter().rev().map(|run| state.run_folder(run)).find(has_facts).ok_or_else(nothing)
}

/// Why a run's facts could not be read.
fn unread(folder: &Path, error: &std::io::Error) -> String {
    let shown = folder.display();
    if error.kind() == std::io::ErrorKind::NotFound {
        return format!("there is no run in {shown}");
    }
    let ledger = File::open(folder.join(EVENTS_FILE)).ok();
    let first = ledger.and_then(|ledger| BufReader::new(ledger).lines().next()?.ok());
    let first = first.and_then(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
    match first.and_then(|fact| fact["schema"].as_u64()) {
        Some(schema) if schema > u64::from(EVENTS_SCHEMA) => {
            format!(
                "the run in {shown} was written by a newer regatta (schema {schema}; this one knows {EVENTS_SCHEMA})"
            )
        }
        _ => format!("the facts of the run in {shown} can't be read: {EVENTS_FILE} is damaged"),
    }
}
