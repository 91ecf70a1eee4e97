"""The peer of the broker benchmarks: a Celery application with one task that does nothing, and its caller.

`python noop.py throughput N` prints tasks per second; `python noop.py roundtrip N` prints the median in microseconds.
The worker is `celery -A noop worker`. The broker's URL is in NOOP_BROKER.
"""

import os
import statistics
import sys
import time

from celery import Celery

app = Celery("noop", broker=os.environ["NOOP_BROKER"], backend="rpc://")
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 128
app.conf.worker_hijack_root_logger = False
app.conf.task_default_queue = "noop-python"


@app.task(name="noop")
def noop():
    return None


def throughput(count):
    began = time.perf_counter()
    for result in [noop.delay() for _ in range(count)]:
        result.get(timeout=60)
    return count / (time.perf_counter() - began)


def roundtrip(count):
    times = []
    for _ in range(count):
        began = time.perf_counter()
        noop.delay().get(timeout=60)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


if __name__ == "__main__":
    noop.delay().get(timeout=60)
    measure, count = sys.argv[1], int(sys.argv[2])
    print(round({"throughput": throughput, "roundtrip": roundtrip}[measure](count)))
