"""Where `run -d` keeps a container's output, and reading it while it grows.

The files are the container's own stdout and stderr, opened for appending: no process stands
between. They lie under the daemon's root and go with `rm`.
"""

import os
import shutil
from pathlib import Path

import trio

from ..proto.services import containers_pb2

LABEL = "holdfast/logs"
POLL_S = 0.1
CHUNK_BYTES = 65536


def folder(root: Path, namespace: str, name: str) -> Path:
    """Where the logs of a container lie."""
    return root / "logs" / namespace / name


def prepare(path: Path) -> None:
    """An empty directory, mode 0700: logs of an earlier container of that name are gone."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)


def remove(container: containers_pb2.Container) -> None:
    """Remove the container's logs, where it has some."""
    path = container.labels.get(LABEL)
    if path and Path(path).name == container.id:
        shutil.rmtree(path, ignore_errors=True)


async def copy(url: str, target: int) -> None:
    """Write all that stands in the log now."""
    done = trio.Event()
    done.set()
    await follow(url, target, done)


async def follow(url: str, target: int, ended: trio.Event) -> None:
    """Write the log as it grows, until `ended` is set and the rest is written."""
    path = url.removeprefix("file://").partition("?")[0]
    try:
        log = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        while True:
            last = ended.is_set()
            while data := await trio.to_thread.run_sync(os.read, log, CHUNK_BYTES):
                await trio.to_thread.run_sync(_write_all, target, data)
            if last:
                return
            with trio.move_on_after(POLL_S):
                await ended.wait()
    finally:
        os.close(log)


def _write_all(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
