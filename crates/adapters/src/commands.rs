//! Commands: a list of names and what to run for each, judged by exit status.
//!
//! It is the one adapter whose pass rests on an exit status alone: that is what a bare command has to say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regatta_model::{Digest, Listed, Outcome, Record, Suite, SuiteName, TestId, Unit};

use crate::seam::{
    Adapter, AdapterError, Ended, Exit, Invocation, Listing, ListingStep, Place, Runner, TestProcess,
};
use crate::text;

/// How many commands one suite may have.
pub const COMMANDS_MAX: usize = 1_000_000;

/// What a suite of commands is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandsConfig {
    /// The suite's name.
    pub suite: SuiteName,
    /// Where commands run.
    pub tree: PathBuf,
    /// Names and argument vectors, in order. No shell looks at them.
    pub commands: Vec<(String, Vec<String>)>,
    /// Variables to set for each.
    pub env: Vec<(String, String)>,
}

/// A suite of commands.
#[derive(Debug, Clone)]
pub struct Commands {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    suite: SuiteName,
    env: Vec<(String, String)>,
    names: Vec<String>,
    commands: HashMap<String, Vec<String>>,
}

impl Commands {
    /// Makes the suite.
    ///
    /// # Errors
    /// When there are too many commands, two have the same name, one is empty, or a name holds a control character.
    pub fn new(config: CommandsConfig) -> Result<Self, AdapterError> {
        let wrong = |reason: String| AdapterError::File { path: PathBuf::from(&config.suite.0), reason };
        if config.commands.len() > COMMANDS_MAX {
            return Err(wrong(format!("has {} commands; at most {COMMANDS_MAX} go", config.commands.len())));
        }
        let names: Vec<String> = config.commands.iter().map(|(name, _)| name.clone()).collect();
        let mut commands = HashMap::with_capacity(names.len());
        for (name, argv) in &config.commands {
            if name.contains(char::is_control) {
                return Err(wrong(format!("the name {name:?} holds a control character")));
            }
            if name.trim().is_empty() || argv.first().is_none_or(String::is_empty) {
                return Err(wrong(format!("command {name:?} needs a name and a program")));
            }
            if commands.insert(name.clone(), argv.clone()).is_some() {
                return Err(wrong(format!("two commands are called {name:?}: give each its own name")));
            }
        }
        let CommandsConfig { suite, env, .. } = config;
        Ok(Self { inner: Arc::new(Inner { suite, env, names, commands }) })
    }

    /// Makes the suite from a file of `name: command` lines, see [`parse_commands`].
    ///
    /// # Errors
    /// As [`parse_commands`] and [`Commands::new`], and when the file can't be read.
    pub fn from_file(
        suite: SuiteName,
        tree: &Path,
        file: &Path,
        env: Vec<(String, String)>,
    ) -> Result<Self, AdapterError> {
        let path = tree.join(file);
        let wrong = |reason: String| AdapterError::File { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let commands = parse_commands(&text).map_err(wrong)?;
        Self::new(CommandsConfig { suite, tree: tree.to_owned(), commands, env })
    }
}

/// Splits a command into words as a shell does, quotes and all, but no shell runs.
///
/// # Errors
/// When a quote is open, when there is no word, or when something stands outside of quotes that only a shell would do:
/// as a word of its own it would change nothing, and `true && false` or `test ! -e *.err` would pass.
pub fn split_command(command: &str) -> Result<Vec<String>, String> {
    let argv = shell_words::split(command).map_err(|error| error.to_string())?;
    if argv.first().is_none_or(String::is_empty) {
        return Err("there is no program in it".to_owned());
    }
    match of_a_shell(command) {
        None => Ok(argv),
        Some(part) => Err(format!(
            "{part} means something to a shell, and none runs here: write sh -c '…', or quote it if the program shall get it"
        )),
    }
}

/// The first operator, expansion, pattern or assignment that stands outside of quotes.
fn of_a_shell(command: &str) -> Option<&str> {
    let program = command.trim_start();
    if is_assignment(program) {
        return Some(word(program));
    }
    let (mut quote, mut begins) = (None, true);
    let mut letters = command.char_indices();
    while let Some((at, letter)) = letters.next() {
        let rest = &command[at..];
        let first = std::mem::replace(&mut begins, quote.is_none() && letter.is_whitespace());
        match (quote, letter) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None | Some('"'), '\\') => drop(letters.next()),
            (None | Some('"'), '`') => return Some("`"),
            (None | Some('"'), '$') => {
                let opens =
                    |next: char| next.is_ascii_alphanumeric() || matches!(next, '_' | '{' | '(' | '?' | '@');
                if rest[1..].starts_with(opens) {
                    return Some(word(rest));
                }
            }
            (None, '|' | '&' | ';' | '<' | '>') => {
                let end = rest.find(|next| next != letter).unwrap_or(rest.len());
                return Some(&rest[..end]);
            }
            (None, '*' | '?') => return Some(word(rest)),
            (None, '[') if enclosed(rest, ']').is_some_and(|inner| !inner.is_empty()) => {
                return Some(word(rest));
            }
            (None, '{')
                if enclosed(rest, '}').is_some_and(|inner| inner.contains(',') || inner.contains("..")) =>
            {
                return Some(word(rest));
            }
            (None, '~') if first && !rest[1..].starts_with(['~', '=']) => return Some(word(rest)),
            _ => {}
        }
    }
    None
}

