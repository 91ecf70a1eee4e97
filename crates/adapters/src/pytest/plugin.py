"""Regatta's side of a pytest process: lists files without importing them, names the tests of some, or runs exactly what
it is asked for.

It is handed to the interpreter in the environment, so nothing is written into the project. pytest itself, the
project's plugins and its conftest files work as ever; only two things are replaced: collecting everything before
anything runs, and the loop over all items. Files are collected when they are first asked for, in a tree of folders that
is kept for the life of the process, so that fixtures of a session or a package live on from request to request.

Standard output and standard error belong to the tests. What is to be reported goes over a descriptor of its own.
"""

import faulthandler
import fcntl
import json
import os
import select
import signal
import sys
import time

LIST_BEGIN = "<<regatta-units>>"
LIST_END = "<<regatta-units-end>>"

# How much text a record carries. What is longer loses its middle.
TEXT_MAX = 256 * 1024
MESSAGE_MAX = 1000

# Descriptors of ours lie above those that a test may expect to get, or may close in a loop.
FD_MIN = 200


def clean(text):
    """Text that any JSON reader takes: lone surrogates are spelled out."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def shorten(text):
    """The text within its limit, and how many bytes were left out."""
    text = clean(text)
    if len(text) <= TEXT_MAX:
        return text, 0
    half = TEXT_MAX // 2
    middle = len(text[half:-half].encode())
    return f"{text[:half]}\n[... {middle} bytes left out ...]\n{text[-half:]}", middle


def first_line(text):
    line = next((line for line in text.splitlines() if line.strip()), "")
    return clean(line.strip())[:MESSAGE_MAX]


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


class Fold:
    """Folds the reports of one test's phases into one record."""

    def __init__(self, clock):
        self.clock = clock
        self.started = clock.now_us()
        self.began = clock.steady_us()
        self.reports = []

    def record(self):
        outcome, native, blamed = self.judge()
        record = {
            "outcome": outcome,
            "started": self.started,
            "duration_us": self.clock.steady_us() - self.began,
            "phases": self.phases(),
        }
        if native:
            record["native"] = native
        message = self.message(outcome, native, blamed)
        if message:
            record["message"] = message
        text, omitted = shorten(self.text())
        if text:
            record["output"] = {"text": text, "bytes_omitted": omitted} if omitted else {"text": text}
        return record

    def judge(self):
        """The outcome, pytest's own word for it, and the report that decides."""
        failed = [report for report in self.reports if report.failed]
        # Reports of subtests name the same test; they decide only when they failed.
        main = [report for report in self.reports if not hasattr(report, "context")]
        around = next((report for report in failed if report.when != "call"), None)
        if around:
            return "errored", None, around
        if failed:
            return "failed", None, failed[0]
        for report in main:
            if report.skipped:
                return "skipped", "xfailed" if hasattr(report, "wasxfail") else None, report
        call = next((report for report in main if report.when == "call"), None)
        if call is None:
            return "errored", None, None
        return "passed", "xpassed" if hasattr(call, "wasxfail") else None, call

    def message(self, outcome, native, report):
        if report is None:
            return "pytest reported neither a failure nor a call"
        if native:
            return first_line(report.wasxfail)
        if outcome == "skipped":
            return skip_reason(report.longrepr)
        if outcome == "passed":
            return None
        crash = getattr(report.longrepr, "reprcrash", None)
        words = first_line(crash.message if crash else first_error(report.longreprtext))
        return f"{words} (in {report.when})" if outcome == "errored" and report.when in ("setup", "teardown") else words

    def text(self):
        parts = []
        for report in self.reports:
            if report.failed:
                parts.append(report.longreprtext)
        # Each report carries the sections of the phases before it; the last one has them all.
        if self.reports:
            for title, content in self.reports[-1].sections:
                if content.strip():
                    parts.append(f"--- {title} ---\n{content.rstrip()}")
        return "\n".join(parts)

    def phases(self):
        total = {}
        for report in self.reports:
            if not hasattr(report, "context"):
                total[report.when] = total.get(report.when, 0) + report.duration
        return [{"name": when, "duration_us": int(spent * 1e6)} for when, spent in total.items()]


def skip_reason(longrepr):
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return first_line(reason[9:] if reason.startswith("Skipped: ") else reason)


class Kept(dict):
    """What is left in it after pytest's own collection is still needed."""

    def clear(self):
        pass


