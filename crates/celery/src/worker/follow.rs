//! The steps that follow a task: the next one of a chain, and what is linked to its success or failure. In Celery the
//! worker that ran a task publishes them. Pure: the time and new ids come in.
//!
//! A step may be a task, a chain or a group of those. Chords, and whatever comes after a group, are beyond it: they need a
//! result backend that counts, which `rpc://` isn't. A task with such a step is refused before it runs, since to run it
//! alone would lose the step silently.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::app::App;
use crate::wire::{RawJson, TaskMessage};
use crate::worker::signature::{Signature, Step, text};

/// What is published when a task has ended.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Following {
    pub(crate) steps: Vec<Step>,
    /// What its result tells of them: Celery's form of results that are still to come.
    pub(crate) children: Vec<Value>,
}

impl Following {
    fn extend(&mut self, more: Self) {
        self.steps.extend(more.steps);
        self.children.extend(more.children);
    }
}

/// How a task's result names another one.
pub(crate) fn child(id: &str) -> Value {
    json!([[id, null], null])
}

/// Whether this worker can go on with everything that follows the task, as far as it is its turn.
pub(crate) fn check(app: &App, message: &TaskMessage, now: SystemTime) -> Result<(), String> {
    if message.embed.chord.is_some() {
        return Err("it is part of a chord, which this worker can't go on with".to_owned());
    }
    after_success(app, message, &RawJson::null(), now, &mut String::new)?;
    after_failure(app, message, now, &mut String::new)?;
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
    let mut plan = Plan { app, message, first: result, now, new_id };
    let mut following = Following::default();
    match message.embed.callbacks.as_deref().unwrap_or_default() {
        [] => {}
        [one] => following.extend(plan.call(Signature::read(one)?, None)?),
        // Celery puts two or more into a new group, but for those that are groups.
        several => {
            let links = several.iter().map(Signature::read).collect::<Result<Vec<_>, _>>()?;
            let (groups, tasks): (Vec<_>, Vec<_>) =
                links.into_iter().partition(|link| link.kind.as_deref() == Some("group"));
            for group in groups {
                following.extend(plan.call(group, None)?);
            }
            if !tasks.is_empty() {
                following.extend(plan.members(Signature::default(), tasks)?);
            }
        }
    }
    // A chain is written last step first.
    if let Some((next, rest)) = message.embed.chain.as_deref().and_then(<[_]>::split_last) {
        following.extend(plan.call(Signature::read(next)?, Some(rest))?);
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
    let links = errbacks.iter().map(Signature::read).collect::<Result<_, _>>()?;
    let mut plan = Plan { app, message, first: &text(&message.id), now, new_id };
    Ok(plan.members(Signature::default(), links)?.steps)
}

/// Makes steps of calls.
struct Plan<'a> {
    app: &'a App,
    /// What they follow.
    message: &'a TaskMessage,
    /// The first argument of each, unless it is immutable.
    first: &'a RawJson,
    now: SystemTime,
    new_id: &'a mut dyn FnMut() -> String,
}

impl Plan<'_> {
    /// A task, a chain or a group, with the rest of the chain that it is the next step of.
    fn call(&mut self, mut call: Signature, rest: Option<&[RawJson]>) -> Result<Following, String> {
        match call.kind.as_deref() {
            Some("group") if rest.is_none_or(<[_]>::is_empty) => {
                let members = call.members()?;
                return self.members(call, members);
            }
            Some("group") => {
                return Err("steps follow a group, which this worker can't go on with".to_owned());
            }
            Some("chain") => call = self.first_of_chain(call, rest.unwrap_or_default())?.0,
            _ => {
                if let Some(rest) = rest {
                    call.set_option("chain", RawJson::array(rest.iter()));
                }
            }
        }
        let step = self.step(call)?;
        let children = if step.is_child { vec![child(&step.message.id)] } else { Vec::new() };
        Ok(Following { steps: vec![step], children })
    }

    /// The members of a group.
    fn members(&mut self, mut group: Signature, members: Vec<Signature>) -> Result<Following, String> {
        let id = group.id(self.new_id);
        group.take_option("task_id");
        group.take_option("group_id");
        let (mut steps, mut results) = (Vec::with_capacity(members.len()), Vec::with_capacity(members.len()));
        for (index, mut member) in members.into_iter().enumerate() {
            member.inherit(&group);
            if member.option("group_id").is_none() {
                member.set_option("group_id", text(&id));
            }
            member.set_option("group_index", RawJson::of(&index).map_err(|error| error.to_string())?);
            let mut result = None;
            if member.kind.as_deref() == Some("chain") {
                let (first, last) = self.first_of_chain(member, &[])?;
                (member, result) = (first, Some(last));
            }
            let step = self.step(member)?;
            results.push(result.unwrap_or_else(|| child(&step.message.id)));
            steps.push(step);
        }
        Ok(Following { steps, children: vec![json!([[id, null], results])] })
    }

    /// The first task of a chain, which carries the others and `rest`, and how a result names the whole: by its last
    /// task, and those before it as its parents.
    fn first_of_chain(
        &mut self,
        mut chain: Signature,
        rest: &[RawJson],
    ) -> Result<(Signature, Value), String> {
        let mut tasks = chain.members()?;
        if let Some(last) = tasks.last_mut() {
            for name in ["task_id", "group_id", "group_index", "chord"] {
                let is_own = matches!(name, "task_id" | "group_id") && last.option(name).is_some();
                if let Some(value) = chain.take_option(name).filter(|_| !is_own) {
                    last.set_option(name, value);
                }
            }
            if let Some(links) = chain.take_option("link") {
                last.extend_option("link", &links);
            }
        }
        let errbacks = chain.take_option("link_error");
        let mut result = Value::Null;
        for task in &mut tasks {
            if let Some(kind) = &task.kind {
                return Err(format!("a {kind} follows in a chain, which this worker can't go on with"));
            }
            if let Some(errbacks) = &errbacks {
                task.extend_option("link_error", errbacks);
            }
            result = json!([[task.id(self.new_id), result], null]);
        }
        let mut first = tasks.remove(0);
        first.inherit(&chain);
        if !first.immutable {
            first.args.splice(0..0, chain.args);
            first.immutable = chain.immutable;
        }
        let later: Vec<RawJson> = tasks.iter().rev().map(Signature::to_json).collect();
        first.set_option("chain", RawJson::array(rest.iter().chain(&later)));
        Ok((first, result))
    }

    fn step(&mut self, call: Signature) -> Result<Step, String> {
        let queue = self.app.queue_of(&call.task).to_owned();
        call.step(&queue, self.message, Some(self.first), self.now, self.new_id)
    }
}

