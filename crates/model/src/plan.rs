//! `Plan`: what to hand out next.
//!
//! The policy: what was never seen, has changed or failed last time comes first, then what is expected to take longest,
//! in batches of `max(expected seconds left / (4 × slots), 5 × the cost of one batch)`. Large batches while much is left
//! cost little; small ones at the end keep every slot busy to the last. (Graham's longest-processing-time rule with
//! guided self-scheduling's chunks; Graham 1969, Polychronopoulos and Kuck 1987.)
//!
//! What tests of a unit share, a fixture of a module or a class, is paid again by every batch that holds one of them. It
//! belongs to the cost of a batch, so a unit is cut into no smaller parts than are worth it.
//!
//! It must not know workers, leases or outcomes: [`Run`](crate::Run) does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::{Item, SuiteName, Unit};

/// What one batch costs beyond its tests and what they share: publish, deliver, first report, settle.
const BATCH_COST: Duration = Duration::from_millis(2);

/// A batch is at least this many times its own cost.
const BATCH_COSTS_MIN: u32 = 5;

/// How many batches each slot should still get from what is left.
const BATCHES_PER_SLOT: u32 = 4;

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
    pub together: Option<Together>,
    /// How long it is expected to take (p90 of earlier runs); none when it was never seen.
    pub expected: Option<Duration>,
    /// It failed last time, or is a retry: it comes first though it was seen.
    pub urgent: bool,
}

/// A test's unit, and how firmly its tests stay together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Together {
    /// The unit.
    pub unit: Unit,
    /// It is never cut, whatever that costs: its tests build on each other.
    pub whole: bool,
    /// How long it takes to set up what its tests share, once for each batch that holds any of them.
    pub shared: Duration,
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
            Some(together) if together.whole || !first => {
                lane.grow(&together.unit, !first, expected, self.added)
            }
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
    fn grow(&mut self, unit: &Unit, seen: bool, expected: Duration, order: u64) -> Key {
        let old = self.by_unit.get(unit).copied();
        let members = old.and_then(|old| self.groups.remove(&old)).unwrap_or_default();
        let key = match old.filter(|_| !members.is_empty()) {
            // One member that comes first takes all along.
            Some((was_seen, Reverse(total), order)) => (seen && was_seen, Reverse(total + expected), order),
            None => (seen, Reverse(expected), order),
        };
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
        self.groups.values().map(|group| shared(group) + self.own(group)).sum()
    }

    /// The time of a group's tests, without what they share.
    fn own(&self, group: &[Work]) -> Duration {
        group.iter().map(|work| self.expected(work)).sum()
    }

    /// How many items of a group's kind may go into one batch.
    fn items_max(&self, group: &[Work]) -> usize {
        match group.first().filter(|work| work.expected.is_none()).map(|work| &work.item) {
            Some(Item::Unit(_)) if !self.units.known() => UNITS_UNKNOWN_MAX,
            Some(Item::Test(_)) if !self.tests.known() => ITEMS_UNKNOWN_MAX,
            _ => ITEMS_MAX,
        }
    }

    fn take(&mut self, slots: usize) -> Vec<Work> {
        let shares = BATCHES_PER_SLOT.saturating_mul(u32::try_from(slots.max(1)).unwrap_or(u32::MAX));
        let budget = (self.left() / shares).max(BATCH_COST * BATCH_COSTS_MIN);
        let mut batch: Vec<Work> = Vec::new();
        let mut spent = Duration::ZERO;
        while let Some((key, mut group)) = self.groups.pop_first() {
            let room = self.items_max(&group).saturating_sub(batch.len());
            let rest = group.split_off(self.part(&group, budget, spent, room));
            spent += shared(&group) + self.own(&group);
            batch.extend(group);
            if !rest.is_empty() {
                self.put_back(key, rest);
                break;
            }
        }
        batch
    }

    /// How many of a group's first members go into a batch in which some time is spent already. It is never none of the
    /// first group.
    fn part(&self, group: &[Work], budget: Duration, spent: Duration, room: usize) -> usize {
        let all = group.len();
        let shared = shared(group);
        let fitting = self.fitting(group, budget.saturating_sub(spent + shared)).min(room);
        let whole =
            group.first().and_then(|work| work.together.as_ref()).is_some_and(|together| together.whole);
        if fitting == all {
            return all;
        }
        if whole {
            return if spent.is_zero() { all } else { 0 };
        }
        // Neither this part nor the rest may be smaller than what is worth setting up for it.
        let least = shared * BATCH_COSTS_MIN;
        if spent.is_zero() {
            let part =
                self.fitting(group, least.max(budget.saturating_sub(shared))).clamp(1, room.max(1)).min(all);
            let rest = self.own(&group[part..]);
            return if rest < least { all.min(room.max(1)) } else { part };
        }
        let worth = self.own(&group[..fitting]) >= least && self.own(&group[fitting..]) >= least;
        if worth { fitting } else { 0 }
    }

    /// How many of a group's first members are done in so much time.
    fn fitting(&self, group: &[Work], time: Duration) -> usize {
        let mut spent = Duration::ZERO;
        let fits = |work: &&Work| {
            spent += self.expected(work);
            spent <= time
        };
        group.iter().take_while(fits).count()
    }

    /// Returns what did not fit of a group, under what is left of its expected time.
    fn put_back(&mut self, key: Key, members: Vec<Work>) {
        let (seen, _, order) = key;
        let left = if seen { self.own(&members) } else { Duration::ZERO };
        let key = (seen, Reverse(left), order);
        let together = members.first().and_then(|work| work.together.as_ref());
        if let Some(together) = together.filter(|together| seen || together.whole) {
            self.by_unit.insert(together.unit.clone(), key);
        }
        self.groups.insert(key, members);
    }
}

