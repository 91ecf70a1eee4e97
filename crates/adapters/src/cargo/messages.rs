//! What cargo prints: `cargo test --no-run --message-format=json` and `cargo metadata`. Fields that nobody needs are
//! left out. See <https://doc.rust-lang.org/cargo/reference/external-tools.html>.

use std::path::PathBuf;

use serde::Deserialize;

/// A line of the build's messages.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub(super) enum Message {
    CompilerArtifact(Artifact),
    BuildScriptExecuted(BuildScript),
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Artifact {
    pub(super) package_id: String,
    pub(super) target: Target,
    pub(super) profile: Profile,
    pub(super) executable: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) kind: Vec<String>,
}

impl Target {
    /// The manifest's table that it stands in. A library's kinds are its crate types, such as `rlib` and `proc-macro`.
    pub(super) fn table(&self) -> &str {
        match self.kind.first().map(String::as_str) {
            Some(kind @ ("test" | "bin" | "example" | "bench")) => kind,
            Some(_) | None => "lib",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Profile {
    pub(super) test: bool,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct BuildScript {
    pub(super) package_id: String,
    #[serde(default)]
    pub(super) linked_paths: Vec<String>,
    #[serde(default)]
    pub(super) env: Vec<(String, String)>,
    pub(super) out_dir: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) manifest_path: PathBuf,
    #[serde(default)]
    pub(super) authors: Vec<String>,
    pub(super) description: Option<String>,
    pub(super) homepage: Option<String>,
    pub(super) repository: Option<String>,
    pub(super) license: Option<String>,
    pub(super) license_file: Option<String>,
    pub(super) readme: Option<String>,
    pub(super) rust_version: Option<String>,
    pub(super) links: Option<String>,
}

impl Package {
    /// The variables that cargo sets for a package's processes.
    pub(super) fn env(&self) -> Vec<(String, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (core, pre) = match self.version.split_once('-') {
            Some((core, pre)) => (core, pre.split('+').next().unwrap_or_default()),
            None => (self.version.split('+').next().unwrap_or_default(), ""),
        };
        let mut parts = core.split('.').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let folder = self.manifest_path.parent().unwrap_or(&self.manifest_path);
        let mut env = vec![
            ("CARGO_MANIFEST_DIR", folder.display().to_string()),
            ("CARGO_MANIFEST_PATH", self.manifest_path.display().to_string()),
            ("CARGO_PKG_NAME", self.name.clone()),
            ("CARGO_PKG_VERSION", self.version.clone()),
            ("CARGO_PKG_VERSION_MAJOR", part()),
            ("CARGO_PKG_VERSION_MINOR", part()),
            ("CARGO_PKG_VERSION_PATCH", part()),
            ("CARGO_PKG_VERSION_PRE", pre.to_owned()),
            ("CARGO_PKG_AUTHORS", self.authors.join(":")),
            ("CARGO_PKG_DESCRIPTION", text(&self.description)),
            ("CARGO_PKG_HOMEPAGE", text(&self.homepage)),
            ("CARGO_PKG_REPOSITORY", text(&self.repository)),
            ("CARGO_PKG_LICENSE", text(&self.license)),
            ("CARGO_PKG_LICENSE_FILE", text(&self.license_file)),
            ("CARGO_PKG_README", text(&self.readme)),
            ("CARGO_PKG_RUST_VERSION", text(&self.rust_version)),
        ];
        if let Some(links) = &self.links {
            env.push(("CARGO_MANIFEST_LINKS", links.clone()));
        }
        env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The name of one of its test binaries, as cargo-nextest has it.
    pub(super) fn binary_id(&self, target: &Target) -> String {
        match target.table() {
            "test" => format!("{}::{}", self.name, target.name),
            kind @ ("bin" | "example" | "bench") => format!("{}::{kind}/{}", self.name, target.name),
            _ => self.name.clone(),
        }
    }
}
