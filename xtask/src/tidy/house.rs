//! What the rules look at: every text file of the tree, and the packages with their dependencies.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Folders that hold what was built, fetched or run, not what was written. `.gitignore` names them too.
const NOT_OURS: [&str; 9] =
    [".docker", ".git", ".regatta", ".venv", "__pycache__", "dist", "node_modules", "results", "target"];

/// The largest file that is read as text; larger ones are data.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A text file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path from the root, with `/` between parts.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// What a dependency is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The package itself or its build script.
    Normal,
    /// Its tests.
    Dev,
}

/// A dependency that a manifest declares.
#[derive(Debug, Clone)]
pub struct Dependency {
    /// The package's name.
    pub name: String,
    /// What for.
    pub kind: Kind,
}

/// A package of the workspace.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// What its manifest declares.
    pub dependencies: Vec<Dependency>,
    /// Everything that its normal dependencies bring along, by name.
    pub closure: Vec<String>,
}

/// The whole workspace, read once.
#[derive(Debug, Clone, Default)]
pub struct House {
    /// Text files, sorted by path.
    pub files: Vec<File>,
    /// Our packages.
    pub packages: Vec<Package>,
    /// How many packages the lock file holds.
    pub locked: usize,
}

impl House {
    /// Reads the workspace at `root`.
    ///
    /// # Errors
    /// When a file can't be read or `cargo metadata` fails; the message names the file or holds cargo's own words.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        walk(root, root, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("Cargo.lock can't be read")?;
        let locked = lock.lines().filter(|line| *line == "[[package]]").count();
        Ok(Self { files, packages: packages(&metadata(root)?), locked })
    }
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<File>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{} can't be read", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() && !NOT_OURS.contains(&name.to_string_lossy().as_ref()) {
            walk(root, &entry.path(), files)?;
        } else if kind.is_file() && entry.metadata()?.len() <= TEXT_BYTES_MAX {
            let bytes = std::fs::read(entry.path())
                .with_context(|| format!("{} can't be read", entry.path().display()))?;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            let path = entry.path().strip_prefix(root)?.to_string_lossy().into_owned();
            files.push(File { path, text });
        }
    }
    Ok(())
}

/// Asks cargo for the dependency graph of this platform; without the platform it would fetch packages of all others.
fn metadata(root: &Path) -> anyhow::Result<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let version = Command::new("rustc").arg("-vV").output().context("rustc can't be started")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", host])
        .current_dir(root)
        .output()
        .context("cargo can't be started")?;
    ensure!(output.status.success(), "cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> Vec<Package> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names: HashMap<String, String> =
        array(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let normal: HashMap<String, Vec<String>> = array(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let of_build = |dep: &&Value| array(&dep["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
            let deps = array(&node["deps"]);
            (text(&node["id"]), deps.iter().filter(of_build).map(|dep| text(&dep["pkg"])).collect())
        })
        .collect();
    let members: Vec<String> = array(&metadata["workspace_members"]).iter().map(text).collect();
    array(&metadata["packages"])
        .iter()
        .filter(|package| members.contains(&text(&package["id"])))
        .map(|package| {
            let dependencies = array(&package["dependencies"])
                .iter()
                .map(|dep| Dependency {
                    name: text(&dep["name"]),
                    kind: if dep["kind"] == "dev" { Kind::Dev } else { Kind::Normal },
                })
                .collect();
            let closure = closure(&text(&package["id"]), &normal, &names);
            Package { name: text(&package["name"]), dependencies, closure }
        })
        .collect()
}

fn closure(
    start: &str,
    edges: &HashMap<String, Vec<String>>,
    names: &HashMap<String, String>,
) -> Vec<String> {
    let mut seen: Vec<&str> = vec![start];
    let mut at = 0;
    while let Some(id) = seen.get(at) {
        at += 1;
        for next in edges.get(*id).into_iter().flatten() {
            if !seen.contains(&next.as_str()) {
                seen.push(next);
            }
        }
    }
    let mut found: Vec<String> = seen[1..].iter().filter_map(|id| names.get(*id).cloned()).collect();
    found.sort();
    found
}
