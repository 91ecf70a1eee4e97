//! How long a worker takes nothing after it has refused a batch. It does so in no time, while others work, and so would
//! have the next one too.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The pause after the first refusal. It is longer than that of the dispatcher, so that others are first at the queue.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// The longest pause. A tree that was mended shall be noticed.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// A worker's refusals in a row.
#[derive(Debug, Default)]
pub(crate) struct HoldOff {
    refusals: AtomicU32,
}

impl HoldOff {
    /// It has refused a batch: how long the slot that had it shall rest.
    pub(crate) fn refused(&self) -> Duration {
        // Nothing else is told by it.
        let before = self.refusals.fetch_add(1, Ordering::Relaxed).min(31);
        PAUSE_MIN.saturating_mul(1 << before).min(PAUSE_MAX)
    }

    /// It could run one.
    pub(crate) fn worked(&self) {
        self.refusals.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_in_a_row_costs_twice_as_much_up_to_a_limit() {
        let hold = HoldOff::default();
        for expected_ms in [500, 1_000, 2_000, 4_000, 4_000] {
            assert_eq!(hold.refused(), Duration::from_millis(expected_ms));
        }
        hold.worked();
        assert_eq!(hold.refused(), PAUSE_MIN);
        let long = HoldOff { refusals: AtomicU32::new(u32::MAX - 1) };
        assert_eq!(long.refused(), PAUSE_MAX);
    }
}
