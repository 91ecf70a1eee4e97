//! Stories of queues that nobody works on, lanes that can't be worked on, and a broker that stays away.

use super::*;

/// A run whose tests `gpu*` go to a queue of their own.
fn with_gpu() -> Story {
    let mut order = Story::new(policy()).run.order;
    let pattern = crate::Glob::new("gpu*");
    order.suites[0].routes.push(Route { pattern, queue: "gpu".into() });
    Story::of(order)
}

fn seen(queue: &str, consumers: u32) -> Input {
    Input::QueueSeen { queue: queue.into(), consumers, ready: 0 }
}

fn fault_of(story: &Story, name: &str) -> Fault {
    let test = story.record.test(&TestId::new("s", name)).expect("it is listed");
    match &test.attempts.last().expect("it was judged").judgement {
        crate::Judgement::Fault(fault) => fault.clone(),
        crate::Judgement::Outcome(outcome) => panic!("{name} has an outcome: {outcome:?}"),
    }
}

impl Story {
    /// Takes the oldest batch that asks for this test.
    fn take_with(&mut self, name: &str) -> (BatchId, BatchOrder) {
        let asks = |order: &BatchOrder| order.items.iter().any(|item| item_name(&item.item) == name);
        let at = self.sent.iter().position(|(_, order)| asks(order)).expect("a batch asks for it");
        self.sent.remove(at)
    }
}

#[test]
fn a_queue_that_nobody_works_on_is_given_up_and_the_others_go_on() {
    let mut story = with_gpu();
    story.list(&["a", "b", "gpu1", "gpu2", "gpu3"], &[]);
    let batch = story.take_with("a");
    story.say(&batch, "w", Vec::new());
    let waits = story.take_with("gpu1");
    story.on(seen("gpu", 0));
    story.on(seen("q", 1));
    for _ in 0..60 {
        story.wait(BEAT_MS);
        story.say(&batch, "w", Vec::new());
        story.on(seen("gpu", 0));
        story.on(seen("q", 1));
    }
    for name in ["gpu1", "gpu2", "gpu3"] {
        let fault = fault_of(&story, name);
        assert_eq!(fault.kind, FaultKind::NobodyWorks);
        assert!(fault.message.contains("queue gpu"), "{}", fault.message);
    }
    assert!(story.revoked.contains(&(waits.0, true)), "whoever comes later needn't run it");
    assert!(!story.revoked.iter().any(|(id, _)| *id == batch.0), "somebody works on this one");
    assert_eq!(story.record.cancelled, None);
    story.work(&batch, "w", Outcome::Passed);
    let rest = story.take_with("b");
    story.work(&rest, "w", Outcome::Passed);
    assert!(story.run.is_finished());
    let totals = story.record.totals();
    assert_eq!((totals.passed, totals.unjudged), (2, 3));
}

#[test]
fn what_is_in_work_outlives_its_queues_last_consumer() {
    let mut story = with_gpu();
    story.list(&["gpu1", "gpu2"], &[]);
    // A worker that takes no more, and ends what it has.
    let batch = story.take_with("gpu1");
    story.say(&batch, "w", Vec::new());
    story.on(seen("gpu", 0));
    for _ in 0..60 {
        story.wait(BEAT_MS);
        story.say(&batch, "w", Vec::new());
        story.on(seen("gpu", 0));
    }
    assert_eq!(fault_of(&story, "gpu2").kind, FaultKind::NobodyWorks);
    assert_eq!(story.verdict("gpu1"), None);
    story.work(&batch, "w", Outcome::Passed);
    assert_eq!(story.verdict("gpu1"), Some(Verdict::Passed));
    assert!(story.run.is_finished());
}

#[test]
fn a_retry_of_a_queue_that_is_given_up_keeps_its_outcome() {
    let mut order = with_gpu().run.order;
    order.policy = Policy { retries: 1, ..policy() };
    let mut story = Story::of(order);
    story.list(&["gpu1", "gpu2"], &[]);
    let batch = story.take_with("gpu1");
    story.work(&batch, "w", Outcome::Failed);
    story.on(seen("gpu", 0));
    story.wait(60_000);
    story.on(seen("gpu", 0));
    assert_eq!((story.verdict("gpu1"), story.attempts("gpu1")), (Some(Verdict::Failed), 1));
    assert_eq!(story.verdict("gpu2"), Some(Verdict::Unjudged));
    assert!(story.run.is_finished());
}

