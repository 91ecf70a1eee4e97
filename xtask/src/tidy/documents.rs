//! Rules about the documents.

use std::path::{Component, Path, PathBuf};

use super::{File, House, Problem};

/// What every page under docs/design has, in this order.
const PARTS: [&str; 4] = ["## Context", "## Decision", "## Consequences", "## Refused"];

fn design(file: &&File) -> bool {
    file.path.starts_with("docs/design/") && file.path.ends_with(".md")
}

/// ARCHITECTURE.md leads to every design page.
pub(super) fn design_pages_are_linked(house: &House) -> Vec<Problem> {
    let architecture = house.files.iter().find(|file| file.path == "ARCHITECTURE.md");
    let linked =
        |page: &File| architecture.is_some_and(|file| file.text.contains(&format!("({})", page.path)));
    house
        .files
        .iter()
        .filter(design)
        .filter(|page| !linked(page))
        .map(|page| Problem::new("linked", &page.path, "ARCHITECTURE.md has no link to it"))
        .collect()
}

/// A decision is written down with what it stands on, what it costs, and what was refused.
pub(super) fn design_pages_have_their_parts(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for page in house.files.iter().filter(design) {
        let headings: Vec<&str> = page.text.lines().filter(|line| line.starts_with("## ")).collect();
        if headings != PARTS {
            let message = format!("has the headings {headings:?}, wanted are {PARTS:?}");
            problems.push(Problem::new("parts", &page.path, message));
        }
    }
    problems
}

/// A link inside the repository leads to a file that is there.
pub(super) fn links_lead_somewhere(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for page in house.files.iter().filter(|file| file.path.ends_with(".md")) {
        for target in links(&page.text) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let wanted = normal(&Path::new(&page.path).parent().unwrap_or(Path::new("")).join(target));
            let there = house.files.iter().any(|file| Path::new(&file.path).starts_with(&wanted));
            if !there {
                problems.push(Problem::new(
                    "links",
                    &page.path,
                    format!("leads to {target}, which isn't there"),
                ));
            }
        }
    }
    problems
}

/// The targets of `[text](target)` in a page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

fn normal(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(files: &[(&str, &str)]) -> House {
        let files = files
            .iter()
            .map(|(path, text)| File { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        House { files, ..House::default() }
    }

    #[test]
    fn a_page_that_nobody_links_is_found() {
        let page = ("docs/design/001-a.md", "");
        assert_eq!(design_pages_are_linked(&house(&[page, ("ARCHITECTURE.md", "")])).len(), 1);
        let linked = ("ARCHITECTURE.md", "[a](docs/design/001-a.md)");
        assert_eq!(design_pages_are_linked(&house(&[page, linked])), []);
    }

    #[test]
    fn a_page_without_what_was_refused_is_found() {
        let page = "# A\n## Context\n## Decision\n## Consequences\n";
        assert_eq!(design_pages_have_their_parts(&house(&[("docs/design/001-a.md", page)])).len(), 1);
    }

    #[test]
    fn a_dead_link_is_found() {
        let bad = house(&[("docs/a.md", "[b](../b.md)"), ("c.md", "")]);
        assert_eq!(links_lead_somewhere(&bad).len(), 1);
        let good = house(&[("docs/a.md", "[b](../b.md#there) [c](https://example.org)"), ("b.md", "")]);
        assert_eq!(links_lead_somewhere(&good), []);
    }
}
