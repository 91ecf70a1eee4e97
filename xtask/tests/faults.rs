//! Faults in mid-run, on a small suite over a RabbitMQ node of each test's own: one verdict per test, the same as
//! undisturbed, and the loss is said.

use xtask::faults::{FAULTS, Scene};
use xtask::house_root;
use xtask::lab::Lab;

fn survives(name: &str) {
    let lab = Lab::open(&house_root()).expect("the laboratory can be opened");
    let regatta = lab.test_binary("regatta-cli", "regatta").expect("regatta builds");
    let scene = Scene::commands(regatta, lab.folder().join(name)).expect("a small suite");
    let (_, fault) = FAULTS.into_iter().find(|(known, _)| *known == name).expect("a fault of that name");
    fault(&scene).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn a_killed_worker_costs_no_verdict() {
    survives("worker-killed");
}

#[test]
fn a_killed_broker_costs_no_verdict() {
    survives("broker-killed");
}

#[test]
fn a_frozen_worker_is_given_up_and_changes_nothing_when_it_wakes() {
    survives("worker-frozen");
}

#[test]
fn a_run_says_in_time_that_nobody_works() {
    survives("nobody-works");
}