#[test]
fn an_empty_look_of_long_ago_is_forgotten() {
    for began in [false, true] {
        let mut order = with_gpu().run.order;
        order.policy = Policy { retries: 1, backoff_ms: 300_000, backoff_max_ms: 300_000, ..policy() };
        let mut story = Story::of(order);
        story.list(&["gpu1", "gpu2", "a"], &[]);
        story.on(seen("gpu", 0));
        let first = story.take_with("gpu1");
        let second = story.take_with("gpu2");
        story.say(&first, "w", Vec::new());
        story.wait(BEAT_MS);
        if began {
            // One batch is at the queue all the time.
            story.work(&first, "w", Outcome::Passed);
            story.wait(60_000);
        } else {
            // The queue is used again when the retry's time comes.
            story.work(&first, "w", Outcome::Passed);
            story.work(&second, "w", Outcome::Failed);
            story.wait(300_000);
        }
        story.on(seen("gpu", 0));
        assert_eq!(story.record.totals().unjudged, 0, "began: {began}");
        story.wait(59_000);
        story.on(seen("gpu", 0));
        assert_eq!(story.run.queues(), ["gpu", "q"], "began: {began}");
        story.wait(1_000);
        story.on(seen("gpu", 0));
        assert_eq!(story.run.queues(), ["q"], "began: {began}");
    }
}

fn no_python() -> Fault {
    Fault { kind: FaultKind::CannotRun, message: "no python".into() }
}

/// Names of tests that nobody knows.
fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("t{n}")).collect()
}

/// What comes of a batch that nobody can run.
type Broken = fn(&(BatchId, BatchOrder)) -> Input;

