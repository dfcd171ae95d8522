"""Where the output of a container in the background lies.

The files are the container's own stdout and stderr, opened for appending: no process stands
between. They lie under the host's root and go with the container.
"""

import shutil
from pathlib import Path

STREAMS = ("stdout", "stderr")


def folder(root: Path, namespace: str, name: str) -> Path:
    """The directory of a container's output."""
    return root / "logs" / namespace / name


def prepare(path: Path) -> None:
    """An empty directory with empty files, for the owner alone: an earlier container of that
    name may have left its own."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    for stream in STREAMS:
        (path / stream).touch(mode=0o600)