def keep_conftests(session):
    """pytest (from 9.1) hands a conftest's fixtures to its folder when the folder is collected, and forgets the conftest
    files of all others when collection is over. Here folders are collected later."""
    fixtures = getattr(session, "_fixturemanager", None)
    pending = getattr(fixtures, "_pending_conftests", None)
    if isinstance(pending, dict):
        fixtures._pending_conftests = Kept(pending)


class Tree:
    """Folders and files as pytest's own collectors, without what is in the files."""

    def __init__(self, session, roots):
        import pytest

        self.session = session
        self.folder_types = tuple(
            kind for kind in (getattr(pytest, "Package", None), getattr(pytest, "Directory", None)) if kind
        )
        self.roots = roots
        self.children = {}
        self.broken = {}

    def is_folder(self, node):
        return isinstance(node, self.folder_types)

    def walk(self, wanted=lambda node: True):
        """Files, in pytest's order; nodes below a file that the command line names stand for themselves."""
        stack = list(reversed(self.roots))
        while stack:
            node = stack.pop()
            if not self.is_folder(node):
                yield node
            elif wanted(node):
                stack.extend(reversed(self.expand(node)))

    def expand(self, folder):
        if folder not in self.children:
            from _pytest.runner import collect_one_node

            report = collect_one_node(folder)
            if not report.passed:
                self.broken[unit_of(folder)] = report
            self.children[folder] = list(report.result or ()) if report.passed else []
            folder.ihook.pytest_collectreport(report=report)
        return self.children[folder]

    def find(self, unit):
        """The nodes that make a unit: one or more files of this name, or a folder that can't be collected."""
        path = self.session.config.rootpath / unit

        def leads_there(folder):
            where = folder.path if folder.path.is_dir() else folder.path.parent
            return where in path.parents or where == path

        found = [node for node in self.walk(leads_there) if unit_of(node) == unit]
        if found or unit in self.broken:
            return found
        # Its name says nothing of its folder: a file outside the root, or a collector of a plugin.
        return [node for node in self.walk() if unit_of(node) == unit]


def unit_of(node):
    return clean(node.nodeid).split("::")[0]


class Unit:
    """A collected file: its items by name, and what could not be collected."""

    def __init__(self, name):
        self.name = name
        self.items = {}
        self.reports = {}
        self.deselected = set()

    def names(self):
        return [*self.reports, *(name for name in self.items if name not in self.reports)]


class TestsFailed(int):
    """pytest's own exit code for failed tests. Whoever sets the session's code to the same gives it another object."""

    name, value = "TESTS_FAILED", 1


