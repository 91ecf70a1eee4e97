//! Lines, tables and colours.

use std::io::{self, ErrorKind, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use owo_colors::OwoColorize;

use crate::live::Live;

/// The standard output, with colours or without, above a live view where there is one.
///
/// Writing never fails in the middle of the work: a reader that goes away (`| head -1`) has what it wants, and any other
/// error is told by [`Screen::finish`].
pub(crate) struct Screen {
    out: AutoStream<io::Stdout>,
    color: bool,
    live: Option<Live>,
    failed: Option<io::Error>,
}

impl Screen {
    /// A screen without a live view.
    pub(crate) fn new(color: bool) -> Self {
        let choice = if color { ColorChoice::Always } else { ColorChoice::Never };
        Self { out: AutoStream::new(io::stdout(), choice), color, live: None, failed: None }
    }

    /// Opens the live view where a person looks: the lines and the view must be on a terminal that can move its cursor.
    pub(crate) fn go_live(&mut self) {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        self.live = (terminal && !dumb).then(Live::on_stderr);
    }

    /// Whether there is a live view.
    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Shows these lines in the live view.
    pub(crate) fn draw(&mut self, lines: impl FnOnce(bool) -> Vec<String>) {
        if let Some(live) = &mut self.live {
            live.show(&lines(self.color));
        }
    }

    /// Takes the live view away.
    pub(crate) fn end_live(&mut self) {
        self.live = None;
    }

    pub(crate) fn line(&mut self, text: &str) {
        if self.failed.is_some() {
            return;
        }
        let out = &mut self.out;
        let mut write = || writeln!(out, "{text}").and_then(|()| out.flush());
        let written = match &self.live {
            Some(live) => live.aside(write),
            None => write(),
        };
        self.failed = written.err();
    }

    pub(crate) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(head.to_vec());
        for row in rows {
            table.add_row(row);
        }
        for (number, line) in table.to_string().lines().enumerate() {
            let line = line.trim_end();
            let line = if number == 0 { line.bold().to_string() } else { painted(line) };
            self.line(&line);
        }
    }

    /// Says whether all lines came out, as far as anybody reads them.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self.failed {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

/// A table's line with its last word, the state, in the colour of what it says.
fn painted(line: &str) -> String {
    for good in ["SUCCESS", "ok"] {
        if let Some(rest) = line.strip_suffix(good) {
            return format!("{rest}{}", good.green());
        }
    }
    for bad in ["FAILURE", "REVOKED", "UNKNOWN", "bad"] {
        if let Some(rest) = line.strip_suffix(bad) {
            return format!("{rest}{}", bad.red());
        }
    }
    line.to_owned()
}

/// Seconds as people read them.
pub(crate) fn time(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("{:.1} ms", seconds * 1000.0),
        Some(seconds) => format!("{seconds:.2} s"),
    }
}

/// An error with all its causes, on the standard error stream.
pub(crate) fn error(error: &dyn std::error::Error) {
    let mut text = format!("error: {error}");
    for cause in causes(error) {
        text.push_str(&format!("\n  caused by: {cause}"));
    }
    // Nobody is left to be told when this fails.
    drop(writeln!(io::stderr(), "{text}"));
}

/// What an error says that it comes from, the next cause first.
pub(crate) fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect()
}
