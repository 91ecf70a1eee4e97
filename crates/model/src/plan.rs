//! `Plan`: what to hand out next.
//!
//! The policy: what was never seen, has changed or failed last time comes first, then what is expected to take longest,
//! in batches of `max(expected seconds left / (4 × slots), 5 × the cost of one batch)`. Large batches while much is left
//! cost little; small ones at the end keep every slot busy to the last. (Graham's longest-processing-time rule with
//! guided self-scheduling's chunks; Graham 1969, Polychronopoulos and Kuck 1987.)
//!
//! It must not know workers, leases or outcomes: [`Run`](crate::Run) does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::{Item, SuiteName, Unit};

/// What one batch costs beyond its tests: publish, deliver, first report, settle.
const BATCH_COST: Duration = Duration::from_millis(2);

/// A batch is at least this many times its own cost.
const BATCH_COSTS_MIN: u32 = 5;

/// How many batches each slot should still get from what is left.
const BATCHES_PER_SLOT: u64 = 4;

/// The largest number of items in a batch, so that a message has a limit.
const ITEMS_MAX: usize = 1_000;

/// The largest number of items in a batch while nothing is known about their durations.
const ITEMS_UNKNOWN_MAX: usize = 32;

/// The largest number of units in a batch while nothing is known about their durations.
const UNITS_UNKNOWN_MAX: usize = 4;

/// How many durations make an estimate.
const SAMPLES_MIN: u64 = 8;

/// The expectation for what nobody has seen, until there are samples.
const GUESS: Duration = Duration::from_millis(50);

/// One item that waits to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// What it is.
    pub item: Item,
    /// Which attempt it will be: 1 for the first.
    pub attempt: u32,
    /// The unit in which a test is, when tests of a unit should stay together.
    pub together: Option<Unit>,
    /// How long it is expected to take (p90 of earlier runs); none when it was never seen.
    pub expected: Option<Duration>,
    /// It failed last time, or is a retry: it comes first though it was seen.
    pub urgent: bool,
}

/// A lane: the work of one suite for one queue. A batch never mixes lanes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The queue to which it goes.
    pub queue: String,
    /// Its suite.
    pub suite: SuiteName,
}

/// First by need, then by expected time (longest first), then as listed.
type Key = (bool, Reverse<Duration>, u64);

#[derive(Debug, Default)]
struct LaneWork {
    groups: BTreeMap<Key, Vec<Work>>,
    /// Where a unit's group is, while it is open for more tests of the unit.
    by_unit: HashMap<Unit, Key>,
    tests: Samples,
    units: Samples,
}

#[derive(Debug, Default, Clone, Copy)]
struct Samples {
    count: u64,
    sum: Duration,
}

impl Samples {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
    }

    fn known(self) -> bool {
        self.count >= SAMPLES_MIN
    }

    fn mean(self) -> Duration {
        match u32::try_from(self.count) {
            Ok(count) if self.known() => self.sum / count,
            _ => GUESS,
        }
    }
}

/// The work that is not handed out yet, in the order in which it should be.
#[derive(Debug, Default)]
pub struct Plan {
    lanes: BTreeMap<Lane, LaneWork>,
    added: u64,
}

impl Plan {
    /// Takes in work for a lane.
    pub fn add(&mut self, lane: &Lane, work: Work) {
        self.added += 1;
        let lane = self.lanes.entry(lane.clone()).or_default();
        let first = work.urgent || work.expected.is_none();
        let expected = if first { Duration::ZERO } else { work.expected.unwrap_or_default() };
        let key = match &work.together {
            Some(unit) if !first => lane.grow(unit, expected, self.added),
            _ => (!first, Reverse(expected), self.added),
        };
        lane.groups.entry(key).or_default().push(work);
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.values().all(|lane| lane.groups.is_empty())
    }

    /// The lanes of a queue that have work and are ready, those with something urgent or unseen first, then by expected
    /// time left.
    #[must_use]
    pub fn next_lane(&self, queue: &str, ready: impl Fn(&Lane) -> bool) -> Option<Lane> {
        let waiting = self
            .lanes
            .iter()
            .filter(|(lane, work)| lane.queue == queue && !work.groups.is_empty() && ready(lane));
        let next = waiting.min_by_key(|(_, work)| {
            let seen = work.groups.first_key_value().is_some_and(|(key, _)| key.0);
            (seen, Reverse(work.left()))
        });
        next.map(|(lane, _)| lane.clone())
    }