class Regatta:
    """The plugin."""

    def __init__(self, channel, folder, asked=None):
        self.session = self.terminal_file = self.failed = None
        self.channel = channel
        self.asked = asked
        self.folder = folder
        self.clock = Clock()
        self.fold = self.unit = self.tree = self.before = None
        self.told = set()

    # Set-up

    def pytest_configure(self, config):
        """Takes back what an addopts line may ask of a whole run: it makes no sense for a part of one."""
        neutral = {
            "dist": "no",
            "tx": [],
            "numprocesses": None,
            "looponfail": False,
            "maxfail": 0,
            "lf": False,
            "failedfirst": False,
            "newfirst": False,
            "stepwise": False,
            "stepwise_skip": False,
            "stepwise_reset": False,
            "cacheclear": False,
            "collectonly": False,
        }
        for option, value in neutral.items():
            if hasattr(config.option, option):
                setattr(config.option, option, value)

    def pytest_sessionstart(self, session):
        session.perform_collect = lambda args=None, genitems=True: self.collect_roots(session)
        if self.channel is not None:
            self.silence_terminal(session)

    def collect_roots(self, session):
        """pytest's own collection of its arguments, down to what the arguments name and no further."""
        roots = []

        def remember(node):
            roots.append(node)
            return ()

        session.genitems = remember
        keep_conftests(session)
        try:
            type(session).perform_collect(session)
        finally:
            del session.genitems
        self.tree = Tree(session, roots)
        return []

    # Work

    def pytest_runtestloop(self, session):
        if self.channel is None:
            self.print_lines(session, self.unit_lines(session) if self.asked is None else self.name_lines(session))
            return True
        self.channel.say({"k": "ready"})
        self.look_ahead(session)
        for request in self.channel.requests():
            if not self.answer(session, request["items"]):
                break
            self.channel.say({"k": "done"})
        self.tear_down_all(session)
        return True

    def look_ahead(self, session):
        """While nobody has asked for anything yet: imports what leads to the first file, as its tests would."""
        if not self.channel.is_idle():
            return
        with collecting(session):
            next(iter(self.tree.walk()), None)

    def name_lines(self, session):
        """What each of the asked files holds; nothing for one that can't be collected."""
        for name in self.asked:
            unit = self.collect(session, name)
            yield {"unit": name, "tests": None if name in unit.reports else unit.names()}

    def unit_lines(self, session):
        names = list(dict.fromkeys(unit_of(node) for node in self.tree.walk()))
        names += [name for name in self.tree.broken if name not in names]
        yield {"root": clean(str(session.config.rootpath))}
        for name in names:
            yield {"unit": name}

    def print_lines(self, session, lines):
        lines = [json.dumps(line) for line in lines]
        text = "\n".join(["", LIST_BEGIN, *lines, LIST_END, ""]).encode()
        capture = session.config.pluginmanager.getplugin("capturemanager")
        if capture:
            capture.suspend_global_capture(in_=True)
        while text:
            text = text[os.write(1, text) :]
        # Nothing ran: there is nothing to tear down or to remember.
        os._exit(0)

    def silence_terminal(self, session):
        """pytest's header and progress would stand in the output of tests, and its statistics would keep every report."""
        terminal = session.config.pluginmanager.getplugin("terminalreporter")
        if terminal is None:
            return
        self.terminal_file = terminal._tw._file
        terminal._tw._file = open(os.devnull, "w", encoding="utf-8")
        session.testscollected = 1 << 30

    def pytest_terminal_summary(self, terminalreporter):
        """What a plugin adds to the summary may be why it fails the session."""
        writer = terminalreporter._tw
        silent = writer._file
        writer._file = self.terminal_file or silent
        yield
        writer._file = silent

    def forget_reports(self, session):
        terminal = session.config.pluginmanager.getplugin("terminalreporter")
        stats = getattr(terminal, "stats", None)
        if stats:
            stats.clear()
        seen = getattr(terminal, "_progress_nodeids_reported", None)
        if seen:
            seen.clear()

    def answer(self, session, wanted):
        """Runs what is asked for, file by file in the order in which files are first named, and says whether all was
        run: when nobody asks any more, what runs is the last."""
        files = {}
        for kind, name in wanted:
            file = files.setdefault(name.split("::")[0] if kind == "test" else name, [])
            file.append((kind, name))
        files = list(files.items())
        for position, (file, items) in enumerate(files):
            if self.channel.is_closed():
                return False
            unit = self.collect(session, file)
            names = self.announce(unit, items)
            following = files[position + 1][0] if position + 1 < len(files) else None
            if not self.run(session, unit, names, following):
                return False
            for kind, name in items:
                if kind == "unit":
                    self.channel.say({"k": "unit_done", "unit": name})
            self.forget_reports(session)
        return True

    def announce(self, unit, items):
        whole = any(kind == "unit" for kind, _ in items)
        # Who asks by name remembers what the file held once; what it holds now is told once.
        if whole or unit.name not in self.told:
            self.channel.say({"k": "collected", "unit": unit.name, "tests": unit.names()})
            self.told.add(unit.name)
        return set(unit.names()) if whole else {name for _, name in items}

    # Collecting

    def collect(self, session, file):
        if self.unit is not None and self.unit.name == file:
            return self.unit
        self.drop(session)
        unit = self.unit = Unit(file)
        with collecting(session):
            nodes = self.tree.find(file)
            if file in self.tree.broken:
                unit.reports[file] = self.tree.broken[file]
            items = [item for node in nodes for item in session.genitems(node)]
            session.items = items
            session.config.hook.pytest_collection_modifyitems(session=session, config=session.config, items=items)
            session.testscollected = 1 << 30
        for item in items:
            unit.items.setdefault(clean(item.nodeid), []).append(item)
        return unit

    def drop(self, session):
        """Forgets the items of the last file, which pytest would keep to the end."""
        session.items = []
        cache = getattr(session, "_collection_cache", None)
        if cache:
            cache.clear()
        self.unit = None

    def pytest_collectreport(self, report):
        if report.passed or self.unit is None:
            return
        name = clean(report.nodeid)
        if name.split("::")[0] == self.unit.name:
            self.unit.reports.setdefault(name, report)

    # Running

    def run(self, session, unit, names, following):
        for name, report in unit.reports.items():
            if name in names:
                self.channel.say({"k": "started", "test": name})
                self.channel.say({"k": "finished", "test": name, "record": self.collect_record(report)})
        # Whoever asks by name for a test of a file that can't be collected any more learns why there is none.
        broken = next(iter(unit.reports.values()), None)
        for name in sorted(names - set(unit.names())) if broken else ():
            self.channel.say({"k": "started", "test": name})
            self.channel.say({"k": "finished", "test": name, "record": self.collect_record(broken)})
        items = [
            item
            for name, items in unit.items.items()
            if name in names and name not in unit.reports
            for item in items
        ]
        # Fixtures that are shared beyond this file live on when the next one shares them too.
        after = self.neighbour(session, following)
        if items:
            self.before = self.tear_down_to(session, items[0])
        for item, follower in zip(items, [*items[1:], after]):
            if self.fold is None and self.channel.is_closed():
                return False
            self.run_item(session, item, follower)
        return True

    def run_item(self, session, item, follower):
        name = clean(item.nodeid)
        twins = self.unit.items[name]
        if item is twins[0]:
            self.fold = Fold(self.clock)
            self.channel.say({"k": "started", "test": name})
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=follower)
        if item is twins[-1]:
            record, self.fold = self.fold.record(), None
            if self.before:
                record["outcome"], record["message"] = "errored", self.before
                self.before = None
            self.channel.say({"k": "finished", "test": name, "record": record})
        # A plugin that wants to stop the run stops nothing: which tests run is decided elsewhere.
        if getattr(session, "shouldstop", False) or getattr(session, "shouldfail", False):
            for flag in ("shouldstop", "shouldfail"):
                setattr(session, "_" + flag if hasattr(session, "_" + flag) else flag, False)

    def tear_down_to(self, session, item):
        """Ends what an earlier file left alive for one that in the end had nothing to run."""
        try:
            session._setupstate.teardown_exact(item)
        except Exception as error:
            return first_line(f"before this test, a shared fixture could not be torn down: {error!r}")
        return None

    def neighbour(self, session, following):
        """Stands for the first test of the next file, which isn't collected yet; else for any test of the session."""
        parent = session
        if following is not None:
            parent = next(iter(self.tree.find(following)), session)
        return Neighbour(parent)

    def pytest_keyboard_interrupt(self, excinfo):
        """A test that ends the whole session (`pytest.exit`, Ctrl-C's exception): pytest's own words of it go to a
        terminal that isn't there."""
        if self.channel is not None:
            where = excinfo._getreprcrash()
            place = f" ({where.path}:{where.lineno})" if where else ""
            os.write(2, f"{excinfo.exconly()}{place}\n".encode("utf-8", "backslashreplace"))

    def pytest_internalerror(self, excrepr):
        if self.channel is not None:
            os.write(2, f"{excrepr}\n".encode("utf-8", "backslashreplace"))

    def pytest_runtest_logreport(self, report):
        if self.fold is not None and report.outcome != "rerun":
            self.fold.reports.append(report)

    def collect_record(self, report):
        record = {"outcome": "skipped" if report.skipped else "errored", "started": self.clock.now_us()}
        record["duration_us"] = 0
        if report.skipped:
            record["message"] = skip_reason(report.longrepr)
            return record
        text = getattr(report, "longreprtext", None) or str(report.longrepr)
        for title, content in getattr(report, "sections", ()):
            text += f"\n--- {title} ---\n{content}"
        text, omitted = shorten(text)
        crash = getattr(report.longrepr, "reprcrash", None)
        record["message"] = first_line(crash.message if crash else first_error(text))
        record["output"] = {"text": text, "bytes_omitted": omitted}
        return record

    # The end

    def tear_down_all(self, session):
        """Ends fixtures of the session. Every test is reported by now, so a failure is the session's own."""
        self.drop(session)
        error = None
        try:
            session._setupstate.teardown_exact(None)
        except BaseException as failed:
            import traceback

            error = first_line("".join(traceback.format_exception_only(type(failed), failed)))
            session.testsfailed += 1
            capture = session.config.pluginmanager.getplugin("capturemanager")
            if capture:
                capture.suspend_global_capture(in_=True)
            traceback.print_exc()
            sys.stderr.flush()
        else:
            self.session, self.failed = session, session.testsfailed
        self.channel.say({"k": "end", "error": error})

    def pytest_sessionfinish(self, session):
        """Failed tests make pytest's code 1, and so does a plugin that fails the session; only the second is news."""
        if self.failed and session.testsfailed == self.failed and session.exitstatus == TestsFailed.value:
            session.exitstatus = TestsFailed(TestsFailed.value)

    def exit_code(self, code):
        """The code for whoever has each test's own record: 0 when the session ended well, whatever its tests did."""
        return 0 if isinstance(getattr(self.session, "exitstatus", None), TestsFailed) else int(code)


