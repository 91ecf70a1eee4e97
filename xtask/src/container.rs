//! A worker in a container: on a Debian base made with debootstrap, its tree mounted read-only.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::lab::Lab;
use crate::process::{Running, command, finish};
use crate::regatta::{Project, QUEUE, Regatta};

/// The image's name.
const IMAGE: &str = "regatta-lab-debian";

/// The longest that making the base may take.
const BASE_MAX: Duration = Duration::from_secs(1_800);

/// The longest that Docker may take to answer.
const DOCKER_MAX: Duration = Duration::from_secs(60);

/// A Debian base image.
#[derive(Debug)]
pub struct Base {
    image: String,
}

impl Base {
    /// Makes the image with debootstrap where Docker doesn't have it: of the same release as this machine, since the
    /// test binaries that it runs are linked to this machine's C library.
    ///
    /// # Errors
    /// When debootstrap or Docker is missing, or the archive can't be reached; the message holds their words.
    pub fn debian(lab: &Lab) -> anyhow::Result<Self> {
        let image = format!("{IMAGE}:{}", release()?);
        let mut inspect = command("docker", lab.folder());
        inspect.args(["image", "inspect", &image]);
        if finish(inspect, DOCKER_MAX)?.status.success() {
            return Ok(Self { image });
        }
        let mut make = command("sh", lab.folder());
        let script = "set -eu; rm -rf debian; \
                      debootstrap --variant=minbase \"$1\" debian ${3:+\"$3\"} >debootstrap.log 2>&1 || \
                      { tail -20 debootstrap.log; exit 1; }; \
                      tar -C debian -c . | docker import - \"$2\"; rm -rf debian";
        make.args(["-c", script, "base", &release()?, &image, &archive()]);
        finish(make, BASE_MAX)?.expect_code("debootstrap (as root) and docker import", &[0])?;
        Ok(Self { image })
    }
}

/// This machine's Debian release, by its code name.
fn release() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("/etc/os-release can't be read")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("this is no Debian: /etc/os-release has no VERSION_CODENAME")?
        .trim_matches('"')
        .to_owned())
}

/// The archive that this machine itself uses; empty for debootstrap's own choice.
fn archive() -> String {
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let texts = sources.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .find_map(|line| line.split_whitespace().find(|word| word.contains("://")).map(str::to_owned))
        .unwrap_or_default()
}

/// A worker in a container; removed when dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    _running: Running,
}

impl Container {
    /// Starts `regatta worker` with one slot. The network is the host's, since the node listens on loopback alone; all
    /// rights are dropped, and everything but a scratch folder is read-only.
    ///
    /// # Errors
    /// When Docker can't be started.
    pub fn worker(
        base: &Base,
        regatta: &Regatta,
        project: &Project,
        broker: &str,
        worker: &str,
    ) -> anyhow::Result<Self> {
        let name = format!("regatta-lab-{}", std::process::id());
        let tree = project.folder.display();
        let binary = regatta.binary.display();
        let mut docker = command("docker", &project.folder);
        docker
            .args(["run", "--rm", "--init", "--name", &name, "--network", "host", "--read-only"])
            .args(["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "256"])
            .args(["--tmpfs", "/tmp:rw,nosuid,nodev,size=64m"])
            .args(["--volume", &format!("{tree}:{tree}:ro"), "--workdir", &tree.to_string()])
            .args(["--volume", &format!("{binary}:/usr/bin/regatta:ro"), &base.image])
            .args(["/usr/bin/regatta", "worker", "-Q", QUEUE, "--broker", broker])
            .args(["--name", worker, "--slots", "1"]);
        Ok(Self { name, _running: Running::start(docker)? })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut remove = command("docker", Path::new("/"));
        remove.args(["rm", "--force", &self.name]);
        // It may be gone already; nothing more can be done about it here.
        let _ = finish(remove, DOCKER_MAX);
    }
}
