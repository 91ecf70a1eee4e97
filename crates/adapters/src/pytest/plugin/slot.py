"""What a suite that was written for pytest-xdist finds of the slot that it runs in."""

import os


def own_basetemp(config):
    """pytest empties the folder that `--basetemp` names when it first needs one, whoever else is in it: so each slot has a
    folder in there, named as xdist names them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    given = getattr(config.option, "basetemp", None)
    if worker is not None and given:
        os.makedirs(given, mode=0o700, exist_ok=True)
        config.option.basetemp = os.path.join(given, f"popen-{worker}")


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
