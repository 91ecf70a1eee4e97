//! Rules about what may stand in which file.

use super::{File, House, Problem};

/// The longest a source file may be. Split by concern before that, not at three times of it.
const LINES_MAX: usize = 700;

/// Where `unsafe` may be used, with a comment that proves each use.
const UNSAFE_HOME: &str = "crates/sandbox/";

/// Where a delivery can be settled.
const SETTLE_HOME: &str = "crates/celery/";

/// The bare loop that the benchmarks compare with speaks AMQP by itself.
const BARE_LOOP: &str = "xtask/src/bin/bare_amqp.rs";

/// Calls that settle a delivery.
const SETTLING: [&str; 5] = ["Settle::", ".basic_ack(", ".basic_nack(", ".basic_reject(", "Acker"];

/// Words of source text that need a clock, a device, chance or a runtime.
const IMPURE: [&str; 8] = [
    "Instant::now",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "async fn",
];

/// Folders of people and of one machine. Spelled in halves, so that this file doesn't break its own rule.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/tmp/", "target"),
];

/// What is finished has none of these left in it, each with what to do instead.
const LEFT_OVERS: [(&str, &str); 6] = [
    (concat!("TO", "DO"), "finish it, or write down in the design page that it is absent"),
    (concat!("FIX", "ME"), "fix it"),
    (concat!("XX", "X"), "say what is surprising in a sentence"),
    (concat!("#[ig", "nore"), "a test that isn't run proves nothing: mend or delete it"),
    (
        concat!("#[al", "low("),
        "use #[expect(lint, reason = \"…\")], which complains when it is no longer needed",
    ),
    (concat!("dbg", "!("), "use tracing"),
];

/// Settings that name one machine's mirror of a registry.
const MIRRORS: [&str; 3] =
    [concat!("index", "-url"), concat!("replace", "-with"), concat!("extra-", "index")];

fn rust(file: &&File) -> bool {
    file.path.ends_with(".rs")
}

/// Lines of code: without comments, and with texts blanked, so that prose and messages break no rule.
fn code(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    text.lines().enumerate().map(|(at, line)| {
        let mut kept = String::with_capacity(line.len());
        let mut in_text = false;
        let mut previous = ' ';
        for (index, letter) in line.char_indices() {
            if !in_text && line[index..].starts_with("//") {
                break;
            }
            if letter == '"' && previous != '\\' && previous != '\'' {
                in_text = !in_text;
            }
            kept.push(if in_text && letter != '"' { ' ' } else { letter });
            previous = letter;
        }
        (at + 1, kept)
    })
}

fn place(file: &File, line: usize) -> String {
    format!("{}:{line}", file.path)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
}

/// `unsafe` has one home.
pub(super) fn unsafe_has_one_home(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in house.files.iter().filter(rust).filter(|file| !file.path.starts_with(UNSAFE_HOME)) {
        for (at, line) in code(&file.text) {
            if words(&line).any(|word| word == concat!("un", "safe")) {
                problems.push(Problem::new("unsafe", place(file, at), "only crates/sandbox may be unsafe"));
            }
        }
    }
    problems
}

/// A delivery is settled in one place.
pub(super) fn settling_has_one_home(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    let elsewhere = |file: &&File| !file.path.starts_with(SETTLE_HOME) && file.path != BARE_LOOP;
    for file in house.files.iter().filter(rust).filter(elsewhere) {
        for (at, line) in code(&file.text) {
            if SETTLING.iter().any(|call| line.contains(call)) {
                let message = "only crates/celery may settle a delivery, after the result is confirmed";
                problems.push(Problem::new("settle", place(file, at), message));
            }
        }
    }
    problems
}

/// `model` asks nobody for the time, a file or a number.
pub(super) fn model_has_no_clock(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in house.files.iter().filter(rust).filter(|file| file.path.starts_with("crates/model/src/")) {
        for (at, line) in code(&file.text) {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                let message = format!("{word} in model: let it come in with the event");
                problems.push(Problem::new("pure", place(file, at), message));
            }
        }
    }
    problems
}

/// No source file is longer than a reader can hold.
pub(super) fn files_are_short(house: &House) -> Vec<Problem> {
    let source = |file: &&File| [".rs", ".py", ".sh"].iter().any(|end| file.path.ends_with(end));
    let length = |file: &File| file.text.lines().count();
    house
        .files
        .iter()
        .filter(source)
        .filter(|file| length(file) > LINES_MAX)
        .map(|file| {
            let message = format!("has {} lines, {LINES_MAX} are allowed: split it by concern", length(file));
            Problem::new("length", &file.path, message)
        })
        .collect()
}

