"""Folders and files as pytest's own collectors, and a file that is collected."""

from .record import clean


class Tree:
    """Folders and files as pytest's own collectors, without what is in the files."""

    def __init__(self, session, roots):
        import pytest

        self.session = session
        self.folder_types = tuple(
            kind for kind in (getattr(pytest, "Package", None), getattr(pytest, "Directory", None)) if kind
        )
        self.item_type = pytest.Item
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
            report = collect(folder)
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

    def items(self, unit):
        """What is in the unit, made anew each time."""
        siblings = {}
        for node in self.find(unit):
            # The command line names this one, and it was made when its file was.
            if isinstance(node, self.item_type):
                if node.parent not in siblings:
                    siblings[node.parent] = {child.nodeid: child for child in collect(node.parent).result or ()}
                node = siblings[node.parent].get(node.nodeid, node)
            yield from self.session.genitems(node)


def collect(node):
    from _pytest.runner import collect_one_node

    return collect_one_node(node)


def unit_of(node):
    return clean(node.nodeid).split("::")[0]


class Unit:
    """A collected file: its items by name, and what could not be collected."""

    def __init__(self, name):
        self.name = name
        self.items = {}
        self.reports = {}

    def names(self):
        return [*self.reports, *(name for name in self.items if name not in self.reports)]


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
