"""The runner: executes the OCI runtime for one container and says how it went.

The runtime is a child of ours and is waited for by the poller, so that others are answered while it
works or hangs; when it is too long about it, it is killed. A process that it makes becomes an
orphan and thereby our child, which may have ended before its pid file is read: then its exit lies
among the unclaimed until somebody claims it.

Standard library alone: the fork server preloads this file.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ..actors import failpoints
from ..actors.errors import Unknown
from . import oci
from .poller import Poller

SIGNALS_RESET: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

Descriptors = tuple[int, int, int]


class Runner:
    """`sealed` maps the path of a runtime to a sealed memory file that holds the program."""

    def __init__(self, poller: Poller, bundle: str, sealed: Mapping[str, int]) -> None:
        self.spawns = 0
        self._bundle = bundle
        self._in_flight = 0
        self._poller = poller
        self._sealed = sealed
        self._unclaimed: dict[int, tuple[int, int]] = {}

    async def run(
        self,
        runtime: oci.Runtime,
        verb: str,
        words: Callable[[str], list[str]],
        descriptors: Descriptors,
        within_s: float,
    ) -> None:
        """Runs a command line, which is given the path of its log, to its end.

        Unknown, with the runtime's words, when it fails.
        """
        self.spawns += 1
        log = f"{self._bundle}/runtime-{self.spawns}.log"
        failpoints.passed(f"shim.{verb}.spawn")
        pid = self._execute(runtime, verb, words(log), descriptors)
        failpoints.passed(f"shim.{verb}.spawned")
        self._in_flight += 1
        over = False

        def expire() -> None:
            if over:
                return
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:  # reaped in this very round
                pass

        self._poller.later(within_s, expire)
        try:
            status = await self._poller.child(pid)
            over = True
            failpoints.passed(f"shim.{verb}.done")
            if status != 0:
                text = oci.failure(log, status)
                raise Unknown(f"OCI runtime {verb} failed: {text}: unknown")
        finally:
            self._in_flight -= 1
            # After the coroutine that waited for this has had its turn.
            self._poller.soon(self._forget)
            try:
                os.unlink(log)
            except FileNotFoundError:
                pass

    async def run_plain(
        self,
        runtime: oci.Runtime,
        words: Sequence[str],
        within_s: float,
        stdin: int | None = None,
    ) -> None:
        """Runs a verb that makes no process."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors = (null if stdin is None else stdin, null, null)
            await self.run(
                runtime, words[0], lambda log: runtime.command(log, *words), descriptors, within_s
            )
        finally:
            os.close(null)

    def on_orphan(self, pid: int, wait_status: int) -> None:
        """A child was reaped that nobody knows: perhaps one whose pid is still to be read."""
        if self._in_flight:
            self._unclaimed[pid] = (wait_status, time.time_ns())

    def claim(self, pid: int) -> tuple[int, int] | None:
        """The wait status and time of a process that ended before it was known; else None."""
        return self._unclaimed.pop(pid, None)

    def _forget(self) -> None:
        if not self._in_flight:
            self._unclaimed.clear()

    def _execute(
        self, runtime: oci.Runtime, verb: str, words: list[str], descriptors: Descriptors
    ) -> int:
        sealed = self._sealed.get(runtime.program)
        program = runtime.program if sealed is None else f"/proc/self/fd/{sealed}"
        actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in enumerate(descriptors)]
        try:
            return os.posix_spawn(
                program,
                words,
                os.environ,
                file_actions=actions,
                setpgroup=0,
                # What is ignored, by Python or us or our parent, would be by the container too.
                setsigdef=SIGNALS_RESET,
                setsigmask=(),
            )
        except OSError as error:
            raise Unknown(f"OCI runtime {verb} failed: {error}: unknown") from error
