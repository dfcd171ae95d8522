"""`ctr run --log-uri` with files and logging binaries; and nothing lost when all of us die.

What a client sees is the same with Debian's containerd: those tests run against both.
"""

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import running
from examples import busybox_image

from holdfast.chaos.history import History
from holdfast.chaos.lent import LentDaemon, lend
from holdfast.chaos.processes import Role

pytestmark = [pytest.mark.root, pytest.mark.slow]

IMAGE = busybox_image.DEFAULT_NAME
EVERYTHING = (*Role,)
COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); done"
DRIVER = """#!/bin/sh
# A logging binary: its arguments are `out FOLDER`; both streams are copied there.
echo $$ >> $2/pids
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $1 $#" >> $2/told
cat <&4 >> $2/stderr &
printf x >&5
exec 5>&-
cat <&3 >> $2/stdout
wait
"""


@dataclass
class House:
    """A daemon, `ctr` with it, and a folder of logging binaries that it may run."""

    address: str
    base: Path
    lent: LentDaemon | None = None
    names: list[str] = field(default_factory=list[str])

    def raw(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ctr", "--address", self.address, *words],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def ctr(self, *words: str) -> str:
        done = self.raw(*words)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return done.stdout

    def run(self, uri: str, command: str, *flags: str) -> str:
        name = f"l-{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        self.ctr("run", "-d", *flags, "--log-uri", uri, IMAGE, name, "sh", "-c", command)
        return name

    def status(self, name: str) -> str:
        for line in self.ctr("tasks", "ls").splitlines():
            words = line.split()
            if words[0] == name:
                return words[2]
        return "GONE"

    def end(self, name: str) -> None:
        until(lambda: self.status(name) == "STOPPED")
        self.ctr("tasks", "rm", name)

    def folder(self) -> Path:
        made = self.base / uuid.uuid4().hex[:8]
        made.mkdir()
        return made

    def binary(self, folder: Path) -> str:
        return f"binary://{self.base}/loggers/driver?out={folder}"


def until(true: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def numbers(text: bytes) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines()]


def files_of(path: Path) -> list[Path]:
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.suffix[1:]))
    return [*older, path]


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    return False


@pytest.fixture(scope="module", params=["holdfast", "containerd"])
def either(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    base = tmp_path_factory.mktemp(request.param)
    with contextlib.ExitStack() as stack:
        if request.param == "containerd":
            daemon = stack.enter_context(running("containerd", base / "daemon"))
            house = House(str(daemon.socket), base)
        else:
            settings = f'log_binaries = "{base}/loggers"'
            lent = stack.enter_context(lend(History(), {}, settings))
            house = House(lent.address, base, lent)
        (base / "loggers").mkdir()
        driver = base / "loggers" / "driver"
        driver.write_text(DRIVER)
        driver.chmod(0o755)
        busybox_image.build(base / "busybox.tar")
        house.ctr("images", "import", str(base / "busybox.tar"))
        yield house
        for name in house.names:
            house.raw("tasks", "rm", "-f", name)
            house.raw("containers", "rm", name)


@pytest.fixture
def ours(either: House) -> House:
    if either.lent is None:
        pytest.skip("a promise of Holdfast's alone")
    return either


# ---------------------------------------------------------------- as with containerd


def test_a_file_gets_both_streams_and_is_appended_to(either: House) -> None:
    log = either.folder() / "deep" / "log"
    # containerd's shim may lose what is written right before the exit.
    lingering = "" if either.lent else "; sleep 0.5"
    for _ in range(2):
        name = either.run(f"file://{log}", f"echo out; sleep 0.2; echo err >&2{lingering}")
        either.end(name)
    assert log.read_text() == "out\nerr\n" * 2


def test_a_binary_gets_streams_arguments_and_environment(either: House) -> None:
    folder = either.folder()
    name = either.run(either.binary(folder), COUNT.format(2000) + "; echo bad >&2")
    either.end(name)
    until(lambda: (folder / "stderr").read_text() == "bad\n")
    until(lambda: len(numbers((folder / "stdout").read_bytes())) == 2000)
    assert (folder / "told").read_text() == f"default {name} out 2\n"
    [pid] = (folder / "pids").read_text().split()
    until(lambda: not lives(int(pid)))


def test_an_unknown_scheme_is_refused(either: House) -> None:
    done = either.raw("run", "-d", "--log-uri", "https://x/y", IMAGE, "odd", "true")
    either.raw("containers", "rm", "odd")
    assert done.returncode != 0


# ---------------------------------------------------------------- Holdfast's own


def test_a_binary_outside_the_folder_is_refused(ours: House) -> None:
    uri = f"binary://{ours.base}/loggers/../stray"
    for bad in (uri, "binary:///bin/sh"):
        done = ours.raw("run", "-d", "--log-uri", bad, IMAGE, "stray", "true")
        ours.raw("containers", "rm", "stray")
        assert done.returncode != 0
        assert "only programs in" in done.stderr
        assert "log_binaries" in done.stderr


@pytest.mark.parametrize("scheme", ["file", "capped", "binary"])
def test_all_of_us_die_and_no_line_is_lost(ours: House, scheme: str) -> None:
    """Every process of Holdfast, loggers of files included, killed three times while it writes."""
    assert ours.lent is not None
    folder = ours.folder()
    log = folder / "stdout"
    uri = {
        "file": f"file://{log}",
        "capped": f"file://{log}?max-size=64KiB&max-files=1000",
        "binary": ours.binary(folder),
    }[scheme]
    bind = f"type=bind,src={folder},dst=/stop,options=rbind:rw"
    count = "i=0; while [ ! -e /stop/stop ]; do echo line $i; i=$((i+1)); done"
    name = ours.run(uri, count, "--mount", bind)
    for _ in range(3):
        time.sleep(0.4)
        roles = {found.role for found in ours.lent.processes()}
        assert (Role.LOGGER in roles) is (scheme == "capped")
        ours.lent.kill(*EVERYTHING)
        time.sleep(0.2)
        ours.lent.start_again()
        until(lambda: ours.status(name) == "RUNNING")
    (folder / "stop").touch()
    ours.end(name)
    seen = numbers(b"".join(file.read_bytes() for file in files_of(log)))
    assert len(seen) > 1000
    assert seen == list(range(len(seen)))
    if scheme == "binary":
        assert len((folder / "pids").read_text().split()) == 1
    assert not [found for found in ours.lent.processes() if found.role is Role.LOGGER]


def test_a_killed_binary_is_started_anew(ours: House) -> None:
    folder = ours.folder()
    name = ours.run(ours.binary(folder), "sleep 1; echo line 0; sleep 1000")
    first = int((folder / "pids").read_text())
    os.kill(first, 9)
    until(lambda: (folder / "stdout").exists() and (folder / "stdout").read_text() == "line 0\n")
    assert len((folder / "pids").read_text().split()) == 2
    ours.ctr("tasks", "kill", "-s", "SIGKILL", name)
    ours.end(name)
    for pid in (folder / "pids").read_text().split():
        until(lambda: not lives(int(pid)))  # noqa: B023


def test_restarts_log_to_a_binary_too(ours: House) -> None:
    folder = ours.folder()
    label = "containerd.io/restart"
    flags = [
        *("--label", f"{label}.status=running"),
        *("--label", f"{label}.policy=on-failure:2"),
        *("--label", f"{label}.loguri={ours.binary(folder)}"),
    ]
    name = ours.run(ours.binary(folder), "echo line 0; exit 3", *flags)
    until(lambda: (folder / "told").read_text().count(name) == 3)
    until(lambda: (folder / "stdout").read_text() == "line 0\n" * 3)
