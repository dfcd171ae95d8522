"""The entry point of `holdfastd`: import the daemon quickly, then run it.

Imports make tens of thousands of objects that live for ever. Collecting among them costs a fifth
of the time until the first answer, so the collector is off until they are set aside. structlog
takes rich along where it is installed, to print in colours, which a daemon does not: that is
another eighth.
"""

import gc
import os
import sys
from types import ModuleType
from typing import Any, cast

RICH = "rich"


def main() -> None:
    """Run the daemon's command line; by the name of containerd, that of containerd."""
    if os.path.basename(sys.argv[0]) == "containerd":
        from .containerd.command import main as containerd

        containerd()
    load_daemon().daemon(prog_name="holdfastd")


def load_daemon() -> ModuleType:
    """The daemon's module, imported quickly."""
    gc.disable()
    # For structlog it is not installed. Whoever has imported it already keeps it.
    modules = cast("dict[str, Any]", sys.modules)
    kept = modules.get(RICH)
    modules[RICH] = None
    from . import daemon

    if kept is None:
        del modules[RICH]
    else:
        modules[RICH] = kept
    gc.freeze()
    gc.enable()
    return daemon


if __name__ == "__main__":
    main()