def first_error(text):
    """The line that pytest marks as the error itself, when there is one."""
    return next((line[2:] for line in text.splitlines() if line.startswith("E ")), text)


class Neighbour:
    """Looks like an item whose chain of collectors ends at `parent`."""

    def __init__(self, parent):
        self._chain = [*parent.listchain(), self]

    def listchain(self):
        return self._chain


class collecting:
    """Warnings while files are collected are treated as pytest treats them: the project may turn them into errors."""

    def __init__(self, session):
        try:
            from _pytest.warnings import catch_warnings_for_item

            config = session.config
            self._inner = catch_warnings_for_item(config=config, ihook=config.hook, when="collect", item=None)
        except (ImportError, TypeError):
            self._inner = None
        if session.config.pluginmanager.getplugin("warnings") is None:
            self._inner = None

    def __enter__(self):
        if self._inner is not None:
            self._inner.__enter__()

    def __exit__(self, *error):
        if self._inner is not None:
            return self._inner.__exit__(*error)
        return None


def show_stacks(getsignal=signal.getsignal):
    """Whoever is ended because it took too long says where it was. A child that a test forks says nothing, and a handler
    that a test has set stays."""

    def listen():
        if getsignal(signal.SIGTERM) is signal.SIG_DFL:
            faulthandler.register(signal.SIGTERM, file=2, all_threads=True, chain=True)

    def be_silent():
        if getsignal(signal.SIGTERM) is signal.SIG_DFL:
            faulthandler.unregister(signal.SIGTERM)

    listen()
    os.register_at_fork(before=be_silent, after_in_parent=listen)


