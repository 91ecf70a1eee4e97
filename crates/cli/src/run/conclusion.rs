//! What is done once, when the tests of this process's worker have all run and its processes are gone.

use std::sync::Arc;

use regatta_adapters::{Adapter, Conclusion};
use regatta_model::{Output, TeardownFailed, Time, WorkerName};
use regatta_worker::{Cancel, Fence, execute};

/// What is needed for it.
pub(crate) struct Concluding {
    pub(crate) adapters: Vec<Arc<dyn Adapter>>,
    /// When the run began.
    pub(crate) begun: Time,
    /// Who ran the tests.
    pub(crate) worker: WorkerName,
    pub(crate) fence: Fence,
    /// Ends it, and keeps it from beginning: half of a run has no whole.
    pub(crate) cancel: Cancel,
}

impl Concluding {
    /// Concludes each suite. Gives what fails the run, and what there is to show. Blocks.
    pub(crate) fn conclude(&self) -> (Vec<TeardownFailed>, Vec<String>) {
        let (mut failed, mut shown) = (Vec::new(), Vec::new());
        for adapter in &self.adapters {
            let Some(invocation) = adapter.conclusion(self.begun).filter(|_| !self.cancel.is_killed()) else {
                continue;
            };
            let conclusion = match execute(&invocation, &self.fence, &self.cancel) {
                Ok(ended) => adapter.concluded(&ended),
                Err(error) => {
                    let failed = format!("what its processes left can't be read: {}", error.with_causes());
                    Conclusion { text: String::new(), failed: Some(failed) }
                }
            };
            let Conclusion { text, failed: why } = conclusion;
            match why {
                _ if self.cancel.is_killed() => {}
                None => shown.push(text),
                Some(message) => failed.push(TeardownFailed {
                    suite: adapter.suite().name,
                    worker: self.worker.clone(),
                    message,
                    output: Output { text, bytes_omitted: 0 },
                }),
            }
        }
        (failed, shown)
    }
}
