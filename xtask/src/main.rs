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
    /// Runs networkx and itertools under Regatta and under their usual runners, and compares verdict for verdict
    Compare {
        /// Only this suite: networkx or itertools
        #[arg(long)]
        only: Option<String>,
    },
    /// Starts a RabbitMQ node of its own, prints its URL, and ends it when standard input ends
    Node,
}

/// Keeps a node up for experiments, for as long as somebody holds our standard input open.
fn node() -> anyhow::Result<bool> {
    let node = xtask::node::Node::start()?;
    xtask::say::line(node.url());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(true)
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Tidy => xtask::tidy::run(&house_root()),
        Command::Compare { only } => xtask::compare::run(&house_root(), only.as_deref()),
        Command::Node => node(),
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
