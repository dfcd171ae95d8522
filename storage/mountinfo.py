"""What is mounted, as the kernel tells it: proc_pid_mountinfo(5). Nothing is asked of the mounts
themselves, of which one may hang."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A mount that stands. `device` is major:minor, `root` what of the filesystem is shown at
    `point`, `words` the filesystem's own options."""

    device: str
    root: str
    point: str
    kind: str
    words: Sequence[str]


def standing_mounts() -> Sequence[Standing]:
    """Every mount that this process sees, in the order in which they were made. Blocks."""
    text = Path("/proc/self/mountinfo").read_bytes().decode(errors="surrogateescape")
    return [_parse(line) for line in text.split("\n") if line]


def _parse(line: str) -> Standing:
    before, _, after = line.partition(" - ")
    _, _, device, root, point, *_ = map(_unescaped, before.split(" "))
    kind, _, options = after.split(" ", 2)
    words = [_unescaped(word) for word in options.split(",")]
    return Standing(device=device, root=root, point=point, kind=kind, words=words)


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
