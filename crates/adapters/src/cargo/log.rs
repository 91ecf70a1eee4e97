//! The file in which a harness says what it did (`--logfile`), apart from whatever a test prints.

use std::io::{Read, Seek};

use tempfile::NamedTempFile;

use crate::seam::AdapterError;

/// The longest log of one test that is read; only its first line counts.
const LOG_BYTES_MAX: u64 = 1 << 16;

/// A log, which is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Log(NamedTempFile);

impl Log {
    /// An empty one.
    pub(super) fn new() -> Result<Self, AdapterError> {
        let file = tempfile::Builder::new().prefix("regatta-").suffix(".log").tempfile();
        let path = std::env::temp_dir();
        file.map(Self)
            .map_err(|error| AdapterError::File { path, reason: format!("{error}: can't keep a log there") })
    }

    /// What makes libtest write to it.
    pub(super) fn args(&self) -> [String; 2] {
        ["--logfile".to_owned(), self.0.path().display().to_string()]
    }

    /// What was written. It is there even if a test took the file away.
    pub(super) fn read(mut self) -> String {
        let mut log = Vec::new();
        let file = self.0.as_file_mut();
        // What can't be read proves nothing, as what isn't there.
        let read = file.rewind().and_then(|()| file.take(LOG_BYTES_MAX).read_to_end(&mut log));
        read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&log).into_owned())
    }
}
