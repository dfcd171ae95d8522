"""The guarantee: what the death of processes of Holdfast cannot take, on this kernel.

    pins           the kernel keeps exits and output: all our processes may die at once
    subreapers     the kernel keeps output; of those who may reap, one must live (before Linux 6.15)
    processes      the kernel keeps nothing, as in a container that may not mount: shims keep it

The fork server finds it out at its start, by trying.
"""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """From the strongest on."""

    PINS = "pins"
    SUBREAPERS = "subreapers"
    PROCESSES = "processes"


PROMISES = {
    Level.PINS: (
        "exit statuses and output outlive every process of Holdfast, also all of them at once"
    ),
    Level.SUBREAPERS: (
        "output outlives every process of Holdfast; an exit status is lost when shim, fork server"
        " and daemon die together and the container ends before they are back"
    ),
    Level.PROCESSES: (
        "exit statuses outlive all but the shim, fork server and daemon together; output that"
        " nobody has read yet goes with its shim"
    ),
}


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What is in force, and why it is not the strongest."""

    level: Level
    reason: str = ""

    def __str__(self) -> str:
        because = f" ({self.reason})" if self.reason else ""
        return f"{self.level}: {PROMISES[self.level]}{because}"
