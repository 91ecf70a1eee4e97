//! The folder in which a pytest process captures output, so that it outlives the process; and those that dead workers
//! left behind.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

use tempfile::TempDir;

/// What the folders' names begin with.
const PREFIX: &str = "regatta-capture-";

/// How often a folder is made anew that another process took for one that was left behind.
const TRIES_MAX: usize = 10;

/// A folder that goes when this is dropped, or when another process finds that ours is dead.
pub(super) struct Folder {
    folder: TempDir,
    /// The folder itself. The kernel lets go of it when this process ends, however that comes.
    _lock: File,
}

impl Folder {
    /// Makes it in the folder for temporary files; none when there is no place for it.
    pub(super) fn new() -> Option<Self> {
        static FIRST: Once = Once::new();
        let place = tempfile::env::temp_dir();
        let made = (0..TRIES_MAX).find_map(|_| Self::make(&place).transpose())?.ok()?;
        FIRST.call_once(|| made.take_away_the_dead(&place));
        Some(made)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// None when another process was faster to lock it, and took it away.
    fn make(place: &Path) -> io::Result<Option<Self>> {
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)?;
        let lock = match File::open(folder.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) || !folder.path().exists();
        Ok((!taken).then_some(Self { folder, _lock: lock }))
    }

    /// Removes the folders of our user that nobody holds. Whatever can't be removed stays.
    fn take_away_the_dead(&self, place: &Path) {
        let Ok(owner) = fs::metadata(self.path()).map(|own| own.uid()) else { return };
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
                && entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == owner);
            let Some(lock) = ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
            if lock.try_lock().is_ok() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dead_processes_left_goes_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for name in ["regatta-capture-dead/cache", "elsewhere/kept", "other"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::write(path("regatta-capture-dead/stdout"), "last words").unwrap();
        fs::write(path("regatta-capture-file"), "").unwrap();
        std::os::unix::fs::symlink(path("elsewhere"), path("regatta-capture-link")).unwrap();
        let [one, other] = [(); 2].map(|()| Folder::make(place.path()).unwrap().unwrap());
        one.take_away_the_dead(place.path());
        let mut left: Vec<_> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        let mut expected: Vec<_> =
            ["elsewhere", "other", "regatta-capture-file", "regatta-capture-link"].map(path).into();
        expected.extend([one.path().to_owned(), other.path().to_owned()]);
        expected.sort();
        assert_eq!(left, expected);
        assert!(path("elsewhere/kept").exists());
    }
}
