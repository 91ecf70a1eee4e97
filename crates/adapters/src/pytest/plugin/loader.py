"""Makes modules of the texts that the environment holds, and runs the last.

They import each other under names that no project's module can have, and only while they are loaded: whoever looks at
`sys.modules` afterwards finds none of them. Their file names tell a traceback where its lines are, and begin as those of
what is in no file, which coverage leaves alone.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys


def load(parts):
    """The last part as a module; each may import those before it."""
    for name, text in parts:
        spec = importlib.machinery.ModuleSpec("<regatta>." + name, None, origin=f"<regatta/{name}.py>")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        exec(compile(text, spec.origin, "exec"), vars(module))
    for name, _ in parts:
        del sys.modules["<regatta>." + name]
    return module


sys.exit(load(json.loads(os.environ.pop("REGATTA_PYTEST_PLUGIN"))).main())
