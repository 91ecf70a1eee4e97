//! The only place in xtask that prints.

#![expect(clippy::print_stdout, reason = "a developer's tool talks to its terminal, in this one place")]

/// Prints one line to standard output.
pub fn line(text: &str) {
    println!("{text}");
}