    /// The queues for which something waits.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        let mut last = None;
        self.lanes.iter().filter(|(_, work)| !work.groups.is_empty()).filter_map(move |(lane, _)| {
            let queue = lane.queue.as_str();
            (last.replace(queue) != Some(queue)).then_some(queue)
        })
    }

    /// Takes out the next batch of a lane, for `slots` that work on it. Empty when nothing waits there.
    #[must_use]
    pub fn take(&mut self, lane: &Lane, slots: usize) -> Vec<Work> {
        self.lanes.get_mut(lane).map(|lane| lane.take(slots)).unwrap_or_default()
    }

    /// Takes out all that waits for some lanes, which is not handed out any more.
    #[must_use]
    pub fn drain(&mut self, of: impl Fn(&Lane) -> bool) -> Vec<(SuiteName, Item)> {
        let lanes = self.lanes.iter_mut().filter(|(lane, _)| of(lane));
        let items = lanes.flat_map(|(lane, work)| {
            work.by_unit.clear();
            let groups = std::mem::take(&mut work.groups).into_values();
            groups.flatten().map(|work| (lane.suite.clone(), work.item))
        });
        items.collect()
    }

    /// Learns how long a test took, for the estimates of those that nobody has seen.
    pub fn test_took(&mut self, lane: &Lane, took: Duration) {
        self.lanes.entry(lane.clone()).or_default().tests.add(took);
    }

    /// Learns how long a whole unit took.
    pub fn unit_took(&mut self, lane: &Lane, took: Duration) {
        self.lanes.entry(lane.clone()).or_default().units.add(took);
    }
}

impl LaneWork {
    /// The key of a unit's group after it has grown by `expected`: its members move along.
    fn grow(&mut self, unit: &Unit, expected: Duration, order: u64) -> Key {
        let Some(old) = self.by_unit.get(unit).copied() else {
            let key = (true, Reverse(expected), order);
            self.by_unit.insert(unit.clone(), key);
            return key;
        };
        let members = self.groups.remove(&old).unwrap_or_default();
        let (total, order) = if members.is_empty() { (expected, order) } else { (old.1.0 + expected, old.2) };
        let key = (true, Reverse(total), order);
        self.by_unit.insert(unit.clone(), key);
        self.groups.insert(key, members);
        key
    }

    fn expected(&self, work: &Work) -> Duration {
        work.expected.unwrap_or_else(|| match work.item {
            Item::Test(_) => self.tests.mean(),
            Item::Unit(_) => self.units.mean(),
        })
    }

    fn left(&self) -> Duration {
        self.groups.values().flatten().map(|work| self.expected(work)).sum()
    }

    /// How many items of this kind may go into one batch.
    fn items_max(&self, work: &Work) -> usize {
        match work.item {
            Item::Unit(_) if work.expected.is_none() && !self.units.known() => UNITS_UNKNOWN_MAX,
            Item::Test(_) if work.expected.is_none() && !self.tests.known() => ITEMS_UNKNOWN_MAX,
            Item::Test(_) | Item::Unit(_) => ITEMS_MAX,
        }
    }

    fn take(&mut self, slots: usize) -> Vec<Work> {
        let shares = u32::try_from(BATCHES_PER_SLOT * slots.max(1) as u64).unwrap_or(u32::MAX);
        let budget = (self.left() / shares).max(BATCH_COST * BATCH_COSTS_MIN);
        let mut batch: Vec<Work> = Vec::new();
        let mut spent = Duration::ZERO;
        while let Some((key, group)) = self.groups.pop_first() {
            let mut rest = group.into_iter();
            let mut full = false;
            for work in rest.by_ref() {
                let cost = self.expected(&work);
                let fits = batch.is_empty() || spent + cost <= budget && batch.len() < self.items_max(&work);
                if !fits {
                    self.put_back(key, work, rest);
                    full = true;
                    break;
                }
                spent += cost;
                batch.push(work);
            }
            if full {
                break;
            }
        }
        batch
    }

    /// Returns the part of a group that did not fit, under what is left of its expected time.
    fn put_back(&mut self, key: Key, first: Work, rest: impl Iterator<Item = Work>) {
        let members: Vec<Work> = std::iter::once(first).chain(rest).collect();
        let (seen, _, order) = key;
        let left = if seen { members.iter().map(|work| self.expected(work)).sum() } else { Duration::ZERO };
        let key = (seen, Reverse(left), order);
        if let Some(unit) = members.first().and_then(|work| work.together.clone()).filter(|_| seen) {
            self.by_unit.insert(unit, key);
        }
        self.groups.insert(key, members);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane { queue: "q".into(), suite: "s".into() }
    }

