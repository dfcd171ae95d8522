"""The entry point of `holdfastd`: import the daemon quickly, then run it.

Imports make tens of thousands of objects that live for ever. Collecting among them costs a fifth
of the time until the first answer, so the collector is off until they are set aside. structlog
takes rich along where it is installed, to print in colours, which a daemon does not: that is
another eighth.
"""

import gc
import sys
from typing import Any, cast

RICH = "rich"


def main() -> None:
    """Run the daemon's command line."""
    gc.disable()
    cast("dict[str, Any]", sys.modules)[RICH] = None  # for structlog it is not installed
    from .daemon import daemon

    del sys.modules[RICH]
    gc.freeze()
    gc.enable()
    daemon(prog_name="holdfastd")


if __name__ == "__main__":
    main()
