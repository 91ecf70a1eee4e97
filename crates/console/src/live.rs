//! The live view: lines that change, below the lines that stay. It must not know what they say.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The view that is on this process's standard error, for log lines to step over.
static SHOWN: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// The lines at the bottom of a terminal that change. Cleared when dropped.
#[derive(Debug)]
pub struct Live {
    screen: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Live {
    /// A view on standard error.
    #[must_use]
    pub fn on_stderr() -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(screen.clone());
        Self { screen, lines: Vec::new() }
    }

    /// Shows these lines instead of those before; what is wider than the terminal is cut.
    pub fn show(&mut self, lines: &[String]) {
        while self.lines.len() > lines.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
                self.screen.remove(&line);
            }
        }
        while self.lines.len() < lines.len() {
            let line = self.screen.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                line.set_style(style);
            }
            self.lines.push(line);
        }
        for (line, text) in self.lines.iter().zip(lines) {
            line.set_message(text.clone());
            line.tick();
        }
    }

    /// Takes the view away while `print` writes lines that stay.
    pub fn aside<R>(&self, print: impl FnOnce() -> R) -> R {
        self.screen.suspend(print)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.show(&[]);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Standard error for log lines: a live view is taken away while one is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().write_all(line);
        match shown {
            Some(screen) => screen.suspend(write),
            None => write(),
        }
        .map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
