"""`ctr` with a daemon, and with two of them at once."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.daemons import Daemon
from examples import busybox_image

BUSYBOX = busybox_image.DEFAULT_NAME


class Ctr:
    """`ctr` with the daemon's address: run it, read its words."""

    def __init__(self, daemon: Daemon, namespace: str = "default") -> None:
        self.daemon = daemon
        self.words = ["ctr", "--address", str(daemon.socket), "--namespace", namespace]

    def run(
        self, *words: str, code: int = 0, stdin: str | None = None, timeout_s: float = 60
    ) -> str:
        """Run a command, check its exit code, give its standard output."""
        done = self.raw(*words, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def raw(
        self, *words: str, stdin: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            check=False,
        )

    def refused(self, *words: str) -> str:
        """Run a command that must fail, give its standard error."""
        done = self.raw(*words)
        assert done.returncode != 0, f"{words} was not refused: {done.stdout}"
        return done.stderr

    def table(self, *words: str) -> list[list[str]]:
        """A printed table as rows of words, its heading first."""
        return [line.split() for line in self.run(*words).splitlines() if line.strip()]


def start(ctr: Ctr, name: str, *words: str, flags: tuple[str, ...] = ()) -> None:
    """Run a container in the background that lives until it is killed."""
    ctr.run("run", "-d", *flags, BUSYBOX, name, *(words or ("sleep", "1000")))


def status(ctr: Ctr, name: str) -> str:
    rows = [row for row in ctr.table("tasks", "ls") if row[0] == name]
    return rows[0][2] if rows else "GONE"


def wait_for(ctr: Ctr, name: str, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while (seen := status(ctr, name)) != wanted:
        assert time.monotonic() < deadline, f"{name} is {seen}, not {wanted}"
        time.sleep(0.05)


CHANGING = (
    (r"\x1b\[[0-9;]*[A-Za-z]", ""),
    (r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z| \+0000 UTC)", "TIME"),
    (r"io\.containerd\.snapshotter\.v1\.(\w+)/snapshots/\d+", r"\1/snapshots/N"),
    (r"(overlayfs|native)/snapshots/\d+", r"\1/snapshots/N"),
    (r"\d+-[A-Za-z0-9_-]{4} ", "UNIQUE "),
)


@dataclass(frozen=True)
class Pair:
    """Holdfast and containerd, which are asked the same."""

    ours: Ctr
    theirs: Ctr

    def __iter__(self) -> Iterator[Ctr]:
        return iter((self.ours, self.theirs))

    def same(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        """Run a command against both: the codes, and what is printed but for what is of one
        moment or one place, must be the same. `@/` in a word is the daemon's own directory.
        What Holdfast printed."""
        said: list[tuple[int, str, str]] = []
        for ctr in self:
            here = [word.replace("@/", f"{ctr.daemon.base}/") for word in words]
            done = ctr.raw(*here, stdin=stdin)
            said.append((done.returncode, plain(ctr, done.stdout), plain(ctr, done.stderr)))
        ours, theirs = said
        assert ours == theirs, f"{words}\nours:   {ours}\ntheirs: {theirs}"
        assert ours[0] == code, (words, ours)
        return ours[1] + ours[2]


def plain(ctr: Ctr, text: str) -> str:
    """What was printed, without what changes from daemon to daemon and moment to moment."""
    text = text.replace(str(ctr.daemon.base), "@")
    for pattern, instead in CHANGING:
        text = re.sub(pattern, instead, text)
    return text


def until(happens: Callable[[], bool]) -> None:
    """Wait for what comes about by itself."""
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)
