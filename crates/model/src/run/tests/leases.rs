//! Stories of leases: who is believed to work, who falls silent, and a dispatcher that was stopped itself.

use super::super::leases::RETURNS_MAX;
use super::*;

#[test]
fn a_lost_workers_open_tests_go_to_others_and_its_late_results_change_nothing() {
    let mut story = Story::new(policy());
    story.list(&["a", "b"], &[]);
    let held = story.take();
    let tokens: Vec<Token> = held.1.items.iter().map(|item| item.token).collect();
    assert_eq!(tokens.len(), 1, "two unknown tests make two batches");
    story.say(&held, "frozen", vec![Fact::Started { test: "a".into(), token: tokens[0] }]);
    story.wait(3 * BEAT_MS);
    assert!(story.saw(|event| matches!(event, RunEvent::WorkerLost { tests: 1, .. })));
    assert_eq!(story.revoked, [(held.0.clone(), true)]);
    let other = story.take();
    story.work(&other, "w", Outcome::Passed);
    let again = story.take();
    assert!(again.1.lease > held.1.lease);
    story.work(&again, "w", Outcome::Passed);
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().passed, 2);
}

#[test]
fn a_late_result_is_recorded_as_late() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let held = story.take();
    story.say(&held, "frozen", Vec::new());
    story.wait(3 * BEAT_MS);
    let again = story.take();
    story.say(&held, "frozen", vec![finished("a", held.1.items[0].token, Outcome::Failed)]);
    story.end(&held, "frozen", BatchEnd::Done);
    assert_eq!(story.verdict("a"), None, "the late result changes nothing");
    assert_eq!(story.record.late.len(), 1);
    story.work(&again, "w", Outcome::Passed);
    assert_eq!(story.verdict("a"), Some(Verdict::Passed));
    assert_eq!(story.attempts("a"), 1);
}

#[test]
fn a_beat_keeps_the_lease() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    for _ in 0..10 {
        story.say(&batch, "w", Vec::new());
        story.wait(2 * BEAT_MS);
    }
    story.work(&batch, "w", Outcome::Passed);
    assert_eq!(story.verdict("a"), Some(Verdict::Passed));
    assert!(!story.saw(|event| matches!(event, RunEvent::WorkerLost { .. })));
}

#[test]
fn a_test_that_is_lost_too_often_is_a_fault_and_its_neighbours_are_not() {
    let mut story = Story::new(Policy { losses_max: 1, ..policy() });
    story.list(&["killer"], &[]);
    for worker in ["w1", "w2"] {
        let batch = story.take();
        story.say(
            &batch,
            worker,
            vec![Fact::Started { test: "killer".into(), token: batch.1.items[0].token }],
        );
        story.wait(3 * BEAT_MS);
    }
    assert_eq!(story.verdict("killer"), Some(Verdict::Unjudged));
    assert!(story.run.is_finished());
}

#[test]
fn a_returned_batch_that_nobody_began_goes_out_again_at_once() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    story.end(&batch, "w2", BatchEnd::Returned);
    let again = story.take();
    assert_ne!(again.0, batch.0);
}

#[test]
fn workers_that_stop_cost_no_test_its_verdict() {
    let mut story = Story::new(policy());
    story.list(&["a", "b"], &[]);
    for n in 0..RETURNS_MAX {
        // Each had it in its hand, was told to stop before a slot was free, and gave it back.
        let batch = story.take();
        story.end(&batch, &format!("w{n}"), BatchEnd::Returned);
    }
    assert!(!story.saw(|event| matches!(event, RunEvent::WorkerLost { .. })), "nobody is lost");
    while !story.sent.is_empty() {
        let batch = story.take();
        story.work(&batch, "w", Outcome::Passed);
    }
    assert!(story.run.is_finished());
    assert_eq!(story.record.totals().passed, 2);
}

