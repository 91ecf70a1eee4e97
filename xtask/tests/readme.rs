//! Every command in README.md does what the README shows.

use std::path::Path;
use std::time::Duration;

use regatta_testbed::Node;
use xtask::house_root;
use xtask::lab::Lab;
use xtask::process::{command, finish};
use xtask::readme::{Block, blocks, check, script};

/// The longest that all commands of the README may take.
const ALL_MAX: Duration = Duration::from_secs(300);

/// The broker's URL as the README spells it; a node of the test's own stands in for it.
const BROKER: &str = "amqp://guest:guest@localhost";

fn readme() -> Vec<Block> {
    let text = std::fs::read_to_string(house_root().join("README.md")).expect("README.md is there");
    blocks(&text).expect("README.md's blocks are well formed")
}

#[test]
fn every_command_of_the_readme_does_what_it_shows() {
    let lab = Lab::open(&house_root()).expect("the laboratory can be opened");
    let regatta = lab.test_binary("regatta-cli", "regatta").expect("regatta builds");
    let python = lab.python().expect("the Python environment of the laboratory");
    let node = Node::start();
    let folder = lab.folder().join("readme");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");

    let mut all = Vec::new();
    for block in readme() {
        match block {
            Block::File { name, content } => {
                // Written by the shell, in its turn: a later block may show another content.
                let write = format!("cat > '{name}' <<'END-OF-FILE'\n{content}END-OF-FILE");
                all.push(xtask::readme::Shown { command: write, output: Vec::new() });
            }
            Block::Run(commands) => all.extend(commands),
            Block::Covered { .. } => {}
        }
    }
    assert!(all.len() > 5, "README.md shows commands");

    let mut shell = command("bash", &folder);
    python.activate(&mut shell);
    let binaries = regatta.parent().map(Path::to_owned).expect("a binary lies in a folder");
    let path = std::env::join_paths(
        [binaries, python.program("")]
            .into_iter()
            .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    shell
        .env("PATH", path.expect("folders without colons"))
        .env("NO_COLOR", "1")
        .env_remove("CARGO_TARGET_DIR");
    let text = script(&all).replace(BROKER, node.url().trim_end_matches("/%2f"));
    shell.args(["-c", &format!("trap 'kill $(jobs -p) 2>/dev/null' EXIT\n{text}")]);
    let done = finish(shell, ALL_MAX).expect("the commands end");
    check(&all, &done.stdout).unwrap_or_else(|error| panic!("{error:#}\n{}", done.stderr));
}

#[test]
fn what_the_readme_leaves_to_other_tests_is_tested_there() {
    let root = house_root();
    let makefile = std::fs::read_to_string(root.join("Makefile")).expect("a Makefile");
    for block in readme() {
        let Block::Covered { by, commands } = block else { continue };
        let target =
            by.strip_prefix("make ").unwrap_or_else(|| panic!("{by}: covered by a target of the Makefile"));
        assert!(
            makefile.lines().any(|line| line.starts_with(&format!("{target}:"))),
            "the Makefile has no {target}"
        );
        assert_eq!(target, "test", "{by}: whose scripts are read below");
        let scripts = ["scripts/test.sh", "scripts/round.sh"].map(|script| {
            std::fs::read_to_string(root.join(script)).unwrap_or_else(|error| panic!("{script}: {error}"))
        });
        for shown in commands {
            let used = shown.command.strip_prefix("make ").unwrap_or_else(|| panic!("`{}`", shown.command));
            let runs = |line: &str| {
                line.split_once("make ").is_some_and(|(_, rest)| {
                    rest.split(|c: char| !c.is_alphanumeric() && c != '-').any(|word| word == used)
                })
            };
            assert!(scripts.iter().flat_map(|script| script.lines()).any(runs), "`{by}` doesn't run {used}");
        }
    }
}
