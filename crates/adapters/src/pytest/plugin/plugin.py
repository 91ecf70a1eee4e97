"""The plugin: lists files without importing them, names the tests of some, or runs exactly what it is asked for.

pytest itself, the project's plugins and its conftest files work as ever; only two things are replaced: collecting
everything before anything runs, and the loop over all items. Files are collected when they are first asked for, in a
tree of folders that is kept for the life of the process, so that fixtures of a session or a package live on from request
to request.

Standard output and standard error belong to the tests. What is to be reported goes over a descriptor of its own.
"""

import json
import os
import sys
import traceback

from .channel import Clock
from .fixtures import forget_collected, forget_failed, forget_subtests, keep_conftests
from .record import Fold, clean, collect_record, first_line
from .slot import own_basetemp, xdist_slot
from .tree import Tree, Unit, collecting, unit_of
from .whole import Coverage, take_back

LIST_BEGIN = "<<regatta-units>>"
LIST_END = "<<regatta-units-end>>"


class Regatta:
    """The plugin."""

    def __init__(self, channel, folder, asked=None, since=None):
        self.session = self.terminal_file = self.failed = None
        self.channel = channel
        self.asked = asked
        self.since = since
        self.folder = folder
        self.clock = Clock()
        self.fold = self.unit = self.tree = self.before = None
        self.told = set()
        self.collected, self.ran = set(), set()
        self.sharing = False

    # Set-up

    def pytest_load_initial_conftests(self, early_config):
        """pytest-cov begins to measure here, and is told before how."""
        options = early_config.known_args_namespace
        take_back(options)
        self.coverage = Coverage(options, measures=self.channel is not None, concludes=self.since is not None)
        yield
        self.coverage.started(early_config)

    def pytest_cmdline_main(self, config):
        """The process at the end of a run has no session."""
        if self.since is None:
            return None
        text, failed = self.coverage.conclude(config, self.since)
        self.print_lines(config, [{"text": clean(text), "failed": failed}])

    def pytest_configure(self, config):
        """Takes back what an addopts line may ask of a whole run: it makes no sense for a part of one."""
        self.missed = take_back(config.option)
        own_basetemp(config)
        slot = xdist_slot(config)
        if slot is not None:
            # Of fixtures of plugins the last counts, and xdist is there by now; a project's own go before all of them.
            config.pluginmanager.register(slot)

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
            lines = self.unit_lines(session) if self.asked is None else self.name_lines(session)
            self.print_lines(session.config, lines)
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
        """What each of the asked files holds; nothing for one that can't be collected, or only in part. One that skips itself
        is one test."""
        for name in self.asked:
            unit = self.collect(session, name)
            broken = any(report.failed for report in unit.reports.values())
            yield {"unit": name, "tests": None if broken else unit.names()}

    def unit_lines(self, session):
        names = list(dict.fromkeys(unit_of(node) for node in self.tree.walk()))
        names += [name for name in self.tree.broken if name not in names]
        yield {"root": clean(str(session.config.rootpath))}
        yield {"whole": {"coverage": self.coverage.wanted, "missed": self.missed}}
        for name in names:
            yield {"unit": name}

    def print_lines(self, config, lines):
        lines = [json.dumps(line) for line in lines]
        text = "\n".join(["", LIST_BEGIN, *lines, LIST_END, ""]).encode()
        capture = config.pluginmanager.getplugin("capturemanager")
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
        forget_subtests(session.config)

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
            again = not self.ran.isdisjoint(name for _, name in items)
            unit = self.collect(session, file, again)
            names = self.announce(unit, items)
            following = files[position + 1][0] if position + 1 < len(files) else None
            if not self.run(session, unit, names, following, again):
                return False
            self.ran.update(names, (name for _, name in items))
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

    def collect(self, session, file, again=False):
        """What a file holds. An item that has run has marks, output and an instance of it: its next attempt is another."""
        if not again and self.unit is not None and self.unit.name == file:
            return self.unit
        self.drop(session)
        unit = self.unit = Unit(file)
        with collecting(session):
            items = list(self.tree.items(file))
            if file in self.tree.broken:
                unit.reports[file] = self.tree.broken[file]
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

    def pytest_collectstart(self, collector):
        """A process may come back to a file, and then collects it again."""
        id = (type(collector), collector.nodeid)
        if id in self.collected:
            forget_collected(collector.session._fixturemanager, collector)
        self.collected.add(id)

    def pytest_collectreport(self, report):
        if report.passed or self.unit is None:
            return
        name = clean(report.nodeid)
        if name.split("::")[0] == self.unit.name:
            self.unit.reports.setdefault(name, report)

    # Running

    def run(self, session, unit, names, following, again):
        for name, report in unit.reports.items():
            if name in names:
                self.channel.say({"k": "started", "test": name})
                self.channel.say({"k": "finished", "test": name, "record": collect_record(report, self.clock)})
        # Whoever asks by name for a test of a file that can't be collected any more learns why there is none.
        broken = next(iter(unit.reports.values()), None)
        for name in sorted(names - set(unit.names())) if broken else ():
            self.channel.say({"k": "started", "test": name})
            self.channel.say({"k": "finished", "test": name, "record": collect_record(broken, self.clock)})
        items = [
            item
            for name, items in unit.items.items()
            if name in names and name not in unit.reports
            for item in items
        ]
        # Fixtures that are shared beyond this file live on when the next one shares them too.
        after = self.neighbour(session, following)
        if items:
            self.before = self.clear(session, items, again)
        for item, follower in zip(items, [*items[1:], after]):
            if self.fold is None and self.channel.is_closed():
                return False
            self.run_item(session, item, follower)
        return True

    def pytest_fixture_setup(self, fixturedef):
        """What is set up for a whole class, module or package would be set up again where its tests run apart. A fixture of
        the session lives as long as the process."""
        outermost = self.fold is not None and not self.sharing and fixturedef.scope in ("class", "module", "package")
        self.sharing |= outermost
        began = self.clock.steady_us()
        yield
        if outermost:
            self.sharing = False
            self.fold.shared_us += self.clock.steady_us() - began

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

    def clear(self, session, items, again):
        """Ends what an earlier file left alive for one that in the end had nothing to run, and what failed for a test that
        runs again."""
        try:
            session._setupstate.teardown_exact(items[0])
            if again:
                forget_failed(items)
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
            # pytest empties its capture after each phase. A process that ends in the next one has said what came before.
            output = self.fold.output() if report.when != "teardown" and not hasattr(report, "context") else None
            if output:
                self.channel.say({"k": "said", "output": output})

    # The end

    def tear_down_all(self, session):
        """Ends fixtures of the session. Every test is reported by now, so a failure is the session's own."""
        self.drop(session)
        error = None
        try:
            session._setupstate.teardown_exact(None)
        except BaseException as failed:
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


class TestsFailed(int):
    """pytest's own exit code for failed tests. Whoever sets the session's code to the same gives it another object."""

    name, value = "TESTS_FAILED", 1


class Neighbour:
    """Looks like an item whose chain of collectors ends at `parent`."""

    def __init__(self, parent):
        self._chain = [*parent.listchain(), self]

    def listchain(self):
        return self._chain
