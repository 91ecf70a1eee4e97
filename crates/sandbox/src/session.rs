//! A warm process: it is sent requests and sends records, one line each, over two pipes of its own, so that what it or
//! its tests print can't be taken for either.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::PollFlags;

use crate::process::{Extra, Process, Wake, nonblocking, open_pipe, with_piece};
use crate::{Cancel, Command, End, Fence, Finished, SandboxError};

/// How long a record line may be. It holds a test's output; what is longer is no record.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// What happened first while a session was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A record line, without its newline.
    Line(Vec<u8>),
    /// A line grew over [`LINE_BYTES_MAX`]. The session is of no more use.
    TooLong,
    /// The deadline has passed.
    DeadlinePassed,
    /// The cancel handle was used.
    Cancelled,
    /// The process has ended by itself, and all its lines were given. Ask [`Session::end`] how.
    Ended,
}

/// Why a session is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It has ended by itself.
    Ended,
    /// A test in it took too long: SIGTERM, a grace, SIGKILL.
    TimedOut,
    /// It was cancelled: SIGKILL.
    Cancelled,
}

/// A warm process. Dropping it kills all of it.
///
/// The kernel kills it when the thread that started it ends, so it stays on that thread:
///
/// ```compile_fail
/// fn on_another_thread(session: regatta_sandbox::Session) {
///     std::thread::spawn(move || drop(session));
/// }
/// ```
pub struct Session {
    process: Process,
    /// Where requests go; none after the process closed it.
    request: Option<PipeWriter>,
    /// What is still to be sent.
    outbox: Vec<u8>,
    /// Where records come from; none after the process closed it.
    record: Option<PipeReader>,
    lines: Lines,
    ended: bool,
    /// Not `Send`.
    thread: PhantomData<*const ()>,
}

impl Session {
    /// Starts `command` with the two pipes, whose descriptors `REGATTA_REQUEST_FD` and `REGATTA_RECORD_FD` name in its
    /// environment. [`Fence::timeout`] doesn't count: the deadline is the caller's, see [`Session::wait`].
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(command: &Command, fence: &Fence) -> Result<Self, SandboxError> {
        let (request_theirs, request) = open_pipe()?;
        let (record, record_theirs) = open_pipe()?;
        nonblocking(request.as_fd())?;
        nonblocking(record.as_fd())?;
        let extra = [request_theirs.as_fd(), record_theirs.as_fd()];
        let process = Process::start(command, fence, None, Some(extra))?;
        Ok(Self {
            process,
            request: Some(request),
            outbox: Vec::new(),
            record: Some(record),
            lines: Lines::default(),
            ended: false,
            thread: PhantomData,
        })
    }

    /// Sends a request line (without its newline). It goes out while the session is waited for.
    pub fn send(&mut self, line: &[u8]) {
        self.outbox.extend_from_slice(line);
        self.outbox.push(b'\n');
        self.write();
    }

    /// Tells it that there are no more requests, so that it ends by itself.
    pub fn no_more_requests(&mut self) {
        self.request = None;
        self.outbox.clear();
    }

    /// Waits for what happens next.
    pub fn wait(&mut self, cancel: &Cancel, deadline: Option<Instant>) -> Event {
        self.next(cancel, None, deadline).unwrap_or(Event::Cancelled)
    }

    /// The same while it is wanted: none as soon as `unwanted` is used and no line waits.
    pub fn wait_while_wanted(
        &mut self,
        cancel: &Cancel,
        unwanted: &Cancel,
        deadline: Option<Instant>,
    ) -> Option<Event> {
        self.next(cancel, Some(unwanted), deadline)
    }