def keep_output(folder):
    """Lets pytest capture into two files that outlive this process: what a killed test has said is in them."""
    import _pytest.capture as capture

    original = capture.TemporaryFile
    names = ["stdout", "stderr"]

    def temporary_file(*args, **kwargs):
        # The first two are pytest's own, made as it starts; later ones belong to fixtures of tests.
        if not names:
            return original(*args, **kwargs)
        path = os.path.join(folder, names.pop(0))
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.fdopen(os.open(path, flags, 0o600), "w+b", buffering=0)
        except OSError:
            return original(*args, **kwargs)

    capture.TemporaryFile = temporary_file


def main():
    folder = os.environ.pop("REGATTA_PYTEST_FOLDER", None)
    arguments = json.loads(os.environ.pop("REGATTA_PYTEST_ARGS", "[]"))
    requests = os.environ.pop("REGATTA_REQUEST_FD", None)
    records = os.environ.pop("REGATTA_RECORD_FD", None)
    # As `python -m pytest` has it, and not as `python -c`: a test may change its directory.
    sys.path[0] = os.getcwd()
    sys.argv = ["pytest", *arguments]
    try:
        import pytest
    except ImportError as error:
        print(f"{sys.executable} has no pytest ({error}): install it there, or name another interpreter", file=sys.stderr)
        return 3
    channel = Channel(int(requests), int(records)) if requests and records else None
    if channel is not None:
        show_stacks()
    asked = json.load(sys.stdin) if os.environ.pop("REGATTA_PYTEST_NAME", None) else None
    plugin = Regatta(channel, folder, asked)
    for hook in (Regatta.pytest_configure, Regatta.pytest_runtestloop, Regatta.pytest_sessionfinish):
        pytest.hookimpl(tryfirst=True)(hook)
    pytest.hookimpl(hookwrapper=True, trylast=True)(Regatta.pytest_terminal_summary)
    if folder:
        keep_output(folder)
        arguments += ["-o", "cache_dir=" + os.path.join(folder, "cache")]
    return plugin.exit_code(pytest.main(arguments, plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main())