/// A text up to its first blank.
fn word(text: &str) -> &str {
    text.find(char::is_whitespace).map_or(text, |end| &text[..end])
}

/// What stands in a word between its first letter and a closing one.
fn enclosed(text: &str, close: char) -> Option<&str> {
    word(text)[1..].split_once(close).map(|(inner, _)| inner)
}

/// Whether a command begins with `NAME=`, which sets a variable for what follows.
fn is_assignment(command: &str) -> bool {
    let Some((name, _)) = word(command).split_once('=') else { return false };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(is_name) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Reads `name: command` lines, each command as [`split_command`] has it; a line that needs a shell says `sh -c '…'`. Empty lines and lines that begin with `#` say nothing.
///
/// # Errors
/// The line and what is wrong with it.
pub fn parse_commands(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parse = |(number, line): (usize, &str)| {
        let (name, command) = line
            .split_once(": ")
            .ok_or_else(|| format!("line {number}: {line:?} isn't of the form `name: command`"))?;
        let argv = split_command(command).map_err(|error| format!("line {number}: {command}: {error}"))?;
        if name.trim().is_empty() {
            return Err(format!("line {number}: {line:?} needs a name"));
        }
        Ok((name.trim().to_owned(), argv))
    };
    lines.map(parse).collect()
}

impl Adapter for Commands {
    fn suite(&self) -> Suite {
        Suite { name: self.inner.suite.clone(), adapter: "commands".to_owned() }
    }

    fn list(&self) -> Box<dyn Listing> {
        Box::new(CommandsListing { inner: Arc::clone(&self.inner), told: false })
    }

    fn unit_digest(&self, _unit: &Unit) -> Option<Digest> {
        None
    }

    fn runner(&self, place: Place<'_>, _prepared: Option<&Digest>) -> Result<Runner, AdapterError> {
        let tree = place.tree.to_owned();
        Ok(Runner::Each(Box::new(OneCommand { inner: Arc::clone(&self.inner), tree })))
    }
}

struct CommandsListing {
    inner: Arc<Inner>,
    told: bool,
}

impl Listing for CommandsListing {
    fn next(&mut self) -> Result<ListingStep, AdapterError> {
        if std::mem::replace(&mut self.told, true) {
            return Ok(ListingStep::Done { prepared: None });
        }
        let listed = |name: &String| Listed {
            test: TestId { suite: self.inner.suite.clone(), name: name.clone() },
            unit: None,
        };
        Ok(ListingStep::Found { tests: self.inner.names.iter().map(listed).collect(), units: Vec::new() })
    }

    fn ended(&mut self, _ended: &Ended) -> Result<(), AdapterError> {
        Ok(())
    }
}

struct OneCommand {
    inner: Arc<Inner>,
    tree: PathBuf,
}

impl TestProcess for OneCommand {
    fn invocation(&self, test: &str) -> Result<Invocation, AdapterError> {
        let Some([program, args @ ..]) = self.inner.commands.get(test).map(Vec::as_slice) else {
            let suite = &self.inner.suite;
            return Err(AdapterError::NotPrepared(format!(
                "suite {suite} has no command {test:?} here: this tree isn't the one that was listed"
            )));
        };
        Ok(Invocation {
            program: PathBuf::from(program),
            args: args.to_vec(),
            cwd: self.tree.clone(),
            env: self.inner.env.clone(),
            env_defaults: Vec::new(),
            stdin: Vec::new(),
        })
    }

    fn judge(&self, _test: &str, ended: &Ended) -> Record {
        match ended.exit {
            Exit::Code(0) => text::record(Outcome::Passed, ended),
            Exit::Code(code) => {
                let message = Some(format!("ended with exit status {code}"));
                Record { message, ..text::record(Outcome::Failed, ended) }
            }
            Exit::Signal(_) | Exit::TimedOut { .. } | Exit::Cancelled => text::unclean(ended, String::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regatta_model::Time;

    use super::*;

    fn suite(text: &str) -> Result<Commands, AdapterError> {
        let commands = parse_commands(text).unwrap();
        Commands::new(CommandsConfig { suite: "c".into(), tree: "/tree".into(), commands, env: Vec::new() })
    }

    #[test]
    fn what_only_a_shell_would_do_is_refused_unless_it_is_quoted() {
        let refused = [
            ("true && false", "&&"),
            ("echo a | grep b", "|"),
            ("echo x > file", ">"),
            ("a; b", ";"),
            ("sleep 1 &", "&"),
            ("cat <in", "<"),
            ("echo $HOME/x", "$HOME/x"),
            ("echo \"${HOME}\"", "${HOME}\""),
            ("echo `date`", "`"),
            ("make -j$(nproc)", "$(nproc)"),
            ("test ! -e *.err", "*.err"),
            ("x --y=*.rs", "*.rs"),
            ("ls a?c", "?c"),
            ("ls x[0-9].log", "[0-9].log"),
            ("ls x[!a]", "[!a]"),
            ("cp {a,b}.c to", "{a,b}.c"),
            ("touch x{1..3}", "{1..3}"),
            ("ls ~/x", "~/x"),
            ("ls ~", "~"),
            ("~/bin/x", "~/bin/x"),
            ("ls \"a b\" ~root", "~root"),
            (" NAME=1 cmd", "NAME=1"),
            ("_x2='a b' cmd", "_x2='a"),
        ];
        for (command, part) in refused {
            let error = split_command(command).unwrap_err();
            assert!(error.starts_with(&format!("{part} ")) && error.contains("sh -c"), "{command}: {error}");
        }
        for command in [
            "sh -c 'true && false > $X'",
            "grep \"a|b;c\" f",
            "grep a\\|b f",
            "grep 'end$' f",
            "grep end$ f",
            "echo \"5 $ \"",
            "x --y='*.rs'",
            "x \"*.rs\" \\*",
            "find . -name '*.rs'",
            "find . -exec x {} +",
            "x --y={}",
            "docker ps --format {{.Names}}",
            "x {a}",
            "[ -e x ]",
            "x [] a]",
            "git diff HEAD~1 a~b",
            "x '~' a=~",
            "env NAME=1 cmd",
            "make CC=gcc",
            "./a-b=c 1a=2",
        ] {
            split_command(command).unwrap();
        }
        for nothing in ["", "  ", "''", "'open"] {
            split_command(nothing).unwrap_err();
        }
    }

    #[test]
    fn lines_are_split_as_a_shell_splits_them() {
        let text = "# tests\n\nunit: ./unit --fast\nwith: colon: echo 'a b' \"c\"\nsh: sh -c 'a | b'\n";
        let commands = parse_commands(text).unwrap();
        let plain: Vec<String> =
            commands.iter().map(|(name, argv)| format!("{name}={}", argv.join("|"))).collect();
        assert_eq!(plain, ["unit=./unit|--fast", "with=colon:|echo|a b|c", "sh=sh|-c|a | b"]);
    }

    #[test]
    fn what_is_wrong_in_a_line_is_said_with_its_number() {
        for (text, expected) in [
            ("a: true\nnonsense", "line 2: \"nonsense\" isn't of the form `name: command`"),
            ("a: 'open", "line 1: 'open: missing closing quote"),
            ("a: ''", "line 1: '': there is no program in it"),
            ("\n : true", "line 2: \": true\" needs a name"),
        ] {
            assert_eq!(parse_commands(text).unwrap_err(), expected);
        }
        let error = suite("a: true\na: false").unwrap_err().to_string();
        assert_eq!(error, "c: two commands are called \"a\": give each its own name");
        let error = suite("a\u{1b}[31m: true").unwrap_err().to_string();
        assert_eq!(error, "c: the name \"a\\u{1b}[31m\" holds a control character");
    }

    #[test]
    fn the_exit_status_judges() {
        let place = Place { tree: Path::new("/t"), slot: 0, slots: 1 };
        let Runner::Each(runner) = suite("a: true x").unwrap().runner(place, None).unwrap() else {
            panic!("one process each");
        };
        let invocation = runner.invocation("a").unwrap();
        assert_eq!((invocation.program, invocation.args), ("true".into(), vec!["x".to_owned()]));
        assert!(runner.invocation("b").is_err());
        for (exit, outcome, message) in [
            (Exit::Code(0), Outcome::Passed, None),
            (Exit::Code(3), Outcome::Failed, Some("ended with exit status 3")),
            (Exit::Signal(11), Outcome::Crashed, Some("was killed by signal 11 (SIGSEGV)")),
            (
                Exit::TimedOut { limit: Duration::from_millis(1_500) },
                Outcome::TimedOut,
                Some("ran longer than its limit (1.5 s)"),
            ),
        ] {
            let ended = Ended {
                exit,
                stdout: b"out".to_vec(),
                stderr: b"err".to_vec(),
                bytes_omitted: 7,
                started: Time(5),
                duration: Duration::from_secs(2),
                leaked: 0,
            };
            let record = runner.judge("a", &ended);
            assert_eq!((record.outcome, record.message.as_deref()), (outcome, message));
            assert_eq!(record.output.text, "out\n--- stderr ---\nerr");
            assert_eq!((record.output.bytes_omitted, record.duration_us), (7, 2_000_000));
        }
    }
}
