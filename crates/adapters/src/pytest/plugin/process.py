"""The process: what its environment asks for, and pytest with the plugin in it."""

import faulthandler
import json
import os
import signal
import sys

from .channel import Channel
from .plugin import Regatta


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
    since = os.environ.pop("REGATTA_PYTEST_CONCLUDE", None)
    plugin = Regatta(channel, folder, asked, since and float(since))
    first = (
        Regatta.pytest_cmdline_main,
        Regatta.pytest_configure,
        Regatta.pytest_runtestloop,
        Regatta.pytest_sessionfinish,
    )
    for hook in first:
        pytest.hookimpl(tryfirst=True)(hook)
    pytest.hookimpl(hookwrapper=True)(Regatta.pytest_fixture_setup)
    pytest.hookimpl(hookwrapper=True)(Regatta.pytest_load_initial_conftests)
    pytest.hookimpl(hookwrapper=True, trylast=True)(Regatta.pytest_terminal_summary)
    if folder:
        keep_output(folder)
        arguments += ["-o", "cache_dir=" + os.path.join(folder, "cache")]
    return plugin.exit_code(pytest.main(arguments, plugins=[plugin]))


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
