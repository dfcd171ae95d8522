"""The output that `run -d` keeps: reading it while it grows, removing it with its container."""

import os
import shutil
from pathlib import Path

import trio

from ..proto.services import containers_pb2
from .output import write_all

LABEL = "holdfast/logs"
POLL_S = 0.1
CHUNK_BYTES = 65536


def remove(container: containers_pb2.Container) -> None:
    """Remove the container's logs, where it has some."""
    path = container.labels.get(LABEL)
    if path and Path(path).name == container.id:
        shutil.rmtree(path, ignore_errors=True)


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
                await trio.to_thread.run_sync(write_all, target, data)
            if last:
                return
            with trio.move_on_after(POLL_S):
                await ended.wait()
    finally:
        os.close(log)
