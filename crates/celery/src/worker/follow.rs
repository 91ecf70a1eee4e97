//! The steps that follow a task: the next one of a chain, and what is linked to its success or failure. In Celery the
//! worker that ran a task publishes them. Pure: new ids come in.
//!
//! Groups and chords as a step are beyond it: they need a result backend that counts, which `rpc://` isn't. A task
//! with such a step is refused before it runs, since to run it alone would lose the step silently.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::app::App;
use crate::client::{describe_args, describe_kwargs};
use crate::wire::{RawJson, TaskMessage};

/// A task to publish.
#[derive(Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) message: TaskMessage,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

/// A call as Celery writes it into another message.
#[derive(Debug, Clone, Deserialize)]
struct Signature {
    task: String,
    #[serde(default)]
    args: Vec<RawJson>,
    #[serde(default)]
    kwargs: Option<RawJson>,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(default)]
    subtask_type: Option<String>,
    #[serde(default)]
    immutable: bool,
}

impl Signature {
    fn read(text: &RawJson) -> Result<Self, String> {
        let signature: Self =
            text.to().map_err(|error| format!("a following step can't be read: {error}"))?;
        match &signature.subtask_type {
            None => Ok(signature),
            Some(kind) => Err(format!("a following step is a {kind}, which this worker can't go on with")),
        }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(Value::as_str)
    }

    /// The message that calls it, after `parent`, with `first` as its first argument unless it is immutable.
    fn step(
        &self,
        app: &App,
        parent: &TaskMessage,
        first: Option<&RawJson>,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Step, String> {
        let id = self.option("task_id").map_or_else(&mut *new_id, str::to_owned);
        let mut message = TaskMessage::new(self.task.as_str(), id);
        message.args = first.filter(|_| !self.immutable).into_iter().chain(&self.args).cloned().collect();
        if let Some(kwargs) = self.kwargs.as_ref().filter(|kwargs| !kwargs.is_null()) {
            message.kwargs =
                kwargs.to_entries().map_err(|error| format!("a following step can't be read: {error}"))?;
        }
        message.argsrepr = Some(describe_args(&message.args));
        message.kwargsrepr = Some(describe_kwargs(&message.kwargs));
        message.root_id = parent.root_id.clone().or_else(|| Some(parent.id.clone()));
        message.parent_id = Some(parent.id.clone());
        message.reply_to = self.option("reply_to").map(str::to_owned);
        message.priority = self
            .options
            .get("priority")
            .and_then(Value::as_u64)
            .and_then(|priority| u8::try_from(priority).ok());
        message.ignore_result = self.options.get("ignore_result").and_then(Value::as_bool).or(Some(false));
        let seconds = |name: &str| self.options.get(name).and_then(Value::as_f64);
        message.timelimit = (seconds("time_limit"), seconds("soft_time_limit"));
        message.embed.callbacks = self.list("link")?;
        message.embed.errbacks = self.list("link_error")?;
        let (exchange, routing_key) =
            match (self.option("queue"), self.option("exchange"), self.option("routing_key")) {
                (Some(queue), _, _) => (String::new(), queue),
                (None, Some(exchange), Some(key)) => (exchange.to_owned(), key),
                (None, None, Some(key)) => (String::new(), key),
                (None, _, None) => (String::new(), app.queue_of(&self.task)),
            };
        Ok(Step { message, exchange, routing_key: routing_key.to_owned() })
    }

    fn list(&self, option: &str) -> Result<Option<Vec<RawJson>>, String> {
        let many = match self.options.get(option) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(many)) => many.iter().map(RawJson::of).collect::<Result<_, _>>(),
            Some(one) => RawJson::of(one).map(|one| vec![one]),
        };
        many.map(Some).map_err(|error| format!("a following step can't be written: {error}"))
    }
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
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Step>, String> {
    let callbacks = message.embed.callbacks.as_deref().unwrap_or_default();
    // Celery puts two or more callbacks into a new group, and a single one into none.
    let group = (callbacks.len() > 1).then(&mut *new_id);
    let mut steps = linked(app, message, callbacks, result, group.as_deref(), new_id)?;
    // A chain is written last step first.
    if let Some((next, rest)) = message.embed.chain.as_deref().and_then(<[_]>::split_last) {
        let mut step = Signature::read(next)?.step(app, message, Some(result), new_id)?;
        step.message.embed.chain = Some(rest.to_vec());
        steps.push(step);
    }
    Ok(steps)
}

/// What is published when the task has failed for good, after its result is.
pub(crate) fn after_failure(
    app: &App,
    message: &TaskMessage,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Step>, String> {
    let errbacks = message.embed.errbacks.as_deref().unwrap_or_default();
    if errbacks.is_empty() {
        return Ok(Vec::new());
    }
    let failed = RawJson::of(&message.id).map_err(|error| error.to_string())?;
    let group = new_id();
    linked(app, message, errbacks, &failed, Some(&group), new_id)
}

fn linked(
    app: &App,
    message: &TaskMessage,
    links: &[RawJson],
    first: &RawJson,
    group: Option<&str>,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Vec<Step>, String> {
    let mut steps = Vec::with_capacity(links.len());
    for (index, link) in (0..).zip(links) {
        let mut step = Signature::read(link)?.step(app, message, Some(first), new_id)?;
        if let Some(group) = group {
            step.message.group = Some(group.to_owned());
            step.message.group_index = Some(index);
        }
        steps.push(step);
    }
    Ok(steps)
}

/// Who waits for the later steps of a chain whose step has failed: their ids and reply queues.
pub(crate) fn waiting_for_chain(message: &TaskMessage) -> Vec<(String, String)> {
    let steps = message.embed.chain.iter().flatten().filter_map(|step| Signature::read(step).ok());
    steps
        .filter_map(|step| Some((step.option("task_id")?.to_owned(), step.option("reply_to")?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let steps = after_success(&app, &first, &RawJson::of(&7).unwrap(), &mut ids()).unwrap();
        assert_eq!(
            shown(&steps),
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
        let steps = after_success(&App::new("test"), &linked, &RawJson::of(&2).unwrap(), &mut ids()).unwrap();
        assert_eq!(
            shown(&steps),
            [
                "proj.add(2 10) new2 to celery, group new1, reply to -, after first of root, then 0",
                "proj.add(5 5) new3 to q, group new1, reply to -, after first of root, then 0",
            ]
        );
        let failing = message(r#"{"errbacks": [{"task": "report", "args": [], "options": {}}]}"#);
        let steps = after_failure(&App::new("test"), &failing, &mut ids()).unwrap();
        assert_eq!(
            shown(&steps),
            [r#"report("first") new2 to celery, group new1, reply to -, after first of root, then 0"#]
        );
        assert_eq!(after_failure(&App::new("test"), &message("{}"), &mut ids()), Ok(Vec::new()));
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
