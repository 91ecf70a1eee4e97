//! The house's rules hold for this very tree.

use xtask::tidy::{House, problems};

#[test]
fn every_rule_of_the_house_holds() {
    let house = House::read(&xtask::house_root()).expect("the workspace can be read");
    assert!(house.packages.len() > 5, "the reader has found the workspace's packages");
    assert!(house.files.len() > 20, "the reader has found the workspace's files");
    let found: Vec<String> = problems(&house).iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
