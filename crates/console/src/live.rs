//! The live view: lines that change, below the lines that stay. It must not know what they say.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// How often a second the view is drawn at most.
const DRAWS_PER_SECOND_MAX: u8 = 20;

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
        let term = Term::buffered_stderr();
        let target = if term.features().is_attended() {
            let terminal = Terminal { term, is_gone: AtomicBool::new(false) };
            ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWS_PER_SECOND_MAX)
        } else {
            ProgressDrawTarget::hidden()
        };
        let screen = MultiProgress::with_draw_target(target);
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

/// A terminal that may be closed. From then on it takes everything and shows nothing: what draws the view would panic at
/// an error, and that must not end what is shown.
#[derive(Debug)]
struct Terminal {
    term: Term,
    is_gone: AtomicBool,
}

impl Terminal {
    fn when_there(&self, write: impl FnOnce(&Term) -> io::Result<()>) -> io::Result<()> {
        if !self.is_gone.load(Ordering::Relaxed) && write(&self.term).is_err() {
            self.is_gone.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        TermLike::width(&self.term)
    }

    fn height(&self) -> u16 {
        TermLike::height(&self.term)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.when_there(|term| term.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.when_there(|term| term.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.when_there(|term| term.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.when_there(|term| term.move_cursor_left(n))
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.when_there(|term| term.write_line(line))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.when_there(|term| term.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.when_there(Term::clear_line)
    }

    fn flush(&self) -> io::Result<()> {
        self.when_there(Term::flush)
    }
}

/// Standard error for log lines: a live view is taken away while one is written. That a line can't be written is told to
/// nobody: whoever logs would tell it on standard error, and panic.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let write = || io::stderr().write_all(line);
        let _nobody_left_to_tell = match shown {
            Some(screen) => screen.suspend(write),
            None => write(),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
