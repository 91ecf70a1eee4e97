//! Node names, as Celery forms them: `name@host`.

/// This host's name.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

/// The node name of a worker on this host; one that has a host already stays as it is.
#[must_use]
pub fn node_name(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@{}", host()) }
}
