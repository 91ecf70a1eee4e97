//! Rules about who may depend on whom.

use super::{Dependency, House, Kind, Package, Problem};

/// Which of our packages each may use, by the name without the prefix. ARCHITECTURE.md shows the same table.
const ARROWS: [(&str, &[&str]); 13] = [
    ("adapters", &["model"]),
    ("celery", &[]),
    (
        "cli",
        &[
            "adapters", "celery", "console", "dispatch", "model", "report", "sandbox", "store", "web",
            "worker",
        ],
    ),
    ("console", &["celery"]),
    ("dispatch", &["celery", "model"]),
    ("hello", &["celery", "console"]),
    ("model", &[]),
    ("report", &["model"]),
    ("sandbox", &[]),
    ("store", &["model"]),
    ("testbed", &[]),
    ("web", &["model", "store"]),
    ("worker", &["adapters", "celery", "model", "sandbox"]),
];

/// Drives the built binaries from outside. What it may use of ours is what it measures as a library, and the test bed's
/// brokers.
const XTASK: &[&str] = &["celery", "testbed"];

/// Packages that have one user, and who that is. `xtask` has the bare loop that benchmarks compare with.
const RESERVED: [(&str, &[&str]); 6] = [
    ("lapin", &["celery", "xtask"]),
    ("rusqlite", &["store"]),
    ("nix", &["sandbox", "worker", "cli", "testbed", "xtask"]),
    ("clap", &["cli", "console", "hello", "xtask"]),
    ("anyhow", &["cli", "hello", "xtask", "testbed"]),
    ("quick-junit", &["report"]),
];

/// What `model` may not bring along even through others: I/O, clocks, randomness, async.
const IMPURE: [&str; 16] = [
    "async-trait",
    "chrono",
    "fastrand",
    "futures",
    "getrandom",
    "jiff",
    "lapin",
    "libc",
    "mio",
    "nix",
    "rand",
    "rusqlite",
    "rustix",
    "time",
    "tokio",
    "uuid",
];

/// The most packages that Cargo.lock may hold. Raise it in a commit that says which new package is worth it.
const PACKAGES_MAX: usize = 360;

fn short(name: &str) -> &str {
    name.strip_prefix("regatta-").unwrap_or(name)
}

/// Arrows between our crates go only as ARCHITECTURE.md says. Tests may use the test bed besides.
pub(super) fn between_our_crates(house: &House) -> Vec<Problem> {
    let ours = |dependency: &&Dependency| house.packages.iter().any(|p| p.name == dependency.name);
    let mut problems = Vec::new();
    for package in &house.packages {
        let allowed = match short(&package.name) {
            "xtask" => XTASK,
            name => match ARROWS.iter().find(|(from, _)| *from == name) {
                Some((_, to)) => to,
                None => {
                    let message =
                        "is not in the table of crates: add it to ARCHITECTURE.md and tidy, or drop it";
                    problems.push(Problem::new("arrows", &package.name, message));
                    continue;
                }
            },
        };
        for dependency in package.dependencies.iter().filter(ours) {
            let to = short(&dependency.name);
            let for_tests = dependency.kind == Kind::Dev && (to == "testbed" || to == short(&package.name));
            if !allowed.contains(&to) && !for_tests {
                let message = format!("must not use {}: this arrow is forbidden", dependency.name);
                problems.push(Problem::new("arrows", &package.name, message));
            }
        }
    }
    problems
}

/// Some packages have a single user, so that what they do has a single home.
pub(super) fn reserved_dependencies(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in &house.packages {
        for dependency in package.dependencies.iter().filter(|d| d.kind == Kind::Normal) {
            let Some((_, users)) = RESERVED.iter().find(|(name, _)| *name == dependency.name) else {
                continue;
            };
            if !users.contains(&short(&package.name)) {
                let message = format!("must not use {}: only {} may", dependency.name, users.join(", "));
                problems.push(Problem::new("reserved", &package.name, message));
            }
        }
    }
    problems
}

/// `model` is pure, through everything that it brings along.
pub(super) fn model_is_pure(house: &House) -> Vec<Problem> {
    let model = |package: &&Package| short(&package.name) == "model";
    let impure = |name: &&String| IMPURE.contains(&name.as_str());
    house
        .packages
        .iter()
        .filter(model)
        .flat_map(|package| package.closure.iter().filter(impure).map(move |name| (package, name)))
        .map(|(package, name)| {
            Problem::new(
                "pure",
                &package.name,
                format!("brings along {name}; time, ids and I/O come from outside"),
            )
        })
        .collect()
}

/// There is a limit on everything, and on what we build upon too.
pub(super) fn packages_have_a_ceiling(house: &House) -> Vec<Problem> {
    if house.locked <= PACKAGES_MAX {
        return Vec::new();
    }
    let message = format!(
        "holds {} packages, {PACKAGES_MAX} are allowed: drop some, or raise the ceiling",
        house.locked
    );
    vec![Problem::new("ceiling", "Cargo.lock", message)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Kind)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency { name: (*name).to_owned(), kind: *kind })
            .collect();
        Package { name: name.to_owned(), dependencies, closure: Vec::new() }
    }

    fn house(packages: Vec<Package>) -> House {
        House { packages, ..House::default() }
    }

    #[test]
    fn an_arrow_against_the_table_is_refused() {
        let both = vec![
            package("regatta-celery", &[("regatta-model", Kind::Normal), ("serde", Kind::Normal)]),
            package("regatta-model", &[]),
        ];
        assert_eq!(between_our_crates(&house(both))[0].place, "regatta-celery");
    }

    #[test]
    fn an_arrow_of_the_table_is_fine_and_tests_may_use_the_test_bed() {
        let fine = vec![
            package("regatta-dispatch", &[("regatta-model", Kind::Normal), ("regatta-testbed", Kind::Dev)]),
            package("regatta-model", &[]),
            package("regatta-testbed", &[]),
        ];
        assert_eq!(between_our_crates(&house(fine)), []);
        let not_for_users = vec![
            package("regatta-dispatch", &[("regatta-testbed", Kind::Normal)]),
            package("regatta-testbed", &[]),
        ];
        assert_eq!(between_our_crates(&house(not_for_users)).len(), 1);
    }

    #[test]
    fn a_crate_outside_the_table_is_refused() {
        assert_eq!(between_our_crates(&house(vec![package("regatta-util", &[])])).len(), 1);
    }

    #[test]
    fn a_reserved_package_has_its_users_only() {
        let bad = house(vec![package("regatta-worker", &[("lapin", Kind::Normal)])]);
        assert_eq!(reserved_dependencies(&bad)[0].rule, "reserved");
        let good = house(vec![package("regatta-celery", &[("lapin", Kind::Normal)])]);
        assert_eq!(reserved_dependencies(&good), []);
    }

    #[test]
    fn what_model_brings_along_counts_too() {
        let mut model = package("regatta-model", &[("serde", Kind::Normal)]);
        model.closure = vec!["serde".to_owned(), "tokio".to_owned()];
        assert_eq!(model_is_pure(&house(vec![model])).len(), 1);
    }

    #[test]
    fn too_many_packages_are_refused() {
        let big = House { locked: PACKAGES_MAX + 1, ..House::default() };
        assert_eq!(packages_have_a_ceiling(&big).len(), 1);
        assert_eq!(packages_have_a_ceiling(&House { locked: PACKAGES_MAX, ..House::default() }), []);
    }
}
