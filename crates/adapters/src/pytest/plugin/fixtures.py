"""What pytest's fixtures must keep and forget here, where files are collected late, and tests run again."""

import sys


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


def forget_collected(manager, collector):
    """A collector registers its fixtures whenever it is collected, besides those that it has registered before; one that
    extends another of its own name would then extend itself."""
    import pytest

    # Up to pytest 9.0 a module's fixtures are registered once, and all are known by the id of their node alone.
    by_id = hasattr(manager, "_holderobjseen")
    if not isinstance(collector, pytest.Class if by_id else (pytest.Class, pytest.File)):
        return

    def registered(node):
        return type(node) is type(collector) and node.nodeid == collector.nodeid

    def defined(fixture):
        node = getattr(fixture, "node", None)
        return fixture.baseid == collector.nodeid if node is None else registered(node)

    for fixtures in getattr(manager, "_arg2fixturedefs", {}).values():
        fixtures[:] = [fixture for fixture in fixtures if not defined(fixture)]
    by_node = [*getattr(manager, "_arg2node2fixturedefs", {}).values(), getattr(manager, "_node_autousenames", {})]
    for found in by_node:
        for node in [node for node in found if registered(node)]:
            del found[node]
    if by_id:
        manager._nodeid_autousenames.pop(collector.nodeid, None)


def forget_failed(items):
    """A shared fixture that can't be set up fails every test that asks for it. For the next attempt of one it is tried
    again."""
    for item in items:
        for fixtures in getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).values():
            for fixture in fixtures:
                if fixture.cached_result is not None and fixture.cached_result[2] is not None:
                    fixture.finish(item._request)


def forget_subtests(config):
    """How many subtests failed is kept by a test's name, and fails whoever has the name."""
    subtests = sys.modules.get("_pytest.subtests")
    if subtests is not None:
        config.stash[subtests.failed_subtests_key].clear()
