"""pytest's reports of one test, or of a file that can't be collected, as one record."""

import re

# A doctest's words of an exception, or of what it expected and what it got; nothing where either is nothing.
DOCTEST = re.compile(
    r"^UNEXPECTED EXCEPTION: (.+)$|^Expected(?: nothing$|:$)\n((?:    .*\n)*)Got(?: nothing$|:$)\n?((?:    .*\n?)*)", re.M
)

# How much text a record carries. What is longer loses its middle.
TEXT_MAX = 256 * 1024
MESSAGE_MAX = 1000


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


class Fold:
    """Folds the reports of one test's phases into one record."""

    def __init__(self, clock):
        self.clock = clock
        self.started = clock.now_us()
        self.began = clock.steady_us()
        self.reports = []
        self.shared_us = 0

    def record(self):
        outcome, native, blamed = self.judge()
        record = {
            "outcome": outcome,
            "started": self.started,
            "duration_us": self.clock.steady_us() - self.began,
            "phases": self.phases(),
        }
        if self.shared_us:
            record["shared_us"] = self.shared_us
        if native:
            record["native"] = native
        message = self.message(outcome, native, blamed)
        if message:
            record["message"] = message
        output = self.output()
        if output:
            record["output"] = output
        return record

    def output(self):
        text, omitted = shorten(self.text())
        return {"text": text, "bytes_omitted": omitted} if omitted else {"text": text} if text else None

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


def collect_record(report, clock):
    record = {"outcome": "skipped" if report.skipped else "errored", "started": clock.now_us()}
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


def skip_reason(longrepr):
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return first_line(reason[9:] if reason.startswith("Skipped: ") else reason)


def first_error(text):
    """The line that pytest marks as the error itself, or what a doctest says in several."""
    marked = next((line[2:] for line in text.splitlines() if line.startswith("E ")), None)
    if marked is not None:
        return marked
    found = DOCTEST.search(text)
    if found is None:
        return text
    raised, *sides = found.groups()
    return raised or "expected {}, got {}".format(*(" ".join(side.split()) or "nothing" for side in sides))
