"""The runner: executes the OCI runtime for one container and says how it went.

The runtime is a child of ours and is waited for by the poller, so that others are answered while it
works or hangs; when it is too long about it, it is killed. A first process becomes an orphan and
thereby our child, which may have ended before its pid file is read: then its exit lies among the
unclaimed until somebody claims it. A further process has the runtime as its parent, which waits for
it and ends as it does.

An execution that makes a process is gated: the child, a shell that waits for a word of ours, is
pinned before it may become the runtime. It never runs unpinned, so that whoever comes after us
finds either no pin, and nothing was done, or the pin, which tells the result. To fork ourselves
would cost twice the processor time, for all the memory that we share.

Standard library alone: the fork server preloads this file.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from ..actors import failpoints
from ..actors.errors import Unknown
from . import files, oci, procfs, syscalls
from .pins import Pins
from .poller import Event, Poller

SIGNALS_RESET: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

RELEASED: Final = b"\n"
STATUS_NOT_RELEASED: Final = 125
STATUS_NOT_EXECUTED: Final = 127
SIGNALLED: Final = 128
KILLED_WITHIN_S: Final = 5.0
SHELL: Final = "/bin/sh"
GATE: Final = 'read -r released <&{0} || exit {1}; exec {0}<&-; exec "$@"'
# A shell reads from descriptors of one digit alone; three are the runtime's stdio.
GATES: Final = range(3, 10)
# For kernels that do not tell of a changed file.
LOOK_FIRST_S: Final = 0.02
LOOK_MAX_S: Final = 0.16

Descriptors = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a runtime is to do: its words, given the path of its log, its stdio, its time.

    With a slot it is gated, and `Runner.result` tells a later shim of it.
    """

    runtime: oci.Runtime
    verb: str
    words: Callable[[str], list[str]]
    descriptors: Descriptors
    within_s: float
    slot: str = ""


class Execution:
    """One run of the OCI runtime. `ended` is set when it is over, `wait_status` tells how."""

    def __init__(self, poller: Poller, pid: int, verb: str, log: str) -> None:
        self.pid = pid
        self.log = log
        self.ended = Event(poller)
        self.wait_status = 0
        self._verb = verb

    def failure(self) -> str:
        """Why it failed, once it has ended."""
        return _failure(self._verb, self.log, self.wait_status)


