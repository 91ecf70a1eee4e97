//! Digests of files.

use std::io::Read;
use std::path::Path;

use regatta_model::Digest;

/// How much of a file is read at once.
const PIECE: usize = 1 << 16;

/// The digest of bytes in memory.
pub(crate) fn of_bytes(bytes: &[u8]) -> Digest {
    Digest(blake3::hash(bytes).to_hex().to_string())
}

/// The digest of a file's content.
pub(crate) fn of_file(path: &Path) -> std::io::Result<Digest> {
    of_files(&[path])
}

/// One digest of several files' contents. The order counts.
pub(crate) fn of_files(paths: &[impl AsRef<Path>]) -> std::io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    for path in paths {
        let mut file = std::fs::File::open(path)?;
        let mut length: u64 = 0;
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            hasher.update(&piece[..read]);
        }
        // Without the lengths, a line that moves from one file to the next would change nothing.
        hasher.update(&length.to_le_bytes());
    }
    Ok(Digest(hasher.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_contents_apart_and_where_one_file_ends() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (ab, c) = (write("ab", "ab"), write("c", "c"));
        let (a, bc) = (write("a", "a"), write("bc", "bc"));
        assert_eq!(of_files(&[&ab, &c]).unwrap(), of_files(&[&ab, &c]).unwrap());
        assert_ne!(of_files(&[&ab, &c]).unwrap(), of_files(&[&a, &bc]).unwrap());
        assert_ne!(of_file(&a).unwrap(), of_file(&c).unwrap());
        assert!(of_file(&folder.path().join("none")).is_err());
    }
}