impl Story {
    fn list_names(&mut self, names: &[String]) {
        self.list(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    }

    /// A fleet that can't run anything takes all there is, until nothing more will come. Gives how many batches it took.
    fn break_down(&mut self, broken: Broken) -> usize {
        let mut batches = 0;
        while !self.run.is_finished() {
            while !self.sent.is_empty() {
                let batch = self.take();
                batches += 1;
                self.on(broken(&batch));
            }
            let Some(next) = self.run.wake_at() else { break };
            self.now = next;
            self.on(Input::Tick);
        }
        batches
    }
}

fn faulted(batch: &(BatchId, BatchOrder)) -> Input {
    let report =
        BatchReport { lease: batch.1.lease, worker: "broken".into(), end: BatchEnd::Faulted(no_python()) };
    Input::Report { batch: batch.0.clone(), report }
}

#[test]
fn a_fleet_that_can_run_nothing_is_not_a_storm_of_batches() {
    let ways: [Broken; 3] = [
        faulted,
        |batch| Input::PublishFailed { batch: batch.0.clone(), reason: "no".into() },
        |batch| Input::BatchFailed { batch: batch.0.clone(), reason: "no".into() },
    ];
    for broken in ways {
        for tests in [1, 50, 5_000] {
            let mut story = Story::new(Policy { losses_max: 2, ..policy() });
            story.list_names(&names(0..tests));
            let batches = story.break_down(broken);
            assert!(story.run.is_finished());
            assert_eq!(story.record.totals().unjudged, tests);
            assert!(batches <= 20, "{batches} batches for {tests} tests");
        }
    }
}

#[test]
fn what_could_not_be_run_waits_twice_as_long_each_time_and_every_test_of_it_is_charged() {
    let mut story = Story::new(Policy { losses_max: 3, ..policy() });
    story.list(&["a"], &[]);
    // The policy's back-off, up to its limit.
    for wait_ms in [100, 200, 300] {
        let batch = story.take();
        story.end(&batch, "broken", BatchEnd::Faulted(no_python()));
        story.wait(wait_ms - 1);
        assert!(story.sent.is_empty(), "{wait_ms} ms");
        story.wait(1);
        assert_eq!(story.sent.len(), 1, "{wait_ms} ms");
    }
    let batch = story.take();
    story.end(&batch, "broken", BatchEnd::Faulted(no_python()));
    assert_eq!(fault_of(&story, "a"), no_python());
    assert!(story.run.is_finished());
}

#[test]
fn batches_that_were_out_together_count_once_and_a_result_starts_the_count_anew() {
    let mut order = with_gpu().run.order;
    order.slots_hint = 16;
    order.policy = Policy { losses_max: 1_000, ..policy() };
    let mut story = Story::of(order);
    let mut all = names(0..2_000);
    all.push("gpu".into());
    story.list_names(&all);
    let gpu = story.take_with("gpu");
    for _ in 0..20 {
        // One broken worker with sixteen slots has them all but one.
        let mut round = std::mem::take(&mut story.sent);
        assert_eq!(round.len(), 16);
        let good = round.pop().unwrap();
        for batch in &round {
            story.end(batch, "broken", BatchEnd::Faulted(no_python()));
        }
        assert!(story.sent.is_empty(), "the lane rests");
        story.work(&good, "w", Outcome::Passed);
        assert!(
            story.sent.is_empty(),
            "a result does not end that, or the broken worker would have the next"
        );
        story.wait(100);
    }
    assert_eq!(story.record.totals().unjudged, 0);
    // Nobody is good any more.
    story.break_down(faulted);
    assert!(!story.run.is_finished());
    let totals = story.record.totals();
    assert_eq!(totals.pending, 1, "the other lane of the suite is not given up");
    assert!(totals.passed >= 20 && totals.unjudged > 0, "{totals:?}");
    story.work(&gpu, "w", Outcome::Passed);
    assert!(story.run.is_finished());
}

#[test]
fn tests_that_can_not_be_run_are_told_from_those_of_their_batch_that_can() {
    let mut story = Story::new(Policy { losses_max: 1, ..policy() });
    let all = names(0..40);
    story.list_names(&all);
    let mut batches = 0;
    while !story.run.is_finished() {
        while !story.sent.is_empty() {
            let batch = story.take();
            batches += 1;
            let even = |item: &&OrderItem| item_name(&item.item).ends_with(['0', '2', '4', '6', '8']);
            let facts = batch.1.items.iter().filter(even);
            let facts =
                facts.map(|item| finished(item_name(&item.item), item.token, Outcome::Passed)).collect();
            story.say(&batch, "w", facts);
            story.end(&batch, "w", BatchEnd::Faulted(no_python()));
        }
        story.wait(100);
    }
    let totals = story.record.totals();
    assert_eq!((totals.passed, totals.unjudged), (20, 20));
    assert!(batches <= 12, "{batches} batches");
}

/// Looks at a queue every two seconds, and finds it empty.
fn look(story: &mut Story, queue: &str, consumers: u32, for_s: u64) {
    look_at(story, &seen(queue, consumers), for_s);
}

fn look_at(story: &mut Story, seen: &Input, for_s: u64) {
    for _ in 0..for_s / 2 {
        story.wait(2_000);
        story.on(seen.clone());
    }
}

/// One consumer, and messages that wait.
fn full() -> Input {
    Input::QueueSeen { queue: "q".into(), consumers: 1, ready: 3 }
}

fn resent(story: &Story) -> usize {
    let unbegun = |event: &&RunEvent| matches!(event, RunEvent::WorkerLost { worker: None, .. });
    story.events.iter().filter(unbegun).count()
}

#[test]
fn a_batch_that_no_worker_begins_is_sent_again() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let first = story.take();
    story.on(seen("q", 1));
    look(&mut story, "q", 1, 58);
    assert_eq!(resent(&story), 0);
    look(&mut story, "q", 1, 2);
    assert_eq!(story.revoked, [(first.0.clone(), true)]);
    assert!(story.saw(|event| matches!(
        event,
        RunEvent::WorkerLost { worker: None, batch, tests: 1, reason } if *batch == first.0 && reason.contains("queue q")
    )));
    let second = story.take();
    assert!(second.1.lease > first.1.lease);
    assert_eq!(second.1.items[0].attempt, 1);
    // Whoever has the first batch after all is too late.
    story.say(&first, "w", vec![finished("a", first.1.items[0].token, Outcome::Failed)]);
    assert_eq!(story.verdict("a"), None);
    story.work(&second, "w", Outcome::Passed);
    assert_eq!((story.verdict("a"), story.attempts("a")), (Some(Verdict::Passed), 1));
    assert!(story.run.is_finished());
}

