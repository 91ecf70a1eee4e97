//! The dispatch as a person sees it: on a real pseudo-terminal, which `script` of util-linux gives.

#![allow(clippy::unwrap_used, reason = "a test's helper fails its test")]

use std::process::{Command, Stdio};

use regatta_testbed::Node;

const WIDTH: usize = 100;

const FIRST_LINES: [&str; 3] = [
    "Dispatching tasks...",
    "Result from task_a: Hello from Task A",
    "Result from task_b: Hello from Task B",
];

/// What `hello dispatch` writes to a terminal when all goes well.
fn on_a_terminal(arguments: &str, environment: &[(&str, &str)]) -> String {
    let (code, text) = dispatch(arguments, environment);
    assert_eq!(code, Some(0), "{text}");
    text
}

/// Its exit code, and what it writes to a terminal.
fn dispatch(arguments: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let (hello, results) = (env!("CARGO_BIN_EXE_hello"), folder.path().display());
    let inside = format!("stty cols {WIDTH} rows 40; '{hello}' dispatch --results '{results}' {arguments}");
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &inside, "/dev/null"]).stdin(Stdio::null());
    script.env_remove("REGATTA_BROKER").env_remove("NO_COLOR").env("TERM", "xterm");
    let output = script.envs(environment.iter().copied()).output().unwrap_or_else(|error| {
        panic!("script can't be started ({error}); it comes with util-linux (on Debian 13: bsdutils)")
    });
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// A terminal's screen, as far as this program's output needs one.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// How many changes of colour or weight there were.
    paints: usize,
}

impl Screen {
    /// Shows `text`, and calls `look` whenever the cursor goes back to a line's begin: then the screen is whole.
    fn show(&mut self, text: &str, mut look: impl FnMut(&Self)) {
        let mut rest = text.chars();
        while let Some(next) = rest.next() {
            match next {
                '\r' => {
                    look(self);
                    self.column = 0;
                }
                '\n' => self.row += 1,
                '\u{1b}' => {
                    assert_eq!(rest.next(), Some('['), "only CSI sequences are known here");
                    let mut sequence = String::new();
                    // ECMA-48: the final byte is one of 0x40 to 0x7e.
                    while !sequence.ends_with(|last| ('\u{40}'..='\u{7e}').contains(&last)) {
                        sequence.push(rest.next().unwrap());
                    }
                    self.obey(&sequence);
                }
                visible => self.put(visible),
            }
        }
    }

    fn put(&mut self, visible: char) {
        if self.column == WIDTH {
            (self.row, self.column) = (self.row + 1, 0);
        }
        let column = self.column;
        let row = self.current();
        if row.len() <= column {
            row.resize(column + 1, ' ');
        }
        row[column] = visible;
        self.column += 1;
    }

    fn current(&mut self) -> &mut Vec<char> {
        if self.rows.len() <= self.row {
            self.rows.resize(self.row + 1, Vec::new());
        }
        &mut self.rows[self.row]
    }

    fn obey(&mut self, sequence: &str) {
        let (number, last) = sequence.split_at(sequence.len() - 1);
        match last {
            "m" => self.paints += 1,
            "A" => self.row -= number.parse::<usize>().unwrap(),
            "B" => self.row += number.parse::<usize>().unwrap(),
            "K" => self.current().clear(),
            other => panic!("unknown sequence {other}"),
        }
    }

    fn lines(&self) -> Vec<String> {
        self.rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
    }
}

#[test]
fn a_person_sees_the_queues_move_below_the_exact_first_lines() {
    let text = on_a_terminal("--wait 0.7 --count 2", &[]);
    assert!(text.starts_with("Dispatching tasks...\r\n"), "{text:?}");
    let (mut screen, mut begun, mut halfway) = (Screen::default(), false, false);
    screen.show(&text, |screen| {
        let lines = screen.lines();
        let has = |row: usize, words: &[&str]| {
            lines.get(row).is_some_and(|line| words.iter().all(|word| line.contains(word)))
        };
        begun |= lines[0] == FIRST_LINES[0]
            && has(1, &["queue_a", "0 done", "1 running", "1 waiting"])
            && has(2, &["queue_b", "0 done", "1 running", "1 waiting"])
            && has(3, &["0 of 4 tasks"]);
        halfway |= lines.iter().take(3).eq(&FIRST_LINES)
            && has(3, &["queue_a", "1 done", "1 running", "0 waiting"])
            && has(5, &["2 of 4 tasks"]);
    });
    assert!(begun && halfway, "begun {begun}, halfway {halfway}: {text:?}");
    let lines = screen.lines();
    assert_eq!(lines[..3], FIRST_LINES);
    assert!(lines.iter().any(|line| line.contains("4 of 4 tasks succeeded")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("running")), "the view is still there: {lines:#?}");
    assert!(screen.paints > 0 && text.contains("\u{1b}[32m0 done"), "{text:?}");
}

#[test]
fn colours_go_when_they_are_not_wanted_and_the_view_stays() {
    for (arguments, environment) in
        [("--wait 0.5", [("NO_COLOR", "1")].as_slice()), ("--wait 0.5 --color never", &[])]
    {
        let text = on_a_terminal(arguments, environment);
        let (mut screen, mut seen) = (Screen::default(), false);
        screen.show(&text, |screen| {
            seen |= screen.lines().get(1).is_some_and(|line| line.contains("1 running"));
        });
        assert_eq!((screen.paints, seen), (0, true), "{arguments} {environment:?}: {text:?}");
        assert_eq!(screen.lines()[..3], FIRST_LINES);
    }
}

#[test]
fn log_lines_stay_whole_above_the_view() {
    let text = on_a_terminal("--wait 0.4 --count 3 --log-level info", &[]);
    let mut screen = Screen::default();
    screen.show(&text, |_| {});
    let lines = screen.lines();
    let ended =
        lines.iter().filter(|line| line.contains("INFO regatta_celery") && line.contains("task ended"));
    assert_eq!(ended.count(), 6, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("running")), "a part of the view is left: {lines:#?}");
}

#[test]
fn a_terminal_that_can_not_move_its_cursor_gets_lines_alone() {
    let text = on_a_terminal("--wait 0.5", &[("TERM", "dumb")]);
    assert!(!text.contains('\u{1b}') && !text.contains("running"), "{text:?}");
}

#[test]
fn over_rabbitmq_the_view_says_who_is_missing() {
    let node = Node::start();
    let (code, text) = dispatch(&format!("--timeout 1 --count 3 --broker {}", node.url()), &[]);
    let (mut screen, mut seen) = (Screen::default(), false);
    screen.show(&text, |screen| {
        seen |= screen.lines().get(2).is_some_and(|line| {
            ["queue_b", "0 done", "0 running", "3 waiting", "no worker"]
                .iter()
                .all(|word| line.contains(word))
        });
    });
    assert_eq!((code, seen), (Some(1), true), "{text:?}");
    assert!(!text.contains("guest:guest"), "{text:?}");
}
