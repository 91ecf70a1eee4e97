//! `cargo xtask`: what developers run. `cargo xtask help` lists it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::house_root;
use xtask::lab::Scale;

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
        /// A small part of each suite, with the binary that tests use
        #[arg(long)]
        quick: bool,
    },
    /// Runs networkx over RabbitMQ while workers or the broker are killed or frozen
    Faults {
        /// Only this fault: worker-killed, broker-killed, worker-frozen or nobody-works
        #[arg(long)]
        only: Option<String>,
    },
    /// Measures Regatta, its peers and the limits side by side
    Bench {
        /// Only this group of rows, such as throughput, networkx-wall or itertools
        #[arg(long)]
        only: Option<String>,
        /// How often each side is measured (the rows of seconds nearly twice as often)
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Small inputs and one round: shows that everything works, and measures nothing
        #[arg(long)]
        quick: bool,
    },
    /// Runs a command in a terminal and draws what stands on it at the end, for the README
    Record {
        /// The SVG file to write
        out: PathBuf,
        /// The command
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Starts a RabbitMQ node of its own, prints its URL, and ends it when standard input ends
    Node,
}

/// Keeps a node up for experiments, for as long as somebody holds our standard input open.
fn node() -> anyhow::Result<bool> {
    let node = regatta_testbed::Node::start();
    xtask::say::line(&node.url());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(true)
}

fn scale(quick: bool) -> Scale {
    if quick { Scale::Quick } else { Scale::Whole }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Tidy => xtask::tidy::run(&house_root()),
        Command::Compare { only, quick } => xtask::compare::run(&house_root(), only.as_deref(), scale(quick)),
        Command::Faults { only } => xtask::faults::run(&house_root(), only.as_deref()),
        Command::Bench { only, rounds, quick } => {
            xtask::bench::run(&house_root(), only.as_deref(), rounds, scale(quick))
        }
        Command::Record { out, command } => xtask::record::run(&out, &command),
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
