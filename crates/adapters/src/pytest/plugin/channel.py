"""What no test may bend: the two pipes on which requests come and records go, and the clock."""

import fcntl
import json
import os
import select
import time

# Descriptors of ours lie above those that a test may expect to get, or may close in a loop.
FD_MIN = 200


class Channel:
    """The two pipes. A process that a test forked must not speak on them."""

    def __init__(self, requests, records, write=os.write, dumps=json.dumps, getpid=os.getpid, select=select.select):
        # Bound early: a test may patch the modules that they come from.
        self._write, self._dumps, self._getpid, self._select = write, dumps, getpid, select
        self._owner = getpid()
        self._records = self._private(records)
        self._requests = os.fdopen(self._private(requests), "rb")

    @staticmethod
    def _private(descriptor):
        own = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FD_MIN)
        os.close(descriptor)
        return own

    def say(self, fact):
        if self._getpid() != self._owner:
            # A child of a test that came back from the test is not a second runner.
            os._exit(70)
        line = self._dumps(fact).encode() + b"\n"
        while line:
            line = line[self._write(self._records, line) :]

    def is_idle(self):
        return not self._select([self._requests], [], [], 0)[0]

    def is_closed(self):
        """Whether there will be no more requests. To be asked while one is answered: then no other waits."""
        return not self.is_idle() and not self._requests.peek(1)

    def requests(self):
        for line in iter(self._requests.readline, b""):
            yield json.loads(line)


class Clock:
    def __init__(self, wall=time.time_ns, steady=time.perf_counter_ns):
        # Bound early as well: tests freeze time.
        self._wall, self._steady = wall, steady

    def now_us(self):
        return self._wall() // 1000

    def steady_us(self):
        return self._steady() // 1000
