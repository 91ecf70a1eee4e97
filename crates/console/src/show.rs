//! Lines, tables and colours.

use std::io::{IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use owo_colors::OwoColorize;

use crate::args::Color;
use crate::error::ConsoleError;

/// The standard output, with colours or without.
pub(crate) struct Screen {
    out: AutoStream<std::io::Stdout>,
}

impl Screen {
    pub(crate) fn new(color: Color) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || !std::io::stdout().is_terminal();
        let choice = match color {
            Color::Always => ColorChoice::Always,
            Color::Auto if !plain => ColorChoice::Always,
            Color::Auto | Color::Never => ColorChoice::Never,
        };
        Self { out: AutoStream::new(std::io::stdout(), choice) }
    }

    pub(crate) fn line(&mut self, text: &str) -> Result<(), ConsoleError> {
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).map_err(ConsoleError::Output)
    }

    pub(crate) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) -> Result<(), ConsoleError> {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(head.to_vec());
        for row in rows {
            table.add_row(row);
        }
        for (number, line) in table.to_string().lines().enumerate() {
            let line = line.trim_end();
            let line = if number == 0 { line.bold().to_string() } else { painted(line) };
            self.line(&line)?;
        }
        Ok(())
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
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("\n  caused by: {cause}"));
        source = cause.source();
    }
    // Nobody is left to be told when this fails.
    drop(writeln!(std::io::stderr(), "{text}"));
}
