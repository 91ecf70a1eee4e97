//! Stories of queues that nobody works on, lanes that can't be worked on, and a broker that stays away.

use super::*;

/// A run whose tests `gpu*` go to a queue of their own.
fn with_gpu() -> Story {
    let mut order = Story::new(policy()).run.order;
    let pattern = globset::Glob::new("gpu*").unwrap().compile_matcher();
    order.suites[0].routes.push(Route { pattern, queue: "gpu".into() });
    Story::of(order)
}

fn seen(queue: &str, consumers: u32) -> Input {
    Input::QueueSeen { queue: queue.into(), consumers }
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