class Runner:
    """`sealed` maps the path of a runtime to a sealed memory file that holds the program."""

    def __init__(self, poller: Poller, bundle: str, sealed: Mapping[str, int], pins: Pins) -> None:
        self.spawns = 0
        self._pins = pins
        self._bundle = bundle
        self._in_flight = 0
        self._poller = poller
        self._sealed = sealed
        self._unclaimed: dict[int, tuple[int, int]] = {}

    async def run(self, command: Command) -> None:
        """Runs a command to its end. Unknown, with the runtime's words, when it fails."""
        execution = self._begin(command)
        await execution.ended
        failpoints.passed(f"shim.{command.verb}.done")
        if execution.wait_status != 0:
            raise Unknown(execution.failure())

    async def run_beside(self, command: Command, pid_file: str) -> Execution:
        """Runs a gated command that goes on for as long as the process that it makes.

        Returns when the pid file tells of that process, which has started then. Its end is that of
        the execution, with the same status: who comes after us learns it from the one pin.
        """
        made = Event(self._poller)

        def look() -> None:
            if read_pid(pid_file):
                made.set()

        def look_again(pause_s: float) -> None:
            look()
            if not made.is_set:
                again_s = min(2 * pause_s, LOOK_MAX_S)
                self._poller.later(pause_s, lambda: look_again(again_s))

        with self._poller.told_of(self._bundle, look):
            execution = self._begin(command, made)
            self._poller.later(LOOK_FIRST_S, lambda: look_again(LOOK_FIRST_S))
            await made
        failpoints.passed(f"shim.{command.verb}.done")
        if not read_pid(pid_file):
            await execution.ended
            raise Unknown(execution.failure())
        return execution

    async def result(self, verb: str, slot: str, within_s: float, pid_file: str = "") -> int | None:
        """Waits for the execution that a dead shim began in a slot; None when it began none.

        With a pid file it is over when that is there. Unknown, as `run` would have raised it, when
        the execution failed. It is killed when it takes longer. Its pidfd, which is the caller's.
        """
        name = f"{slot}.op"
        pidfd = self._pins.open_process(name)
        if pidfd is None and self._pins.told(name) is None:
            return None
        log = self._log(slot)
        try:

            def ended() -> int | None:
                status = procfs.ended(pidfd) if pidfd is not None else None
                told = self._pins.told(name) if status is None else None
                return told[0] if told is not None else status

            def over() -> bool:
                made = bool(pid_file) and read_pid(pid_file) > 0
                # Of a noted one that is gone without a word, nobody will ever tell.
                gone = pidfd is None or syscalls.pidfd_pid(pidfd) <= 0
                return made or ended() is not None or (gone and self._pins.noted(name) is not None)

            if not await self._poller.until(over, within_s) and pidfd is not None:
                procfs.kill(pidfd)
                await self._poller.until(over, KILLED_WITHIN_S)
            if pid_file and read_pid(pid_file):
                return pidfd
            status = ended()
            if status is not None and os.waitstatus_to_exitcode(status) == STATUS_NOT_RELEASED:
                self._pins.drop(name)
                if pidfd is not None:
                    os.close(pidfd)
                return None
            if status:
                raise Unknown(_failure(verb, log, status))
        except BaseException:
            if pidfd is not None:
                os.close(pidfd)
            raise
        finally:
            files.unlink(log)
        return pidfd

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
            await self.run(
                Command(
                    runtime=runtime,
                    verb=words[0],
                    words=lambda log: runtime.command(log, *words),
                    descriptors=(null if stdin is None else stdin, null, null),
                    within_s=within_s,
                )
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

    def _log(self, name: str) -> str:
        return f"{self._bundle}/runtime-{name}.log"

    def _begin(self, command: Command, made: Event | None = None) -> Execution:
        """Starts an execution; its time is over when it has ended, or `made` is set."""
        self.spawns += 1
        log = self._log(command.slot or str(self.spawns))
        failpoints.passed(f"shim.{command.verb}.spawn")
        execute = self._execute_gated if command.slot else self._execute
        pid = execute(command, log)
        failpoints.passed(f"shim.{command.verb}.spawned")
        self._in_flight += made is None
        execution = Execution(self._poller, pid, command.verb, log)

        def expire() -> None:
            if not execution.ended.is_set and (made is None or not made.is_set):
                os.killpg(pid, signal.SIGKILL)

        self._poller.later(command.within_s, expire)
        # At once: the child may be reaped in this very round.
        self._poller.step(self._follow(execution, made))
        return execution

    async def _follow(self, execution: Execution, made: Event | None) -> None:
        execution.wait_status = await self._poller.child(execution.pid)
        execution.ended.set()
        if made is not None:
            made.set()
        self._in_flight -= made is None
        # After the coroutine that waited for this has had its turn.
        self._poller.soon(lambda: self._poller.soon(lambda: self._forget(execution)))

    def _forget(self, execution: Execution) -> None:
        files.unlink(execution.log)
        if not self._in_flight:
            self._unclaimed.clear()

    def _execute_gated(self, command: Command, log: str) -> int:
        words = command.words(log)
        gate, release = os.pipe2(os.O_CLOEXEC)
        try:
            if oci.DETACHED in words:
                pid = self._fork_gated(command, words, log, gate, release)
            else:
                pid = self._spawn_gated(command, words, gate)
            pidfd = os.pidfd_open(pid)
            try:
                self._pins.keep_process(f"{command.slot}.op", pidfd)
            finally:
                os.close(pidfd)
            os.write(release, RELEASED)
        finally:
            os.close(gate)
            os.close(release)
        return pid

    def _spawn_gated(self, command: Command, words: list[str], gate: int) -> int:
        program, actions = self._program(command.runtime), _stdio_actions(command.descriptors)
        sealed = self._sealed.get(command.runtime.program)
        if sealed is not None:
            actions.append((os.POSIX_SPAWN_DUP2, sealed, sealed))  # the shell finds it open
        elif not os.access(program, os.X_OK):
            raise Unknown(f"OCI runtime {command.verb} failed: {program} cannot be executed")
        digit = next(digit for digit in GATES if digit != sealed)
        actions.append((os.POSIX_SPAWN_DUP2, gate, digit))
        script = GATE.format(digit, STATUS_NOT_RELEASED)
        return _spawn(
            command.verb, SHELL, [SHELL, "-c", script, SHELL, program, *words[1:]], actions
        )

    def _fork_gated(
        self, command: Command, words: list[str], log: str, gate: int, release: int
    ) -> int:
        """With a child of our own, which goes on beside the runtime."""
        pid = os.fork()
        if pid == 0:
            os.close(release)
            _wait_and_stand_in(
                gate, self._program(command.runtime), words, command.descriptors, log
            )
        return pid

    def _program(self, runtime: oci.Runtime) -> str:
        sealed = self._sealed.get(runtime.program)
        return runtime.program if sealed is None else f"/proc/self/fd/{sealed}"

    def _execute(self, command: Command, log: str) -> int:
        return _spawn(
            command.verb,
            self._program(command.runtime),
            command.words(log),
            _stdio_actions(command.descriptors),
        )


def _stdio_actions(descriptors: Descriptors) -> list[tuple[int, int, int]]:
    return [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in enumerate(descriptors)]


def _spawn(verb: str, program: str, words: list[str], actions: list[tuple[int, int, int]]) -> int:
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


def _stand_in(program: str, words: list[str]) -> NoReturn:
    """Runs a runtime that detaches, then waits in its place for what it made, and ends as that."""
    # No executable replaces us, so nothing of the shim's closes by itself, its lock among it.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    syscalls.become_subreaper()
    status = os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(program, words, os.environ), 0)[1])
    # What it made is our only child: the processes that follow are that one's.
    for made in procfs.children() if status == 0 else ():
        status = os.waitstatus_to_exitcode(os.waitpid(made, 0)[1])
    os._exit(status if status >= 0 else SIGNALLED - status)


