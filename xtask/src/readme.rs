//! The README as a program: every command in it is run, and what it shows must be what comes out.
//!
//! A fenced block of the language `console` holds commands (lines that begin with `$ `) and, below each, what it prints.
//! Lines of output must come in that order; a line `…` stands for any number of lines, and digits stand for any digits,
//! so that times may differ. All blocks of a document run in one folder, in one shell, from top to bottom.
//!
//! More words on the fence say what a block needs:
//!
//! - `file=NAME` on any language: the block is the content of that file, written before what follows is run;
//! - `covered-by=TEST` on `console`: it needs rights or hours that a unit test doesn't have, and the named test, or target
//!   of the Makefile, runs it instead.

use std::fmt::Write;

use anyhow::{Context, ensure};

/// A command and the output that the document shows for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What stands after `$ `.
    pub command: String,
    /// The lines below it.
    pub output: Vec<String>,
}

/// A fenced block that means something here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Commands to run.
    Run(Vec<Shown>),
    /// Commands that another test runs.
    Covered {
        /// The test's function, or `make TARGET`.
        by: String,
        /// The commands.
        commands: Vec<Shown>,
    },
    /// A file to write.
    File {
        /// Its name in the folder.
        name: String,
        /// Its content.
        content: String,
    },
}

/// The blocks of a document, in order.
///
/// # Errors
/// When a `console` block holds output before its first command, or a fence isn't closed.
pub fn blocks(document: &str) -> anyhow::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        let Some(words) = line.strip_prefix("```") else { continue };
        let mut inside = Vec::new();
        loop {
            let line = lines.next().with_context(|| format!("the block {words:?} isn't closed"))?;
            if line == "```" {
                break;
            }
            inside.push(line);
        }
        let word = |key: &str| words.split(' ').find_map(|word| word.strip_prefix(key)).map(str::to_owned);
        let (language, file, by) = (words.split(' ').next(), word("file="), words.split_once("covered-by="));
        if let Some(name) = file {
            blocks.push(Block::File { name, content: inside.join("\n") + "\n" });
        } else if language == Some("console") {
            let commands = shown(&inside)?;
            blocks.push(match by {
                Some((_, by)) => Block::Covered { by: by.to_owned(), commands },
                None => Block::Run(commands),
            });
        }
    }
    Ok(blocks)
}

fn shown(lines: &[&str]) -> anyhow::Result<Vec<Shown>> {
    let mut commands: Vec<Shown> = Vec::new();
    for line in lines {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push(Shown { command: command.to_owned(), output: Vec::new() });
        } else {
            let last = commands.last_mut().with_context(|| format!("{line:?} stands before any command"))?;
            last.output.push((*line).to_owned());
        }
    }
    Ok(commands)
}

/// The line after a command's output, in a shell script's output: a mark that no command prints.
const MARK: &str = "\u{1}done";

/// A script that runs commands as a person would type them, with `$?` and the folder carried on, and marks the end of
/// each.
#[must_use]
pub fn script(commands: &[Shown]) -> String {
    let mut script = String::from("last=0\n");
    for shown in commands {
        // The subshell only sets `$?`; the command itself runs in the one shell.
        let _ = writeln!(script, "(exit $last)\n{}\nlast=$?\nprintf '\\n{MARK} %s\\n' $last", shown.command);
    }
    script
}

/// Compares what a script printed with what the document shows.
///
/// # Errors
/// Naming the command, what is shown and what came.
pub fn check(commands: &[Shown], printed: &str) -> anyhow::Result<()> {
    let mut rest = printed.lines();
    for (at, shown) in commands.iter().enumerate() {
        let mut lines = Vec::new();
        let code = loop {
            let line = rest
                .next()
                .with_context(|| format!("`{}` didn't end:\n{}", shown.command, lines.join("\n")))?;
            if let Some(code) = line.strip_prefix(MARK) {
                break code.trim().to_owned();
            }
            lines.push(line.trim_end().to_owned());
        };
        let what = || format!("`{}` printed:\n{}", shown.command, lines.join("\n"));
        let asks_code = commands.get(at + 1).is_some_and(|next| next.command == "echo $?");
        ensure!(code == "0" || asks_code, "exit code {code}; {}", what());
        let missing = first_missing(&shown.output, &lines);
        ensure!(missing.is_none(), "not found in order: {:?}\n{}", missing.unwrap_or_default(), what());
    }
    Ok(())
}