    /// The next event; none when there is an `unwanted` and it was used.
    fn next(
        &mut self,
        cancel: &Cancel,
        unwanted: Option<&Cancel>,
        deadline: Option<Instant>,
    ) -> Option<Event> {
        loop {
            match self.lines.next() {
                Some(Ok(line)) => return Some(Event::Line(line)),
                Some(Err(())) => return Some(Event::TooLong),
                None if self.ended => return Some(Event::Ended),
                None => {}
            }
            if unwanted.is_some_and(Cancel::is_killed) {
                return None;
            }
            let record = self.record.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN));
            let request = self.request.as_ref().filter(|_| !self.outbox.is_empty());
            let request = request.map(|pipe| (pipe.as_fd(), PollFlags::POLLOUT));
            let unwanted = unwanted.map(|unwanted| (unwanted.fd(), PollFlags::POLLIN));
            let extra: Vec<Extra<'_>> = record.into_iter().chain(request).chain(unwanted).collect();
            match self.process.wait(Some(cancel), &extra, deadline) {
                Wake::Extra => {
                    self.read();
                    self.write();
                }
                Wake::Ended => {
                    self.read();
                    self.ended = true;
                }
                Wake::Cancelled => return Some(Event::Cancelled),
                Wake::Deadline => return Some(Event::DeadlinePassed),
            }
        }
    }

    /// Forgets what the process printed so far, unless it has sent more lines since the last one that was given.
    ///
    /// Output and lines come through different pipes: a process that is ahead of us may have printed already what
    /// belongs to its next line. So nothing is forgotten that could be of a test that isn't known yet; the output of a
    /// test may begin too early, but never too late.
    pub fn forget_output(&mut self) {
        self.process.read_output();
        self.read();
        if self.lines.is_empty() {
            self.process.forget_output();
        }
    }

    /// Ends it, and says how it ended and what it printed since [`Session::forget_output`].
    pub fn end(self, why: Why) -> Finished {
        let deadline = Instant::now() + self.process.grace();
        match why {
            Why::TimedOut => self.process.end(End::TimedOut, true, None),
            Why::Cancelled => self.process.end(End::Cancelled, false, None),
            Why::Ended => self.settle(deadline),
        }
    }

    fn settle(mut self, deadline: Instant) -> Finished {
        // Nobody reads its records any more: one that writes them is told so by a broken pipe.
        self.record = None;
        match self.process.wait(None, &[], Some(deadline)) {
            Wake::Ended => self.process.settle(),
            Wake::Cancelled | Wake::Deadline | Wake::Extra => self.process.end(End::Cancelled, false, None),
        }
    }

    fn write(&mut self) {
        while let Some(pipe) = self.request.as_mut().filter(|_| !self.outbox.is_empty()) {
            match pipe.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It reads no more; its end, or its silence, will say the rest.
                Err(_) => {
                    self.request = None;
                    self.outbox.clear();
                }
            }
        }
    }

    fn read(&mut self) {
        while let Some(pipe) = &mut self.record {
            let length = match with_piece(|piece| {
                pipe.read(piece).inspect(|&length| self.lines.push(&piece[..length]))
            }) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => 0,
            };
            if length == 0 {
                self.record = None;
            } else if self.lines.bytes() > LINE_BYTES_MAX {
                return;
            }
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    /// Where the next line begins.
    begin: usize,
    /// Up to where there is no newline.
    scanned: usize,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) {
        if self.begin > 0 {
            self.bytes.drain(..self.begin);
            self.scanned -= self.begin;
            self.begin = 0;
        }
        self.bytes.extend_from_slice(piece);
    }

    fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// How many bytes wait.
    fn bytes(&self) -> usize {
        self.bytes.len() - self.begin
    }

    /// The next whole line; an error when it can't become one.
    fn next(&mut self) -> Option<Result<Vec<u8>, ()>> {
        let Some(at) = self.bytes[self.scanned..].iter().position(|&byte| byte == b'\n') else {
            self.scanned = self.bytes.len();
            return (self.bytes() > LINE_BYTES_MAX).then_some(Err(()));
        };
        let line = self.bytes[self.begin..self.scanned + at].to_vec();
        self.begin = self.scanned + at + 1;
        self.scanned = self.begin;
        Some(Ok(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let text = b"one\n\nthree\nrest";
        for piece in 1..=text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in text.chunks(piece) {
                lines.push(chunk);
                while let Some(line) = lines.next() {
                    found.push(String::from_utf8(line.unwrap()).unwrap());
                }
            }
            assert_eq!(found, ["one", "", "three"], "in pieces of {piece}");
            assert_eq!(lines.bytes(), 4);
        }
    }

    #[test]
    fn a_line_has_a_limit() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_BYTES_MAX]);
        assert_eq!(lines.next(), None);
        lines.push(b"x");
        assert_eq!(lines.next(), Some(Err(())));
    }
}
