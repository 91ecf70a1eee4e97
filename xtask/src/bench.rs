//! `cargo xtask bench`: how Regatta compares with its peers, side by side in one run of this program.
//!
//! Each row measures Regatta, the peer and the limit in turns, several times, and takes medians, so that whatever else
//! the machine does meets all of them. The table goes to the terminal, everything to `target/lab/bench.json`.

mod broker;
mod measure;
mod suites;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use serde_json::json;

use crate::lab::{Lab, Python, Scale};
use crate::regatta::Regatta;
use crate::say::line;

pub use measure::{Better, Row, Side};

/// What a benchmark needs.
#[derive(Debug)]
pub struct Bench {
    lab: Lab,
    python: Python,
    regatta: OnceCell<Regatta>,
    /// How often each side is measured.
    rounds: usize,
    scale: Scale,
}

impl Bench {
    /// The built binary; built when the first row wants it.
    fn regatta(&self) -> anyhow::Result<&Regatta> {
        if self.regatta.get().is_none() {
            let _ = self.regatta.set(Regatta::build(&self.lab, self.scale)?);
        }
        Ok(self.regatta.get().expect("it was just set"))
    }

    /// A program of this crate.
    fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.lab.binary("xtask", name, self.scale)
    }

    fn is_quick(&self) -> bool {
        self.scale == Scale::Quick
    }
}

type Measure = fn(&Bench) -> anyhow::Result<Vec<Row>>;

/// Every group of rows that is measured together, by name.
const GROUPS: [(&str, Measure); 8] = [
    ("throughput", broker::throughput),
    ("roundtrip", broker::roundtrip),
    ("worker", broker::worker),
    ("commands", suites::commands),
    ("networkx-wall", suites::networkx_wall),
    ("networkx-first", suites::networkx_first),
    ("networkx-cpu", suites::networkx_cpu),
    ("itertools", suites::itertools),
];

/// Measures each side `rounds` times, prints the table and writes the JSON; tells whether every row reached its mark.
/// Something quick has small inputs, one round, and no mark.
///
/// # Errors
/// When a side can't be measured, or `only` names no row.
pub fn run(root: &Path, only: Option<&str>, rounds: usize, scale: Scale) -> anyhow::Result<bool> {
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    ensure!(only.is_none_or(|only| names.contains(&only)), "no such row; rows are {}", names.join(", "));
    let lab = Lab::open(root)?;
    let python = lab.python()?;
    let quick = scale == Scale::Quick;
    let rounds = if quick { 1 } else { rounds.max(1) };
    let bench = Bench { lab, python, regatta: OnceCell::new(), rounds, scale };
    line(&Row::head());
    let mut rows = Vec::new();
    for (_, measure) in GROUPS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        for row in measure(&bench)? {
            line(&row.to_string());
            rows.push(row);
        }
    }
    let report = bench.lab.folder().join("bench.json");
    let all: Vec<_> = rows.iter().map(Row::to_json).collect();
    std::fs::write(
        &report,
        serde_json::to_vec_pretty(&json!({ "schema": 1, "quick": quick, "rows": all }))?,
    )?;
    Ok(quick || rows.iter().all(|row| row.reached().unwrap_or(true)))
}
