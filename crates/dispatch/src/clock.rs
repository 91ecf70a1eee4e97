//! A wall clock that never runs backwards: the time of day when it was made, plus monotonic time since.

use std::time::{Duration, Instant, SystemTime};

use regatta_model::Time;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    began: Instant,
    epoch: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), epoch }
    }

    pub(crate) fn now(self) -> Time {
        Time::default().after(self.epoch + self.began.elapsed())
    }

    /// The instant of a moment, for timers.
    pub(crate) fn instant(self, at: Time) -> Instant {
        self.began + at.since(Time::default()).saturating_sub(self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_and_its_instant_are_the_same_distance_away() {
        let clock = Clock::new();
        let now = clock.now();
        let later = now.after(Duration::from_secs(3));
        let apart = clock.instant(later) - clock.instant(now);
        assert!(apart.abs_diff(Duration::from_secs(3)) < Duration::from_micros(2), "{apart:?}");
    }
}
