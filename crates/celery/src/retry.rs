//! How often and how late a failed task is tried again. Pure: the randomness comes in with the call, and nothing here
//! knows a queue.

use std::time::Duration;

/// A task's retry policy: at most `max` retries, each after an exponential back-off with full jitter.
///
/// The n-th retry (from 0) waits for a random time between zero and `min(cap, base × 2ⁿ)`: full jitter spreads a crowd
/// of tasks that failed together better than any fixed delay
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    max: u32,
    base: Duration,
    cap: Duration,
    jitter: bool,
}

impl Retry {
    /// Celery's own default for an explicit retry: three, 180 s apart.
    pub const CELERY: Self =
        Self { max: 3, base: Duration::from_secs(180), cap: Duration::from_secs(180), jitter: false };

    /// No retry at all.
    pub const NEVER: Self = Self { max: 0, ..Self::CELERY };

    /// At most `max` retries after the first try, with a back-off from 1 s to 60 s.
    pub const fn max(max: u32) -> Self {
        Self { max, base: Duration::from_secs(1), cap: Duration::from_secs(60), jitter: true }
    }

    /// The same policy with the back-off `min(cap, base × 2ⁿ)`.
    #[must_use]
    pub const fn backoff(self, base: Duration, cap: Duration) -> Self {
        Self { base, cap, ..self }
    }

    /// The same policy, always waiting for the whole back-off.
    #[must_use]
    pub const fn without_jitter(self) -> Self {
        Self { jitter: false, ..self }
    }

    /// How many retries it allows.
    pub const fn limit(self) -> u32 {
        self.max
    }

    /// The delay before the next try of a task that was retried `retries` times already; `None` when the tries are
    /// used up. `random` is uniform in `0.0..1.0`.
    pub fn delay(self, retries: u32, random: f64) -> Option<Duration> {
        if retries >= self.max {
            return None;
        }
        let factor = 2_u32.checked_pow(retries).unwrap_or(u32::MAX);
        let most = self.base.saturating_mul(factor).min(self.cap);
        Some(if self.jitter { most.mul_f64(random.clamp(0.0, 1.0)) } else { most })
    }
}

impl Default for Retry {
    /// [`Retry::CELERY`].
    fn default() -> Self {
        Self::CELERY
    }
}

/// The shortest delay that a delay queue is made for, in milliseconds. Shorter ones are rounded up to it.
pub(crate) const MIN_DELAY_MS: u64 = 64;

/// The longest, in milliseconds (37 hours). A task that must wait for longer passes through several.
pub(crate) const MAX_DELAY_MS: u64 = 1 << 27;

/// Rounds a delay up to the bounded set of delays that have a queue: `4, 5, 6 or 7 × 2ᵏ` milliseconds from
/// [`MIN_DELAY_MS`] to [`MAX_DELAY_MS`], 85 in all and at most a quarter too long.
///
/// A queue of its own for each delay, because RabbitMQ expires messages only at the head of a queue: a short delay
/// behind a long one would wait for both.
pub(crate) fn delay_step(delay: Duration) -> u64 {
    let wanted = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    if wanted >= MAX_DELAY_MS {
        return MAX_DELAY_MS;
    }
    let wanted = wanted.max(MIN_DELAY_MS);
    let unit = 1 << (wanted.ilog2() - 2);
    wanted.div_ceil(unit) * unit
}

/// The step to wait for first where the delay shall be kept: the longest that isn't longer. What is left is waited for
/// then, in ever shorter steps, and in the end the task is late by less than [`MIN_DELAY_MS`].
pub(crate) fn exact_step(delay: Duration) -> u64 {
    let wanted = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let longer = delay_step(delay);
    if wanted >= MAX_DELAY_MS || longer < wanted + MIN_DELAY_MS {
        return longer;
    }
    let unit = 1 << (wanted.ilog2() - 2);
    wanted / unit * unit
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_end_with_the_tries() {
        let retry = Retry::max(4).backoff(Duration::from_millis(100), Duration::from_millis(500));
        let table =
            [(0, Some(100)), (1, Some(200)), (2, Some(400)), (3, Some(500)), (4, None), (u32::MAX, None)];
        for (retries, millis) in table {
            assert_eq!(
                retry.delay(retries, 1.0),
                millis.map(Duration::from_millis),
                "after {retries} retries"
            );
        }
        assert_eq!(
            Retry::max(u32::MAX).delay(40, 1.0),
            Some(Duration::from_secs(60)),
            "2⁴⁰ doesn't overflow"
        );
    }

    #[test]
    fn full_jitter_takes_any_share_of_the_back_off() {
        let retry = Retry::max(4).backoff(Duration::from_millis(100), Duration::from_secs(1));
        for (random, millis) in [(0.0, 0), (0.25, 50), (0.5, 100), (1.0, 200), (f64::NAN, 0)] {
            let delay = retry.delay(1, if random.is_nan() { 0.0 } else { random });
            assert_eq!(delay, Some(Duration::from_millis(millis)), "at {random}");
        }
        assert_eq!(retry.without_jitter().delay(1, 0.1), Some(Duration::from_millis(200)));
    }

    #[test]
    fn delay_steps_are_few_and_never_shorter_than_asked() {
        let table = [
            (0, 64),
            (1, 64),
            (64, 64),
            (65, 80),
            (80, 80),
            (81, 96),
            (113, 128),
            (1000, 1024),
            (1025, 1280),
        ];
        for (asked, step) in table {
            assert_eq!(delay_step(Duration::from_millis(asked)), step, "for {asked} ms");
        }
        assert_eq!(delay_step(Duration::MAX), MAX_DELAY_MS);
        assert_eq!(delay_step(Duration::from_nanos(64_000_001)), 80);
        let mut steps = BTreeSet::new();
        for asked in (0..70_000).chain((70_000..MAX_DELAY_MS * 2).step_by(997)) {
            let step = delay_step(Duration::from_millis(asked));
            assert!(step >= asked.min(MAX_DELAY_MS), "{step} is shorter than {asked}");
            assert!(step <= (asked + asked / 4 + 2).max(MIN_DELAY_MS), "{step} is much longer than {asked}");
            steps.insert(step);
        }
        assert_eq!(steps.len(), 85, "the set of delay queues is bounded");
    }

    #[test]
    fn a_delay_that_shall_be_kept_is_waited_for_in_shorter_and_shorter_steps() {
        let waits = |mut left: u64| {
            let mut steps = Vec::new();
            while left > 0 {
                let step = exact_step(Duration::from_millis(left));
                steps.push(step);
                left = left.saturating_sub(step);
            }
            steps
        };
        let table = [
            (1, vec![64]),
            (100, vec![112]),
            (1_000, vec![1024]),
            (16_500, vec![16_384, 128]),
            (20_000, vec![16_384, 3_584, 64]),
            (2 * MAX_DELAY_MS + 1, vec![MAX_DELAY_MS, MAX_DELAY_MS, 64]),
        ];
        for (delay, expected) in table {
            assert_eq!(waits(delay), expected, "for {delay} ms");
        }
        for delay in (1..100_000).chain((100_000..MAX_DELAY_MS).step_by(99_991)) {
            let steps = waits(delay);
            let all: u64 = steps.iter().sum();
            assert!(all >= delay && all < delay + MIN_DELAY_MS, "{delay} ms waited for {steps:?}");
            assert!(steps.len() <= 8, "{delay} ms takes {steps:?}");
            assert!(steps.iter().all(|step| delay_step(Duration::from_millis(*step)) == *step), "{steps:?}");
        }
    }
}
