//! Time as Celery writes it: ISO 8601 text, seconds since 1970, Lamport's logical clock, and the local offset.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::DateTime;

/// Lamport's clock, by which Celery orders the events of several machines.
#[derive(Debug, Default)]
pub(crate) struct LogicalClock(AtomicU64);

impl LogicalClock {
    /// The time of an event of ours.
    pub(crate) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Somebody else's time came in: ours is later from now on.
    pub(crate) fn adjust(&self, other: u64) {
        // A hostile clock near the end of the numbers would wrap ours around.
        let other = other.min(u64::MAX / 2);
        self.0.fetch_max(other, Ordering::Relaxed);
        self.tick();
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The local time zone's distance from UTC in Celery's convention: hours, counted westwards.
pub(crate) fn utc_offset_hours() -> f64 {
    let seconds = jiff::ZonedDateTime::now().offset().seconds();
    if seconds == 0 { 0.0 } else { -f64::from(seconds) / 3600.0 }
}

/// Longer than this is as good as for ever: no year of five digits can be written.
const DELAY_MAX: Duration = Duration::from_secs(7000 * 365 * 24 * 3600);

/// So long after `time`.
pub(crate) fn after(time: SystemTime, delay: Duration) -> SystemTime {
    time.checked_add(delay.min(DELAY_MAX)).unwrap_or(time)
}

/// `2026-11-24T03:05:22.214605+00:00`.
pub(crate) fn iso(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    format!("{}+00:00", time.strftime("%Y-%m-%dT%H:%M:%S.%6f"))
}

/// Reads what Celery writes as `eta` or `expires`: with an offset, with `Z`, or naive, which is taken as UTC.
pub(crate) fn parse_iso(text: &str) -> Option<SystemTime> {
    let time = match text.parse::<Timestamp>() {
        Ok(time) => time,
        Err(_) => text.parse::<DateTime>().ok()?.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok()?.timestamp(),
    };
    let since = Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn celerys_times_are_read_and_written() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_489_522_214_605);
        assert_eq!(iso(time), "2026-11-24T03:05:22.214605+00:00");
        for text in [
            "2026-11-24T03:05:22.214605+00:00",
            "2026-11-24T03:05:22.214605Z",
            "2026-11-24T03:05:22.214605",
            "2026-11-24T05:05:22.214605+02:00",
        ] {
            assert_eq!(parse_iso(text), Some(time), "{text}");
        }
        for text in ["", "tomorrow", "2026-13-01T00:00:00", "1795489522"] {
            assert_eq!(parse_iso(text), None, "{text}");
        }
    }

    #[test]
    fn the_logical_clock_only_goes_on() {
        let clock = LogicalClock::default();
        assert_eq!(clock.tick(), 1);
        clock.adjust(10);
        assert_eq!(clock.now(), 11);
        clock.adjust(3);
        assert_eq!(clock.now(), 12);
        clock.adjust(u64::MAX);
        assert!(clock.tick() > 12);
    }
}
