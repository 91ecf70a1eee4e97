//! What developers run: the house's rules as a test, comparisons with other runners on real suites, faults on real
//! suites, and the benchmarks.
//!
//! It drives the built binaries from outside and uses none of the product's crates, so that what it measures is what
//! users get.

use std::path::{Path, PathBuf};

pub mod tidy;

pub mod bench;
pub mod compare;
pub mod faults;

pub mod verdicts;

pub mod container;
pub mod lab;
pub mod process;
pub mod readme;
pub mod record;
pub mod regatta;
pub mod say;

/// The workspace's root folder.
#[must_use]
pub fn house_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}
