"""Programs that are not ours, run to their end: within bounds of time and of what they say."""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from subprocess import PIPE
from typing import Final

import trio

from ..actors.errors import DeadlineExceeded, ResourceExhausted, Unavailable

SAID_MAX: Final = 4 << 20
COMPLAINT_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program ended, and what it said."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def end(self) -> str:
        """How it ended, as Go prints it."""
        return f"exit status {self.status}" if self.status >= 0 else f"signal {-self.status}"

    @property
    def complaint(self) -> str:
        """The end of what it said on stderr, short enough for a refusal."""
        return self.stderr[-COMPLAINT_MAX:].decode(errors="replace").strip()


async def run_program(
    words: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    within_s: float = inf,
) -> Ran:
    """Run a program, in a session of its own, until it has ended and nobody holds its output.

    Unavailable when there is none to run, DeadlineExceeded when it takes longer,
    ResourceExhausted when it says too much; it is killed then with all its process group, as when
    the caller is cancelled.
    """
    stdout, stderr = bytearray(), bytearray()
    run = partial(
        trio.run_process,
        words,
        stdin=stdin,
        stdout=PIPE,
        stderr=PIPE,
        check=False,
        cwd=cwd,
        env=env,
        start_new_session=True,
        deliver_cancel=_kill,
    )
    too_much = False

    async def read(stream: trio.abc.ReceiveStream, said: bytearray) -> None:
        nonlocal too_much
        async with stream:
            async for part in stream:
                said += part
                if len(said) > SAID_MAX:
                    too_much = True
                    nursery.cancel_scope.cancel()

    process: trio.Process | None = None
    with trio.move_on_after(within_s) as time:
        try:
            async with trio.open_nursery() as nursery:
                started: trio.Process = await nursery.start(run)
                process = started
                assert started.stdout is not None
                assert started.stderr is not None
                nursery.start_soon(read, started.stdout, stdout)
                nursery.start_soon(read, started.stderr, stderr)
        except* OSError as group:
            raise Unavailable(f"{words[0]}: {group.exceptions[0]}") from group
    if time.cancelled_caught:
        raise DeadlineExceeded(f"{words[0]}: no end in {within_s:g} s: deadline exceeded")
    if too_much:
        raise ResourceExhausted(f"{words[0]}: it says more than {SAID_MAX} bytes")
    assert process is not None
    assert process.returncode is not None
    return Ran(status=process.returncode, stdout=bytes(stdout), stderr=bytes(stderr))


async def _kill(process: trio.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
