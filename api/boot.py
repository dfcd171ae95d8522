"""The entry point of `holdfastd`: import the daemon quickly, then run it.

Imports make tens of thousands of objects that live for ever. Collecting among them costs a fifth
of the time until the first answer, so the collector is off until they are set aside.
"""

import gc


def main() -> None:
    """Run the daemon's command line."""
    gc.disable()
    from .daemon import daemon

    gc.freeze()
    gc.enable()
    daemon(prog_name="holdfastd")


if __name__ == "__main__":
    main()
