//! The record of a dispatch; docs/records.md describes it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::error::ConsoleError;

/// The version of the record's form.
pub const SCHEMA: u32 = 1;

/// One dispatch.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The application's name.
    pub app: String,
    /// Where the broker is, without a password.
    pub broker: String,
    /// When the first task was about to be sent.
    pub started: Timestamp,
    /// When the last result was there.
    pub finished: Timestamp,
    /// The tasks, in the order in which they were sent.
    pub tasks: Vec<Execution>,
    /// The numbers.
    pub statistics: Statistics,
}

/// One task of a dispatch.
#[derive(Debug, Clone, Serialize)]
pub struct Execution {
    /// Its id.
    pub id: String,
    /// Its name.
    pub task: String,
    /// The queue that it was sent to.
    pub queue: String,
    /// Who ran it, if that was told.
    pub worker: Option<String>,
    /// How many tries it took, if that was told.
    pub attempts: Option<u32>,
    /// When it was about to be sent, by the caller's clock.
    pub sent: Timestamp,
    /// When its last try began, by the worker's clock.
    pub started: Option<Timestamp>,
    /// When it ended, by the worker's clock.
    pub finished: Option<Timestamp>,
    /// Seconds from `sent` to `started`; never below zero.
    pub wait_s: Option<f64>,
    /// Seconds from `started` to `finished`.
    pub run_s: Option<f64>,
    /// `SUCCESS`, `FAILURE`, `REVOKED` or `UNKNOWN` (no result came).
    pub state: &'static str,
    /// What it returned.
    pub result: Option<serde_json::Value>,
    /// Why it has no result.
    pub error: Option<String>,
}

/// The numbers of a dispatch.
#[derive(Debug, Clone, Serialize)]
pub struct Statistics {
    /// How many tasks were sent.
    pub tasks: usize,
    /// How many of them succeeded.
    pub succeeded: usize,
    /// Seconds from the first sending to the last result.
    pub wall_s: f64,
    /// Seconds that the tasks ran, all together.
    pub run_sum_s: f64,
    /// The sum of the run times over the wall time.
    pub speed_up: f64,
    /// Tasks a second.
    pub throughput: f64,
    /// The median of the run times, in seconds.
    pub run_p50_s: Option<f64>,
    /// The run time, in seconds, that 95 of 100 don't exceed.
    pub run_p95_s: Option<f64>,
}

impl Statistics {
    pub(crate) fn of(tasks: &[Execution], wall_s: f64) -> Self {
        let mut runs: Vec<f64> = tasks.iter().filter_map(|task| task.run_s).collect();
        runs.sort_by(f64::total_cmp);
        // The sum of nothing is -0.0, which would be shown.
        let run_sum_s = runs.iter().fold(0.0, |sum, run| sum + run);
        let over_wall = |amount: f64| if wall_s > 0.0 { amount / wall_s } else { 0.0 };
        Self {
            tasks: tasks.len(),
            succeeded: tasks.iter().filter(|task| task.state == "SUCCESS").count(),
            wall_s,
            run_sum_s,
            speed_up: over_wall(run_sum_s),
            throughput: over_wall(f64::from(u32::try_from(tasks.len()).unwrap_or(u32::MAX))),
            run_p50_s: percentile(&runs, 50),
            run_p95_s: percentile(&runs, 95),
        }
    }
}

/// The nearest-rank percentile of sorted values.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

impl Record {
    /// Writes it into `folder`, whole or not at all, and gives its path.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf, ConsoleError> {
        make_folder(folder)?;
        let name = self.started.strftime("%Y%m%dT%H%M%S.%6fZ").to_string();
        let path = folder.join(format!("{name}.json"));
        let part = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(&part, text).map_err(failed("write the record", &part))?;
        std::fs::rename(&part, &path).map_err(failed("put in place the record", &path))?;
        Ok(path)
    }
}

/// Makes the folder of records, unless it is there.
pub(crate) fn make_folder(folder: &Path) -> Result<(), ConsoleError> {
    std::fs::create_dir_all(folder).map_err(failed("make the folder", folder))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ConsoleError {
    let path = path.to_owned();
    move |source| ConsoleError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&[1.0], 95), Some(1.0));
        assert_eq!(percentile(&[1.0, 2.0], 50), Some(1.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 95), Some(3.0));
    }
}