#[test]
fn a_queue_whose_consumers_take_what_is_sent_and_never_begin_it_is_given_up() {
    let mut story = with_gpu();
    story.list_names(&[names(0..200), vec!["gpu".into()]].concat());
    let gpu = story.take_with("gpu");
    story.on(seen("q", 1));
    // Each time it is waited for twice as long, in minutes.
    for (sends, waits) in [1, 2, 4].into_iter().enumerate() {
        let sent = std::mem::take(&mut story.sent);
        assert_eq!(sent.len(), SPARE_MIN, "what is planned waits for a place");
        look(&mut story, "q", 1, waits * 60 - 2);
        assert_eq!(resent(&story), sends * SPARE_MIN);
        look(&mut story, "q", 1, 2);
        assert_eq!(resent(&story), (sends + 1) * SPARE_MIN);
    }
    look(&mut story, "q", 1, 478);
    assert_eq!(story.record.totals().unjudged, 0);
    let last = story.take();
    look(&mut story, "q", 1, 2);
    assert_eq!(story.record.totals().unjudged, 200, "and all that is planned for it");
    assert!(story.revoked.contains(&(last.0, true)));
    for name in ["t0", "t199"] {
        let fault = fault_of(&story, name);
        assert_eq!(fault.kind, FaultKind::NobodyWorks);
        assert!(fault.message.contains("the consumer of queue q"), "{}", fault.message);
    }
    story.work(&gpu, "w", Outcome::Passed);
    assert!(story.run.is_finished());
}

#[test]
fn a_batch_that_one_of_two_consumers_swallows_comes_to_the_other_in_the_end() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    story.on(seen("q", 2));
    for waits_s in [60, 120, 240] {
        story.take();
        look(&mut story, "q", 2, waits_s);
    }
    let batch = story.take();
    story.work(&batch, "w", Outcome::Passed);
    assert_eq!((story.verdict("a"), story.attempts("a")), (Some(Verdict::Passed), 1));
    assert!(story.run.is_finished());
}

#[test]
fn a_batch_that_may_wait_behind_others_is_sent_again_once_and_never_given_up() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let _first = story.take();
    look_at(&mut story, &full(), 24 * 3_600);
    assert_eq!(resent(&story), 1, "whoever is busy with other runs can't be told from one who hangs");
    let second = story.take();
    // Its turn has come, and whoever has it is about to say so.
    look(&mut story, "q", 1, 118);
    assert_eq!(resent(&story), 1);
    story.work(&second, "w", Outcome::Passed);
    assert!(story.run.is_finished());
}

#[test]
fn a_batch_in_the_hand_of_a_worker_whose_slots_are_busy_elsewhere_is_never_given_up() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    for _ in 0..20 {
        let batch = story.take();
        look(&mut story, "q", 1, 120);
        // It had not begun, and heard that nobody wants it any more.
        story.end(&batch, "busy", BatchEnd::Cancelled);
    }
    let batch = story.take();
    story.work(&batch, "busy", Outcome::Passed);
    assert_eq!((story.verdict("a"), story.attempts("a")), (Some(Verdict::Passed), 1));
    assert!(story.run.is_finished());
}

