"""The Python side of the interoperability tests: one Celery application, used as a worker and as a client.

As a worker:  celery -A peer worker …     (with PEER_BROKER in the environment)
As a client:  python peer.py              one JSON command a line on stdin, one JSON answer a line on stdout
"""

import json
import os
import sys
import time
from datetime import datetime, timedelta, timezone

import celery
from celery import Celery

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend="rpc://")
app.conf.update(
    task_default_queue=os.environ.get("PEER_QUEUE", "python"),
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
    result_serializer=os.environ.get("PEER_RESULT_SERIALIZER", "json"),
)


@app.task(name="peer.add")
def add(x, y=1):
    return x + y


@app.task(name="peer.fail")
def fail(text):
    raise ValueError(text, 42)


@app.task(name="peer.progress", bind=True)
def progress(self):
    self.update_state(state="PROGRESS", meta={"done": 3, "total": 10})
    return "ready"


@app.task(name="peer.once_more", bind=True, max_retries=2)
def once_more(self, value):
    if self.request.retries < 1:
        raise self.retry(exc=KeyError("flaky"), countdown=0.1)
    return [value, self.request.retries]


@app.task(name="peer.now")
def now(*args):
    return time.time()


@app.task(name="peer.request", bind=True)
def request(self, *args, **kwargs):
    """What the message of this call says, but for what differs from one sending to the next."""
    request = self.request
    followers = dict(callbacks=request.callbacks, errbacks=request.errbacks, chain=request.chain, chord=request.chord)
    names = (
        "eta expires shadow timelimit argsrepr kwargsrepr group group_index retries stamped_headers stamps"
        " replaced_task_nesting reply_to build"
    )
    told = {name: getattr(request, name, None) for name in names.split()}
    info = {name: request.delivery_info[name] for name in ("exchange", "routing_key", "priority")}
    own = {name: request.properties.get(name) for name in ("delivery_mode", "content_type")}
    lives = request.properties.get("expiration")
    return dict(
        told, args=args, kwargs=kwargs, followers=followers, info=info, own=own, lives=lives is not None,
        follows=request.parent_id == request.root_id,
    )


#: What the times of a command count from.
BEGAN = datetime.now(timezone.utc).replace(microsecond=0)


def signatures(steps):
    """Calls of [task, args, queue, options], and {"group" or "chain": […]}; a time is [seconds from the beginning]."""
    for step in steps:
        if isinstance(step, dict):
            [(kind, members)] = step.items()
            yield getattr(celery, kind)(*signatures(members))
            continue
        task, args, queue, *options = step
        options = {
            name: BEGAN + timedelta(seconds=value[0]) if name in ("eta", "expires") and isinstance(value, list) else value
            for name, value in (options[0] if options else {}).items()
        }
        yield app.signature(task, args=args, options={"queue": queue, **options})


def call(command):
    """Sends a task and tells every state that came back, and the result or the exception."""
    options = dict(queue=command["queue"], **command.get("options", {}))
    started = time.time()
    args = command.get("args")
    if "file_name" in command:
        # As Python reads names of files that aren't UTF-8: with lone surrogates.
        args = [os.fsdecode(bytes.fromhex(command["file_name"]))]
    result = app.send_task(command["task"], args=args, kwargs=command.get("kwargs"), **options)
    if command.get("no_wait"):
        return {"id": result.id}
    states, children = [], []
    answer = {"id": result.id, "children": children}

    def seen(message):
        # The reply queue is shared by all tasks of this client.
        if message["task_id"] == result.id:
            states.append([message["status"], message["result"]])
            children.append(message["children"])

    try:
        answer["value"] = result.get(timeout=command.get("timeout", 30), on_message=seen)
        if "file_name" in command:
            answer["value"] = os.fsencode(answer["value"]).hex()
            states.clear()
    except Exception as error:  # every remote exception is an answer here
        kind = type(error)
        answer["error"] = {"type": kind.__name__, "module": kind.__module__, "args": repr(error.args)}
    answer["states"] = states
    answer["state"] = result.state
    answer["traceback"] = result.traceback
    answer["seconds"] = time.time() - started
    return answer


