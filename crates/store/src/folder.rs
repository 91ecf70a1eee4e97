//! The files of runs: `.regatta/` in the tree, one folder for each run, and in it the ledger and what is written at the
//! end.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use regatta_model::{RunId, Stamped};

/// The stream of facts, one JSON object a line.
pub const EVENTS_FILE: &str = "events.jsonl";
/// The run's record.
pub const RUN_FILE: &str = "run.json";
/// The run's record as JUnit.
pub const JUNIT_FILE: &str = "junit.xml";

/// How many bytes of facts wait in memory at most.
pub const FLUSH_BYTES: usize = 64 << 10;

/// A tree's `.regatta` folder.
#[derive(Debug, Clone)]
pub struct State {
    root: PathBuf,
}

impl State {
    /// Makes the folder if it isn't there, and tells git to leave it alone.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn open(tree: &Path) -> io::Result<Self> {
        let root = tree.join(".regatta");
        fs::create_dir_all(root.join("runs"))?;
        let ignore = root.join(".gitignore");
        if !ignore.exists() {
            fs::write(ignore, "*\n")?;
        }
        Ok(Self { root })
    }

    /// The folder where it is there already; nothing is made.
    #[must_use]
    pub fn find(tree: &Path) -> Option<Self> {
        Some(Self { root: tree.join(".regatta") }).filter(|state| state.root.is_dir())
    }

    /// Where the history is.
    #[must_use]
    pub fn store_file(&self) -> PathBuf {
        self.root.join("store.db")
    }

    /// The folder of one run.
    #[must_use]
    pub fn run_folder(&self, run: &RunId) -> PathBuf {
        self.root.join("runs").join(&run.0)
    }

    /// The runs that have a folder, oldest first.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn runs(&self) -> io::Result<Vec<RunId>> {
        let mut runs = Vec::new();
        for entry in fs::read_dir(self.root.join("runs"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                runs.push(RunId(entry.file_name().to_string_lossy().into_owned()));
            }
        }
        runs.sort();
        Ok(runs)
    }

    /// Removes the folders of all runs but the newest `keep`.
    ///
    /// # Errors
    /// When a folder can't be removed.
    pub fn prune(&self, keep: usize) -> io::Result<()> {
        let runs = self.runs()?;
        let old = runs.len().saturating_sub(keep);
        runs.iter().take(old).try_for_each(|run| fs::remove_dir_all(self.run_folder(run)))
    }
}

/// The folder of one run, and of no other while this lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The folder itself, locked. The kernel lets go of it when this process ends, however that comes.
    _lock: File,
}

impl RunFolder {
    /// Makes it, and removes what an earlier run left in it.
    ///
    /// # Errors
    /// When it can't be written; of the kind [`io::ErrorKind::ResourceBusy`] when it is another run's.
    pub fn create(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = File::open(path)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another run writes there"));
            }
            // A file system without locks on folders, such as a network's, keeps no run from its files.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        for name in [EVENTS_FILE, RUN_FILE, JUNIT_FILE] {
            match fs::remove_file(path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens its ledger.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn ledger(&self) -> io::Result<Ledger> {
        let file = OpenOptions::new().create(true).append(true).open(self.path.join(EVENTS_FILE))?;
        Ok(Ledger { file, waiting: Vec::with_capacity(FLUSH_BYTES) })
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// When it can't be written; an older file of that name is untouched then, and nothing of the new one is left.
    pub fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let unfinished = self.path.join(format!(".{name}.unfinished"));
        let write = || {
            let mut writer = io::BufWriter::new(File::create(&unfinished)?);
            content(&mut writer)?;
            // Without it a power cut could leave the new name with no content.
            writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&unfinished, self.path.join(name))
        };
        write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
    }
}

/// The ledger of a run: facts are appended, and are with the operating system after [`Ledger::flush`]. So they survive
/// the death of this process; a power cut may take the last ones.
#[derive(Debug)]
pub struct Ledger<W: Write = File> {
    file: W,
    waiting: Vec<u8>,
}