#[test]
fn a_batch_behind_slow_ones_waits_as_long_as_they_take() {
    let mut story = Story::new(policy());
    story.list(&["a", "b"], &[]);
    let slow = story.take_with("a");
    story.say(&slow, "w", Vec::new());
    for _ in 0..600 {
        story.say(&slow, "w", Vec::new());
        look(&mut story, "q", 1, 2);
    }
    assert_eq!(resent(&story), 0, "somebody is at work");
    story.work(&slow, "w", Outcome::Passed);
    look(&mut story, "q", 1, 58);
    assert_eq!(resent(&story), 0);
    look(&mut story, "q", 1, 2);
    assert_eq!(resent(&story), 1, "nobody is any more");
}

#[test]
fn a_batch_is_not_late_for_the_time_in_which_nobody_could_begin_it() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    look(&mut story, "q", 0, 58);
    look(&mut story, "q", 1, 30);
    story.on(seen("q", 0));
    look(&mut story, "q", 1, 50);
    story.on(Input::BrokerLost { reason: "gone".into() });
    story.wait(50_000);
    story.on(Input::BrokerBack);
    look(&mut story, "q", 1, 60);
    assert_eq!(resent(&story), 0);
    look(&mut story, "q", 1, 2);
    assert_eq!(resent(&story), 1);
}

fn lost() -> Input {
    Input::BrokerLost { reason: "connection refused".into() }
}

#[test]
fn a_broker_that_stays_away_is_given_up() {
    let mut story = Story::new(Policy { retries: 1, ..policy() });
    let all = names(0..100);
    let tests: Vec<Listed> =
        all.iter().map(|name| Listed { test: TestId::new("s", name), unit: None }).collect();
    story.on(Input::Listed { tests, units: Vec::new(), remembered: Vec::new() });
    let worked = story.take();
    let begun = story.take();
    story.work(&worked, "w", Outcome::Failed);
    story.say(&begun, "w", Vec::new());
    story.on(lost());
    assert_eq!(
        story.run.wake_at().map(|at| at.since(story.now)),
        Some(Duration::from_millis(100)),
        "the retry"
    );
    story.wait(100);
    story.wait(59_899);
    assert_eq!(story.record.totals().unjudged, 0);
    // One of many reasons to look at the clock.
    story.wait(1);
    assert!(story.run.is_finished(), "though the suite is still listed");
    assert_eq!(story.record.cancelled, Some(CancelReason::BrokerLost));
    let totals = story.record.totals();
    assert_eq!((totals.failed, totals.pending), (worked.1.items.len(), 0));
    assert_eq!(totals.failed + totals.unjudged, 100);
    for name in [item_name(&begun.1.items[0].item), "t99"] {
        let fault = fault_of(&story, name);
        assert_eq!(fault.kind, FaultKind::CannotRun);
        assert!(fault.message.contains("60 s (connection refused)"), "{}", fault.message);
    }
    assert_eq!(story.record.listing_faults.len(), 1, "an end that nobody takes for a whole list");
}

#[test]
fn a_broker_that_comes_back_in_time_is_waited_for_each_time() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    story.say(&batch, "w", Vec::new());
    for _ in 0..3 {
        story.on(lost());
        story.wait(59_000);
        story.on(Input::BrokerBack);
        story.say(&batch, "w", Vec::new());
    }
    story.work(&batch, "w", Outcome::Passed);
    assert_eq!(story.verdict("a"), Some(Verdict::Passed));
    assert_eq!(story.record.cancelled, None);
}

#[test]
fn an_interrupt_without_a_broker_waits_for_nobody() {
    for interrupted_first in [false, true] {
        let mut story = Story::new(policy());
        story.list(&["a", "b", "c"], &[]);
        let batch = story.take();
        story.say(&batch, "w", Vec::new());
        let inputs = [lost(), Input::Interrupt];
        let [first, second] = if interrupted_first { [Input::Interrupt, lost()] } else { inputs };
        story.on(first);
        assert!(!story.run.is_finished());
        story.on(second);
        if interrupted_first {
            // It may come back with the results of what runs.
            assert!(!story.run.is_finished());
            story.wait(60_000);
        }
        assert!(story.run.is_finished());
        assert_eq!(story.record.cancelled, Some(CancelReason::Interrupted));
        assert_eq!(story.record.totals().unjudged, 3);
    }
}

