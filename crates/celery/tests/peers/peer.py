"""The Python side of the interoperability tests: one Celery application, used as a worker and as a client.

As a worker:  celery -A peer worker …     (with PEER_BROKER in the environment)
As a client:  python peer.py              one JSON command a line on stdin, one JSON answer a line on stdout
"""

import json
import os
import sys
import time

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
    states = []
    answer = {"id": result.id}

    def seen(message):
        # The reply queue is shared by all tasks of this client.
        if message["task_id"] == result.id:
            states.append([message["status"], message["result"]])

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
    """Sends a chain of [task, args, queue] and tells its last result."""
    steps = [app.signature(task, args=args, options={"queue": queue}) for task, args, queue in command["steps"]]
    result = celery.chain(*steps).apply_async()
    answer = {}
    try:
        answer["value"] = result.get(timeout=30)
    except Exception as error:  # every remote exception is an answer here
        answer["error"] = repr(error)
    return answer


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
        if "body_base64" in message:
            body = base64.b64decode(message["body_base64"])
        else:
            body = message["body_text"].encode()
        channel.basic_publish(
            amqp.Message(body, application_headers=message["headers"], **properties),
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


COMMANDS = dict(call=call, chain=chain, raw=raw, take=take, inspect=inspect, revoke=revoke)

if __name__ == "__main__":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = COMMANDS[command["do"]](command)
        except Exception as error:  # the test shows it
            answer = {"broken": repr(error)}
        print(json.dumps(answer), flush=True)
