//! Standard output. A reader that goes away is no error: whoever reads no more has what he wants. Any other end of it
//! is one, for what was asked for isn't there; it is told at the end, so that a run is not lost by it.

use std::io::{self, BufWriter, Stdout, Write};

use crate::error::CliError;
use crate::exit::Exit;

/// Standard output, buffered.
pub(crate) struct Out<W: Write = Stdout> {
    state: State<W>,
}

enum State<W: Write> {
    /// It takes what is written.
    Open(BufWriter<W>),
    /// Nobody reads any more: what is written is dropped.
    Left,
    /// It can't be written: what is written is dropped, and the end says why.
    Failed(io::Error),
}

impl Out {
    /// Standard output.
    pub(crate) fn new() -> Self {
        Self::to(io::stdout())
    }
}

impl<W: Write> Out<W> {
    fn to(out: W) -> Self {
        Self { state: State::Open(BufWriter::new(out)) }
    }

    /// Takes a text; it is out after [`Out::flush`], at the latest.
    pub(crate) fn write(&mut self, text: &[u8]) {
        self.when_open(|out| out.write_all(text));
    }

    /// Takes a line without its end.
    pub(crate) fn line(&mut self, line: &str) {
        self.when_open(|out| writeln!(out, "{line}"));
    }

    /// Hands what waits to whoever reads.
    pub(crate) fn flush(&mut self) {
        self.when_open(BufWriter::flush);
    }

    fn when_open(&mut self, write: impl FnOnce(&mut BufWriter<W>) -> io::Result<()>) {
        if let State::Open(out) = &mut self.state
            && let Err(error) = write(out)
        {
            self.state = match error.kind() {
                io::ErrorKind::BrokenPipe => State::Left,
                _ => State::Failed(error),
            };
        }
    }

    /// Hands out what waits, for the last time.
    ///
    /// # Errors
    /// When something could not be written though somebody reads.
    pub(crate) fn end(mut self) -> Result<(), CliError> {
        self.flush();
        match self.state {
            State::Failed(error) => {
                Err(CliError::from_error(Exit::Fault, "the standard output can't be written", &error))
            }
            State::Open(_) | State::Left => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then ends as it is told.
    struct Ends(usize, io::ErrorKind);

    impl Write for Ends {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 { Err(self.1.into()) } else { Ok(taken) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_reader_that_went_away_is_no_error() {
        let table = [
            (100, io::ErrorKind::StorageFull, None),
            (5, io::ErrorKind::BrokenPipe, None),
            (5, io::ErrorKind::StorageFull, Some(Exit::Fault)),
            (0, io::ErrorKind::Other, Some(Exit::Fault)),
        ];
        for (room, kind, exit) in table {
            let mut out = Out::to(Ends(room, kind));
            out.line("some");
            out.flush();
            out.write(b"more");
            assert_eq!(out.end().err().map(|error| error.exit), exit, "{room} {kind}");
        }
    }
}
