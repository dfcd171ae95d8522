"""The wiring of a container: how each of its processes gets its stdio, terminal and logger.

    make        a new process: everything is opened, and pinned
    hold_again  a process that another shim started: it has its ends already

Standard library and cbor2 alone: the fork server preloads this file.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from . import loguri
from .logger import Logger, Place
from .pins import Pins, slot
from .poller import Poller
from .process import Process
from .pty import Terminal
from .ptykeeper import PtyKeeper
from .stdio import Stdio, Streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """That of one container."""

    poller: Poller
    pins: Pins
    bundle: str
    id: str
    namespace: str
    host_namespace: int

    async def make(self, process: Process) -> str:
        """Opens a process's stdio; the path of the console socket when it has a terminal."""
        process.logger = self._logger(process)
        if process.logger is not None:
            process.logger.make()
        process.streams = Streams(self._piped(process), self.pins, slot(process.exec_id))
        if process.stdio.terminal:
            process.terminal = self.terminal(process)
        if process.logger is not None:
            await process.logger.begin()
        return "" if process.terminal is None else process.terminal.begin()

    def hold_again(self, process: Process, input_closed: bool) -> None:
        """Holds the stdio, and the logger, of a process that has its ends already."""
        process.streams = Streams.again(
            self._piped(process), input_closed, self.pins, slot(process.exec_id)
        )
        process.logger = self._logger(process)
        if process.logger is not None:
            try:
                process.logger.take(process.exit is not None)
            except FileNotFoundError:  # all was read, and the FIFO removed, before
                process.logger = None

    def _piped(self, process: Process) -> Stdio:
        """What of its stdio a process is given itself: with a terminal nothing."""
        return Stdio() if process.stdio.terminal else self._inner(process)

    def _inner(self, process: Process) -> Stdio:
        return loguri.inner(process.stdio, self.bundle, slot(process.exec_id))

    def _logger(self, process: Process) -> Logger | None:
        """The logger of a process, not yet begun; None where its stdio asks for none."""
        logs = loguri.logs_of(process.stdio)
        if logs == (None, None):
            return None
        place = Place(
            bundle=self.bundle,
            slot=slot(process.exec_id),
            id=process.exec_id or self.id,  # so does containerd
            namespace=self.namespace,
            host_namespace=self.host_namespace,
        )
        return Logger(self.poller, place, logs)

    async def drain_logs(self, processes: Iterable[Process]) -> None:
        """Before the FIFOs go: what is in them has reached its logger."""
        for process in processes:
            if process.logger is None and process.streams is None:
                self._hold_logs(process)
            if process.logger is not None:
                await process.logger.drain()

    def _hold_logs(self, process: Process) -> None:
        """A dead shim began to remove, and may not have come to the logs."""
        if loguri.logs_of(process.stdio) != (None, None):
            self.hold_again(process, True)
            if process.streams is not None:
                process.streams.finish(self.poller)

    def terminal(self, process: Process) -> Terminal:
        """The terminal of a process, with nothing in it yet."""
        name = slot(process.exec_id)
        keeper = PtyKeeper(self.bundle, name)
        return Terminal(self.poller, self._inner(process), self.pins, keeper, name)
