"""Failpoints: named places between two durable steps, where a test may harm the process.

    failpoints.reach("content.publish.link")        # before an effect: it may yet fail
    os.link(data, target)
    failpoints.passed("content.publish.linked")     # after it: too late to fail, not to die

The environment arms them: HOLDFAST_FAILPOINTS holds rules, divided by commas.

    *=kill@7                          kill -9 of the own process at the 7th point, whatever its name
    content.publish.link=kill         the same at the first point of this name
    storage.*=error:ENOSPC@2+         an OSError at the second point of these names and at all later
    shim:*=delay:0.5                  half a second at every point, in shims alone
    daemon:*=note:/tmp/points         each point's name as a line of a file
    @/tmp/rules                       the rules stand in a file; they are read anew, and all is
                                      counted from the start, whenever it is replaced

Without `@N` an error or a kill comes at the first point that the rule names, a delay or a note at
all. A rule with a program's name holds for that program alone, once it said who it is by `enter`.
A point costs a call and a look at one variable while nothing is armed.

Standard library alone: every program of ours uses this file.
"""

import errno
import fnmatch
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

VARIABLE: Final = "HOLDFAST_FAILPOINTS"


class Deed(StrEnum):
    """What a rule does at its point."""

    KILL = "kill"
    ERROR = "error"
    DELAY = "delay"
    NOTE = "note"


@dataclass(slots=True, kw_only=True)
class Rule:
    """One rule, and how many of its points were reached so far."""

    program: str
    names: str
    deed: Deed
    argument: str = ""
    first: int
    last: int | None
    """None: there is no last one."""
    count: int = 0

    def falls_due(self, program: str, name: str) -> bool:
        """Count a point, if the rule names it; True when the deed is to be done."""
        if self.program not in ("", program) or not fnmatch.fnmatchcase(name, self.names):
            return False
        self.count += 1
        return self.first <= self.count and (self.last is None or self.count <= self.last)


def parse(text: str) -> list[Rule]:
    """The rules of a text; ValueError when it is none."""
    return [_rule(word.strip()) for word in text.replace("\n", ",").split(",") if word.strip()]


def _rule(word: str) -> Rule:
    left, equals, deed = word.partition("=")
    program, colon, names = left.rpartition(":")
    what, at, number = deed.partition("@")
    name, _, argument = what.partition(":")
    if not equals or not names or (colon and not program) or name not in set(Deed):
        raise ValueError(f"failpoint {word!r}: expected [program:]name=deed[:argument][@number]")
    kind = Deed(name)
    if kind is Deed.ERROR and not hasattr(errno, argument):
        raise ValueError(f"failpoint {word!r}: no error {argument!r}")
    if kind is Deed.DELAY:
        float(argument)
    ever = kind in (Deed.DELAY, Deed.NOTE)
    first = int(number.removesuffix("+")) if at else 1
    last = None if number.endswith("+") or (ever and not at) else first
    return Rule(program=program, names=names, deed=kind, argument=argument, first=first, last=last)


@dataclass(slots=True)
class Arming:
    """The rules in force, and where they come from."""

    text: str
    program: str = ""
    rules: Sequence[Rule] = ()
    read_at: tuple[int, int] = (0, 0)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def due(self, name: str) -> list[Rule]:
        """The rules whose deeds are to be done at a point, in their order."""
        with self.lock:
            self._refresh()
            return [rule for rule in self.rules if rule.falls_due(self.program, name)]

    def _refresh(self) -> None:
        if not self.text.startswith("@"):
            if not self.rules:
                self.rules = parse(self.text)
            return
        path = Path(self.text[1:])
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if seen != self.read_at:
                self.rules, self.read_at = parse(path.read_text()), seen
        except FileNotFoundError:
            self.rules, self.read_at = (), (0, 0)


_arming: Arming | None = None


def arm(text: str) -> None:
    """Put these rules in force; "" disarms all. For tests: programs have the environment."""
    global _arming
    if not text:
        _arming = None
        return
    if not text.startswith("@"):
        parse(text)
    _arming = Arming(text, program=_program)


_program = ""


def enter(program: str) -> None:
    """Say which program this process is: at its start, also after a fork. Counts begin anew."""
    global _program
    _program = program
    arm(_arming.text if _arming is not None else "")


def reach(name: str) -> None:
    """A point before an effect: where armed, die, fail with an OSError, wait or note it here."""
    if _arming is not None:
        _do(_arming, name, may_fail=True)


def passed(name: str) -> None:
    """A point after an effect: as `reach`, but it cannot fail any more."""
    if _arming is not None:
        _do(_arming, name, may_fail=False)


def _do(arming: Arming, name: str, *, may_fail: bool) -> None:
    for rule in arming.due(name):
        match rule.deed:
            case Deed.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # the signal may be delivered to another thread first
            case Deed.ERROR:
                if may_fail:
                    number = int(getattr(errno, rule.argument))
                    raise OSError(number, os.strerror(number), name)
            case Deed.DELAY:
                time.sleep(float(rule.argument))
            case Deed.NOTE:
                _note(rule.argument, name)


def _note(path: str, name: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{name}\n".encode())
    finally:
        os.close(descriptor)


# Raises for wrong rules: the program that was to be harmed must not run on unharmed.
arm(os.environ.get(VARIABLE, ""))