#[test]
fn a_queue_is_not_empty_for_the_time_in_which_the_broker_was_away() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    story.on(seen("q", 0));
    story.on(lost());
    story.wait(59_000);
    story.on(Input::BrokerBack);
    story.wait(2_000);
    story.on(seen("q", 0));
    assert_eq!(story.verdict("a"), None, "its workers connect anew");
}

#[test]
fn a_broken_worker_beside_a_good_one_costs_no_test_its_verdict() {
    let mut story = Story::new(Policy { losses_max: 1, ..policy() });
    story.list_names(&names(0..200));
    let first = story.take();
    story.work(&first, "good", Outcome::Passed);
    let mut rounds = 0;
    while !story.run.is_finished() && rounds < 1_000 {
        // The broken one is the first at the queue, and has all but one each time.
        let mut sent = std::mem::take(&mut story.sent);
        let last = sent.pop();
        for batch in &sent {
            story.on(faulted(batch));
        }
        if let Some(batch) = last {
            story.work(&batch, "good", Outcome::Passed);
        }
        story.wait(300);
        rounds += 1;
    }
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().passed, 200);
}

#[test]
fn what_a_good_worker_can_not_run_is_charged_and_so_is_what_it_leaves_to_a_broken_one() {
    for worker in ["good", "broken"] {
        let mut story = Story::new(policy());
        story.list(&["a", "b"], &[]);
        let first = story.take_with("a");
        story.work(&first, "good", Outcome::Passed);
        for _ in 0..20 {
            while !story.sent.is_empty() {
                let batch = story.take();
                story.end(&batch, worker, BatchEnd::Faulted(no_python()));
            }
            story.wait(300);
        }
        assert!(story.run.is_finished(), "{worker}");
        assert_eq!(fault_of(&story, "b"), no_python());
    }
}

/// A run that bears three losses of a test.
fn fleet(tests: usize, slots_hint: usize) -> Story {
    let mut order = Story::new(Policy { losses_max: 3, ..policy() }).run.order;
    order.slots_hint = slots_hint;
    let mut story = Story::of(order);
    story.list_names(&names(0..tests));
    story
}

#[test]
fn a_refusal_is_not_final_while_another_worker_is_at_work_that_has_no_result_yet() {
    let mut story = fleet(4, 4);
    let begun = story.take();
    story.say(&begun, "good", Vec::new());
    // Its first result takes longer than four refusals.
    for _ in 0..6 {
        while !story.sent.is_empty() {
            let batch = story.take();
            story.on(faulted(&batch));
        }
        story.say(&begun, "good", Vec::new());
        story.wait(300);
    }
    assert_eq!(story.record.totals().unjudged, 0);
    story.work(&begun, "good", Outcome::Passed);
    while !story.sent.is_empty() {
        let batch = story.take();
        story.work(&batch, "good", Outcome::Passed);
    }
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().passed, 4);
}

#[test]
fn what_one_of_two_good_workers_refuses_is_left_to_the_other() {
    for other_can in [true, false] {
        let mut story = fleet(9, 2);
        let special = "t3";
        let asks =
            |batch: &(BatchId, BatchOrder)| batch.1.items.iter().any(|item| item_name(&item.item) == special);
        let mut refusals = 0;
        while !story.run.is_finished() {
            let sent = std::mem::take(&mut story.sent);
            for (at, batch) in sent.into_iter().enumerate() {
                // Both bring results. One lacks what a test needs, and is first at the queue six times.
                let lacks = if asks(&batch) { refusals < 6 } else { at % 2 == 0 };
                let worker = if lacks { "lacks" } else { "has" };
                if asks(&batch) && (worker == "lacks" || !other_can) {
                    refusals += 1;
                    story.end(&batch, worker, BatchEnd::Faulted(no_python()));
                } else {
                    story.work(&batch, worker, Outcome::Passed);
                }
            }
            story.wait(300);
        }
        let totals = story.record.totals();
        let expected = if other_can { (9, 0) } else { (8, 1) };
        assert_eq!((totals.passed, totals.unjudged), expected, "other_can: {other_can}");
    }
}
