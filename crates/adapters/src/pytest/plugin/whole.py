"""What an `addopts` line asks of a whole session, where each process is a part of one: coverage, and files that are written
at its end.

Knows pytest-cov's way to work, which changes less than its names do; nothing of requests and tests.
"""

import glob
import io
import os

# What chooses among all tests, or runs them elsewhere.
CHOICES = {
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

# What writes one file of all tests at the end: every process would write over the others'.
FILES = {"xmlpath": "--junitxml", "htmlpath": "--html", "report_log": "--report-log", "json_report": "--json-report"}


def take_back(options):
    """Makes a part of what is asked of a whole run; gives the options that have no effect and are missed."""
    for option, value in CHOICES.items():
        if hasattr(options, option):
            setattr(options, option, value)
    missed = []
    for option, name in FILES.items():
        if getattr(options, option, None):
            setattr(options, option, None)
            missed.append(name)
    return missed


class Coverage:
    """pytest-cov in a process that runs a part (`measures`), in one that runs no test, or in the one at the end of a run
    (`appends` is then whether the data of earlier runs stay)."""

    def __init__(self, options, measures, concludes):
        self.wanted = bool(getattr(options, "cov_source", None)) and not getattr(options, "no_cov", False)
        self.measures = self.wanted and measures
        self.appends = False
        if not self.wanted:
            return
        if not measures and not concludes:
            options.cov_source = []
            return
        # It erases what others have written, as it starts.
        self.appends, options.cov_append = options.cov_append, True
        if measures:
            # No report, and no threshold.
            options.cov_report, options.cov_fail_under = {"": None}, 0

    def started(self, config):
        """When pytest-cov measures: lets it leave its data in a file of its own, which it would combine with the unfinished
        ones of others."""
        controller = getattr(config.pluginmanager.getplugin("_cov"), "cov_controller", None)
        if controller is None:
            return
        # A part needn't meet all sources.
        controller.cov._warn_no_data = controller.cov._warn_unimported_source = False
        if self.measures:
            controller.combining_cov = Uncombined()

    def conclude(self, config, since):
        """Makes one of the data files of this run, and the reports that are asked for. Gives their text, and what is wrong."""
        plugin = config.pluginmanager.getplugin("_cov")
        if plugin is None:
            return "", None
        controller, options = plugin.cov_controller, plugin.options
        if not self.appends:
            forget_earlier(controller.combining_cov.config.data_file, since)
        controller.finish()
        if not options.cov_report and not options.cov_fail_under:
            return "", None
        from coverage.misc import CoverageException
        from coverage.results import should_fail_under

        text, least = io.StringIO(), options.cov_fail_under
        try:
            total = controller.summary(text)
        except CoverageException as error:
            text.write(f"there is no report of the coverage: {error}\n")
            total = 0
        if least is not None and should_fail_under(total, least, options.cov_precision or 0):
            return text.getvalue(), f"{total:.2f} % is covered, less than the {least:g} % that are asked for"
        return text.getvalue(), None


class Uncombined:
    """Does nothing with all data files."""

    def load(self):
        pass

    combine = save = load


def forget_earlier(data_file, since):
    """Removes the data files of runs before this one, as pytest-cov does when it starts."""
    for path in [data_file, *glob.glob(glob.escape(data_file) + ".*")]:
        try:
            if os.stat(path).st_mtime < since:
                os.remove(path)
        except FileNotFoundError:
            pass