/// The first shown line that doesn't come. Shown lines follow each other directly unless `…` stands between them.
fn first_missing(shown: &[String], lines: &[String]) -> Option<String> {
    let lines: Vec<String> = lines.iter().map(|line| normal(line)).collect();
    let mut at = 0;
    let mut anywhere = true;
    for line in shown.iter().filter(|line| !line.trim().is_empty()) {
        if line.trim() == "…" {
            anywhere = true;
            continue;
        }
        let wanted = normal(line);
        let left = lines.get(at..).unwrap_or_default();
        let found = left.iter().position(|line| *line == wanted);
        // Without `…` only empty lines may be between two that are shown.
        let direct = left.iter().take_while(|line| line.is_empty()).count();
        let found = found.filter(|index| anywhere || *index == direct).map(|index| at + index);
        match found {
            Some(index) => at = index + 1,
            None => return Some(line.clone()),
        }
        anywhere = false;
    }
    None
}

/// A line without what differs from run to run: numbers and the width of columns.
fn normal(line: &str) -> String {
    let mut normal = String::with_capacity(line.len());
    for letter in line.trim().chars() {
        let letter = if letter.is_ascii_digit() { '0' } else { letter };
        let again = normal.ends_with(letter) && matches!(letter, '0' | ' ');
        if !again {
            normal.push(letter);
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
text
```python file=test_a.py
def test_a(): pass
```
```console
$ cat test_a.py
def test_a(): pass
$ false
$ echo $?
1
```
```console covered-by=make test
$ make up
```
";

    #[test]
    fn blocks_are_read() {
        let shown = |command: &str, output: &[&str]| Shown {
            command: command.to_owned(),
            output: output.iter().map(|line| (*line).to_owned()).collect(),
        };
        let wanted = vec![
            Block::File { name: "test_a.py".to_owned(), content: "def test_a(): pass\n".to_owned() },
            Block::Run(vec![
                shown("cat test_a.py", &["def test_a(): pass"]),
                shown("false", &[]),
                shown("echo $?", &["1"]),
            ]),
            Block::Covered { by: "make test".to_owned(), commands: vec![shown("make up", &[])] },
        ];
        assert_eq!(blocks(DOCUMENT).expect("the document is fine"), wanted);
        assert!(blocks("```console\noutput\n```\n").is_err());
        assert!(blocks("```console\n$ a\n").is_err());
    }

    fn run(shown: &[Shown]) -> anyhow::Result<()> {
        let mut shell = crate::process::command("bash", std::path::Path::new("."));
        shell.args(["-c", &script(shown)]);
        let done = crate::process::finish(shell, std::time::Duration::from_secs(30))?;
        check(shown, &done.stdout)
    }

    fn one(command: &str, output: &str) -> Vec<Shown> {
        vec![Shown { command: command.to_owned(), output: output.lines().map(str::to_owned).collect() }]
    }

    #[test]
    fn what_is_shown_must_come_in_order() {
        assert!(run(&one("printf 'a\\nb 12.5 s\\nc\\n'", "a\nb 7.25 s\nc")).is_ok(), "digits may differ");
        assert!(run(&one("printf 'a\\nb\\nc\\n'", "a\n…\nc")).is_ok());
        assert!(run(&one("printf 'a\\nb\\nc\\n'", "a\nc")).is_err(), "a line was left out in silence");
        assert!(run(&one("printf 'a\\nb\\n'", "b\na")).is_err());
    }

    #[test]
    fn a_failing_command_is_only_fine_where_its_code_is_shown() {
        assert!(run(&one("false", "")).is_err());
        let mut both = one("false", "");
        both.extend(one("echo $?", "1"));
        assert!(run(&both).is_ok());
    }
}
