//! Which binaries have the content that was listed. Each is read once per worker, not once per test nor per slot, and
//! again when the file isn't the one any more that was read: somebody may build while a run goes on.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use regatta_model::Digest;

use crate::digest;
use crate::seam::AdapterError;

/// By what a file is known without reading it. The time of change is the kernel's, and can't be set back as that of
/// modification can (`cp -p`, `rsync -t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size_bytes: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The contents of binaries as they were read last.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<PathBuf, (Stamp, Digest)>>);

impl Verified {
    /// Makes sure that a binary has this content now.
    pub(super) fn expect(&self, binary: &Path, wanted: &Digest) -> Result<(), AdapterError> {
        let found = self.content(binary).map_err(|error| {
            AdapterError::NotPrepared(format!(
                "{}: {error}: this worker needs the folder into which the suite was built",
                binary.display()
            ))
        })?;
        if found == *wanted {
            return Ok(());
        }
        Err(AdapterError::NotPrepared(format!(
            "{} was rebuilt under this run, after its tests were listed: let nobody build there meanwhile, and run again",
            binary.display()
        )))
    }

    fn content(&self, binary: &Path) -> std::io::Result<Digest> {
        // First the stamp: when the file changes while it is read, the next test finds another stamp.
        let stamp = Stamp::of(&std::fs::metadata(binary)?);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, digest)) = known().get(binary).filter(|(read, _)| *read == stamp) {
            return Ok(digest.clone());
        }
        let digest = digest::of_file(binary)?;
        known().insert(binary.to_owned(), (stamp, digest.clone()));
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_read_again_when_it_is_another_file_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(place(name), text).unwrap();
            digest::of_bytes(text.as_bytes())
        };
        let digest = |name: &str| digest::of_file(&place(name)).unwrap();
        write("binary", "one");
        let (binary, one) = (place("binary"), digest("binary"));
        let verified = Verified::default();
        verified.expect(&binary, &one).unwrap();

        // Read no second time: what is remembered is believed.
        *verified.0.lock().unwrap().get_mut(&binary).map(|(_, digest)| digest).unwrap() = "remembered".into();
        assert!(verified.expect(&binary, &one).is_err());
        verified.expect(&binary, &"remembered".into()).unwrap();

        // Written anew with the same words: another file, and the same content.
        write("new", "one");
        std::fs::rename(place("new"), &binary).unwrap();
        verified.expect(&binary, &one).unwrap();

        // Another content of the same length, and with the old time of modification.
        let modified = std::fs::metadata(&binary).unwrap().modified().unwrap();
        write("binary", "two");
        std::fs::File::options().write(true).open(&binary).unwrap().set_modified(modified).unwrap();
        let error = verified.expect(&binary, &one).unwrap_err().to_string();
        assert!(error.contains("was rebuilt under this run") && error.contains("run again"), "{error}");
        verified.expect(&binary, &digest("binary")).unwrap();

        std::fs::remove_file(&binary).unwrap();
        let error = verified.expect(&binary, &one).unwrap_err().to_string();
        assert!(error.contains("needs the folder into which the suite was built"), "{error}");
    }
}