/// Nothing in the tree knows the machine that it was written on.
pub(super) fn no_machine_paths(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in house.files.iter().filter(|file| file.path != "Cargo.lock") {
        for (at, line) in file.text.lines().enumerate() {
            for found in MACHINE_PATHS.iter().chain(&MIRRORS).filter(|found| line.contains(**found)) {
                let message = format!("{found} belongs to one machine");
                problems.push(Problem::new("machine", place(file, at + 1), message));
            }
        }
    }
    problems
}

/// What is finished has no left-overs.
pub(super) fn no_left_overs(house: &House) -> Vec<Problem> {
    let mut problems = Vec::new();
    // A fixture is a project of somebody else's, with all that such projects have; so is one that a test writes.
    let ours = |file: &&File| file.path != "Cargo.lock" && !file.path.contains("/fixtures/");
    for file in house.files.iter().filter(ours) {
        for (at, line) in file.text.lines().enumerate() {
            let written = line.contains("\\n");
            for (left, instead) in LEFT_OVERS.iter().filter(|(left, _)| line.contains(left) && !written) {
                problems.push(Problem::new("left over", place(file, at + 1), format!("{left}: {instead}")));
            }
        }
    }
    problems
}

/// Every module says what it is for, and the crates' roots what they must not know.
pub(super) fn modules_say_what_they_are(house: &House) -> Vec<Problem> {
    house
        .files
        .iter()
        .filter(rust)
        .filter(|file| file.path.contains("/src/") && !file.path.ends_with("/tests.rs"))
        .filter(|file| !file.path.contains("/fixtures/"))
        .filter(|file| !file.text.trim_start().starts_with("//!"))
        .map(|file| {
            Problem::new("module", &file.path, "begin it with //!: what it is for, what it must not know")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(path: &str, text: &str) -> House {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        House { files: vec![file], ..House::default() }
    }

    #[test]
    fn unsafe_outside_the_sandbox_is_found_and_prose_about_it_is_not() {
        let bad = concat!("//! a\nfn a() { un", "safe { b() } }\n");
        assert_eq!(unsafe_has_one_home(&house("crates/cli/src/a.rs", bad))[0].place, "crates/cli/src/a.rs:2");
        assert_eq!(unsafe_has_one_home(&house("crates/sandbox/src/a.rs", bad)), []);
        let prose = concat!("// un", "safe\nlet a = \"un", "safe\";\n");
        assert_eq!(unsafe_has_one_home(&house("crates/cli/src/a.rs", prose)), []);
    }

    #[test]
    fn settling_outside_celery_is_found() {
        let bad = concat!("settler.set", "tle(Settle::Ack).await;");
        assert_eq!(settling_has_one_home(&house("crates/worker/src/a.rs", bad)).len(), 1);
        assert_eq!(settling_has_one_home(&house("crates/celery/src/a.rs", bad)), []);
    }

    #[test]
    fn a_clock_in_the_model_is_found() {
        let bad = "let now = Instant::now();";
        assert_eq!(model_has_no_clock(&house("crates/model/src/run.rs", bad)).len(), 1);
        assert_eq!(model_has_no_clock(&house("crates/worker/src/run.rs", bad)), []);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(files_are_short(&house("a.rs", &"a\n".repeat(LINES_MAX + 1))).len(), 1);
        assert_eq!(files_are_short(&house("a.rs", &"a\n".repeat(LINES_MAX))), []);
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        assert_eq!(no_machine_paths(&house("README.md", concat!("cd /ho", "me/a/regatta"))).len(), 1);
        assert_eq!(no_machine_paths(&house("setup.sh", concat!("pip --index", "-url x"))).len(), 1);
        assert_eq!(no_machine_paths(&house("README.md", "cd regatta")), []);
    }

    #[test]
    fn a_left_over_is_found() {
        assert_eq!(no_left_overs(&house("a.rs", concat!("// TO", "DO later"))).len(), 1);
        assert_eq!(no_left_overs(&house("a.rs", concat!("#[al", "low(dead_code)]"))).len(), 1);
    }

    #[test]
    fn a_module_without_a_word_is_found() {
        assert_eq!(modules_say_what_they_are(&house("crates/cli/src/a.rs", "use std::fmt;")).len(), 1);
        assert_eq!(modules_say_what_they_are(&house("crates/cli/src/a.rs", "//! Arguments.\n")), []);
    }
}
