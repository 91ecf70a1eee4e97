"""A pytest plugin that writes what pytest itself says of each test, one JSON line each, to the file EVERY_RESULT.

It is independent of Regatta's own plugin, so that the two can be compared.
"""

import json
import os

phases = {}


def pytest_configure(config):
    config.every_result = open(os.environ["EVERY_RESULT"], "w", encoding="utf-8")


def say(config, name, outcome):
    print(json.dumps({"test": name, "outcome": outcome}), file=config.every_result, flush=True)


class Results:
    def __init__(self, config):
        self.config = config

    def pytest_collectreport(self, report):
        if report.outcome != "passed" and report.nodeid:
            say(self.config, report.nodeid, "skipped" if report.skipped else "errored")

    def pytest_runtest_logreport(self, report):
        phases.setdefault(report.nodeid, {})[report.when] = report
        if report.when == "teardown":
            say(self.config, report.nodeid, fold(phases.pop(report.nodeid)))


def fold(reports):
    setup, call, teardown = (reports.get(when) for when in ("setup", "call", "teardown"))
    if setup.failed or teardown.failed:
        return "errored"
    said = call or setup
    if said.skipped:
        return "xfailed" if hasattr(said, "wasxfail") else "skipped"
    if hasattr(said, "wasxfail"):
        return "xpassed"
    return "failed" if said.failed else "passed"


def pytest_sessionstart(session):
    session.config.pluginmanager.register(Results(session.config), "every-result")