def _failure(verb: str, log: str, wait_status: int) -> str:
    return f"OCI runtime {verb} failed: {oci.failure(log, wait_status)}: unknown"


def read_pid(path: str) -> int:
    """The pid in a pid file; 0, which is no process, when there is none."""
    try:
        return int(files.read(path))
    except (FileNotFoundError, ValueError):
        return 0


def _wait_and_stand_in(
    gate: int, program: str, words: list[str], descriptors: Descriptors, log: str
) -> NoReturn:
    """What the forked child does. When we die before we release it, it ends without a trace."""
    try:
        syscalls.set_name("holdfast-exec")
        signal.set_wakeup_fd(-1)
        os.setpgid(0, 0)
        for number in SIGNALS_RESET:
            if signal.getsignal(number) is not signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.read(gate, len(RELEASED)) != RELEASED:
            os._exit(STATUS_NOT_RELEASED)
        # Copies first: a target may be another's source.
        copies = [os.dup(descriptor) for descriptor in descriptors]
        for theirs, ours in enumerate(copies):
            os.dup2(ours, theirs)
            os.close(ours)
        _stand_in(program, words)
    except BaseException as error:
        with open(log, "a") as lines:
            lines.write(json.dumps({"level": "error", "msg": str(error)}) + "\n")
    finally:
        os._exit(STATUS_NOT_EXECUTED)