def chain(command):
    """Sends a chain of calls and tells its last result, and what its first one tells of the others."""
    result = celery.chain(*signatures(command["steps"])).apply_async()
    answer = {}
    try:
        answer["value"] = result.get(timeout=30)
    except Exception as error:  # every remote exception is an answer here
        answer["error"] = repr(error)
    first = result.parent
    while first.parent:
        first = first.parent
    # It may come after the last one's, since the next step is sent before.
    first.get(timeout=30, propagate=False)
    members = {member.id: f"member {index}" for index, member in enumerate(getattr(result, "results", []))}
    answer["children"] = known(first.children, {first.id: "first", result.id: "last", **members})
    return answer


def linked(command):
    """Sends the first call with the others linked to its success, and tells what its result tells of them."""
    first, *links = signatures(command["steps"])
    names = {link.freeze().id: f"link {index}" for index, link in enumerate(links)}
    result = first.apply_async(link=links)
    return {"value": result.get(timeout=30), "children": known(result.children, names)}


def known(results, names):
    """Results as they travel, by their names."""

    def named(part):
        if isinstance(part, (list, tuple)):
            return [named(one) for one in part]
        return part and names.get(part, "new")

    return named([result.as_tuple() for result in results or []])


def raw(command):
    """Publishes a message as it is, byte for byte, and waits for the FAILURE that must come back, if one can."""
    import base64

    import amqp
    from kombu import Connection

    message = command["message"]
    with Connection(app.conf.broker_url) as connection:
        channel = connection.channel()
        replies = channel.queue_declare(exclusive=True).queue
        got = []
        channel.basic_consume(replies, no_ack=True, callback=got.append)
        properties = dict(message["properties"], reply_to=replies)
        headers = message["headers"]
        odd = command.get("odd")
        if odd == "correlation_id":
            properties[odd] = "id-\udcff"
        elif odd == "name":
            headers["x-\udcff"] = 1
        elif odd in ("nested", "deep"):
            sys.setrecursionlimit(100_000)
            headers[odd] = []
            for _ in range(dict(nested=100, deep=5000)[odd]):
                headers[odd] = [headers[odd]]
        elif odd == "large":
            headers[odd] = "x" * 60_000
        if "body_base64" in message:
            body = base64.b64decode(message["body_base64"])
        else:
            body = message["body_text"].encode()
        channel.basic_publish(
            amqp.Message(body, application_headers=headers, **properties),
            exchange="",
            routing_key=command["queue"],
        )
        deadline = time.time() + 10
        while command["expect"] and not got and time.time() < deadline:
            connection.drain_events(timeout=10)
        return {"answers": [json.loads(answer.body) for answer in got]}


def take(command):
    """Takes one message out of a queue, when there is one, and tells what travelled beside its body."""
    from kombu import Connection

    with Connection(app.conf.broker_url) as connection:
        channel = connection.channel()
        deadline = time.time() + 30
        while time.time() < deadline:
            try:
                message = channel.basic_get(command["queue"], no_ack=True)
            except connection.channel_errors:  # the queue isn't there yet
                message, channel = None, connection.channel()
            if message is not None:
                properties = dict(message.properties)
                headers = properties.pop("application_headers", {})
                return {"properties": properties, "headers": headers}
            time.sleep(0.05)


def inspect(command):
    """Asks the workers as `celery inspect` does."""
    inspector = app.control.inspect(destination=command.get("destination"), timeout=command.get("timeout", 5))
    return {"nodes": getattr(inspector, command["method"])()}


def revoke(command):
    app.control.revoke(command["id"], terminate=command.get("terminate", False))
    return {}


COMMANDS = dict(
    call=call, chain=chain, linked=linked, raw=raw, take=take, inspect=inspect, revoke=revoke
)

if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = COMMANDS[command["do"]](command)
        except Exception as error:  # the test shows it
            answer = {"broken": repr(error)}
        print(json.dumps(answer), flush=True)
