//! The steps that follow a task: the next one of a chain, and what is linked to its success or failure. In Celery the
//! worker that ran a task publishes them. Pure: new ids come in.
//!
//! Groups and chords as a step are beyond it: they need a result backend that counts, which `rpc://` isn't. A task
//! with such a step is refused before it runs, since to run it alone would lose the step silently.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::app::App;
use crate::wire::{RawJson, TaskMessage};
use crate::worker::signature::{Signature, Step};

/// What is published when a task has succeeded.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Following {
    pub(crate) steps: Vec<Step>,
    /// What its result tells of them: Celery's form of results that are still to come.
    pub(crate) children: Vec<Value>,
}

/// How a task's result names another one.
pub(crate) fn child(id: &str) -> Value {
    json!([[id, null], null])
}

/// Whether this worker can go on with everything that follows the task, as far as it is its turn.
pub(crate) fn check(message: &TaskMessage) -> Result<(), String> {
    let embed = &message.embed;
    if embed.chord.is_some() {
        return Err("it is part of a chord, which this worker can't go on with".to_owned());
    }
    let next = embed.chain.iter().filter_map(|chain| chain.last());
    for step in next.chain(embed.callbacks.iter().flatten()).chain(embed.errbacks.iter().flatten()) {
        Signature::read(step)?;
    }
    Ok(())
}

