//! `cargo xtask record OUT.svg COMMAND…`: the picture in the README. The command runs in a terminal of its own, and what
//! stands on it at the end becomes an SVG: text stays text, colours stay colours.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::{command, finish};

/// The terminal's width in cells.
const COLUMNS: usize = 100;

/// The longest that the recorded command may take.
const RUN_MAX: Duration = Duration::from_secs(600);

/// A cell's size in the picture, and the margin around all.
const CELL: (f32, f32) = (8.4, 18.0);
const MARGIN: f32 = 16.0;

/// Text that looks the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Span {
    text: String,
    colour: Option<u8>,
    bold: bool,
    dim: bool,
}

/// Runs a command in a terminal and writes its picture.
///
/// # Errors
/// When `script` (util-linux) is missing, or the command doesn't end.
pub fn run(out: &Path, words: &[String]) -> anyhow::Result<bool> {
    ensure!(!words.is_empty(), "name a command to record");
    let shown = words.join(" ");
    let here = std::env::current_dir()?;
    let mut script = command("script", &here);
    let sized = format!("stty cols {COLUMNS} rows 40; {shown}");
    script.args(["--quiet", "--return", "--command", &sized, "/dev/null"]);
    script.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let done = finish(script, RUN_MAX).context("recording needs `script` of util-linux")?;
    let mut lines = vec![vec![Span { text: format!("$ {shown}"), bold: true, ..Span::default() }]];
    lines.extend(screen(&done.stdout));
    std::fs::write(out, svg(&lines)).with_context(|| format!("{} can't be written", out.display()))?;
    Ok(true)
}

/// What stands on the terminal at the end: lines of spans. It follows what progress displays use: colours, carriage
/// return, erase, and moves up.
fn screen(output: &str) -> Vec<Vec<Span>> {
    let mut lines: Vec<Vec<(char, Span)>> = vec![Vec::new()];
    let (mut row, mut column) = (0_usize, 0_usize);
    let mut style = Span::default();
    let mut letters = output.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' if letters.peek() == Some(&'[') => {
                letters.next();
                let mut arguments = String::new();
                let end = loop {
                    match letters.next() {
                        Some(next) if next.is_ascii_alphabetic() => break next,
                        Some(next) => arguments.push(next),
                        None => break 'm',
                    }
                };
                let number = arguments.parse::<usize>();
                match end {
                    'm' => restyle(&mut style, &arguments),
                    'A' => row = row.saturating_sub(number.unwrap_or(1)),
                    'B' => row += number.unwrap_or(1),
                    'G' => column = number.unwrap_or(1).saturating_sub(1),
                    'K' if number == Ok(2) => lines[row].clear(),
                    'K' => lines[row].truncate(column),
                    'J' => {
                        lines[row].truncate(column);
                        lines.truncate(row + 1);
                    }
                    _ => {}
                }
            }
            '\u{1b}' => {
                letters.next();
            }
            '\r' => column = 0,
            '\n' => (row, column) = (row + 1, 0),
            letter if letter.is_control() => {}
            letter => {
                let line = &mut lines[row];
                while line.len() <= column {
                    line.push((' ', Span::default()));
                }
                line[column] = (letter, style.clone());
                column += 1;
            }
        }
        while lines.len() <= row {
            lines.push(Vec::new());
        }
    }
    while lines.last().is_some_and(Vec::is_empty) {
        lines.pop();
    }
    lines.into_iter().map(spans).collect()
}

fn spans(cells: Vec<(char, Span)>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (letter, style) in cells {
        match spans.last_mut() {
            Some(last) if (last.colour, last.bold, last.dim) == (style.colour, style.bold, style.dim) => {
                last.text.push(letter);
            }
            _ => spans.push(Span { text: letter.to_string(), ..style }),
        }
    }
    spans
}

fn restyle(style: &mut Span, arguments: &str) {
    for code in arguments.split(';').map(|code| code.parse::<u8>().unwrap_or(0)) {
        match code {
            0 => *style = Span::default(),
            1 => style.bold = true,
            2 => style.dim = true,
            22 => (style.bold, style.dim) = (false, false),
            30..=37 => style.colour = Some(code - 30),
            90..=97 => style.colour = Some(code - 90),
            39 => style.colour = None,
            _ => {}
        }
    }
}

fn svg(lines: &[Vec<Span>]) -> String {
    const PALETTE: [&str; 8] =
        ["#6e7681", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#f0f6fc"];
    let place =
        |count: usize, size: f32| size.mul_add(f32::from(u16::try_from(count).unwrap_or(u16::MAX)), MARGIN);
    let (width, height) = (place(COLUMNS, CELL.0) + MARGIN, place(lines.len(), CELL.1) + MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-size=\"14\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, monospace\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#0d1117\"/>\n"
    );
    for (row, line) in lines.iter().enumerate() {
        let mut column = 0;
        let y = place(row, CELL.1) + CELL.1 * 0.75;
        for span in line {
            let length = span.text.chars().count();
            let colour = span.colour.map_or("#c9d1d9", |at| PALETTE[usize::from(at) % PALETTE.len()]);
            let weight = if span.bold { " font-weight=\"bold\"" } else { "" };
            let dim = if span.dim { " opacity=\"0.6\"" } else { "" };
            let text = span.text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let (x, wide) = (place(column, CELL.0), place(length, CELL.0) - MARGIN);
            // Writing to a string can't fail.
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{wide:.1}\" fill=\"{colour}\"{weight}{dim} \
                 xml:space=\"preserve\">{text}</text>"
            );
            column += length;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(output: &str) -> Vec<String> {
        screen(output).iter().map(|line| line.iter().map(|span| span.text.as_str()).collect()).collect()
    }

    #[test]
    fn what_was_overwritten_is_not_seen() {
        assert_eq!(texts("10 %\r90 %\r\n\u{1b}[31mred\u{1b}[0m end\r\n"), ["90 %", "red end"]);
        assert_eq!(texts("one\r\ntwo\r\n\u{1b}[1A\u{1b}[2Kthree\r\n"), ["one", "three"]);
        assert_eq!(texts("bar\r\u{1b}[Jlast\n"), ["last"]);
    }

    #[test]
    fn colours_become_spans() {
        let lines = screen("\u{1b}[1;32mok\u{1b}[0m <b>");
        assert_eq!(lines[0][0], Span { text: "ok".to_owned(), colour: Some(2), bold: true, dim: false });
        assert!(svg(&lines).contains("&lt;b&gt;"));
    }
}
