//! Which reply queues aren't there: their owners are reconnecting, or gone. Pure: the time comes in.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long a worker tries to reach a reply queue that isn't there: its owner may be reconnecting. After that the
/// caller is taken for gone, as Celery takes it at once.
const CALLER_GONE_AFTER: Duration = Duration::from_secs(5);

/// How long a caller is taken for gone. All its other tasks are done without a wait meanwhile; later one of them is worth
/// a wait again, since the caller may have been back unseen.
const CALLER_GONE_FOR: Duration = Duration::from_secs(60);

/// How many such queues are remembered; the oldest are forgotten first.
const CALLERS_LIMIT: usize = 1_000;

/// The reply queues that weren't there, and since when.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    missed: HashMap<String, Instant>,
    order: VecDeque<String>,
}

impl Callers {
    /// A queue isn't there. True when its owner is to be taken for gone, and not waited for.
    pub(crate) fn missing(&mut self, now: Instant, reply_to: &str) -> bool {
        let since = self.missed.get(reply_to).map(|since| now.saturating_duration_since(*since));
        match since {
            Some(since) if since < CALLER_GONE_AFTER + CALLER_GONE_FOR => return since >= CALLER_GONE_AFTER,
            Some(_) => self.heard(reply_to),
            None => {}
        }
        self.missed.insert(reply_to.to_owned(), now);
        self.order.push_back(reply_to.to_owned());
        if self.order.len() > CALLERS_LIMIT
            && let Some(oldest) = self.order.pop_front()
        {
            self.missed.remove(&oldest);
        }
        false
    }

    /// A queue is there.
    pub(crate) fn heard(&mut self, reply_to: &str) {
        if !self.missed.is_empty() && self.missed.remove(reply_to).is_some() {
            self.order.retain(|other| other != reply_to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_waited_for_once_and_not_for_each_of_its_tasks() {
        let began = Instant::now();
        let mut callers = Callers::default();
        let table = [
            ("the first task that misses it", 0, "a", false),
            ("another one, meanwhile", 4_900, "a", false),
            ("the patience is at its end", 5_000, "a", true),
            ("later tasks don't wait", 30_000, "a", true),
            ("another caller", 30_000, "b", false),
            ("it may have been back", 65_000, "a", false),
            ("and is gone again", 70_000, "a", true),
        ];
        for (name, at_ms, reply_to, gone) in table {
            let now = began + Duration::from_millis(at_ms);
            assert_eq!(callers.missing(now, reply_to), gone, "{name}");
        }
        callers.heard("a");
        assert!(!callers.missing(began + Duration::from_secs(71), "a"), "it has been back");
    }

    #[test]
    fn memory_of_callers_is_bounded() {
        let (now, mut callers) = (Instant::now(), Callers::default());
        for n in 0..2 * CALLERS_LIMIT {
            callers.missing(now, &n.to_string());
        }
        assert_eq!((callers.missed.len(), callers.order.len()), (CALLERS_LIMIT, CALLERS_LIMIT));
    }
}