/// What is published when the task has succeeded, before its result is.
pub(crate) fn after_success(
    app: &App,
    message: &TaskMessage,
    result: &RawJson,
    now: SystemTime,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Following, String> {
    let callbacks = message.embed.callbacks.as_deref().unwrap_or_default();
    // Celery puts two or more callbacks into a new group, and a single one into none.
    let group = (callbacks.len() > 1).then(&mut *new_id);
    let steps = linked(app, message, callbacks, result, group.as_deref(), now, new_id)?;
    let named = match &group {
        Some(group) => {
            let members: Vec<Value> = steps.iter().map(|step| child(&step.message.id)).collect();
            vec![json!([[group, null], members])]
        }
        None => children(&steps),
    };
    let mut following = Following { steps, children: named };
    // A chain is written last step first.
    if let Some((next, rest)) = message.embed.chain.as_deref().and_then(<[_]>::split_last) {
        let mut step = step(app, message, next, result, now, new_id)?;
        step.message.embed.chain = Some(rest.to_vec());
        following.children.extend(children(std::slice::from_ref(&step)));
        following.steps.push(step);
    }
    Ok(following)
}

/// What is published when the task has failed for good, after its result is.
pub(crate) fn after_failure(
    app: &App,
    message: &TaskMessage,
    now: SystemTime,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Step>, String> {
    let errbacks = message.embed.errbacks.as_deref().unwrap_or_default();
    if errbacks.is_empty() {
        return Ok(Vec::new());
    }
    let failed = RawJson::of(&message.id).map_err(|error| error.to_string())?;
    let group = new_id();
    linked(app, message, errbacks, &failed, Some(&group), now, new_id)
}

fn linked(
    app: &App,
    message: &TaskMessage,
    links: &[RawJson],
    first: &RawJson,
    group: Option<&str>,
    now: SystemTime,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::with_capacity(links.len());
    for (index, link) in (0..).zip(links) {
        let mut step = step(app, message, link, first, now, new_id)?;
        if let Some(group) = group {
            step.message.group.get_or_insert_with(|| group.to_owned());
            step.message.group_index = Some(index);
        }
        steps.push(step);
    }
    Ok(steps)
}

fn step(
    app: &App,
    message: &TaskMessage,
    call: &RawJson,
    first: &RawJson,
    now: SystemTime,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Step, String> {
    let signature = Signature::read(call)?;
    let queue = app.queue_of(&signature.task).to_owned();
    Ok(signature.step(&queue, message, Some(first), now, new_id))
}

fn children(steps: &[Step]) -> Vec<Value> {
    steps.iter().filter(|step| step.is_child).map(|step| child(&step.message.id)).collect()
}

/// Who waits for the later steps of a chain whose step has failed: their ids and reply queues.
pub(crate) fn waiting_for_chain(message: &TaskMessage) -> Vec<(String, String)> {
    let steps = message.embed.chain.iter().flatten();
    steps
        .filter_map(|step| {
            // The rest of it may be what this worker can't go on with.
            let options = &step.to::<Value>().ok()?["options"];
            let text = |name: &str| options[name].as_str().map(str::to_owned);
            Some((text("task_id")?, text("reply_to")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn message(embed: &str) -> TaskMessage {
        let mut message = TaskMessage::new("proj.add", "first");
        message.root_id = Some("root".to_owned());
        let embed = RawJson::parse(embed).unwrap();
        for (name, value) in embed.to_entries().unwrap() {
            let list = || Some(value.to_elements().unwrap());
            match name.as_str() {
                "chain" => message.embed.chain = list(),
                "callbacks" => message.embed.callbacks = list(),
                "errbacks" => message.embed.errbacks = list(),
                _ => message.embed.chord = Some(value),
            }
        }
        message
    }

    fn ids() -> impl FnMut() -> String {
        let mut next = 0;
        move || {
            next += 1;
            format!("new{next}")
        }
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        let text = |texts: &[RawJson]| texts.iter().map(RawJson::as_str).collect::<Vec<_>>().join(" ");
        let show = |step: &Step| {
            let Step { message, routing_key, .. } = step;
            let group = message.group.as_deref().unwrap_or("-");
            let reply_to = message.reply_to.as_deref().unwrap_or("-");
            let parent = message.parent_id.as_deref().unwrap_or("-");
            let root = message.root_id.as_deref().unwrap_or("-");
            format!(
                "{}({}) {} to {routing_key}, group {group}, reply to {reply_to}, after {parent} of {root}, then {}",
                message.task,
                text(&message.args),
                message.id,
                message.embed.chain.as_ref().map_or(0, Vec::len),
            )
        };
        steps.iter().map(show).collect()
    }

    #[test]
    fn a_chain_goes_on_with_its_last_element() {
        let first = message(
            r#"{"chain": [
                {"task": "proj.add", "args": [4], "options": {"task_id": "third", "reply_to": "oid"}},
                {"task": "proj.mul", "args": [3], "kwargs": {}, "options": {"task_id": "second", "reply_to": "oid"}}
            ]}"#,
        );
        let app = App::new("test").route("proj.mul", "numbers");
        assert_eq!(check(&first), Ok(()));
        let following = after_success(&app, &first, &RawJson::of(&7).unwrap(), NOW, &mut ids()).unwrap();
        assert_eq!(following.children, [child("second")]);
        assert_eq!(
            shown(&following.steps),
            ["proj.mul(7 3) second to numbers, group -, reply to oid, after first of root, then 1"]
        );
        let waiting = waiting_for_chain(&first);
        assert_eq!(waiting, [("third", "oid"), ("second", "oid")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn links_take_the_result_unless_they_are_immutable() {
        let linked = message(
            r#"{"callbacks": [
                {"task": "proj.add", "args": [10], "kwargs": {}, "options": {}, "immutable": false},
                {"task": "proj.add", "args": [5, 5], "kwargs": {}, "options": {"queue": "q"}, "immutable": true}
            ]}"#,
        );
        let result = RawJson::of(&2).unwrap();
        let following = after_success(&App::new("test"), &linked, &result, NOW, &mut ids()).unwrap();
        assert_eq!(following.children, [json!([["new1", null], [child("new2"), child("new3")]])]);
        assert_eq!(
            shown(&following.steps),
            [
                "proj.add(2 10) new2 to celery, group new1, reply to -, after first of root, then 0",
                "proj.add(5 5) new3 to q, group new1, reply to -, after first of root, then 0",
            ]
        );
        let failing = message(r#"{"errbacks": [{"task": "report", "args": [], "options": {}}]}"#);
        let steps = after_failure(&App::new("test"), &failing, NOW, &mut ids()).unwrap();
        assert_eq!(
            shown(&steps),
            [r#"report("first") new2 to celery, group new1, reply to -, after first of root, then 0"#]
        );
        assert_eq!(after_failure(&App::new("test"), &message("{}"), NOW, &mut ids()), Ok(Vec::new()));
    }

    #[test]
    fn what_it_cant_go_on_with_is_said() {
        let group = r#"{"chain": [{"task": "celery.group", "args": [], "subtask_type": "group"}]}"#;
        for (embed, reason) in [
            (group, "a following step is a group, which this worker can't go on with"),
            (r#"{"chord": {"task": "x"}}"#, "it is part of a chord, which this worker can't go on with"),
        ] {
            assert_eq!(check(&message(embed)), Err(reason.to_owned()));
        }
        assert!(check(&message(r#"{"callbacks": [7]}"#)).is_err());
    }
}