/// Who waits for the later steps of a chain whose step has failed: their ids and reply queues.
pub(crate) fn waiting_for_chain(message: &TaskMessage) -> Vec<(String, String)> {
    let mut waiting = Vec::new();
    let steps = message.embed.chain.iter().flatten();
    let mut steps: Vec<Signature> = steps.filter_map(|step| Signature::read(step).ok()).collect();
    steps.reverse();
    while let Some(step) = steps.pop() {
        if let (Some(id), Some(reply_to)) = (step.text_option("task_id"), step.text_option("reply_to")) {
            waiting.push((id, reply_to));
        }
        // Who waits for a group waits for each of its members.
        if step.kind.is_some() {
            steps.extend(step.members().unwrap_or_default());
        }
    }
    waiting
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
        assert_eq!(check(&app, &first, NOW), Ok(()));
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
    fn a_group_or_a_chain_follows_as_a_whole() {
        let task =
            |name: &str| format!(r#"{{"task": "{name}", "args": [], "options": {{"task_id": "{name}"}}}}"#);
        let (a, b, c) = (task("a"), task("b"), task("c"));
        let chain = format!(
            r#"{{"task": "celery.chain", "kwargs": {{"tasks": [{b}, {c}]}}, "subtask_type": "chain"}}"#
        );
        let group = format!(
            r#"{{"task": "celery.group", "kwargs": {{"tasks": [{a}, {chain}]}}, "options": {{"task_id": "all", "queue": "q"}},
                "subtask_type": "group"}}"#
        );
        let app = App::new("test");
        let result = RawJson::of(&2).unwrap();
        let next = message(&format!(r#"{{"chain": [{group}]}}"#));
        let following = after_success(&app, &next, &result, NOW, &mut ids()).unwrap();
        let members = [
            "a(2) a to q, group all, reply to -, after first of root, then 0",
            "b(2) b to q, group -, reply to -, after first of root, then 1",
        ];
        assert_eq!(shown(&following.steps), members);
        let last = json!([["c", [["b", null], null]], null]);
        assert_eq!(following.children, [json!([["all", null], [child("a"), last]])]);
        let rest = following.steps[1].message.embed.chain.as_ref().unwrap();
        let last = Signature::read(&rest[0]).unwrap();
        assert_eq!(
            last.text_option("group_id").as_deref(),
            Some("all"),
            "the last of a chain is in the group"
        );

        let linked = message(&format!(r#"{{"callbacks": [{chain}]}}"#));
        let following = after_success(&app, &linked, &result, NOW, &mut ids()).unwrap();
        assert_eq!(
            shown(&following.steps),
            ["b(2) b to celery, group -, reply to -, after first of root, then 1"]
        );
        assert_eq!(following.children, [child("b")]);
    }

    #[test]
    fn what_it_cant_go_on_with_is_said() {
        let group =
            r#"{"task": "celery.group", "kwargs": {"tasks": [{"task": "x"}]}, "subtask_type": "group"}"#;
        let chord = r#"{"task": "celery.chord", "subtask_type": "chord"}"#;
        for (embed, reason) in [
            (
                r#"{"chord": {"task": "x"}}"#.to_owned(),
                "it is part of a chord, which this worker can't go on with",
            ),
            (
                format!(r#"{{"chain": [{chord}]}}"#),
                "a following step is a chord, which this worker can't go on with",
            ),
            (
                format!(r#"{{"chain": [{{"task": "x"}}, {group}]}}"#),
                "steps follow a group, which this worker can't go on with",
            ),
        ] {
            assert_eq!(check(&App::new("test"), &message(&embed), NOW), Err(reason.to_owned()));
        }
        assert!(check(&App::new("test"), &message(r#"{"callbacks": [7]}"#), NOW).is_err());
    }
}