/// What a group's tests share.
fn shared(group: &[Work]) -> Duration {
    let together = group.first().and_then(|work| work.together.as_ref());
    together.map(|together| together.shared).unwrap_or_default()
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

    fn of(file: &str, (whole, shared_ms): (bool, u64), work: Work) -> Work {
        let unit = Unit { suite: "s".into(), name: file.into() };
        Work { together: Some(Together { unit, whole, shared: Duration::from_millis(shared_ms) }), ..work }
    }

    #[test]
    fn a_unit_is_cut_only_when_that_is_worth_what_its_tests_share() {
        /// A file's name, its number of tests, the time of each and what they share, in ms.
        type File = (&'static str, usize, u64, u64);
        // Files, slots, batches.
        let table: &[(&[File], usize, &[&str])] = &[
            (&[("a", 3, 3, 0), ("b", 2, 400, 0)], 1, &["b0", "b1", "a0 a1 a2"]),
            // Nothing is shared: cut as it fits.
            (&[("a", 3, 500, 0)], 2, &["a0", "a1", "a2"]),
            // What they share costs more than they do.
            (&[("a", 3, 500, 2000), ("b", 3, 500, 2000)], 2, &["a0 a1 a2", "b0 b1 b2"]),
            // A part takes five times what it shares, and what is left must be worth it, too.
            (
                &[("a", 30, 10, 20)],
                4,
                &[
                    "a0 a1 a2 a3 a4 a5 a6 a7 a8 a9",
                    "a10 a11 a12 a13 a14 a15 a16 a17 a18 a19",
                    "a20 a21 a22 a23 a24 a25 a26 a27 a28 a29",
                ],
            ),
            (&[("a", 19, 10, 20)], 4, &["a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 a10 a11 a12 a13 a14 a15 a16 a17 a18"]),
            // Short files share a batch, and none is cut for that where it shares something.
            (&[("a", 2, 2, 1), ("b", 2, 2, 1), ("c", 2, 2, 1)], 1, &["a0 a1 b0 b1", "c0 c1"]),
            (&[("a", 2, 2, 0), ("b", 2, 2, 0), ("c", 2, 2, 0)], 1, &["a0 a1 b0 b1 c0", "c1"]),
        ];
        for (files, slots, batches) in table {
            let mut plan = Plan::default();
            let longest = files.iter().map(|(_, tests, _, _)| *tests).max().unwrap_or_default();
            // As they may be listed: those of one file are not neighbours.
            for n in 0..longest {
                for (file, _, ms, shared) in files.iter().filter(|(_, tests, _, _)| n < *tests) {
                    plan.add(&lane(), of(file, (false, *shared), test(&format!("{file}{n}"), Some(*ms))));
                }
            }
            assert_eq!(all(&mut plan, *slots), *batches, "{files:?}");
        }
    }

    #[test]
    fn a_whole_unit_is_never_cut_and_one_test_takes_all_along() {
        let mut plan = Plan::default();
        for n in 0..4 {
            plan.add(&lane(), of("a", (true, 0), test(&format!("a{n}"), Some(100))));
            plan.add(&lane(), of("b", (true, 0), test(&format!("b{n}"), Some(900))));
        }
        plan.add(&lane(), of("a", (true, 0), Work { urgent: true, ..test("a4", Some(1)) }));
        plan.add(&lane(), of("a", (true, 0), test("a5", Some(1))));
        assert_eq!(all(&mut plan, 8), ["a0 a1 a2 a3 a4 a5", "b0 b1 b2 b3"]);
        // What comes later, a retry, is a group of its own.
        plan.add(&lane(), of("a", (true, 0), Work { urgent: true, ..test("a4", Some(1)) }));
        assert_eq!(all(&mut plan, 8), ["a4"]);
        assert!(plan.is_empty());
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
