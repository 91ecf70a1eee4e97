//! What a run shows while it runs: lines for people, with a live view on a terminal, or facts as JSON lines.

use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::Duration;

use regatta_console::Live;
use regatta_model::{Knowledge, RunRecord, Stamped, Time};
use regatta_report::{Progress, Style, Summary, SummaryOptions, Verbosity};

use crate::args::Format;
use regatta_console::Color;

/// How often a pipe is told how far the run is.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// How often the live view is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// What goes to standard output. A reader that goes away is no reason to end a run.
pub(crate) enum Face {
    /// Lines for people.
    People { progress: Box<Progress>, live: Option<Live>, drawn: Time, out: BufWriter<Stdout>, style: Style },
    /// Facts as JSON.
    Machine { out: BufWriter<Stdout> },
}

impl Face {
    /// The face that was asked for.
    pub(crate) fn new(format: Format, color: Color, verbose: bool, known: &Knowledge) -> Self {
        let out = BufWriter::new(io::stdout());
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
            Self::Machine { out } => drop(out.write_all(line)),
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
            // Whoever reads no more has what he wants.
            let _ = out.flush();
        }
    }

    /// Time went on.
    pub(crate) fn tick(&mut self, now: Time) {
        match self {
            Self::Machine { out } => drop(out.flush()),
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
    pub(crate) fn end(self, record: &RunRecord, folder: String) {
        match self {
            Self::Machine { mut out } => drop(out.flush()),
            Self::People { live, mut out, style, .. } => {
                drop(live);
                let summary = Summary::render(record, &SummaryOptions { style, folder });
                print(&mut out, None, &[summary.trim_end().to_owned()]);
            }
        }
    }
}

fn print(out: &mut BufWriter<Stdout>, live: Option<&Live>, lines: &[String]) {
    let mut write = || -> io::Result<()> {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        out.flush()
    };
    // Whoever reads no more has what he wants.
    let _ = match live {
        Some(live) => live.aside(write),
        None => write(),
    };
}
