"""What a suite that was written for pytest-xdist finds of the slot that it runs in."""

import os


def xdist_slot(config):
    """A plugin with xdist's own fixture as one of its workers has it; none where xdist isn't.

    The mark of such a worker, `config.workerinput`, isn't there: who finds it leaves its report to a master.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not config.pluginmanager.hasplugin("xdist"):
        return None
    import pytest

    class Slot:
        @pytest.fixture(scope="session")
        def worker_id(self, tmp_path_factory):
            # Who makes something once for all workers keeps it beside their folders. Without one more folder that would
            # be beside those of earlier runs.
            own = tmp_path_factory.getbasetemp() / f"popen-{worker}"
            own.mkdir(mode=0o700, exist_ok=True)
            tmp_path_factory._basetemp = own
            return worker

    return Slot()
