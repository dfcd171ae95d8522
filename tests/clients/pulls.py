"""A daemon, a home with Docker's configuration, and images in a registry: for tests of pulls."""

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import busybox_layers, oci_archive, tar
from bench.daemons import Daemon
from command import Command
from servers import SECRET, USER, Server

from holdfast.storage.descriptor import IMAGE_NAME


@dataclass(frozen=True)
class House:
    """The command with a home of its own, and the images that there are."""

    daemon: Daemon
    holdfast: Command
    base: Path
    environment: Mapping[str, str]

    @property
    def config(self) -> Path:
        return self.base / "docker/config.json"

    def imported(self, raw: bytes) -> str:
        file = self.base / "in.tar"
        file.write_bytes(raw)
        return self.holdfast.run("import", "--no-unpack", str(file)).split()[-1]

    def gone(self) -> None:
        """Nothing is left in the store."""
        if names := self.holdfast.run("images", "-q").split():
            self.holdfast.run("images", "rm", *names)
        # What a pull that came to nothing had brought is held for the next one.
        for lease in self.ctr("leases", "ls", "-q").split():
            self.ctr("leases", "rm", "--sync", lease)
        assert self.holdfast.run("content", "-q") == ""

    def ctr(self, *words: str) -> str:
        command = ["ctr", "--address", str(self.daemon.socket), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def log_in(self, server: Server, *words: str, secret: str = SECRET) -> None:
        given = ("--username", USER, "--password-stdin")
        self.holdfast.run("login", *words, *given, server.authority, stdin=f"{secret}\n")


def home(daemon: Daemon, base: Path) -> House:
    """A user's, with nothing in it."""
    environment = {**os.environ, "DOCKER_CONFIG": str(base / "docker"), "TERM": "xterm"}
    return House(daemon, Command(daemon, environment), base, environment)


def box(*, layers: int = 2, bytes_each: int = 0, **more: object) -> bytes:
    """An archive of busybox with further layers, which nobody has seen before."""
    extra = [
        tar([(f"srv/{number}", os.urandom(bytes_each or 100))]) for number in range(layers - 2)
    ]
    all_layers = [*busybox_layers(), *extra]
    return oci_archive({IMAGE_NAME: "box.example/b:1"}, layers=all_layers, **more)  # type: ignore[arg-type]


def place(server: Server) -> str:
    return f"{server.authority}/{uuid.uuid4().hex[:8]}/box:1"


def pushed(house: House, server: Server, raw: bytes) -> str:
    """Where an image lies that only the registry has."""
    target = place(server)
    house.holdfast.run("push", "-q", house.imported(raw), target)
    house.gone()
    return target
