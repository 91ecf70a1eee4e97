//! `cargo xtask`: what developers run. `cargo xtask help` lists it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::house_root;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What developers of Regatta run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the house's rules: who may use whom, what may stand where, what must be documented
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Tidy => xtask::tidy::run(&house_root()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            xtask::say::line(&format!("Error: {error:#}"));
            ExitCode::from(2)
        }
    }
}
