//! `cargo xtask bench` and `compare` work, on a small part of what they are for. What they measure is not judged here.

use xtask::house_root;
use xtask::lab::Scale;

#[test]
fn every_row_of_the_benchmark_can_be_measured() {
    let measured = xtask::bench::run(&house_root(), None, 1, Scale::Quick);
    measured.unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn parts_of_real_suites_have_the_verdicts_of_their_usual_runners() {
    let same = xtask::compare::run(&house_root(), None, Scale::Quick);
    assert!(same.unwrap_or_else(|error| panic!("{error:#}")), "the table above names the differences");
}
