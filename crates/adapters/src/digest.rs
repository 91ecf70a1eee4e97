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

/// How many files one digest of a tree may have. A tree with more is not looked at.
const TREE_FILES_MAX: usize = 100_000;

/// One digest of the names and contents of all files below a folder whose name ends so. Hidden folders, caches, virtual
/// environments and what packagers installed are left out. None when it can't be read, or has too many.
pub(crate) fn of_tree(root: &Path, ending: &str) -> Option<Digest> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).ok()? {
            let entry = entry.ok()?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type().ok()?;
            if kind.is_dir() && !is_foreign(&path, &name) {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                files.push(path);
            }
        }
        if files.len() > TREE_FILES_MAX {
            return None;
        }
    }
    files.sort();
    let names: Vec<String> = (files.iter())
        .map(|path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned())
        .collect();
    let contents = of_files(&files).ok()?;
    Some(of_bytes(format!("{contents} {}", names.join("\n")).as_bytes()))
}

fn is_foreign(path: &Path, name: &str) -> bool {
    name.starts_with('.')
        || matches!(name, "__pycache__" | "node_modules" | "site-packages")
        || path.join("pyvenv.cfg").exists()
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

    #[test]
    fn a_trees_digest_is_that_of_its_own_files_and_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        };
        write("a.py", "1");
        write("deep/er/b.py", "2");
        let digest = || of_tree(root, ".py").unwrap();
        let first = digest();
        for beside in [
            "notes.txt",
            ".git/x.py",
            "deep/__pycache__/b.py",
            "venv/pyvenv.cfg",
            "venv/lib/x.py",
            "deep/node_modules/x.py",
        ] {
            write(beside, "x");
            assert_eq!(digest(), first, "{beside}");
        }
        write("a.py", "3");
        let second = digest();
        assert_ne!(second, first);
        std::fs::rename(root.join("a.py"), root.join("c.py")).unwrap();
        assert_ne!(digest(), second);
    }
}