impl<W: Write> Ledger<W> {
    /// Appends a fact, and answers the line that it became.
    ///
    /// # Errors
    /// When the disk takes no more.
    pub fn append(&mut self, fact: &Stamped) -> io::Result<&[u8]> {
        if self.waiting.len() >= FLUSH_BYTES {
            self.flush()?;
        }
        let start = self.waiting.len();
        serde_json::to_writer(&mut self.waiting, fact)?;
        self.waiting.push(b'\n');
        Ok(&self.waiting[start..])
    }

    /// Hands what waits to the operating system.
    ///
    /// # Errors
    /// When the disk takes no more. What it took is not handed over again: where there is room later, the file goes on
    /// where it ended.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut taken = 0;
        let flushed = loop {
            if taken == self.waiting.len() {
                break Ok(());
            }
            match self.file.write(&self.waiting[taken..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => taken += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.waiting.drain(..taken);
        flushed
    }
}

impl<W: Write> Drop for Ledger<W> {
    fn drop(&mut self) {
        // Whoever needs to know whether it worked has flushed before.
        let _ = self.flush();
    }
}

/// Reads a run's facts. A last line without its end, which a process left that was killed, is left out.
///
/// # Errors
/// When the file can't be read, or a whole line isn't a fact.
pub fn read_events(path: &Path) -> io::Result<Vec<Stamped>> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut facts, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 || line.last() != Some(&b'\n') {
            return Ok(facts);
        }
        facts.push(serde_json::from_slice(&line)?);
    }
}

#[cfg(test)]
mod tests {
    use regatta_model::{RunEvent, Time};

    use super::*;

    #[test]
    fn facts_come_back_and_a_torn_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&folder.path().join("r")).unwrap();
        let facts: Vec<Stamped> =
            (0..3).map(|at| Stamped { at: Time(at), event: RunEvent::BrokerBack }).collect();
        let mut ledger = run.ledger().unwrap();
        for fact in &facts {
            assert!(ledger.append(fact).unwrap().ends_with(b"\n"));
        }
        ledger.flush().unwrap();
        let path = run.path().join(EVENTS_FILE);
        assert_eq!(read_events(&path).unwrap(), facts);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(read_events(&path).unwrap(), facts[..2]);
    }

    #[test]
    fn a_folder_is_one_runs_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        run.write(RUN_FILE, |file| file.write_all(b"first")).unwrap();
        assert_eq!(RunFolder::create(folder.path()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(fs::read(folder.path().join(RUN_FILE)).unwrap(), b"first");
        drop(run);
        RunFolder::create(folder.path()).unwrap();
        assert!(!folder.path().join(RUN_FILE).exists());
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::create(folder.path()).unwrap();
        run.write(RUN_FILE, |file| file.write_all(b"old")).unwrap();
        let failed = run.write(RUN_FILE, |file| {
            file.write_all(b"ne")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(folder.path().join(RUN_FILE)).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing of it is left");
    }

    /// A disk that takes a few bytes, is full then, and after that has room.
    #[derive(Default)]
    struct Full(Vec<u8>, u32);

    impl Write for &mut Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 {
                1 => self.0.write(&bytes[..5]),
                2 => Err(io::ErrorKind::StorageFull.into()),
                _ => self.0.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_ledger_goes_on_where_a_full_disk_ended_it() {
        let mut disk = Full::default();
        let mut ledger = Ledger { file: &mut disk, waiting: Vec::new() };
        let fact = Stamped { at: Time(1), event: RunEvent::BrokerBack };
        let line = ledger.append(&fact).unwrap().to_vec();
        assert_eq!(ledger.flush().unwrap_err().kind(), io::ErrorKind::StorageFull);
        ledger.append(&fact).unwrap();
        drop(ledger);
        assert_eq!(disk.0, [line.clone(), line].concat());
    }

    #[test]
    fn old_run_folders_go_and_git_sees_nothing() {
        let tree = tempfile::tempdir().unwrap();
        assert!(State::find(tree.path()).is_none());
        let state = State::open(tree.path()).unwrap();
        assert!(State::find(tree.path()).is_some());
        for run in ["b", "a", "c"] {
            RunFolder::create(&state.run_folder(&run.into())).unwrap();
        }
        state.prune(2).unwrap();
        assert_eq!(state.runs().unwrap(), ["b".into(), "c".into()]);
        assert_eq!(fs::read_to_string(tree.path().join(".regatta/.gitignore")).unwrap(), "*\n");
    }
}