#[test]
fn a_batch_that_ends_its_workers_before_their_first_word_does_so_for_a_while() {
    let mut story = Story::new(policy());
    story.list(&["killer"], &[]);
    let mut returns = 0;
    while !story.run.is_finished() {
        let batch = story.take();
        story.end(&batch, "w", BatchEnd::Returned);
        returns += 1;
    }
    assert_eq!(returns, RETURNS_MAX + story.run.order.policy.losses_max + 1);
    let test = story.record.test(&TestId::new("s", "killer")).expect("listed");
    let judgement = test.attempts.last().map(|attempt| attempt.judgement.clone());
    assert!(matches!(judgement, Some(crate::Judgement::Fault(fault)) if fault.kind == FaultKind::WorkerLost));
}

#[test]
fn a_returned_batch_stays_with_its_holder_while_that_beats() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    story.say(&batch, "w1", Vec::new());
    story.end(&batch, "w2", BatchEnd::Returned);
    story.wait(BEAT_MS);
    assert!(story.sent.is_empty(), "it may still live");
    story.say(&batch, "w1", Vec::new());
    story.wait(2 * BEAT_MS);
    assert!(story.sent.is_empty(), "it lives: a full lease again");
    story.wait(BEAT_MS);
    assert_eq!(story.sent.len(), 1, "it does not");
}

#[test]
fn a_dispatcher_that_slept_does_not_take_that_for_the_silence_of_others() {
    let lost = |story: &Story| story.saw(|event| matches!(event, RunEvent::WorkerLost { .. }));
    // (awake since the last beat, asleep, awake after that, whether the worker is lost then)
    for (before, asleep, after, expected) in [
        (0, BEAT_MS, 2 * BEAT_MS - 1, false),
        // Shorter than a beat: whoever lives is heard before the lease is over.
        (0, BEAT_MS, 2 * BEAT_MS, true),
        (0, BEAT_MS + 1, 2 * BEAT_MS, false),
        (BEAT_MS, 9 * BEAT_MS, 3 * BEAT_MS - 1, false),
        (BEAT_MS, 9 * BEAT_MS, 3 * BEAT_MS, true),
        (2 * BEAT_MS, 3_600_000, 3 * BEAT_MS - 1, false),
        (0, 0, 3 * BEAT_MS, true),
    ] {
        // Whatever wakes it first: the lease's alarm, or another worker.
        for alarm in [true, false] {
            let mut story = Story::new(policy());
            story.list(&["a"], &[]);
            let batch = story.take();
            story.say(&batch, "w", Vec::new());
            story.wait(before);
            story.sleep(asleep);
            story.on(if alarm {
                Input::Tick
            } else {
                Input::QueueSeen { queue: "q".into(), consumers: 1, ready: 0 }
            });
            story.wait(after);
            assert_eq!(lost(&story), expected, "{before} {asleep} {after}");
        }
    }
}

#[test]
fn a_dispatcher_that_slept_waits_anew_for_workers_and_broker() {
    let seen = |story: &mut Story| {
        story.on(Input::QueueSeen { queue: "q".into(), consumers: 0, ready: 1 });
    };
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    seen(&mut story);
    story.sleep(3_600_000);
    seen(&mut story);
    story.wait(59_999);
    seen(&mut story);
    assert_eq!(story.verdict("a"), None);
    story.wait(1);
    seen(&mut story);
    assert_eq!(story.verdict("a"), Some(Verdict::Unjudged), "it had 60 s, awake");

    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    story.on(Input::BrokerLost { reason: "gone".into() });
    story.sleep(3_600_000);
    story.wait(59_999);
    assert!(!story.run.is_finished(), "it had not 60 s yet, awake");
    story.wait(1);
    assert!(story.run.is_finished());
}

#[test]
fn leases_wait_while_the_broker_is_away() {
    let mut story = Story::new(policy());
    story.list(&["a"], &[]);
    let batch = story.take();
    story.say(&batch, "w", Vec::new());
    story.on(Input::BrokerLost { reason: "gone".into() });
    story.wait(100 * BEAT_MS);
    story.on(Input::BrokerBack);
    story.wait(BEAT_MS);
    assert!(!story.saw(|event| matches!(event, RunEvent::WorkerLost { .. })));
    story.work(&batch, "w", Outcome::Passed);
    assert!(story.run.is_finished());
}
