//! What a run shows while it runs: lines for people, with a live view on a terminal, or facts as JSON lines.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use regatta_console::Live;
use regatta_model::{Knowledge, RunRecord, Stamped, Time};
use regatta_report::{Paint, Progress, Style, Summary, SummaryOptions, Verbosity, clean};

use crate::args::Format;
use crate::error::CliError;
use crate::out::Out;
use regatta_console::Color;

/// How often a pipe is told how far the run is.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How often the live view is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// What goes to standard output. That it takes no more is no reason to end a run: the run's files are written all the same.
pub(crate) enum Face {
    /// Lines for people.
    People { progress: Box<Progress>, live: Option<Live>, drawn: Time, out: Out, style: Style },
    /// Facts as JSON.
    Machine { out: Out },
}

/// What there is to say at the end of a run, besides what became of tests.
pub(crate) struct Words {
    /// Texts of tools, as they are.
    pub(crate) reports: Vec<String>,
    /// Sentences of ours.
    pub(crate) notes: Vec<String>,
}

impl Face {
    /// The face that was asked for.
    pub(crate) fn new(format: Format, color: Color, verbose: bool, known: &Knowledge) -> Self {
        let out = Out::new();
        if format == Format::Json {
            return Self::Machine { out };
        }
        let style = Style { color: color.on_stdout() };
        let verbosity = if verbose { Verbosity::Every } else { Verbosity::Notable };
        let expected: HashMap<_, _> =
            known.tests.iter().map(|(test, known)| (test.clone(), known.p90_us)).collect();
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = (terminal && !dumb).then(Live::on_stderr);
        let progress = Box::new(Progress::new(style, verbosity, expected));
        Self::People { progress, live, drawn: Time::default(), out, style }
    }

    /// A fact, and the line that it is in the ledger.
    pub(crate) fn on(&mut self, fact: &Stamped, line: &[u8]) {
        match self {
            Self::Machine { out } => out.write(line),
            Self::People { progress, live, out, .. } => {
                let lines = progress.on(fact);
                if !lines.is_empty() {
                    print(out, live.as_ref(), &lines);
                }
            }
        }
    }

    /// A reader that is a program gets what there is, and doesn't wait for the next tick.
    pub(crate) fn flush(&mut self) {
        if let Self::Machine { out } = self {
            out.flush();
        }
    }

    /// Time went on.
    pub(crate) fn tick(&mut self, now: Time) {
        match self {
            Self::Machine { out } => out.flush(),
            Self::People { progress, live: Some(live), drawn, .. } => {
                if now.since(*drawn) >= DRAW_EVERY {
                    *drawn = now;
                    live.show(&progress.draw(now));
                }
            }
            Self::People { progress, live: None, out, .. } => {
                if let Some(line) = progress.plain_line(now, PLAIN_EVERY) {
                    print(out, None, &[line]);
                }
            }
        }
    }

    /// The end of the run.
    ///
    /// # Errors
    /// When standard output could not be written, now or before.
    pub(crate) fn end(self, record: &RunRecord, folder: String, words: &Words) -> Result<(), CliError> {
        match self {
            Self::Machine { out } => out.end(),
            Self::People { live, mut out, style, .. } => {
                drop(live);
                for report in &words.reports {
                    out.line(clean(report, style.color).trim_end());
                }
                for note in &words.notes {
                    out.line(&format!("{} {note}", style.paint(Paint::Odd, "      NOTE")));
                }
                let summary = Summary::render(record, &SummaryOptions { style, folder });
                out.line(summary.trim_end());
                out.end()
            }
        }
    }
}

fn print(out: &mut Out, live: Option<&Live>, lines: &[String]) {
    let mut write = || {
        lines.iter().for_each(|line| out.line(line));
        out.flush();
    };
    match live {
        Some(live) => live.aside(write),
        None => write(),
    }
}