    fn test(name: &str, expected_ms: Option<u64>) -> Work {
        let expected = expected_ms.map(Duration::from_millis);
        Work { item: Item::Test(name.into()), attempt: 1, together: None, expected, urgent: false }
    }

    fn names(batch: &[Work]) -> String {
        let names: Vec<&str> = batch
            .iter()
            .map(|work| match &work.item {
                Item::Test(name) | Item::Unit(name) => name.as_str(),
            })
            .collect();
        names.join(" ")
    }

    fn all(plan: &mut Plan, slots: usize) -> Vec<String> {
        std::iter::from_fn(|| Some(plan.take(&lane(), slots)).filter(|batch| !batch.is_empty()))
            .map(|batch| names(&batch))
            .collect()
    }

    #[test]
    fn unseen_and_failed_come_first_then_the_longest() {
        let mut plan = Plan::default();
        plan.add(&lane(), test("short", Some(100)));
        plan.add(&lane(), test("long", Some(900)));
        plan.add(&lane(), test("new", None));
        plan.add(&lane(), Work { urgent: true, ..test("failed", Some(10)) });
        // 4 × 8 slots: the share of each is below its shortest test, so batches hold one test each.
        assert_eq!(all(&mut plan, 8), ["new", "failed", "long", "short"]);
        assert!(plan.is_empty());
    }

    #[test]
    fn batches_shrink_towards_the_end() {
        let mut plan = Plan::default();
        for n in 0..64 {
            plan.add(&lane(), test(&format!("t{n}"), Some(100)));
        }
        let sizes: Vec<usize> =
            std::iter::from_fn(|| Some(plan.take(&lane(), 2).len()).filter(|&len| len > 0)).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 64);
        assert_eq!(sizes[0], 8);
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        assert_eq!(sizes.last(), Some(&1));
    }

    #[test]
    fn a_batch_is_worth_its_own_cost() {
        let mut plan = Plan::default();
        for n in 0..20 {
            plan.add(&lane(), test(&format!("t{n}"), Some(1)));
        }
        assert_eq!(plan.take(&lane(), 8).len(), 10, "five times two milliseconds");
    }

    #[test]
    fn tests_of_a_unit_stay_together_and_are_split_only_when_too_long() {
        let mut plan = Plan::default();
        let unit = |name: &str| Some(Unit { suite: "s".into(), name: name.into() });
        for (name, file, ms) in
            [("a1", "a", 3), ("b1", "b", 400), ("a2", "a", 3), ("b2", "b", 400), ("a3", "a", 3)]
        {
            plan.add(&lane(), Work { together: unit(file), ..test(name, Some(ms)) });
        }
        assert_eq!(all(&mut plan, 1), ["b1", "b2", "a1 a2 a3"].map(String::from));
    }

    #[test]
    fn what_nobody_knows_goes_out_in_small_numbers_until_there_are_samples() {
        let mut plan = Plan::default();
        for n in 0..1000 {
            plan.add(&lane(), test(&format!("t{n}"), None));
        }
        assert_eq!(plan.take(&lane(), 2).len(), ITEMS_UNKNOWN_MAX);
        for _ in 0..SAMPLES_MIN {
            plan.test_took(&lane(), Duration::from_millis(1));
        }
        assert_eq!(plan.take(&lane(), 2).len(), (1000 - ITEMS_UNKNOWN_MAX) / 8);
    }

    #[test]
    fn lanes_do_not_mix_and_the_unseen_lane_is_first() {
        let mut plan = Plan::default();
        let other = Lane { suite: "other".into(), ..lane() };
        plan.add(&lane(), test("seen", Some(5_000)));
        plan.add(&other, test("new", None));
        assert_eq!(plan.next_lane("q", |_| true), Some(other.clone()));
        assert_eq!(plan.next_lane("q", |lane| *lane != other), Some(lane()));
        assert_eq!(names(&plan.take(&other, 1)), "new");
        assert_eq!(plan.next_lane("q", |_| true), Some(lane()));
        assert_eq!(plan.queues().collect::<Vec<_>>(), ["q"]);
        assert_eq!(plan.next_lane("elsewhere", |_| true), None);
    }
}
