//! A crate whose tests end in every way, built, listed and run as a worker would.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the message")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regatta_adapters::{Adapter, Cargo, CargoConfig, Ended, Exit, Invocation, ListingStep, Place, Runner};
use regatta_model::{Digest, Time};

fn run(invocation: &Invocation) -> Ended {
    use std::os::unix::process::ExitStatusExt;
    let mut command = Command::new(&invocation.program);
    command.args(&invocation.args).current_dir(&invocation.cwd);
    let unset = |(name, _): &&(String, String)| std::env::var_os(name).is_none();
    let env = invocation.env_defaults.iter().filter(unset).chain(&invocation.env);
    command.envs(env.map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    let exit = output
        .status
        .code()
        .map_or_else(|| Exit::Signal(output.status.signal().unwrap_or_default()), Exit::Code);
    Ended {
        exit,
        stdout: output.stdout,
        stderr: output.stderr,
        bytes_omitted: 0,
        started: Time(1),
        duration: Duration::from_millis(1),
        leaked: 0,
    }
}

fn list(cargo: &Cargo) -> (Vec<String>, Option<Digest>) {
    let mut listing = cargo.list();
    let mut found = Vec::new();
    loop {
        match listing.next().unwrap() {
            ListingStep::Run(invocation) => listing.ended(&run(&invocation)).unwrap(),
            ListingStep::Found { tests, .. } => {
                found.extend(tests.into_iter().map(|listed| listed.test.name));
            }
            ListingStep::Done { prepared } => return (found, prepared),
        }
    }
}

#[test]
fn every_way_to_end_has_its_verdict() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/crate");
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().canonicalize().unwrap();
    assert!(Command::new("cp").arg("-r").arg(from.join(".")).arg(&tree).status().unwrap().success());
    let target = tree.join("target").display().to_string();
    let env = vec![("CARGO_TARGET_DIR".to_owned(), target), ("RUST_BACKTRACE".to_owned(), "0".to_owned())];
    let cargo = Cargo::new(CargoConfig { env, ..CargoConfig::new(&tree) });
    let (tests, prepared) = list(&cargo);
    let place = Place { tree: &tree, slot: 0, slots: 1 };
    let Runner::Each(runner) = cargo.runner(place, prepared.as_ref()).unwrap() else {
        panic!("a process each")
    };
    let said: BTreeMap<String, String> = tests
        .iter()
        .map(|test| {
            let record = runner.judge(test, &run(&runner.invocation(test).unwrap()));
            if let Some(known) = runner.known(test, Time(1)) {
                assert_eq!((known.outcome, &known.native), (record.outcome, &record.native), "{test}");
            }
            let message = record.message.unwrap_or_default();
            (test.clone(), format!("{:?} {}", record.outcome, message).trim_end().to_owned())
        })
        .collect();
    let expected = [
        ("traps$tests::aborts", "Crashed was killed by signal 6 (SIGABRT)"),
        (
            "traps$tests::exits_early",
            "Crashed ended with exit status 0 before its harness could say how it went",
        ),
        ("traps$tests::ignored", "Skipped"),
        ("traps$tests::leaves_a_thread_that_prints", "Passed"),
        ("traps$tests::nests", "Passed"),
        (
            "traps$tests::nests_and_exits_early",
            "Crashed ended with exit status 0 before its harness could say how it went",
        ),
        ("traps$tests::passes", "Passed"),
        ("traps$tests::passes_too", "Passed"),
        ("traps$tests::returns_an_error", "Failed Error: \"no\""),
        ("traps$tests::should_panic", "Passed"),
        (
            "traps$tests::says_that_it_passed_and_exits_early",
            "Crashed ended with exit status 0 before its harness could say how it went",
        ),
        ("traps$tests::takes_the_temporary_files_away", "Passed"),
        ("traps::environment$is_what_cargo_gives", "Passed"),
        ("traps::own_harness", "Passed"),
    ];
    for (test, outcome) in expected {
        assert_eq!(said[test], outcome, "{test}");
    }
    let fails = &said["traps$tests::fails"];
    assert!(fails.starts_with("Failed assertion `left == right` failed: one isn't two"), "{fails}");
    assert!(said["traps$tests::should_panic_and_does_not"].starts_with("Failed test did not panic"));
    let other = &said["traps$tests::should_panic_with_other_words"];
    assert!(other.starts_with("Failed panic did not contain expected string"), "{other}");
    assert!(other.contains("as it should not") && other.contains("in its own words"), "{other}");
    assert_eq!(said.len(), expected.len() + 3, "{said:?}");

    assert!(runner.invocation("traps$tests::none").is_err(), "nothing is run for a test that isn't there");
    let missing = runner.judge("traps$tests::none", &{
        let mut invocation = runner.invocation("traps$tests::passes").unwrap();
        invocation.args[1] = "tests::none".to_owned();
        run(&invocation)
    });
    assert!(!missing.outcome.is_good(), "exit status 0 of a binary that knows no such test");
    assert!(cargo.runner(place, Some(&Digest::from("0"))).is_err(), "another build's digest");
}
