//! Real peers for tests and benchmarks: a RabbitMQ node of one's own, and the interpreter of the Python peers.
//!
//! What is missing fails with the command that installs it; nothing is skipped. This crate is only for development: no
//! product crate may depend on it.

mod node;

use std::path::{Path, PathBuf};

pub use node::{Node, Tls, shared_node};

/// The workspace's folder.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
}

/// The Python interpreter that has the peers (Celery, Flower, pytest, …): `REGATTA_PEERS`, or the workspace's `.venv`.
///
/// # Panics
/// When it isn't there.
#[must_use]
pub fn python() -> PathBuf {
    let named = std::env::var_os("REGATTA_PEERS").map(PathBuf::from);
    let python = named.unwrap_or_else(|| workspace().join(".venv/bin/python"));
    assert!(python.exists(), "the Python peers are not at {}: run `make install`", python.display());
    python
}

/// A name that no other test uses.
#[must_use]
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}
