"""The streams of one life: what its processes are given, what a client reads, what is missing."""

from pathlib import Path
from typing import Any

import trio

from . import containers
from .checkers import difference
from .containers import Plan
from .history import History, Streamed
from .streams import Reader, Writer

EXEC_ID = "second"


class LifeStreams:
    """Those of a container, and of its exec where it has one."""

    def __init__(self, plan: Plan, folder: Path, history: History) -> None:
        self.stdio: dict[str, Any] = {}
        self.writer: Writer | None = None
        self._plan = plan
        self._folder = folder
        self._history = history
        self._readers: dict[tuple[str, str], Reader] = {}

    def open(self, nursery: trio.Nursery) -> None:
        """Make those of the first process, and read what it writes."""
        plan = self._plan
        self.stdio = {"terminal": plan.terminal}
        for stream in ("stdout",) if plan.terminal else ("stdout", "stderr"):
            self.stdio[stream] = self.output(nursery, "", stream)
        if plan.stdin:
            self.writer = Writer(self._folder / "stdin")
            self.stdio["stdin"] = str(self.writer.path)

    def output(self, nursery: trio.Nursery, exec_id: str, stream: str) -> str:
        """Where an output goes; it is read from now on."""
        path = self._folder / f"{exec_id}{stream}"
        if self._plan.log:
            return self._plan.log
        if self._plan.to_file:
            return f"file://{path}" + (f"?{containers.CAP}" if self._plan.capped else "")
        reader = self._readers[exec_id, stream] = Reader(path)
        nursery.start_soon(reader.run)
        return str(path)

    def leave(self) -> None:
        """The readers are away for a while."""
        for reader in self._readers.values():
            reader.leave()

    def attach(self) -> None:
        """The readers are there again."""
        for reader in self._readers.values():
            reader.attach()

    def close(self) -> None:
        """Nobody reads or writes any more."""
        self.leave()
        if self.writer is not None:
            self.writer.close()

    async def judge(self) -> None:
        """Read on to the end, and tell what arrived of what was written."""
        plan = self._plan
        async with trio.open_nursery() as nursery:
            for reader in self._readers.values():
                nursery.start_soon(reader.finish)
        for exec_id in ("", EXEC_ID) if plan.has_exec else ("",):
            terminal = plan.terminal and not exec_id
            for stream in ("stdout",) if terminal else ("stdout", "stderr"):
                self._history.add(self._streamed(exec_id, stream, terminal))

    def _streamed(self, exec_id: str, stream: str, terminal: bool) -> Streamed:
        plan = self._plan
        wanted = containers.wanted_stdout(plan, of_exec=bool(exec_id))
        if stream == "stderr":
            wanted = containers.wanted_stderr(plan)
        reader = self._readers.get((exec_id, stream))
        path = self._folder / f"{exec_id}{stream}"
        got = bytes(reader.data) if reader is not None else _bytes_of(path)
        if terminal:
            lost, extra = _missing_on_terminal(wanted + containers.wanted_stderr(plan), got), 0
        else:
            lost, extra = difference(wanted, got)
        return Streamed(
            subject=plan.name,
            exec_id=exec_id,
            stream=stream,
            terminal=terminal,
            wanted_bytes=len(wanted),
            got_bytes=len(got),
            lost_bytes=lost,
            extra_bytes=extra,
            ended=reader is None or reader.ended,
        )


def _bytes_of(path: Path) -> bytes:
    """What a log has, with the files that were turned over, the oldest first."""
    older = path.parent.glob(f"{path.name}.*")
    files = sorted(older, key=lambda file: int(file.suffix[1:]), reverse=True)
    return b"".join(file.read_bytes() for file in (*files, path) if file.exists())


def _missing_on_terminal(wanted: bytes, got: bytes) -> int:
    """Bytes of lines that a terminal did not show; its echo of the input may stand between."""
    shown = set(got.replace(b"\r", b"").split(b"\n"))
    return sum(len(line) + 1 for line in wanted.splitlines() if line not in shown)
